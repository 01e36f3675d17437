"""The problems of a study, what it costs to use an optimizer on them, and the ledger of all costs of a run.

All runs of a request use the very same problems with the same minibatches, whatever their seed: differences pair by
problem. Snapshots are compared on problems to select by, the chosen one is reported once, and problems to train on show
the gap between them. Each use is made once and stored, and its cost goes into the ledger: gradients of the task
(`recursion.evaluation.observed`) and the work of optimizers (`recursion.analysis.work`), both in base steps, and
seconds of the processor.
"""

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from levels import keys
from levels.base import Optimizer, Split
from levels.optimizers.adam import Adam
from levels.optimizers.safeguarded import Safeguarded
from levels.tasks.task import Task
from recursion.analysis.work import NOTHING, Work, use_work
from recursion.evaluation.baselines import final_loss, mean_loss
from recursion.evaluation.deploy import CHUNK, run, walk
from recursion.evaluation.observed import Observed, Tally
from recursion.study.problems import known, problems
from recursion.study.records import Store
from recursion.study.request import SPENT, Request

SPLITS: dict[str, Split] = {"train": "train", "select": "validation", "report": "test"}
FOLDS = {"select": 1, "train": 3}  # of the seed's key; the report has the key itself, 2 is what deployment chooses by
SEED = 0  # of all problems of all studies
STEP_SIZES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)  # of the fallback
QUARTILES = {"lower quartile": 0.25, "median loss": 0.5, "upper quartile": 0.75}
LEARNING = 0.75  # share of a run that this is, about
PIECES = 16  # that are stored of a run, about
TIMED = 10  # updates that the seconds of one are measured on

Tell = Callable[[str, float], None]
Make = Callable[[Tally], dict[str, Tensor]]  # asks for gradients that are counted
Find = Callable[[Observed, Tensor], Tensor]
Row = list[Any]  # stage, split, level, problem, step, measure, value


def row(
    stage: str, measure: str, value: float, *, split: str | None = None, level: int | None = None,
    problem: int | None = None, step: int | None = None,
) -> Row:  # fmt: skip
    """A measurement as it is stored."""
    return [stage, split, level, problem, step, measure, float(value)]


