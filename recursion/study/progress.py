"""How far a study is, on a stream for people: bars with time left on a terminal, elsewhere a line now and then.

The time left is what rich estimates from the speed of all runs together, each of which counts as far as it is.
"""

from collections import Counter
from collections.abc import Mapping
from math import fsum
from typing import TextIO

from rich.progress import TaskProgressColumn, TextColumn
from rich.text import Text

from recursion.progress import Display
from recursion.study.pool import Event

LINES = 20  # over a whole study
SPEED = 3600.0  # seconds of the past that the speed is estimated from
ENDS = ("done", "failed")


class Board(Display):
    """The runs of a study; a context manager, and called with each event. ``status``: of each run, by its id."""

    def __init__(self, status: Mapping[str, str], stream: TextIO) -> None:
        super().__init__(stream, TaskProgressColumn(), TextColumn("{task.description}"), total=len(status))
        self.progress.speed_estimate_period = SPEED
        self.status = dict(status)
        self.fraction = {run: float(each in ENDS) for run, each in status.items()}  # of each run that is done
        self.under_way = {run: self.progress.add_task(run, total=1.0, visible=False, status="") for run in status}
        self.progress.update(self.bar, completed=fsum(self.fraction.values()), description="all runs")
        self.last = self._place()

    def __call__(self, event: Event) -> None:
        run, ends = event.run.id, event.kind in ENDS
        self.status[run] = event.kind if ends else "running"
        self.fraction[run] = 1.0 if ends else event.fraction
        self.progress.update(self.under_way[run], completed=event.fraction, visible=not ends, status=event.what)
        self.progress.update(self.bar, completed=fsum(self.fraction.values()), status=self.counts())
        if event.kind == "failed":
            self._write(f"{run} failed: {event.what}")
        if not self.terminal and (self._place() > self.last or all(each in ENDS for each in self.status.values())):
            left = self.progress.tasks[0].time_remaining
            self._write(self.counts() + (f", about {duration(left)} left" if left else ""))
        self.last = max(self.last, self._place())

    def counts(self) -> str:
        """``12 of 25 runs done, 1 failed, 2 under way (40%, 7%)``."""
        counts = Counter(self.status.values())
        going = [f"{100 * self.fraction[run]:.0f}%" for run, each in self.status.items() if each == "running"]
        parts = [f"{counts['done']} of {len(self.status)} runs done"]
        parts += [f"{counts['failed']} failed"] if counts["failed"] else []
        return ", ".join(parts + ([f"{len(going)} under way ({', '.join(going)})"] if going else []))

    def _place(self) -> int:
        return int(fsum(self.fraction.values()) * LINES / max(1, len(self.status)) + 1e-9)

    def _write(self, line: str) -> None:
        if self.terminal:
            self.progress.console.print(Text(line, style="red"))
        else:
            self.stream.write(f"{line}\n")
            self.stream.flush()


def duration(seconds: float) -> str:
    """A time in words, roughly."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 6000 else f"{seconds / 3600:.1f} hours"
