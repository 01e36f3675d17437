"""Training within a budget: step a tower until another step would not fit, and keep snapshots on the way.

What is spent is known after every step: the gradients that were counted and the work of so many steps, or processor
seconds. A snapshot is taken where it passes equal parts of the budget. The state is saved every few seconds, at the
end, and when an error ends the training early; a killed training goes on from there and finds the same.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from levels.faults import NonFiniteError
from recursion import checkpoint
from recursion.analysis.work import Lived, Work
from recursion.evaluate.observed import Observed
from recursion.study.problems import Met, split
from recursion.study.request import Budget
from recursion.tower import Report, Tower, TowerState

CHECKPOINT = "checkpoint.safetensors"
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
    trajectories: int = 0
    prints: str = ""  # fingerprints of these, in hexadecimal digits; written where it is saved
    ended: str = ""  # why it ended before its budget did
    done: bool = False

    def work(self, lived: Lived) -> Work:
        """Its gradients and work."""
        return Work(self.gradients, lived.start.plus(lived.step, self.steps).optimizer)


def snapshot(tower: Tower, seed: int, folder: Path, step: int) -> TowerState:
    """The state of a step that a training in ``folder`` took a snapshot of; 0 is the start."""
    return tower.init(seed) if step == 0 else checkpoint.load(_path(folder, step), tower).state


def _path(folder: Path, step: int) -> Path:
    return folder / f"snapshot-{step}.safetensors"


class Training:
    """The training of a tower in ``folder``, from where it was left; ``count`` snapshots within ``allowance``.

    ``now`` is the state and what belongs to it. One assignment replaces both, so an interruption within a step leaves
    what was there before the step, whole.
    """

    def __init__(self, tower: Tower, seed: int, folder: Path, allowance: Budget, lived: Lived, count: int) -> None:
        self.tower, self.seed, self.folder, self.lived = tower, seed, folder, lived
        self.allowance, self.in_seconds, self.count = allowance.amount, allowance.unit == "seconds", count
        self.observer = Met()
        self.observed = Tower(Observed(tower.task, self.observer), *tower.levels)
        self.observer.reset()
        if (folder / CHECKPOINT).exists():
            saved = checkpoint.load(folder / CHECKPOINT, tower)
            self.now = saved.state, Trained(**saved.extra)
            self.observer.reset(self.now[1].gradients, split(bytes.fromhex(self.now[1].prints)))
        else:
            state = checkpoint.settled(self.observed.init(seed))
            self.now = state, Trained(gradients=self.observer.gradients, trajectories=len(self.observer.prints))
        self.began = time.process_time() - self.now[1].seconds

    def go(self, tell: Callable[[float], None]) -> Trained:
        """Train to the end; ``tell`` gets the part that is done. NonFiniteError if it ends before any snapshot."""
        saved = time.monotonic()
        try:
            while not self.now[1].done:
                self.now = self._advanced(*self.now)
                tell(min(1.0, self._spent(self.now[1]) / self.allowance))
                if time.monotonic() - saved >= EVERY:
                    self._save()
                    saved = time.monotonic()
        finally:
            self._save()
        return self.now[1]

    def _spent(self, so_far: Trained) -> float:
        """Of the allowance."""
        return so_far.seconds if self.in_seconds else so_far.work(self.lived).total

    def _advanced(self, state: TowerState, before: Trained) -> tuple[TowerState, Trained]:
        """The state after one step; it takes a snapshot if it is time for one."""
        so_far = replace(before, snapshots=[*before.snapshots], points=[*before.points])
        try:
            following, report = self.observed.step(state)
        except NonFiniteError as error:
            if not so_far.snapshots:
                raise
            return state, replace(so_far, ended=str(error), done=True, seconds=time.process_time() - self.began)
        state, so_far.steps = checkpoint.settled(following), report.step
        so_far.gradients, so_far.trajectories = self.observer.gradients, len(self.observer.prints)
        so_far.seconds = time.process_time() - self.began
        _note(so_far, report)
        each = so_far.seconds / so_far.steps if self.in_seconds else self.lived.step.total
        spent, part = self._spent(so_far), (len(so_far.snapshots) + 1) / self.count
        so_far.done = spent + each > self.allowance
        if so_far.done or (part < 1 and spent + each / 2 >= part * self.allowance):
            checkpoint.save(_path(self.folder, so_far.steps), self.tower, state, seed=self.seed)
            so_far.snapshots.append(so_far.steps)
        return state, so_far

    def _save(self) -> None:
        state, so_far = self.now
        so_far.prints = b"".join(self.observer.prints[: so_far.trajectories]).hex()
        checkpoint.save(self.folder / CHECKPOINT, self.tower, state, seed=self.seed, extra=asdict(so_far))


def _note(so_far: Trained, report: Report) -> None:
    """Add a point, and drop every other one where there are too many."""
    if report.step % so_far.stride == 0:
        so_far.points.append([report.step, report.losses])
    if len(so_far.points) > POINTS:
        so_far.stride *= 2
        so_far.points = [point for point in so_far.points if point[0] % so_far.stride == 0]
