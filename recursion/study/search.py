"""Hand-made optimizers as well tuned as a budget allows: the baseline that a learned one has to beat.

A search chooses the optimizer, its step size, its schedule, and its momenta or decay rates. Every setting runs on the
same problems and is judged by its mean loss; one that diverges on any problem loses. No method spends more than its
budget: a setting costs a gradient for each problem and point of its run, and the updates cost in the same unit.

The grid tries each optimizer under each schedule at step sizes a decade apart, further where the best lies at an edge.
Then it halves the distance around the best of each, time and again, each time for the better half of the pairs, until
neighbours are a factor of 10^(1/32) apart. What is left goes into the other numbers of the best pair of each optimizer,
as long as that helps, and the step size follows: the distance of a momentum or a decay rate to 1 is divided or
multiplied by 4, the length of a warm-up by 2. optuna samples all but that length by its tree-structured Parzen
estimator (Bergstra et al. 2011, "Algorithms for hyper-parameter optimization").
"""

import contextlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor

from levels.base import Optimizer
from levels.fields import require, settings
from levels.hyper import Hyper, HyperparamOptimizer, Logit
from levels.optimizers.scheduled import Scheduled
from levels.schedules import Constant, Cosine, Exponential, LinearDecay, Schedule, Warmup
from levels.tasks.task import Task
from recursion.evaluation.baselines import mean_loss
from recursion.evaluation.deploy import run
from recursion.study.bench import Tell, finite, parameters

FINE = 32  # step sizes of the finest grid, to a decade
DECADES = (-2, -1, -3, 0, -4, 1)  # the first step sizes, as powers of 10, from the middle
EXTENSIONS = 4  # decades by which the grid may grow at either edge
FACTOR = 4.0  # by which the distance of a momentum to 1 is divided or multiplied
BY_SCORE = attrgetter("score")  # the best first
ENOUGH = 0.998  # a number that helps makes the loss at least so much smaller


class Searched(NamedTuple):
    """The best setting in notation, all with their mean losses in the order tried, what they cost, and why it ended."""

    setting: str
    scores: list[tuple[str, float]]
    gradients: int  # of the task, each copy counted
    work: float  # of the optimizers, in base steps
    ended: str


class Spent(Exception):  # noqa: N818
    """The budget buys no further run."""


def search(
    bases: Sequence[HyperparamOptimizer], task: Task, key: Tensor, *, steps: int, budget: float, method: str, seed: int,
    tell: Tell, work: Callable[[Optimizer], float], over: Callable[[], bool] = lambda: False,
) -> Searched:  # fmt: skip
    """The best setting of ``bases`` for ``steps`` steps on the validation problems that ``key`` ``[P]`` names.

    ``budget``: base steps that it may cost, optimizer work included. ``method``: ``grid`` or ``optuna``. ``seed``: of
    optuna's draws; a grid draws nothing. ``tell(what, fraction)`` hears how far it is. ``work``: of one update of one
    copy, in base steps. ``over``: asked before each run whether to end here. ValueError for optimizers without a step
    size, and for a budget below the cost of one setting.
    """
    names = ", ".join(map(repr, bases)) or "no rules"
    known = len(bases) > 0 and all("lr" in base.hypers for base in bases)
    require(known, f"a search needs hand-made rules with a step size lr, as adam or sgd, got {names}")
    trials, ended = Trials(task.on("validation"), key, steps, budget, tell, work, over), "the budget is spent"
    with contextlib.suppress(Spent):
        _optuna(trials, bases, seed) if method == "optuna" else _grid(trials, bases)
        ended = "the grid is so fine that more brings nothing"
    what = f"{len(key)} problems and {steps} steps cost {len(key) * (steps + 1)} and the optimizer's work"
    nothing = f"a budget of {budget:g} base steps tries no setting: {what}; raise it, or lower either"
    require(len(trials.scores) > 0, nothing)
    setting = min(trials.scores, key=lambda notation: trials.scores[notation])  # of equals, the one tried first
    return Searched(setting, list(trials.scores.items()), trials.gradients, trials.work, ended)


