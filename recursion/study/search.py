"""Hand-made optimizers as well tuned as a budget allows: the baseline that a learned one has to beat.

A search chooses the rule, its step size, its schedule, and its momenta or decay rates. Every setting runs on the same
problems and is judged by its mean loss; one that diverges on any problem loses. No method spends more than its budget:
a setting costs a gradient for each problem and point of its run, and what the updates cost in the same unit.

The grid tries each rule under each schedule at step sizes a decade apart, further where the best lies at an edge. Then
it halves the distance around the best of each, time and again, each time for the better half of the pairs, until
neighbours are a factor of 10^(1/32) apart. What is left goes into the other numbers of the best pair of each rule, as
long as that helps, and the step size follows: the distance of a momentum or a decay rate to 1 is divided or multiplied
by 4, the length of a warm-up by 2. optuna samples all but that length by its tree-structured Parzen estimator (Bergstra
et al. 2011, "Algorithms for hyper-parameter optimization").
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from levels.base import Optimizer
from levels.config import settings
from levels.hyper import Hyper, HyperparamOptimizer, Logit
from levels.optimizers.scheduled import Scheduled
from levels.schedules import Constant, Cosine, Exponential, LinearDecay, Schedule, Warmup
from levels.tasks.task import Task
from recursion.evaluate.baselines import mean_loss
from recursion.evaluate.deploy import run
from recursion.study.bench import Tell, finite, parameters

FINE = 32  # step sizes of the finest grid, to a decade
DECADES = range(-4, 2)  # the first step sizes, as powers of 10
EXTENSIONS = 4  # decades by which the grid may grow at either edge
FACTOR = 4.0  # by which the distance of a momentum to 1 is divided or multiplied
ENOUGH = 0.998  # a number that helps makes the loss at least so much smaller


class Searched(NamedTuple):
    """The best setting in notation, all with their mean losses in the order tried, what they cost, and why it ended."""

    setting: str
    scores: list[tuple[str, float]]
    gradients: int  # of the task, each copy counted
    work: float  # of the optimizers, in base steps
    ended: str


def search(
    rules: Sequence[HyperparamOptimizer], task: Task, key: Tensor, *, steps: int, budget: float, method: str, seed: int,
    tell: Tell, work: Callable[[Optimizer], float], over: Callable[[], bool] = lambda: False,
) -> Searched:  # fmt: skip
    """The best setting of ``rules`` for ``steps`` steps on the validation problems that ``key`` ``[P]`` names.

    ``budget``: base steps that it may cost, optimizer work included. ``method``: ``grid`` or ``optuna``. ``seed``: of
    optuna's draws; a grid draws nothing. ``tell(what, fraction)`` hears how far it is. ``work``: of one update of one
    copy, in base steps. ``over``: asked before each run whether to end here. ValueError for rules without a step size,
    and for a budget below the cost of one setting.
    """
    if not rules or not all("lr" in base.hypers for base in rules):
        names = ", ".join(map(repr, rules)) or "no rules"
        raise ValueError(f"a search needs hand-made rules with a step size lr, as adam or sgd, got {names}")
    trials = Trials(task.on("validation"), key, steps, budget, tell, work, over)
    done = _optuna(trials, rules, seed) if method == "optuna" else _grid(trials, rules)
    if not trials.scores:
        what = f"{len(key)} problems and {steps} steps cost {len(key) * (steps + 1)} and the optimizer's work"
        raise ValueError(f"a budget of {budget:g} base steps tries no setting: {what}; raise it, or lower either")
    setting = min(trials.scores, key=lambda notation: trials.scores[notation])  # of equals, the one tried first
    ended = "the grid is so fine that more brings nothing" if done else "the budget is spent"
    return Searched(setting, list(trials.scores.items()), trials.gradients, trials.work, ended)


@dataclasses.dataclass
class Trials:
    """Runs settings, and keeps the scores and the account."""

    task: Task
    key: Tensor
    steps: int
    budget: float
    tell: Tell
    work_of: Callable[[Optimizer], float]
    over: Callable[[], bool]
    scores: dict[str, float] = dataclasses.field(default_factory=dict)
    gradients: int = 0
    work: float = 0.0
    works: dict[str, float] = dataclasses.field(default_factory=dict)

    def run(self, optimizers: Sequence[Optimizer]) -> list[float]:
        """Scores of optimizers that differ in their parameters only; of the first ones only if the budget ends."""
        gradients = len(self.key) * (self.steps + 1)
        work = len(self.key) * self.steps * self._work(optimizers[0])
        left = max(self.budget - self.gradients - self.work, 0)
        count = 0 if self.over() else int(min(left / (gradients + work), len(optimizers)))
        if count == 0:
            return []
        params = torch.cat([parameters(each, self.task) for each in optimizers[:count]])
        losses = mean_loss(run(optimizers[0], params, self.task, self.key, self.steps)).mean(-1)
        scores = [finite(score) for score in losses.tolist()]
        self.gradients += count * gradients
        self.work += count * work
        self.scores |= dict(zip(map(repr, optimizers), scores))
        self.tell(f"searching: {optimizers[0]}", (self.gradients + self.work) / self.budget)
        return scores

    def _work(self, optimizer: Optimizer) -> float:
        """Base steps of one update, which its step size does not change."""
        base = set_to(optimizer.inner if isinstance(optimizer, Scheduled) else optimizer, "lr", 1.0)
        kind = repr(dataclasses.replace(optimizer, inner=base) if isinstance(optimizer, Scheduled) else base)
        if kind not in self.works:
            self.works[kind] = self.work_of(optimizer)
        return self.works[kind]


class Line:
    """A rule under a schedule, and its scores by step size: powers of 10^(1/32)."""

    def __init__(self, trials: Trials, base: HyperparamOptimizer, schedule: Schedule) -> None:
        self.trials, self.base, self.schedule = trials, base, schedule
        self.scores: dict[int, float] = {}

    def run(self, exponents: Iterable[int]) -> bool:
        """Try these step sizes, but for those already tried; False if the budget ended before the last of them."""
        wanted = [exponent for exponent in exponents if exponent not in self.scores]
        if not wanted:
            return True
        sizes = (_rounded(10.0 ** (exponent / FINE)) for exponent in wanted)
        candidates = [made_of(set_to(self.base, "lr", size), self.schedule, self.trials.steps) for size in sizes]
        scores = self.trials.run(candidates)
        self.scores |= dict(zip(wanted, scores))
        return len(scores) == len(wanted)

    @property
    def best(self) -> int:
        """The exponent with the lowest score; of equals, as where all diverge, the smallest step size."""
        return min(sorted(self.scores), key=lambda exponent: self.scores[exponent])

    @property
    def score(self) -> float:
        """The lowest; inf if nothing was tried."""
        return min(self.scores.values(), default=math.inf)

    def extend(self) -> bool:
        """Try further decades where the best lies at an edge."""
        for _ in range(EXTENSIONS):
            edges = {min(self.scores): -FINE, max(self.scores): FINE}
            if self.best in edges and not self.run([self.best + edges[self.best]]):
                return False
        return True

    def climb(self) -> bool:
        """Change one number after another, as long as that helps; then refine the step size of the best."""
        best, queue = self, moves(self)
        while queue:
            other = Line(self.trials, *queue.pop(0))
            if not other.run(best.best + FINE // 4 * k for k in (0, -1, 1)):
                return False
            if other.score < ENOUGH * best.score:
                best, queue = other, moves(other)
        return _refine([best], FINE // 8)


def _grid(trials: Trials, rules: Sequence[HyperparamOptimizer]) -> bool:
    """From coarse to fine; False if the budget ended before."""
    middle = sum(DECADES) / len(DECADES)
    first = sorted(DECADES, key=lambda decade: abs(decade - middle))
    pairs = [Line(trials, base, schedule) for schedule in schedules(trials.steps) for base in rules]
    coarse = all(pair.run(FINE * decade for decade in first) for pair in pairs)
    if not (coarse and all(pair.extend() for pair in pairs) and _refine(pairs, FINE // 2)):
        return False
    best: dict[int, Line] = {}
    for pair in _sorted(pairs):
        best.setdefault(list(rules).index(pair.base), pair)
    return all(pair.climb() for pair in best.values())


def _refine(pairs: list[Line], distance: int) -> bool:
    """Halve the distance around each pair's best, the best pair first, for fewer and fewer pairs."""
    while distance >= 1:
        pairs = _sorted(pairs)
        if not all(pair.run([pair.best - distance, pair.best + distance]) for pair in pairs):
            return False
        pairs, distance = _sorted(pairs)[: max(2, len(pairs) // 2)], distance // 2
    return True


def _sorted(pairs: Iterable[Line]) -> list[Line]:
    return sorted(pairs, key=lambda pair: pair.score)


def _optuna(trials: Trials, rules: Sequence[HyperparamOptimizer], seed: int) -> bool:
    """By optuna's TPE sampler, one setting after another, until the budget ends."""
    import optuna

    named = {repr(base): base for base in rules}
    given = {repr(schedule): schedule for schedule in schedules(trials.steps)}

    def suggested(suggestion: Any) -> Optimizer:
        name = suggestion.suggest_categorical("rule", list(named))
        schedule = given[suggestion.suggest_categorical("schedule", list(given))]
        base = set_to(named[name], "lr", _rounded(suggestion.suggest_float(f"{name} lr", 1e-5, 1e2, log=True)))
        for rate in rates(base):
            gap = suggestion.suggest_float(f"{name} 1 - {rate}", 1e-4 if "2" in rate else 1e-2, 0.5, log=True)
            base = set_to(base, rate, 1 - _rounded(gap))
        return made_of(base, schedule, trials.steps)

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))
        while scores := trials.run([suggested(suggestion := study.ask())]):
            study.tell(suggestion, scores[0])
    finally:
        optuna.logging.set_verbosity(before)
    return False


