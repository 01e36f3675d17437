"""Overview: how far an ablation is, for people: a live table on a terminal, elsewhere a line now and then.

Time left is estimated from the runs that finished, those of the same cell first, and from how fast the others go.
"""

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from statistics import fmean
from types import TracebackType
from typing import Protocol, Self, TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from recursion.study.pool import Event, Failed, Finished, Progress, Started
from recursion.study.request import Run
from recursion.study.store import Record

LINES = 20  # over a whole ablation
MARKS = {"waiting": ("·", "dim"), "running": ("▸", "cyan"), "done": ("✓", "green"), "failed": ("✗", "bold red")}


class Overview(Protocol):
    """Shows what happens in an ablation; a context manager."""

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None: ...

    def __call__(self, event: Event) -> None: ...


def overview(records: Sequence[Record], size: int, stream: TextIO) -> Overview:
    """A `Board` if ``stream`` is a terminal, else `Lines`. ``size``: runs at a time."""
    course = Course(records, size)
    return Board(course, stream) if stream.isatty() else Lines(course, stream)


class Course:
    """How all runs stand, and how long the rest will take."""

    def __init__(self, records: Sequence[Record], size: int) -> None:
        self.runs = [record.run for record in records]
        self.status: dict[str, str] = {record.run.id: record.status for record in records}
        self.size = size
        self.at: dict[str, tuple[str, float]] = {}  # what each running run is at
        self._since: dict[str, tuple[float, float]] = {}  # when this session saw it first move, and where it was
        self._took: dict[str, list[float]] = {}  # by cell
        for record in records:
            if record.about.get("seconds") is not None:
                self._took.setdefault(record.run.cell, []).append(record.about["seconds"])

    def take(self, event: Event) -> None:
        """Note what happened."""
        run, now = event.run, time.monotonic()
        if isinstance(event, Started):
            self.status[run.id], self.at[run.id] = "running", ("starts", 0.0)
        elif isinstance(event, Progress):
            self._since.setdefault(run.id, (now, event.fraction))
            self.at[run.id] = (event.what, event.fraction)
        else:
            self.status[run.id] = "done" if isinstance(event, Finished) else "failed"
            self.at.pop(run.id, None)
            began, before = self._since.pop(run.id, (now, 1.0))
            if isinstance(event, Finished) and before < 0.5:  # most of it was seen
                self._took.setdefault(run.cell, []).append((now - began) / (1 - before))

    @property
    def counts(self) -> Counter[str]:
        """Runs by status."""
        return Counter(self.status.values())

    @property
    def ended(self) -> float:
        """Runs that have ended, and the parts of those that have not."""
        counts = self.counts
        return counts["done"] + counts["failed"] + sum(fraction for _, fraction in self.at.values())

    @property
    def going_on(self) -> bool:
        """Whether there are runs that have not ended."""
        counts = self.counts
        return bool(counts["waiting"] or counts["running"])

    def left(self) -> float | None:
        """Seconds until all runs have ended; None if nothing can be said yet."""
        going = [self._rest(run) for run in self.runs if self.status[run.id] == "running"]
        known = [rest for rest in going if rest is not None]
        waiting = [self._whole(run) for run in self.runs if self.status[run.id] == "waiting"]
        if not (known or self._took) or None in waiting:
            return 0.0 if not going and not waiting else None
        guess = fmean(known) if known else 0.0
        total = sum(guess if rest is None else rest for rest in going) + sum(whole for whole in waiting if whole)
        return max(total / self.size, *known, 0.0)

    def _whole(self, run: Run) -> float | None:
        """Seconds of a whole run: as its cell took, or others did, or as those under way seem to take."""
        took = self._took.get(run.cell) or [seconds for cell in self._took.values() for seconds in cell]
        took = took or [whole for key in self.at if (whole := self._pace(key)) is not None]
        return fmean(took) if took else None

    def _rest(self, run: Run) -> float | None:
        """Seconds left of a run under way."""
        _, fraction = self.at[run.id]
        whole = fmean(self._took[run.cell]) if run.cell in self._took else self._pace(run.id) or self._whole(run)
        return None if whole is None else (1 - fraction) * whole

    def _pace(self, key: str) -> float | None:
        """Seconds of a whole run at the pace of this one; None if it has hardly moved."""
        since, before = self._since.get(key, (0.0, 1.0))
        moved = self.at[key][1] - before
        return (time.monotonic() - since) / moved if moved > 0.02 else None


class Board:
    """The live table: cells by seeds, and what each worker is at."""

    def __init__(self, course: Course, stream: TextIO) -> None:
        self.course = course
        console = Console(file=stream)
        self.live = Live(console=console, get_renderable=self.render, refresh_per_second=4)

    def __enter__(self) -> Self:
        self.live.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.live.stop()

    def __call__(self, event: Event) -> None:
        self.course.take(event)
        if isinstance(event, Failed):
            self.live.console.print(Text(f"{event.run.id} failed: {event.why}", style="red"))

    def render(self) -> RenderableType:
        """The table as it stands; what is most asked for stands on top, where a small terminal still shows it."""
        course = self.course
        going = Table.grid(padding=(0, 2))
        for key, (what, fraction) in sorted(course.at.items()):
            going.add_row(Text(key, style="cyan"), f"{100 * fraction:3.0f}%", Text(what))
        cells = Table.grid(padding=(0, 2))
        for cell in dict.fromkeys(run.cell for run in course.runs):
            marks = [MARKS[course.status[run.id]] for run in course.runs if run.cell == cell]
            cells.add_row(Text(cell), Text.assemble(*marks))
        return Group(Text(said(course), style="bold"), going, cells)


class Lines:
    """About twenty lines over an ablation, and one for each run that fails."""

    def __init__(self, course: Course, stream: TextIO) -> None:
        self.course, self.stream = course, stream
        self.last = self._place()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        return None

    def __call__(self, event: Event) -> None:
        self.course.take(event)
        if isinstance(event, Failed):
            self._write(f"{event.run.id} failed: {event.why}")
        if self._place() > self.last or not self.course.going_on:
            self.last = self._place()
            self._write(said(self.course))

    def _place(self) -> int:
        return int(self.course.ended * LINES / max(1, len(self.course.runs)) + 1e-9)

    def _write(self, line: str) -> None:
        self.stream.write(f"{line}\n")
        self.stream.flush()


def said(course: Course) -> str:
    """``12 of 25 runs done, 1 failed, 2 under way, about 6 minutes left``."""
    counts, left = course.counts, course.left()
    parts = [f"{counts['done']} of {len(course.runs)} runs done"]
    parts += [f"{counts['failed']} failed"] if counts["failed"] else []
    parts += [f"{counts['running']} under way ({_percents(course.at.values())})"] if course.at else []
    parts += [f"about {duration(left)} left"] if left else []
    return ", ".join(parts)


def duration(seconds: float) -> str:
    """A time in words, roughly."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 6000 else f"{seconds / 3600:.1f} hours"


def _percents(at: Iterable[tuple[str, float]]) -> str:
    return ", ".join(f"{100 * fraction:.0f}%" for _, fraction in at)
