"""Learning: a run whose tower learns an optimizer: train it, put snapshots to work, choose one, report it.

From depth 3 on a snapshot is a trainer, which is put to work on a fresh tower below (`recursion.deploy.learned`). The
budget pays for start-up, training, the deployment of each snapshot and its use on the problems to select by. Where
deployment and selection would take more than half of it, fewer snapshots are compared, but one always: the last.
What a start comes to, before any training, is found out for the report and charged to it.
"""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from levels.nonfinite import NonFiniteError
from levels.optimizer import Optimizer
from recursion import deploy
from recursion.deploy import learned
from recursion.observed import Observed, Tally
from recursion.study.bench import LEARNING, Bench
from recursion.study.ledger import Row, profile, row
from recursion.study.problems import Diary, Met
from recursion.study.reported import known_rows, reported, results, score, use_rows
from recursion.study.request import Run
from recursion.study.training import DIARY, Allowance, Trained, Training, snapshot
from recursion.tower import Tower
from recursion.work import NOTHING, Work, lived_work, own_work_under

SHARE = 0.5  # most of a budget that selection and deployment may take, if more than one snapshot is compared


class Learning:
    """A tower that learns an optimizer."""

    def __init__(self, run: Run, tower: Tower, bench: Bench, folder: Path) -> None:
        self.run, self.tower, self.bench, self.kept = run, tower, bench, bench.kept
        self.request, self.folder, self.optimizer = bench.request, folder, tower.levels[0].optimizer
        self.profile = self.kept.numbers("profile", lambda: profile(tower))
        self.own = tuple(self.profile["work"])
        self.lived = lived_work(tower, self.own)
        self.deployment = deployment(tower, self.own, self.request.windows, bench.work(self.optimizer))
        self.met = Diary(folder / "problems-deployed.bin")
        self.count, self.allowance = self._plan()

    def perform(self) -> tuple[list[Row], dict[str, Any]]:
        """Train, choose, report."""
        bench = self.bench
        trained = Trained(**self.kept.numbers("trained", self._train))
        bench.ledger.add("training", trained.work(self.lived), trained.seconds)
        scores = {step: self._score(step) for step in trained.snapshots}
        best = min(scores, key=lambda step: scores[step])
        start, params = self._learner(0, "reporting"), self._learner(best, "deployment")
        if params is None:
            raise NonFiniteError(None, f"no snapshot of {self.tower} could be put to work", "train with smaller steps")
        rows = [row("snapshot", "mean loss", value, split="select", step=step) for step, value in scores.items()]
        rows += [*self._training_rows(trained), row("chosen", "chosen", 1.0, step=best)]
        if start is not None:
            rows += reported("start", "start", self.optimizer, start, bench)
        rows += reported("chosen", f"snapshot {best}", self.optimizer, params, bench)
        guarded = bench.guarded(self.optimizer, params)
        rows += results("guarded", "report", guarded.losses)
        rescued = enumerate(guarded.rescued.tolist())
        rows += [row("guarded", "rescued", value, split="report", problem=i) for i, value in rescued]
        rows += use_rows(self.optimizer, params, bench)
        familiar, known_facts = known_rows(bench, self._met())
        return rows + familiar, self._facts(trained, best, guarded.rule) | known_facts

    def _train(self) -> dict[str, Any]:
        seconds, amount = self.allowance.in_seconds, self.request.budget.amount
        share = LEARNING * (1.0 if seconds else self.allowance.amount / amount)
        training = Training(self.tower, self.run.seed, self.folder, self.allowance, self.lived, self.count)
        return asdict(training.go(lambda what, fraction: self.bench.tell(what, share * fraction)))

    def _facts(self, trained: Trained, best: int, guard: Optimizer) -> dict[str, Any]:
        return {
            "steps": trained.steps,
            "chosen": best,
            "setting": repr(self.optimizer),
            "guard": repr(guard),
            "snapshots": trained.snapshots,
            "ended": trained.ended,
            "task gradients a step": float(self.tower.base_steps) * math.prod(laid.batch for laid in self.tower.laid),
            "work of a step": self.lived.step.total,
            "deployment": self.deployment.total,
        }

    def _plan(self) -> tuple[int, Allowance]:
        """How many snapshots are compared, and what is left for training. ValueError if it is too little."""
        budget, wanted = self.request.budget, self.request.snapshots
        if budget.unit == "seconds":
            return wanted, Allowance(budget.amount, True)
        learners = math.prod(laid.batch for laid in self.tower.laid[1:])  # that a snapshot comes to
        each = self.deployment.total + learners * self.bench.cost(self.optimizer, "select").total
        count = min(wanted, max(1, int(SHARE * budget.amount / each)))
        left = budget.amount - count * each
        steps = (left - self.lived.start.total) / self.lived.step.total
        if steps < count:
            least = count * (each + self.lived.step.total) + self.lived.start.total
            raise ValueError(
                f"a budget of {budget} base steps buys {max(0, int(steps))} top steps of {self.tower}, fewer than the "
                f"{count} snapshots compared; give it {math.ceil(least):.3g} or more, or lower the steps, the problems "
                f"to select by or the snapshots"
            )
        return count, Allowance(left, False)

    def _score(self, step: int) -> float:
        """Of a snapshot on the problems to select by; inf if it cannot be put to work."""
        params = self._learner(step, "deployment")
        if params is None:
            return math.inf
        return score(self.bench.use(f"snapshot {step}", "selection", "select", self.optimizer, params))

    def _learner(self, step: int, stage: str) -> Tensor | None:
        """Parameters ``[S, m]`` for level 1 that a snapshot comes to; None if it makes what it trains diverge."""
        met = Met()

        def make(_: Tally) -> dict[str, Tensor]:
            observed = Tower(Observed(self.tower.task, met), *self.tower.levels)
            met.gradients, met.prints = 0.0, []  # laying levels over a task may have asked it
            state = snapshot(self.tower, self.run.seed, self.folder, step)
            try:
                found = {"params": learned(observed, state, windows=self.request.windows, seed=self.run.seed).params}
            except NonFiniteError:
                found = {}
            self.met.append(met.prints)
            return found

        return self.bench.charged(f"learner {step}", stage, self.deployment, make, met).get("params")

    def _met(self) -> set[bytes]:
        """Fingerprints of all problems that were trained on."""
        return Diary(self.folder / DIARY).read() | self.met.read()

    def _training_rows(self, trained: Trained) -> list[Row]:
        """Losses on the way, and each level's share of seconds and memory."""
        rows = [
            row("training", "loss", loss, split="train", level=level, step=step)
            for step, losses in trained.points
            for level, loss in enumerate(losses, 1)
        ]
        for level, share in enumerate(self.profile["shares"]):
            rows.append(row("training", "seconds", share * trained.seconds, level=level))
        return rows + [row("training", "peak bytes", peak, level=i) for i, peak in enumerate(self.profile["bytes"], 1)]


def deployment(tower: Tower, own: tuple[float, ...], windows: int | None, use: float) -> Work:
    """What `recursion.deploy.learned` costs: ``own`` is the tower's own work, ``use`` that of an update of level 1."""
    if tower.depth == 2:
        return NOTHING
    under, count = tower.under(), windows or deploy.trained_windows(tower.levels[-2])
    own = own_work_under(tower, own)
    lived = lived_work(under, own)
    trained = lived.start.plus(lived.step, count)
    below = deployment(under, own, windows, use) if under.depth > 2 else _choosing(count * under.top.batch, use)
    return NOTHING.plus(trained.plus(below), tower.top.batch)


def _choosing(candidates: int, use: float) -> Work:
    runs = float(candidates * deploy.CHOOSING_PROBLEMS)
    return Work(runs * (deploy.CHOOSING_STEPS + 1), (runs * deploy.CHOOSING_STEPS * use,))
