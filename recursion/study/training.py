"""Training within a budget: step a tower until another step would not fit, and keep snapshots on the way.

What is spent is known after every step: the gradients that were counted and the work of so many steps, or processor
seconds. A snapshot is taken where it passes equal parts of the budget. The state is saved every few seconds, at the
end, and when an error ends the training early; a killed training goes on from there and finds the same.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from levels.faults import NonFiniteError
from recursion import checkpoint
from recursion.analysis.work import Lived, Work
from recursion.evaluate.observed import Observed
from recursion.study.problems import Diary, Met
from recursion.study.request import Budget
from recursion.tower import Report, Tower, TowerState

DIARY, CHECKPOINT = "problems.bin", "checkpoint.safetensors"
POINTS = 200  # most losses that are kept of a level
EVERY = 10.0  # seconds between two saves


@dataclass
class Trained:
    """How a training went, so far."""

    steps: int = 0
    snapshots: list[int] = field(default_factory=list)  # the steps they were taken at
    gradients: float = 0.0
    seconds: float = 0.0
    points: list[list[Any]] = field(default_factory=list)  # a step and its losses, level 1 first
    stride: int = 1  # steps between points
    prints: int = 0  # fingerprints written down
    ended: str = ""  # why it ended before its budget did
    done: bool = False

    def work(self, lived: Lived) -> Work:
        """Its gradients and work."""
        return Work(self.gradients, lived.start.plus(lived.step, self.steps).optimizer)


def snapshot(tower: Tower, seed: int, folder: Path, step: int) -> TowerState:
    """The state that a training in ``folder`` kept of a step; 0 is the start."""
    return tower.init(seed) if step == 0 else checkpoint.load(_path(folder, step), tower).state


def _path(folder: Path, step: int) -> Path:
    return folder / f"snapshot-{step}.safetensors"


class Training:
    """The training of a tower in ``folder``, from where it was left; ``count`` snapshots within ``allowance``."""

    def __init__(self, tower: Tower, seed: int, folder: Path, allowance: Budget, lived: Lived, count: int) -> None:
        self.tower, self.seed, self.folder, self.lived = tower, seed, folder, lived
        self.allowance, self.in_seconds, self.count = allowance.amount, allowance.unit == "seconds", count
        self.met, self.diary, self.path = Met(), Diary(folder / DIARY), folder / CHECKPOINT
        self.observed = Tower(Observed(tower.task, self.met), *tower.levels)
        self.met.reset()
        if self.path.exists():
            saved = checkpoint.load(self.path, tower)
            self.state, self.so_far = saved.state, Trained(**saved.extra)
            self.met.reset(self.so_far.gradients)
        else:
            self.state, self.so_far = checkpoint.settled(self.observed.init(seed)), Trained()
        self.began = time.process_time() - self.so_far.seconds

    def go(self, tell: Callable[[float], None]) -> Trained:
        """Train to the end; ``tell`` gets the part that is done. NonFiniteError if it ends before any snapshot."""
        so_far, saved = self.so_far, time.monotonic()
        if so_far.done:
            return so_far
        try:
            while not so_far.done:
                self._advance()
                tell(min(1.0, self.spent / self.allowance))
                if time.monotonic() - saved >= EVERY:
                    self._save()
                    saved = time.monotonic()
        finally:
            self._save()
        return so_far

    @property
    def spent(self) -> float:
        """Of the allowance."""
        work = self.so_far.work(self.lived)._replace(gradients=self.met.gradients)
        return self.so_far.seconds if self.in_seconds else work.total

    def _advance(self) -> None:
        """One step, and a snapshot if it is time for one."""
        so_far, before = self.so_far, self.met.gradients
        try:
            state, report = self.observed.step(self.state)
        except NonFiniteError as error:
            self.met.gradients = before
            if not so_far.snapshots:
                raise
            so_far.ended, so_far.done = str(error), True
            return
        self.state, so_far.steps = checkpoint.settled(state), report.step
        so_far.seconds = time.process_time() - self.began
        self._note(report)
        each = so_far.seconds / so_far.steps if self.in_seconds else self.lived.step.total
        so_far.done = self.spent + each > self.allowance
        part = (len(so_far.snapshots) + 1) / self.count
        if so_far.done or (part < 1 and self.spent + each / 2 >= part * self.allowance):
            checkpoint.save(_path(self.folder, so_far.steps), self.tower, self.state, seed=self.seed)
            so_far.snapshots.append(so_far.steps)

    def _note(self, report: Report) -> None:
        """Keep a point, and fewer of them where there are too many."""
        so_far = self.so_far
        if report.step % so_far.stride == 0:
            so_far.points.append([report.step, report.losses])
        if len(so_far.points) > POINTS:
            so_far.stride *= 2
            so_far.points = [point for point in so_far.points if point[0] % so_far.stride == 0]

    def _save(self) -> None:
        """Fingerprints first: those without their state are cut off later, a state without its fingerprints is not."""
        so_far = self.so_far
        self.diary.append(self.met.prints, after=so_far.prints)
        so_far.prints += len(self.met.prints)
        so_far.gradients, so_far.seconds = self.met.gradients, time.process_time() - self.began
        self.met.reset(self.met.gradients)
        checkpoint.save(self.path, self.tower, self.state, seed=self.seed, extra=asdict(so_far))
