"""Bench: the three splits of problems of an ablation, and what it costs to use an optimizer on them.

All runs of a request use the very same problems with the same minibatches, whatever their seed: differences pair by
problem. Snapshots are compared on problems to select by, what is chosen is reported once, and problems to train on are
looked at to see the gap between them. What was run is kept, and what it cost goes into the ledger.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from levels import keys
from levels.optimizer import Optimizer
from levels.optimizers.adam import Adam
from levels.optimizers.safe import Safe
from levels.task import Split, Task
from recursion.baselines import mean_loss
from recursion.deploy import CHUNK, run, run_afresh, walk
from recursion.observed import Observed, Tally
from recursion.study.kept import Kept
from recursion.study.ledger import Ledger
from recursion.study.request import Request
from recursion.tower import Tower
from recursion.work import Work, use_work

SPLITS: dict[str, Split] = {"train": "train", "select": "validation", "report": "test"}
FOLDS = {"select": 1, "train": 3}  # of the seed's key; the report has the key itself, 2 is what deployment chooses by
SEED = 0  # of all problems of all ablations
STEP_SIZES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)  # of the fallback
BUDGETED = ("search", "training", "selection", "deployment")  # stages that the budget pays
LEARNING = 0.75  # share of a run that this is, about
PIECES = 16  # that are kept of a run, about
TIMED = 10  # updates that the seconds of one are measured on


class Guarded(NamedTuple):
    """How a guarded optimizer did."""

    rule: Safe
    losses: Tensor  # [steps + 1, S, P]
    rescued: Tensor  # [P], 1 where the run ends as the fallback's


class Bench:
    """``task`` and its problems, as ``request`` wants them; ``tell`` hears what is being done."""

    def __init__(self, task: Task, request: Request, kept: Kept, tell: Callable[[str, float], None]) -> None:
        self.task, self.request, self.kept, self.told = task, request, kept, tell
        self.ledger, self.done = Ledger(), 0.0
        self._works: dict[str, float] = {}
        self._names: set[str] = set()  # of what was charged

    def tell(self, what: str, fraction: float) -> None:
        """Say what is being done, and how much of the run is."""
        self.done = max(self.done, min(fraction, 1.0))
        self.told(what, self.done)

    def key(self, split: str) -> Tensor:
        """Names of the problems of ``train``, ``select`` or ``report``: int64 ``[P]``."""
        seed = keys.seed(SEED, device=self.task.layout.device)
        count = {"report": self.request.problems, "select": self.request.select}.get(split, self.few)
        return keys.split(keys.fold(seed, FOLDS[split]) if split in FOLDS else seed, count)

    @property
    def few(self) -> int:
        """Problems of the training split that are looked at: half of those to select by."""
        return max(1, self.request.select // 2)

    def work(self, optimizer: Optimizer) -> float:
        """Of an update, in base steps."""
        if repr(optimizer) not in self._works:
            self._works[repr(optimizer)] = use_work(optimizer, self.task)
        return self._works[repr(optimizer)]

    def cost(self, optimizer: Optimizer, split: str) -> Work:
        """Of using one setting of an optimizer on all problems of a split."""
        problems, steps = len(self.key(split)), self.request.steps
        return Work(float(problems * (steps + 1)), (problems * steps * self.work(optimizer),))

    def use(self, name: str, stage: str, split: str, optimizer: Optimizer, params: Tensor) -> Tensor:
        """Losses ``[steps + 1, S, P]`` of an optimizer with parameters ``[S, m]``."""
        task, key, steps = self.task.on(SPLITS[split]), self.key(split), self.request.steps

        def make(tally: Tally) -> dict[str, Tensor]:
            return {"losses": run(optimizer, params, Observed(task, tally), key, steps)}

        updates = len(params) * len(key) * steps
        return self.charged(f"{name} on {split}", stage, self._worked(updates, optimizer), make)["losses"]

    def afresh(self, tower: Tower, split: str, seed: int, work: Work) -> Tensor:
        """Losses ``[steps + 1, 1, P]`` of a tower that is an optimizer itself; ``work``: of its run on one problem."""
        task, key, steps = self.task.on(SPLITS[split]), self.key(split), self.request.steps

        def make(tally: Tally) -> dict[str, Tensor]:
            observed = Observed(task, tally)
            return {"losses": run_afresh(tower, observed, len(key), steps, seed=seed, params=None, key=key).losses}

        return self.charged(f"afresh on {split}", "reporting", work.plus(work, len(key) - 1), make)["losses"]

    def guarded(self, optimizer: Optimizer, params: Tensor) -> Guarded:
        """An optimizer on the reported problems, guarded by Adam with the step size that is best to select by."""
        rule = Safe(optimizer, fallback=Adam(lr=self._step_size()))
        task, key, steps = self.task.on("test"), self.key("report"), self.request.steps
        some = max(1, CHUNK // (task.layout.size * len(params)))

        def make(tally: Tally) -> dict[str, Tensor]:
            parts = [_guarded(rule, params, Observed(task, tally), part, steps) for part in torch.split(key, some)]
            losses, shown = (torch.cat(part, -1) for part in zip(*parts))
            return {"losses": losses, "shown": shown}

        updates = len(params) * len(key) * steps
        found = self.charged("guarded on report", "reporting", self._worked(updates, rule), make)
        return Guarded(rule, found["losses"], (~found["shown"]).any(0).double())

    def _worked(self, updates: int, optimizer: Optimizer) -> Work:
        return Work(0.0, (updates * self.work(optimizer),))

    def _step_size(self) -> float:
        rules = [Adam(lr=lr).over(self.task.layout) for lr in STEP_SIZES]
        params = torch.stack([rule.init_params(keys.seed(0, device=self.task.layout.device)) for rule in rules])
        losses = self.use("fallback", "reporting", "select", Adam(), params)
        return STEP_SIZES[int(mean_loss(losses).mean(-1).argmin())]

    def charged(
        self, name: str, stage: str, work: Work, make: Callable[[Tally], dict[str, Tensor]], tally: Tally | None = None
    ) -> dict[str, Tensor]:
        """What is made, and kept with the gradients and seconds that it took; a stage is charged, once.

        ``work``: what else it costs. ``tally``: who counts the gradients that ``make`` asks for.
        """
        counts = tally or Tally()

        def made() -> dict[str, Tensor]:
            self.tell(f"{stage}: {name}", self._so_far())
            began = time.process_time()
            found = make(counts)
            spent = [counts.gradients, time.process_time() - began]
            return found | {"spent": torch.tensor(spent, dtype=torch.float64)}

        found = self.kept.tensors(name, made)
        gradients, seconds = found.pop("spent").tolist()
        if name not in self._names:
            self._names.add(name)
            self.ledger.add(stage, work._replace(gradients=gradients), seconds)
        return found

    def _so_far(self) -> float:
        """The share of a run that is done: what of the budget is spent, and then how many pieces are reported."""
        if "reporting" in self.ledger.work:
            return LEARNING + (1 - LEARNING) * min(1.0, len(self._names) / PIECES)
        known = self.request.budget.unit == "base steps"
        return LEARNING * self.ledger.spent(*BUDGETED) / self.request.budget.amount if known else LEARNING

    def seconds_of_step(self, make: Callable[[int], Any]) -> float:
        """Processor seconds of a step of use on one problem, the gradient with it; ``make(steps)`` makes so many."""

        def measured() -> float:
            make(1)  # first calls do more
            times = []
            for steps in (1, 1 + TIMED, 1, 1 + TIMED, 1, 1 + TIMED):
                began = time.process_time()
                make(steps)
                times.append(time.process_time() - began)
            return max(0.0, min(times[1::2]) - min(times[::2])) / TIMED

        return float(self.kept.numbers("seconds of a step", measured))


@torch.no_grad()
def _guarded(rule: Safe, params: Tensor, task: Observed, key: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Losses ``[steps + 1, S, P]``, and ``[S, P]`` whether a run ends as the rule's, not the fallback's."""
    laid = rule.bound(task).over(task.layout)
    found = []
    for point in walk(laid, laid.joined(params), task, key, steps):
        found.append(point.f)
    losses = torch.stack(found)
    return losses.masked_fill(losses.isnan(), torch.inf), point.state.shown