@dataclass
class Trials:
    """Runs settings, and adds up their scores and costs."""

    task: Task
    key: Tensor
    steps: int
    budget: float
    tell: Tell
    work_of: Callable[[Optimizer], float]
    over: Callable[[], bool]
    scores: dict[str, float] = field(default_factory=dict)
    gradients: int = 0
    work: float = 0.0
    works: dict[str, float] = field(default_factory=dict)

    def run(self, base: HyperparamOptimizer, schedule: Schedule, sizes: Sequence[float]) -> list[float]:
        """Scores of an optimizer under a schedule, by step size. Spent where the budget does not buy all of them."""
        kind = repr((set_to(base, "lr", 1.0), schedule))
        every = [scheduled(set_to(base, "lr", size), schedule, self.steps) for size in sizes]
        if kind not in self.works:  # which the step size does not change
            self.works[kind] = self.work_of(every[0])
        gradients, work = len(self.key) * (self.steps + 1), len(self.key) * self.steps * self.works[kind]
        left = max(self.budget - self.gradients - self.work, 0)
        count = 0 if self.over() else int(min(left / (gradients + work), len(every)))
        if count == 0:
            raise Spent
        params = torch.cat([parameters(each, self.task) for each in every[:count]])
        losses = mean_loss(run(every[0], params, self.task, self.key, self.steps)).mean(-1)
        scores = [finite(score) for score in losses.tolist()]
        self.gradients += count * gradients
        self.work += count * work
        self.scores |= dict(zip(map(repr, every), scores))
        self.tell(f"searching: {every[0]}", (self.gradients + self.work) / self.budget)
        if count < len(every):
            raise Spent
        return scores


