"""How far a run is, on a stream for people: a bar with time left on a terminal, elsewhere a line now and then."""

import math
import time
from types import TracebackType
from typing import Protocol, Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn

from recursion.tower import Report

LINES = 10  # over a whole run


class Display(Protocol):
    """Shows reports of a run of a known number of steps; a context manager."""

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None: ...

    def __call__(self, report: Report) -> None: ...


def display(steps: int, stream: TextIO) -> Display:
    """A `Bar` if ``stream`` is a terminal, else `Lines`."""
    return Bar(steps, stream) if stream.isatty() else Lines(steps, stream)


class Bar:
    """A progress bar: steps, time left, the current losses, skipped copies if there are any."""

    def __init__(self, steps: int, stream: TextIO) -> None:
        self.progress = _progress(stream, MofNCompleteColumn())
        self.bar = self.progress.add_task("train", total=steps, start=False, status="")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.progress.stop()

    def __call__(self, report: Report) -> None:
        if not self.progress.live.is_started:  # a resumed run starts in the middle; the past says nothing about speed
            self.progress.reset(self.bar, completed=report.step - 1)
            self.progress.start()
        self.progress.update(self.bar, completed=report.step, status=status(report))


class Lines:
    """About ten lines over a run, the last one at its end."""

    def __init__(self, steps: int, stream: TextIO) -> None:
        self.steps, self.stream = steps, stream
        self.before, self.began = -1, 0.0

    def __enter__(self) -> Self:
        self.began = time.monotonic()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        return None

    def __call__(self, report: Report) -> None:
        done = report.step
        self.before = done - 1 if self.before < 0 else self.before
        if done * LINES // self.steps > (done - 1) * LINES // self.steps:
            pace = (time.monotonic() - self.began) / (done - self.before)
            left = math.ceil(pace * (self.steps - done))
            self.stream.write(f"step {done} of {self.steps}, {left} s left, {status(report)}\n")
            self.stream.flush()


class Stages:
    """Named work with a fraction that is done: a bar on a terminal, elsewhere nothing; a context manager."""

    def __init__(self, stream: TextIO) -> None:
        self.progress = _progress(stream)
        self.bar = self.progress.add_task("evaluate", total=1.0, status="")
        self.shown = stream.isatty()

    def __enter__(self) -> Self:
        if self.shown:
            self.progress.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.progress.stop()

    def __call__(self, what: str, fraction: float) -> None:
        self.progress.update(self.bar, completed=fraction, status=what)


def _progress(stream: TextIO, *columns: ProgressColumn) -> Progress:
    text = TextColumn("{task.fields[status]}", markup=False)
    left = TimeRemainingColumn(elapsed_when_finished=True)
    return Progress(BarColumn(), *columns, left, text, console=Console(file=stream))


def status(report: Report) -> str:
    """Losses, level 1 first, and skipped copies if there are any: ``losses 0.41 9.2, skipped 0 3``."""
    text = "losses " + " ".join(f"{loss:.3g}" for loss in report.losses)
    return text + (", skipped " + " ".join(map(str, report.skipped)) if any(report.skipped) else "")
