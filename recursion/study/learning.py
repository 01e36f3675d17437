"""A run whose tower learns an optimizer: train it, put snapshots to work, choose one, report it.

From depth 3 on a snapshot is a trainer, which `deploy.learned` puts to work on a fresh tower below. The budget pays for
start-up, training, the deployment of each snapshot and its use on the problems to select by. Where deployment and
selection would take more than half of it, fewer snapshots are compared, at least the last. What a start is worth,
before any training, is found for the report and charged to it.

A tower is stepped until another step would not fit. What is spent is known after every step: the gradients that were
counted and the work of so many steps, or processor seconds. A snapshot is taken where it passes equal parts of the
budget. The state is saved every few seconds, at the end, and when an error ends the training early; a killed training
goes on from there and finds the same.
"""

import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from levels.faults import NonFiniteError
from recursion import checkpoint
from recursion.analysis.metering import LiveBytes, Operations, Pass, measure
from recursion.analysis.work import NOTHING, Lived, Work, lived_work, own_work_under, windows_of
from recursion.evaluation import deploy
from recursion.evaluation.baselines import mean_loss
from recursion.evaluation.observed import Observed, Tally
from recursion.study.bench import LEARNING, Bench, Row, finite, row
from recursion.study.problems import Met
from recursion.study.request import Budget, Run
from recursion.tower import Tower, TowerState

SHARE = 0.5  # most of a budget that selection and deployment may take, if more than one snapshot is compared
LOOKS = 5  # most top steps that seconds are measured on
ENOUGH = 200  # base steps in all of these, where fewer looks do
CHECKPOINT, SNAPSHOT = "checkpoint.safetensors", "snapshot-{}.safetensors"  # of a step
POINTS = 200  # most losses that are kept of a level
EVERY = 10.0  # seconds between two saves