class Line:
    """An optimizer under a schedule, and its scores by step size: powers of 10^(1/32)."""

    def __init__(self, trials: Trials, base: HyperparamOptimizer, schedule: Schedule) -> None:
        self.trials, self.base, self.schedule = trials, base, schedule
        self.scores: dict[int, float] = {}

    def run(self, exponents: Iterable[int]) -> None:
        """Try these step sizes, but for those already tried."""
        wanted = [exponent for exponent in exponents if exponent not in self.scores]
        sizes = [_rounded(10.0 ** (each / FINE)) for each in wanted]
        self.scores |= dict(zip(wanted, self.trials.run(self.base, self.schedule, sizes) if wanted else ()))

    @property
    def best(self) -> int:
        """The exponent with the lowest score; of equals, as where all diverge, the smallest step size."""
        return min(sorted(self.scores), key=lambda exponent: self.scores[exponent])

    @property
    def score(self) -> float:
        return self.scores[self.best]

    def extend(self) -> None:
        """Try further decades where the best lies at an edge."""
        for _ in range(EXTENSIONS):
            edges = {min(self.scores): -FINE, max(self.scores): FINE}
            if self.best in edges:
                self.run([self.best + edges[self.best]])

    def climb(self) -> None:
        """Change one number after another, as long as that helps; then refine the step size of the best."""
        best, queue = self, self.moves()
        while queue:
            other = queue.pop(0)
            other.run(best.best + FINE // 4 * k for k in (0, -1, 1))
            if other.score < ENOUGH * best.score:
                best, queue = other, other.moves()
        _refine([best], FINE // 8)

    def moves(self) -> "list[Line]":
        """This with another momentum or decay rate, or a warm-up of another length."""
        pairs: list[tuple[HyperparamOptimizer, Schedule]] = []
        for name in rates(self.base):
            pairs += [(moved(self.base, name, factor), self.schedule) for factor in (FACTOR, 1 / FACTOR)]
        if isinstance(self.schedule, Warmup):
            lengths = 2 * self.schedule.warm, max(1, self.schedule.warm // 2)
            pairs += [(self.base, replace(self.schedule, warm=warm)) for warm in lengths]
        return [Line(self.trials, *pair) for pair in pairs if pair[1].least <= self.trials.steps]


def _grid(trials: Trials, bases: Sequence[HyperparamOptimizer]) -> None:
    """From coarse to fine."""
    lines = [Line(trials, base, schedule) for schedule in schedules(trials.steps) for base in bases]
    for line in lines:
        line.run(FINE * decade for decade in DECADES)
    for line in lines:
        line.extend()
    _refine(lines, FINE // 2)
    best: dict[str, Line] = {}
    for line in sorted(lines, key=BY_SCORE):
        best.setdefault(repr(line.base), line)
    for line in best.values():
        line.climb()


def _refine(lines: list[Line], distance: int) -> None:
    """Halve the distance around each line's best, the best line first, for fewer and fewer lines."""
    while distance >= 1:
        lines = sorted(lines, key=BY_SCORE)
        for line in lines:
            line.run([line.best - distance, line.best + distance])
        lines, distance = sorted(lines, key=BY_SCORE)[: max(2, len(lines) // 2)], distance // 2


def _optuna(trials: Trials, bases: Sequence[HyperparamOptimizer], seed: int) -> None:
    """By optuna's TPE sampler, one setting after another, until the budget ends."""
    import optuna

    named = {repr(base): base for base in bases}
    given = {repr(schedule): schedule for schedule in schedules(trials.steps)}

    def score(suggestion: Any) -> float:
        name = suggestion.suggest_categorical("rule", list(named))
        schedule = given[suggestion.suggest_categorical("schedule", list(given))]
        base, size = named[name], _rounded(suggestion.suggest_float(f"{name} lr", 1e-5, 1e2, log=True))
        for rate in rates(base):
            gap = suggestion.suggest_float(f"{name} 1 - {rate}", 1e-4 if "2" in rate else 1e-2, 0.5, log=True)
            base = set_to(base, rate, 1 - _rounded(gap))
        return trials.run(base, schedule, [size])[0]

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))
        while True:
            suggestion = study.ask()
            study.tell(suggestion, score(suggestion))
    finally:
        optuna.logging.set_verbosity(before)


def schedules(steps: int) -> list[Schedule]:
    """Those that are tried on runs of so many steps, the plainest first."""
    warm = max(1, steps // 10)
    warmed = Warmup(Cosine(), warm), Warmup(LinearDecay(), warm)
    every = (Constant(), Cosine(), LinearDecay(), Exponential(), *warmed)
    return [schedule for schedule in every if schedule.least <= steps]


def scheduled(base: HyperparamOptimizer, schedule: Schedule, steps: int) -> Optimizer:
    """The optimizer under the schedule; the optimizer itself under a constant one."""
    return base if isinstance(schedule, Constant) else Scheduled(base, schedule, steps)


def set_to(base: HyperparamOptimizer, name: str, value: float) -> HyperparamOptimizer:
    """The optimizer with a hyperparameter that starts at ``value``; it stays in its space."""
    known = settings(base)
    old = known.get(name)
    return type(base)(**known | {name: replace(old, start=value) if isinstance(old, Hyper) else value})


def rates(base: HyperparamOptimizer) -> list[str]:
    """The momenta and decay rates of an optimizer, but for those that are fixed."""
    return [name for name, hyper in base.hypers.items() if isinstance(hyper, Logit) and name in settings(base)]


def moved(base: HyperparamOptimizer, name: str, factor: float) -> HyperparamOptimizer:
    """The optimizer with a momentum whose distance to 1 is divided by ``factor``."""
    gap = min((1 - base.hypers[name].start) / factor, 0.9)
    return set_to(base, name, _rounded(1 - gap, 6))


def _rounded(value: float, digits: int = 4) -> float:
    """To so many digits, as it is written down."""
    return float(f"{value:.{digits}g}")
