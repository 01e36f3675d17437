"""How far a run is, on a stream for people: a bar with time left on a terminal, elsewhere a line now and then."""

import math
import time
from types import TracebackType
from typing import Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn

from recursion.reports import Report

LINES = 10  # over a whole run


class Display:
    """Shows work that is under way; a context manager."""

    def __init__(self, stream: TextIO, *columns: ProgressColumn, total: float) -> None:
        text, left = TextColumn("{task.fields[status]}", markup=False), TimeRemainingColumn(elapsed_when_finished=True)
        self.stream, self.terminal = stream, stream.isatty()
        self.progress = Progress(BarColumn(), *columns, left, text, console=Console(file=stream))
        self.bar = self.progress.add_task("", total=total, status="")

    def __enter__(self) -> Self:
        if self.terminal:
            self.progress.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.terminal:
            self.progress.stop()


class Steps(Display):
    """Reports of a run of ``steps`` steps: a bar with the losses, or about ten lines, the last one at the end."""

    def __init__(self, steps: int, stream: TextIO) -> None:
        super().__init__(stream, MofNCompleteColumn(), total=steps)
        self.steps, self.began = steps, time.monotonic()
        self.before: int | None = None  # a resumed run starts in the middle; the past says nothing about speed

    def __call__(self, report: Report) -> None:
        done = report.step
        if self.before is None:
            self.before = done - 1
            self.progress.reset(self.bar, completed=self.before)
        if self.terminal:
            self.progress.update(self.bar, completed=done, status=status(report))
        elif done * LINES // self.steps > (done - 1) * LINES // self.steps:
            pace = (time.monotonic() - self.began) / (done - self.before)
            left = math.ceil(pace * (self.steps - done))
            self.stream.write(f"step {done} of {self.steps}, {left} s left, {status(report)}\n")
            self.stream.flush()


class Stages(Display):
    """Named work of which a fraction is done: a bar on a terminal, elsewhere nothing."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream, total=1.0)

    def __call__(self, what: str, fraction: float) -> None:
        self.progress.update(self.bar, completed=fraction, status=what)


def status(report: Report) -> str:
    """Losses, level 1 first, and skipped copies if there are any: ``losses 0.41 9.2, skipped 0 3``."""
    text = "losses " + " ".join(f"{loss:.3g}" for loss in report.losses)
    return text + (", skipped " + " ".join(map(str, report.skipped)) if any(report.skipped) else "")
