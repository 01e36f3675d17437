"""What each stage of a run costs, and what of it is each level's.

`recursion.evaluate.observed` counts the gradients of the task, `recursion.analysis.work` says what windows and updates
of an optimizer cost; both in base steps. Seconds are the processor's. A level's share of the seconds of a training, and
the bytes that it holds in a window beside those of the window below it, are measured on one top step.
"""

import resource
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from recursion.analysis.memory import LiveBytes
from recursion.analysis.metering import Operations, Pass, measure
from recursion.analysis.work import NOTHING, Work, windows_of
from recursion.tower import Tower

Row = list[Any]  # stage, split, level, problem, step, measure, value
LOOKS = 5  # most top steps that seconds are measured on
ENOUGH = 200  # base steps in all of these, where fewer looks do


def row(
    stage: str, measure: str, value: float, *, split: str | None = None, level: int | None = None,
    problem: int | None = None, step: int | None = None,
) -> Row:  # fmt: skip
    """A measurement as it is stored."""
    return [stage, split, level, problem, step, measure, float(value)]


class Ledger:
    """Work and processor seconds by stage."""

    def __init__(self) -> None:
        self.work: dict[str, Work] = {}
        self.seconds: dict[str, float] = {}

    def add(self, stage: str, work: Work, seconds: float) -> None:
        """Charge a stage."""
        self.work[stage] = self.work.get(stage, NOTHING).plus(work)
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds

    def spent(self, *stages: str) -> float:
        """Base steps of these stages, gradients and work."""
        return sum(self.work.get(stage, NOTHING).total for stage in stages)

    def rows(self) -> Iterator[Row]:
        """The task gradients, the work of each level and the seconds of each stage."""
        for stage, work in self.work.items():
            yield row(stage, "task gradients", work.gradients, level=0)
            yield from (row(stage, "optimizer work", own, level=i) for i, own in enumerate(work.optimizer, 1))
            yield row(stage, "seconds", self.seconds[stage])


def profile(tower: Tower) -> dict[str, list[float]]:
    """What one top step shows, as plain data.

    ``work``: `own_work`. ``shares``: of the seconds of a training, the task's first and then each level's. ``bytes``:
    of each level's tensors in a window, without those of the window below.
    """
    operations, live = Operations(), LiveBytes()
    looks = min(LOOKS, max(1, round(ENOUGH / tower.base_steps)))
    counted = Pass(_both(live, operations), lambda: operations.count, live)
    first, *timed = measure(tower, counted, *[Pass(nullcontext(), time.process_time)] * looks)
    seconds = [statistics.median(each) for each in zip(*(look.own for look in timed))]
    parts = [count * each for count, each in zip(windows_of(tower, restarts=True)[1], seconds)]
    shares = [part / (sum(parts) or 1.0) for part in parts]
    return {"work": list(first.work(tower)), "shares": shares, "bytes": [float(peak) for peak in first.peaks[1:]]}


def process_peak() -> float:
    """Most bytes that this process ever had in memory."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


@contextmanager
def _both(live: LiveBytes, operations: Operations) -> Iterator[None]:
    with live, operations:
        yield