def schedules(steps: int) -> list[Schedule]:
    """Those that are tried on runs of so many steps, the plainest first."""
    warm = max(1, steps // 10)
    warmed = Warmup(Cosine(), warm), Warmup(LinearDecay(), warm)
    every = (Constant(), Cosine(), LinearDecay(), Exponential(), *warmed)
    return [schedule for schedule in every if schedule.least <= steps]


def made_of(base: HyperparamOptimizer, schedule: Schedule, steps: int) -> Optimizer:
    """The rule under the schedule; the rule itself under a constant one."""
    return base if isinstance(schedule, Constant) else Scheduled(base, schedule, steps)


def set_to(base: Optimizer, name: str, value: float) -> HyperparamOptimizer:
    """The rule with a hyperparameter that starts at ``value``; it stays in its space."""
    assert isinstance(base, HyperparamOptimizer)
    known = settings(base)
    old = known.get(name)
    new = dataclasses.replace(old, start=value) if isinstance(old, Hyper) else value
    return type(base)(**known | {name: new})


def rates(base: HyperparamOptimizer) -> list[str]:
    """The momenta and decay rates of a rule, but for those that are fixed."""
    return [name for name, hyper in base.hypers.items() if isinstance(hyper, Logit) and name in settings(base)]


def moves(pair: Line) -> list[tuple[HyperparamOptimizer, Schedule]]:
    """A pair with another momentum or decay rate, or a warm-up of another length."""
    rules = [moved(pair.base, name, factor) for name in rates(pair.base) for factor in (FACTOR, 1 / FACTOR)]
    others: list[Schedule] = []
    if isinstance(pair.schedule, Warmup):
        lengths = 2 * pair.schedule.warm, max(1, pair.schedule.warm // 2)
        others += [dataclasses.replace(pair.schedule, warm=warm) for warm in lengths]
    fitting = [(pair.base, schedule) for schedule in others if schedule.least <= pair.trials.steps]
    return [*((base, pair.schedule) for base in rules), *fitting]


def moved(base: HyperparamOptimizer, name: str, factor: float) -> HyperparamOptimizer:
    """The rule with a momentum whose distance to 1 is divided by ``factor``."""
    gap = min((1 - base.hypers[name].start) / factor, 0.9)
    return set_to(base, name, _rounded(1 - gap, 6))


def _rounded(value: float, digits: int = 4) -> float:
    """To so many digits, as it is written down."""
    return float(f"{value:.{digits}g}")
