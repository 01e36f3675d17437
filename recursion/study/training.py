"""Training within a budget: step a tower until another step would not fit, keep snapshots on the way.

What is spent is known after every step: the gradients that were counted and the work of so many steps, or processor
seconds. Snapshots come where it passes equal parts of the budget. The state is saved by the clock, at the end, and
when something ends the training early; who is killed goes on from there and comes to the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from levels.nonfinite import NonFiniteError
from recursion import checkpoint
from recursion.observed import Observed
from recursion.study.problems import Diary, Met
from recursion.tower import Report, Tower, TowerState
from recursion.work import Lived, Work

DIARY = "problems.bin"
POINTS = 200  # most losses that are kept of a level
Tell = Callable[[str, float], None]


@dataclass(frozen=True)
class Allowance:
    """What a training may spend, in base steps or in seconds of the processor."""

    amount: float
    in_seconds: bool


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
        """What it came to."""
        return Work(self.gradients, lived.start.plus(lived.step, self.steps).optimizer)


def snapshot(tower: Tower, seed: int, folder: Path, step: int) -> TowerState:
    """The state that a training in ``folder`` kept of a step; 0 is the start."""
    return tower.init(seed) if step == 0 else checkpoint.load(_kept(folder, step), tower).state


def _kept(folder: Path, step: int) -> Path:
    return folder / f"snapshot-{step}.safetensors"


class Training:
    """The training of a tower in ``folder``, from where it was left."""

    def __init__(self, tower: Tower, seed: int, folder: Path, allowance: Allowance, lived: Lived, count: int) -> None:
        self.tower, self.seed, self.folder, self.lived = tower, seed, folder, lived
        self.allowance, self.count = allowance, count
        self.met, self.diary = Met(), Diary(folder / DIARY)
        self.observed = Tower(Observed(tower.task, self.met), *tower.levels)
        self.path = folder / "checkpoint.safetensors"
        self.state, self.so_far = self._begin()
        self.diary.cut(self.so_far.prints)
        self.began = time.process_time() - self.so_far.seconds

    def go(self, tell: Tell, *, every: float = 10.0) -> Trained:
        """Train to the end; saves every ``every`` seconds. NonFiniteError if nothing came of it."""
        so_far, saved = self.so_far, time.monotonic()
        if so_far.done:
            return so_far
        try:
            while not so_far.done:
                self._advance()
                tell("training", min(1.0, self.spent / self.allowance.amount))
                if time.monotonic() - saved >= every:
                    self._save()
                    saved = time.monotonic()
        finally:
            self._save()
        return so_far

    @property
    def spent(self) -> float:
        """Of the allowance."""
        if self.allowance.in_seconds:
            return self.so_far.seconds
        return self.so_far.work(self.lived)._replace(gradients=self.met.gradients).total

    def _begin(self) -> tuple[TowerState, Trained]:
        self.met.gradients, self.met.prints = 0.0, []  # laying levels over a task may have asked it
        if not self.path.exists():
            return checkpoint.settled(self.observed.init(self.seed)), Trained()
        saved = checkpoint.load(self.path, self.tower)
        so_far = Trained(**saved.extra)
        self.met.gradients = so_far.gradients
        return saved.state, so_far

    def _advance(self) -> None:
        """One step, and what follows from it."""
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
        so_far.done = self.spent + self._each > self.allowance.amount
        part = (len(so_far.snapshots) + 1) / self.count
        if so_far.done or (part < 1 and self.spent + self._each / 2 >= part * self.allowance.amount):
            checkpoint.save(_kept(self.folder, so_far.steps), self.tower, self.state, seed=self.seed)
            so_far.snapshots.append(so_far.steps)

    @property
    def _each(self) -> float:
        """What a step costs."""
        return self.so_far.seconds / self.so_far.steps if self.allowance.in_seconds else self.lived.step.total

    def _note(self, report: Report) -> None:
        """Keep a point, and fewer of them where there are too many."""
        so_far = self.so_far
        if report.step % so_far.stride == 0:
            so_far.points.append([report.step, report.losses])
        if len(so_far.points) > POINTS:
            so_far.stride *= 2
            so_far.points = [point for point in so_far.points if point[0] % so_far.stride == 0]

    def _save(self) -> None:
        """What was met first: a fingerprint without its state is cut off, a state without its fingerprints is not."""
        self.diary.append(self.met.prints)
        self.so_far.prints += len(self.met.prints)
        self.met.prints = []
        self.so_far.gradients = self.met.gradients
        self.so_far.seconds = time.process_time() - self.began
        checkpoint.save(self.path, self.tower, self.state, seed=self.seed, extra=asdict(self.so_far))