class Bench:
    """``task`` and its problems as a request has them; ``tell`` hears of each step.

    ``work``, ``seconds``: the ledger, by stage.
    """

    def __init__(self, task: Task, request: Request, store: Store, tell: Tell) -> None:
        self.task, self.request, self.store = task, request, store
        self.work: dict[str, Work] = defaultdict(lambda: NOTHING)
        self.seconds: dict[str, float] = defaultdict(float)
        self._tell, self._done = tell, 0.0
        self._works, self._charged = dict[str, float](), set[str]()

    def tell(self, what: str, fraction: float) -> None:
        """Say what is being done, and how much of the run is."""
        self._done = max(self._done, min(fraction, 1.0))
        self._tell(what, self._done)

    def work_of(self, optimizer: Optimizer) -> float:
        """Base steps of an update."""
        if repr(optimizer) not in self._works:
            self._works[repr(optimizer)] = use_work(optimizer, self.task)
        return self._works[repr(optimizer)]

    def book(self, stage: str, work: Work, seconds: float) -> None:
        self.work[stage] = self.work[stage].plus(work)
        self.seconds[stage] += seconds

    def spent(self) -> float:
        """Base steps that the budget pays, gradients and work."""
        return sum(self.work[stage].total for stage in SPENT if stage in self.work)

    def ledger(self) -> Iterator[Row]:
        """The task gradients, the work of each level and the seconds of each stage."""
        for stage, work in self.work.items():
            yield row(stage, "task gradients", work.gradients, level=0)
            yield from (row(stage, "optimizer work", own, level=i) for i, own in enumerate(work.optimizer, 1))
            yield row(stage, "seconds", self.seconds[stage])

    def key(self, split: str) -> Tensor:
        """Names of the problems of ``train``, ``select`` or ``report``: int64 ``[P]``."""
        request, seed = self.request, keys.seed(SEED, device=self.task.layout.device)
        count = {"report": request.problems, "select": request.select, "train": max(1, request.select // 2)}[split]
        return keys.split(keys.fold_in(seed, FOLDS[split]) if split in FOLDS else seed, count)

    def cost(self, optimizer: Optimizer, split: str, settings: int = 1) -> Work:
        """Of using settings of an optimizer on all problems of a split."""
        uses, steps = settings * len(self.key(split)), self.request.steps
        return Work(uses * (steps + 1.0), (uses * steps * self.work_of(optimizer),))

    def losses(self, name: str, stage: str, split: str, work: Work, find: Find) -> Tensor:
        """Losses ``[steps + 1, S, P]`` that ``find`` gets from the task and the names of the problems of a split."""
        task, key = self.task.on(SPLITS[split]), self.key(split)
        return self.charged(
            f"{name} on {split}", stage, work, lambda tally: {"losses": find(Observed(task, tally), key)}
        )["losses"]

    def use(self, name: str, stage: str, split: str, optimizer: Optimizer, params: Tensor) -> Tensor:
        """Losses ``[steps + 1, S, P]`` of an optimizer with parameters ``[S, m]``."""
        work, find = self.cost(optimizer, split, len(params)), partial(run, optimizer, params, steps=self.request.steps)
        return self.losses(name, stage, split, work, find)

    def reported(self, stage: str, name: str, optimizer: Optimizer, params: Tensor) -> Iterator[Row]:
        """Rows of an optimizer on all three splits."""
        return rows_of(stage, lambda split: self.use(name, "reporting", split, optimizer, params))

    def guarded(self, optimizer: Optimizer, params: Tensor) -> tuple[Safeguarded, list[Row]]:
        """The optimizer guarded by Adam with the step size that is best to select by, and its rows."""
        adams = [Adam(lr=lr) for lr in STEP_SIZES]
        settings = torch.cat([parameters(adam, self.task) for adam in adams])
        tried = mean_loss(self.use("fallback", "reporting", "select", Adam(), settings)).mean(-1)
        guard = Safeguarded(optimizer, fallback=adams[int(tried.argmin())])
        task, key, steps = self.task.on("test"), self.key("report"), self.request.steps
        guarded = self.charged(
            "guarded on report", "reporting", self.cost(guard, "report", len(params)),
            lambda tally: _guarded(guard, params, Observed(task, tally), key, steps),
        )  # fmt: skip
        rescued = (~guarded["shown"]).any(0).double().tolist()  # 1 where a use ends as the fallback's
        rows = [row("guarded", "rescued", value, split="report", problem=i) for i, value in enumerate(rescued)]
        return guard, [*loss_rows("guarded", "report", guarded["losses"]), *rows]

    def use_rows(self, optimizer: Optimizer, params: Tensor, seen: set[int]) -> list[Row]:
        """`last_rows` of an optimizer."""
        task, one = self.task.on("test"), self.key("report")[:1]
        return self.last_rows(self.work_of(optimizer), lambda steps: run(optimizer, params[:1], task, one, steps), seen)

    def last_rows(self, work: float, make: Callable[[int], object], seen: set[int]) -> list[Row]:
        """What a step of use costs: its ``work``, and the seconds of one that ``make(steps)`` makes; and how many
        reported problems were ``seen`` or selected on.
        """

        def measured() -> float:
            make(1)  # first calls do more
            times = []
            for steps in (1, 1 + TIMED) * 3:
                began = time.process_time()
                make(steps)
                times.append(time.process_time() - began)
            return max(0.0, min(times[1::2]) - min(times[::2])) / TIMED

        seconds = self.store.numbers("seconds of a step", measured)
        seen = seen | set(problems(self.task.on("validation"), self.key("select")))
        count = known(self.task, self.key("report"), seen)
        return [
            row("use", "work of a step", work), row("use", "seconds of a step", seconds),
            row("reporting", "problems trained on", count, split="report"),
        ]  # fmt: skip

    def charged(self, name: str, stage: str, work: Work, make: Make, tally: Tally | None = None) -> dict[str, Tensor]:
        """The tensors that ``make`` finds, stored. A stage is charged once, for its seconds and ``work``; the task's
        gradients are those that ``make`` asked for.
        """
        counts = tally or Tally()

        def make_tensors() -> dict[str, Tensor]:
            self.tell(f"{stage}: {name}", self._so_far())
            began = time.process_time()
            tensors = make(counts)
            spent = [counts.gradients, time.process_time() - began]
            return tensors | {"spent": torch.tensor(spent, dtype=torch.float64)}

        tensors = self.store.tensors(name, make_tensors)
        gradients, seconds = tensors.pop("spent").tolist()
        if name not in self._charged:
            self._charged.add(name)
            self.book(stage, work._replace(gradients=gradients), seconds)
        return tensors

    def _so_far(self) -> float:
        """The share of a run that is done: what of the budget is spent, and then how many pieces are reported."""
        budget = self.request.budget
        if "reporting" in self.work:
            return LEARNING + (1 - LEARNING) * min(1.0, len(self._charged) / PIECES)
        return LEARNING * (self.spent() / budget.amount if budget.unit == "base steps" else 1.0)


def parameters(optimizer: Optimizer, task: Task) -> Tensor:
    """Parameters ``[1, m]`` of a hand-made optimizer: as it is set."""
    return optimizer.bind(task.layout).init(keys.seed(0, device=task.layout.device))[None]


def rows_of(stage: str, losses: Callable[[str], Tensor]) -> Iterator[Row]:
    """Rows of the ``losses`` on each split; for the chosen one with median and quartiles, over problems (and settings)
    at each step on reported problems.
    """
    for split in SPLITS:
        measured = losses(split)
        yield from loss_rows(stage, split, measured)
    if stage == "chosen":
        parts, every = [*QUARTILES.values()], measured.double().numpy()
        for name, values in zip(QUARTILES, np.quantile(every, parts, axis=(1, 2), method="inverted_cdf")):
            yield from (row(stage, name, value, split="report", step=step) for step, value in enumerate(values))


def loss_rows(stage: str, split: str, losses: Tensor) -> Iterator[Row]:
    """Mean and final loss of each problem, from losses ``[steps + 1, S, P]``: means over the S settings."""
    for name, reduce in (("mean loss", mean_loss), ("final loss", final_loss)):
        values = reduce(losses).double().mean(0).tolist()
        yield from (row(stage, name, finite(value), split=split, problem=i) for i, value in enumerate(values))


def finite(value: float) -> float:
    """A loss that can be compared: inf for one that is no number."""
    return value if math.isfinite(value) else math.inf


@torch.no_grad()
def _guarded(guard: Safeguarded, params: Tensor, task: Observed, key: Tensor, steps: int) -> dict[str, Tensor]:
    """Losses ``[steps + 1, S, P]``, and ``[S, P]`` whether a use ends as the learned optimizer's."""
    bound, losses, shown = guard.bind(task), [], []
    for some in torch.split(key, max(1, CHUNK // (task.layout.size * len(params)))):
        path = []
        for point in walk(bound, bound.joined(params), task, some, steps):
            path.append(point.f)
        losses.append(torch.stack(path))
        shown.append(point.state[0].shown)
    every = torch.cat(losses, -1)
    return {"losses": every.masked_fill(every.isnan(), torch.inf), "shown": torch.cat(shown, -1)}