class Learning:
    """A tower that learns an optimizer."""

    def __init__(self, run: Run, tower: Tower, bench: Bench) -> None:
        self.run, self.tower, self.bench, self.request = run, tower, bench, bench.request
        self.folder, self.optimizer = bench.store.folder, tower.levels[0].optimizer
        self.profile = bench.store.numbers("profile", lambda: profile(tower))
        own = tuple(self.profile["work"])
        self.lived = lived_work(tower, own)
        self.deployment = deployment(tower, own, self.request.windows, bench.work_of(self.optimizer))
        self.deployed: set[int] = set()  # fingerprints of the problems that snapshots were put to work on

    def perform(self) -> tuple[list[Row], dict[str, Any]]:
        """Train, choose, report."""
        bench, (count, allowance) = self.bench, self._plan()
        share = LEARNING * allowance.amount / self.request.budget.amount
        training = bench.store.numbers("trained", lambda: asdict(
            Training(self.tower, self.run.seed, self.folder, allowance, self.lived, count)
            .go(lambda fraction: bench.tell("training", share * fraction))
        ))  # fmt: skip
        trained = Trained(**training)
        bench.book("training", trained.work(self.lived), trained.seconds)
        scores = {step: self._score(step) for step in trained.snapshots}
        best = min(scores, key=lambda step: scores[step])
        start, params = self._learner(0, "reporting"), self._learner(best, "deployment")
        if params is None:
            what = "what each snapshot trains is not finite, so none could be put to work"
            raise NonFiniteError(self.tower.top, what, "train with smaller steps")
        rows = [row("snapshot", "mean loss", value, split="select", step=step) for step, value in scores.items()]
        rows += [*self._training_rows(trained), row("chosen", "chosen", 1.0, step=best)]
        if start is not None:
            rows += bench.reported("start", "start", self.optimizer, start)
        rows += bench.reported("chosen", f"snapshot {best}", self.optimizer, params)
        guard, guarded = bench.guarded(self.optimizer, params)
        rows += [*guarded, *bench.use_rows(self.optimizer, params, {*trained.fingerprints, *self.deployed})]
        facts = {"steps": trained.steps, "chosen": best, "setting": repr(self.optimizer), "guard": repr(guard)}
        facts |= {"snapshots": trained.snapshots, "ended": trained.ended, "work of a step": self.lived.step.total}
        return rows, facts

    def _plan(self) -> tuple[int, Budget]:
        """How many snapshots are compared, and what is left for training. ValueError if it is too little."""
        budget, wanted = self.request.budget, self.request.snapshots
        if budget.unit == "seconds":
            return wanted, budget
        learners = math.prod(level.copies for level in self.tower.bound[1:])  # of each snapshot
        each = self.deployment.total + self.bench.cost(self.optimizer, "select", learners).total
        count = min(wanted, max(1, int(SHARE * budget.amount / each)))
        left, start, step = budget.amount - count * each, self.lived.start.total, self.lived.step.total
        if (left - start) / step < count:
            least = count * (each + step) + start
            raise ValueError(
                f"a budget of {budget} base steps buys {max(0, int((left - start) / step))} top steps of {self.tower}, "
                f"fewer than the {count} snapshots compared; give it {math.ceil(least):.3g} or more, or lower the "
                "steps, the problems to select by or the snapshots"
            )
        return count, Budget(amount=left)

    def _score(self, step: int) -> float:
        """Mean loss of a snapshot on the problems to select by; inf if it cannot be put to work."""
        params = self._learner(step, "deployment")
        if params is None:
            return math.inf
        losses = self.bench.use(f"snapshot {step}", "selection", "select", self.optimizer, params)
        return finite(float(mean_loss(losses).double().mean()))

    def _learner(self, step: int, stage: str) -> Tensor | None:
        """Parameters ``[S, m]`` that a snapshot finds for level 1; None if what it trains diverges."""
        observer = Met()

        def make(_: Tally) -> dict[str, Tensor]:
            observed = Tower(Observed(self.tower.task, observer), *self.tower.levels)
            observer.reset()
            path = self.folder / SNAPSHOT.format(step)
            state = checkpoint.load(path, self.tower).state if step else self.tower.init(self.run.seed)
            try:
                learned = deploy.learned(observed, state, windows=self.request.windows, seed=self.run.seed)
                tensors = {"params": learned.params}
            except NonFiniteError:
                tensors = {}
            return tensors | {"fingerprints": torch.tensor(observer.prints, dtype=torch.int64)}

        tensors = self.bench.charged(f"learner {step}", stage, self.deployment, make, observer)
        self.deployed |= {*tensors["fingerprints"].tolist()}
        return tensors.get("params")

    def _training_rows(self, trained: "Trained") -> list[Row]:
        """Losses on the way, and each level's share of seconds and memory."""
        shares, peaks = enumerate(self.profile["shares"]), enumerate(self.profile["bytes"], 1)
        return [
            *(row("training", "loss", loss, split="train", level=level, step=step)
              for step, losses in trained.points for level, loss in enumerate(losses, 1)),
            *(row("training", "seconds", share * trained.seconds, level=level) for level, share in shares),
            *(row("training", "peak bytes", peak, level=level) for level, peak in peaks),
        ]  # fmt: skip


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
    fingerprints: list[int] = field(default_factory=list)  # of these; written where it is saved
    ended: str = ""  # why it ended before its budget did
    done: bool = False

    def work(self, lived: Lived) -> Work:
        """Its gradients and work."""
        return Work(self.gradients, lived.start.plus(lived.step, self.steps).optimizer)


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
            self.observer.reset(self.now[1].gradients, self.now[1].fingerprints)
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
                saved = self._save() if time.monotonic() - saved >= EVERY else saved
        finally:
            self._save()
        return self.now[1]

    def _spent(self, so_far: Trained) -> float:
        """Of the allowance."""
        return so_far.seconds if self.in_seconds else so_far.work(self.lived).total

    def _save(self) -> float:
        """Save the state; the time at which it is saved."""
        state, so_far = self.now
        so_far.fingerprints = self.observer.prints[: so_far.trajectories]
        checkpoint.save(self.folder / CHECKPOINT, self.tower, state, seed=self.seed, extra=asdict(so_far))
        return time.monotonic()

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
        if report.step % so_far.stride == 0:
            so_far.points.append([report.step, report.losses])
        if len(so_far.points) > POINTS:  # every other one is dropped
            so_far.stride *= 2
            so_far.points = [point for point in so_far.points if point[0] % so_far.stride == 0]
        each = so_far.seconds / so_far.steps if self.in_seconds else self.lived.step.total
        spent, part = self._spent(so_far), (len(so_far.snapshots) + 1) / self.count
        so_far.done = spent + each > self.allowance
        if so_far.done or (part < 1 and spent + each / 2 >= part * self.allowance):
            checkpoint.save(self.folder / SNAPSHOT.format(so_far.steps), self.tower, state, seed=self.seed)
            so_far.snapshots.append(so_far.steps)
        return state, so_far


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


@contextmanager
def _both(live: LiveBytes, operations: Operations) -> Iterator[None]:
    with live, operations:
        yield


def deployment(tower: Tower, own: tuple[float, ...], windows: int | None, use: float) -> Work:
    """What `deploy.learned` costs: ``own`` is the tower's own work, ``use`` that of an update of level 1."""
    if tower.depth == 2:
        return NOTHING
    under, count = tower.under(), windows or deploy.trained_windows(tower.levels[-2])
    own = own_work_under(tower, own)
    lived = lived_work(under, own)
    runs, steps = float(count * under.top.copies * deploy.CHOOSING_PROBLEMS), deploy.CHOOSING_STEPS
    choosing = Work(runs * (steps + 1), (runs * steps * use,))
    inner = deployment(under, own, windows, use) if under.depth > 2 else choosing
    return NOTHING.plus(lived.start.plus(lived.step, count).plus(inner), tower.top.copies)
