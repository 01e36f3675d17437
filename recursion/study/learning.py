"""A run whose tower learns an optimizer: train it, put snapshots to work, choose one, report it.

From depth 3 on a snapshot is a trainer, which `deploy.learned` puts to work on a fresh tower below. The budget pays for
start-up, training, the deployment of each snapshot and its use on the problems to select by. Where deployment and
selection would take more than half of it, fewer snapshots are compared, at least the last. What a start is worth,
before any training, is found for the report and charged to it.
"""

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from levels.faults import NonFiniteError
from recursion.analysis.work import NOTHING, Work, lived_work, own_work_under
from recursion.evaluate import deploy
from recursion.evaluate.baselines import mean_loss
from recursion.evaluate.observed import Observed, Tally
from recursion.study.bench import LEARNING, Bench, finite
from recursion.study.ledger import Row, profile, row
from recursion.study.problems import Diary, Met
from recursion.study.request import Budget, Run
from recursion.study.training import DIARY, Trained, Training, snapshot
from recursion.tower import Tower

SHARE = 0.5  # most of a budget that selection and deployment may take, if more than one snapshot is compared


class Learning:
    """A tower that learns an optimizer."""

    def __init__(self, run: Run, tower: Tower, bench: Bench, folder: Path) -> None:
        self.run, self.tower, self.bench, self.terms = run, tower, bench, bench.terms
        self.folder, self.optimizer = folder, tower.levels[0].optimizer
        self.profile = bench.store.numbers("profile", lambda: profile(tower))
        own = tuple(self.profile["work"])
        self.lived = lived_work(tower, own)
        self.deployment = deployment(tower, own, self.terms.windows, bench.work(self.optimizer))
        self.diary = Diary(folder / "problems-deployed.bin")
        self.count, self.allowance = self._plan()

    def perform(self) -> tuple[list[Row], dict[str, Any]]:
        """Train, choose, report."""
        bench = self.bench
        trained = Trained(**bench.store.numbers("trained", self._train))
        bench.ledger.add("training", trained.work(self.lived), trained.seconds)
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
        rows += [*guarded, *bench.optimizer_rows(self.optimizer, params)]
        rows.append(bench.known_row(Diary(self.folder / DIARY).read() | self.diary.read()))
        facts = {"steps": trained.steps, "chosen": best, "setting": repr(self.optimizer), "guard": repr(guard)}
        facts |= {"snapshots": trained.snapshots, "ended": trained.ended, "work of a step": self.lived.step.total}
        return rows, facts

    def _train(self) -> dict[str, Any]:
        share = LEARNING * self.allowance.amount / self.terms.budget.amount
        training = Training(self.tower, self.run.seed, self.folder, self.allowance, self.lived, self.count)
        return asdict(training.go(lambda fraction: self.bench.tell("training", share * fraction)))

    def _plan(self) -> tuple[int, Budget]:
        """How many snapshots are compared, and what is left for training. ValueError if it is too little."""
        budget, wanted = self.terms.budget, self.terms.snapshots
        if budget.unit == "seconds":
            return wanted, budget
        learners = math.prod(level.copies for level in self.tower.bound[1:])  # that a snapshot comes to
        each = self.deployment.total + learners * self.bench.cost(self.optimizer, "select")
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
            state = snapshot(self.tower, self.run.seed, self.folder, step)
            try:
                learned = deploy.learned(observed, state, windows=self.terms.windows, seed=self.run.seed)
                return {"params": learned.params}
            except NonFiniteError:
                return {}
            finally:
                self.diary.append(observer.prints)

        return self.bench.charged(f"learner {step}", stage, self.deployment, make, observer).get("params")

    def _training_rows(self, trained: Trained) -> list[Row]:
        """Losses on the way, and each level's share of seconds and memory."""
        shares, peaks = enumerate(self.profile["shares"]), enumerate(self.profile["bytes"], 1)
        return [
            *(row("training", "loss", loss, split="train", level=level, step=step)
              for step, losses in trained.points for level, loss in enumerate(losses, 1)),
            *(row("training", "seconds", share * trained.seconds, level=level) for level, share in shares),
            *(row("training", "peak bytes", peak, level=level) for level, peak in peaks),
        ]  # fmt: skip


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
