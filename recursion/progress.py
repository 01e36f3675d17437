"""How far a run is, on a stream for people: a bar with time left on a terminal, elsewhere a line now and then."""

import math
import sys
import time
from collections.abc import Mapping
from importlib.util import find_spec
from types import TracebackType
from typing import Self, TextIO

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from recursion.reports import Report
from recursion.tower import Tower

LINES = 10  # over a whole run


class Display:
    """Shows work that is under way; a context manager."""

    def __init__(self, stream: TextIO, *columns: ProgressColumn, total: float) -> None:
        text, left = TextColumn("{task.fields[status]}", markup=False), TimeRemainingColumn(elapsed_when_finished=True)
        self.stream, self.console = stream, Console(file=stream)
        self.terminal = stream.isatty() or (self.console.is_jupyter and find_spec("ipywidgets") is not None)
        self.progress = Progress(BarColumn(), *columns, left, text, console=self.console)
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
        self.first: Report | None = None  # a resumed run starts in the middle; the past says nothing about speed
        self.last: Report | None = None

    def __call__(self, report: Report) -> None:
        done = report.step
        if self.first is None:
            self.first = report
            self.progress.reset(self.bar, completed=done - 1)
        self.last = report
        if self.terminal:
            self.progress.update(self.bar, completed=done, status=status(report))
        elif done * LINES // self.steps > (done - 1) * LINES // self.steps:
            pace = (time.monotonic() - self.began) / (done - self.first.step + 1)
            left = math.ceil(pace * (self.steps - done))
            self.stream.write(f"step {done} of {self.steps}, {left} s left, {status(report)}\n")
            self.stream.flush()

    def print_table(self, tower: Tower, numbers: Mapping[str, float]) -> None:
        """What each level is, how its loss moved in this session, and its ``numbers`` (``level 1 lr``) at the end."""
        if self.first is None or self.last is None:
            return
        steps = f"steps {self.first.step} to {self.last.step}"
        table = Table(title=f"{escape(str(tower))}: {steps}", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
        for name in ("level", "loss below it", "at the end"):
            table.add_column(name)
        for number, (level, *losses) in enumerate(zip(tower.levels, self.first.losses, self.last.losses), 1):
            own = {name.removeprefix(f"level {number} "): value for name, value in numbers.items()
                   if name.startswith(f"level {number} ")}  # fmt: skip
            shown = ", ".join(f"{name} {value:.3g}" for name, value in own.items())
            table.add_row(escape(f"{number}: {level}"), "{:.3g} to {:.3g}".format(*losses), escape(shown))
        self.console.print(table)


class Stages(Display):
    """Named work of which a fraction is done: a bar on a terminal, elsewhere nothing."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream, total=1.0)

    def __call__(self, what: str, fraction: float) -> None:
        self.progress.update(self.bar, completed=fraction, status=what)


def note(text: str) -> None:
    """A sentence that a user should read, on stderr."""
    sys.stderr.write(f"tower: {text}\n")


def status(report: Report) -> str:
    """Losses, level 1 first, and skipped copies if there are any: ``losses 0.41 9.2, skipped 0 3``."""
    text = "losses " + " ".join(f"{loss:.3g}" for loss in report.losses)
    return text + (", skipped " + " ".join(map(str, report.skipped)) if any(report.skipped) else "")
