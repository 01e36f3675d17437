"""Hand-made optimizers as well tuned as a budget allows: the baseline that a learned one has to beat.

Searched are the rule, its step size, its schedule, and its momenta or decay rates. Every setting runs on the same
problems and is judged by its mean loss; one that diverges on any problem loses. No method spends more than its budget:
a setting costs a gradient for each problem and point of its run, and what the updates cost in the same unit.

`Grid` tries each rule under each schedule at step sizes a decade apart, further where the best lies at an edge. Then it
halves the distance around the best of each, time and again, each time for the better half of the pairs, until
neighbours are a factor of 10^(1/32) apart. What is left goes into the other numbers of the best pair of each rule, as
long as that helps, the step size following: the distance of a momentum or a decay rate to 1 is divided or multiplied by
4, the length of a warm-up by 2. `Optuna` samples all but that length by its tree-structured Parzen estimator (Bergstra
et al. 2011, "Algorithms for hyper-parameter optimization").
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from levels.hyper import HandMade, Hyper, Logit
from levels.optimizer import Optimizer
from levels.optimizers.scheduled import Scheduled
from levels.part import require, settings
from levels.schedules import Constant, Cosine, Exponential, LinearDecay, Schedule, Warmup
from levels.task import Task
from recursion.baselines import mean_loss
from recursion.deploy import run

FINE = 32  # step sizes of the finest grid, to a decade
DECADES = range(-4, 2)  # the first step sizes, as powers of 10
EXTENSIONS = 4  # decades by which the grid may grow at either edge
FACTOR = 4.0  # by which the distance of a momentum to 1 is divided or multiplied
ENOUGH = 0.998  # a number that helps makes the loss at least so much smaller

Tell = Callable[[str, float], None]


class Searched(NamedTuple):
    """What a search found, and what it cost."""

    setting: str  # notation of the chosen rule
    optimizer: Optimizer  # that rule
    params: Tensor  # [1, m] of it
    scores: list[tuple[str, float]]  # each setting tried, in order, and its mean loss on the problems
    gradients: int  # task gradients spent, each copy counted
    work: float  # optimizer work spent, in base steps
    ended: str  # why it went no further


def search(
    rules: Sequence[HandMade],
    task: Task,
    key: Tensor,
    *,
    steps: int,
    budget: float,
    method: str,
    seed: int,
    tell: Tell,
    work: Callable[[Optimizer], float] | None = None,
    over: Callable[[], bool] = lambda: False,
) -> Searched:
    """The best setting of ``rules`` for ``steps`` steps on the validation problems that ``key`` ``[P]`` names.

    ``task`` may be of any split: its validation split is what is used. ``budget``: base steps that it may cost,
    optimizer work included. ``method``: ``grid`` or ``optuna``. ``seed``: of optuna's draws; a grid draws nothing.
    ``tell(what, fraction)`` hears how far it is. ``work``: of one update of one copy, in base steps; as
    `recursion.work.use_work` counts it if not given. ``over``: asked before each run whether to end here. ValueError
    for another method, for rules without a step size, and for a budget below the cost of one setting.
    """
    require(method in METHODS, f"search must be one of {', '.join(METHODS)}, got {method!r}")
    require(len(rules) > 0, "there are no rules to search; name one at least")
    for rule in rules:
        lr = isinstance(rule, HandMade) and "lr" in rule.hypers
        require(lr, f"{rule} has no step size lr to be searched; use a hand-made rule that has, as adam or sgd")
    task = task.on("validation")
    bench = Bench(task, key, steps, budget, tell, work or _counted(task), over)
    ended = METHODS[method](tuple(rules), seed).search(bench)
    require(bool(bench.scores), bench.too_little(budget))
    setting = min(bench.scores, key=lambda notation: bench.scores[notation])  # of equals, the one tried first
    optimizer = bench.tried[setting]
    params = optimizer.over(task.layout).init_params(_no_key(task))[None]
    return Searched(setting, optimizer, params, list(bench.scores.items()), bench.gradients, bench.work, ended)


class Bench:
    """Runs settings, and keeps the scores and the account."""

    def __init__(
        self,
        task: Task,
        key: Tensor,
        steps: int,
        budget: float,
        tell: Tell,
        work: Callable[[Optimizer], float],
        over: Callable[[], bool],
    ) -> None:
        self.task, self.key, self.steps, self.budget = task, key, steps, budget
        self.tell, self.work_of, self.over = tell, work, over
        self.scores: dict[str, float] = {}
        self.tried: dict[str, Optimizer] = {}
        self.gradients, self.work = 0, 0.0
        self._works: dict[str, float] = {}

    @property
    def left(self) -> float:
        """Base steps that may still be spent."""
        return self.budget - self.gradients - self.work

    def run(self, optimizers: Sequence[Optimizer]) -> list[float]:
        """Scores of optimizers that differ in their parameters only; of the first ones only if the budget ends."""
        gradients = len(self.key) * (self.steps + 1)
        work = len(self.key) * self.steps * self._work(optimizers[0])
        affordable = 0 if self.over() else int(min(max(self.left, 0) / (gradients + work), len(optimizers)))
        if affordable == 0:
            return []
        optimizers = optimizers[:affordable]
        params = torch.stack([each.over(self.task.layout).init_params(_no_key(self.task)) for each in optimizers])
        losses = run(optimizers[0], params, self.task, self.key, self.steps)
        scores = [_finite(score) for score in mean_loss(losses).mean(-1).tolist()]
        self.gradients += affordable * gradients
        self.work += affordable * work
        for optimizer, score in zip(optimizers, scores):
            self.scores[repr(optimizer)], self.tried[repr(optimizer)] = score, optimizer
        self.tell(f"searching: {optimizers[0]}", (self.gradients + self.work) / self.budget)
        return scores

    def too_little(self, budget: float) -> str:
        """The sentence for a budget with which nothing could be run."""
        least = len(self.key) * (self.steps + 1)
        what = f"{len(self.key)} problems and {self.steps} steps cost {least} and the optimizer's work"
        return f"a budget of {budget:g} base steps tries no setting: {what}; raise it, or lower steps or problems"

    def _work(self, optimizer: Optimizer) -> float:
        """Base steps of one update, which its parameters do not change."""
        kind = repr(_standing(optimizer))
        if kind not in self._works:
            self._works[kind] = self.work_of(optimizer)
        return self._works[kind]


class Line:
    """A rule under a schedule, and its scores by step size: powers of 10^(1/32)."""

    def __init__(self, bench: Bench, rule: HandMade, schedule: Schedule) -> None:
        self.bench, self.rule, self.schedule = bench, rule, schedule
        self.scores: dict[int, float] = {}

    def run(self, exponents: Iterable[int]) -> bool:
        """Try these step sizes, but for those already tried; False if the budget ended before the last of them."""
        wanted = [exponent for exponent in exponents if exponent not in self.scores]
        if not wanted:
            return True
        made = [made_of(set_to(self.rule, "lr", _step_size(e)), self.schedule, self.bench.steps) for e in wanted]
        scores = self.bench.run(made)
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

    def around(self, distance: int) -> list[int]:
        """The neighbours of the best, so many steps of the finest grid away."""
        return [self.best - distance, self.best + distance]


@dataclasses.dataclass(frozen=True)
class Method(ABC):
    """How settings are chosen; abstract. ``seed``: of what it draws."""

    rules: tuple[HandMade, ...]
    seed: int

    @abstractmethod
    def search(self, bench: Bench) -> str:
        """Try settings until the budget is spent or there is nothing left to try; says which."""


class Grid(Method):
    """From coarse to fine; see above."""

    def search(self, bench: Bench) -> str:
        pairs = [Line(bench, rule, schedule) for schedule in schedules(bench.steps) for rule in self.rules]
        done = self._coarse(pairs) and self._refined(pairs, FINE // 2) and self._other_numbers(pairs)
        return "the grid is so fine that more brings nothing" if done else "the budget is spent"

    def _coarse(self, pairs: list[Line]) -> bool:
        """Decades, from the middle outwards, and more of them where the best lies at an edge."""
        middle = sum(DECADES) / len(DECADES)
        first = sorted(DECADES, key=lambda decade: abs(decade - middle))
        if not all(pair.run(FINE * decade for decade in first) for pair in pairs):
            return False
        return all(self._extended(pair) for pair in pairs)

    def _extended(self, pair: Line) -> bool:
        for _ in range(EXTENSIONS):
            edges = {min(pair.scores): -FINE, max(pair.scores): FINE}
            if pair.best not in edges:
                return True
            if not pair.run([pair.best + edges[pair.best]]):
                return False
        return True

    def _refined(self, pairs: list[Line], distance: int) -> bool:
        """Halve the distance around each pair's best, the best pair first, for fewer and fewer pairs."""
        while distance >= 1:
            pairs = _sorted(pairs)
            if not all(pair.run(pair.around(distance)) for pair in pairs):
                return False
            pairs, distance = _sorted(pairs)[: max(2, len(pairs) // 2)], distance // 2
        return True

    def _other_numbers(self, pairs: list[Line]) -> bool:
        """Momenta and decay rates, of the best pair of each rule."""
        best: dict[int, Line] = {}
        for pair in _sorted(pairs):
            best.setdefault(self.rules.index(pair.rule), pair)
        return all(self._climbed(pair) for pair in best.values())

    def _climbed(self, pair: Line) -> bool:
        """Change one number after another, as long as that helps; then refine what came of it."""
        queue = moves(pair)
        while queue:
            rule, schedule = queue.pop(0)
            other = Line(pair.bench, rule, schedule)
            if not other.run(pair.best + FINE // 4 * k for k in (0, -1, 1)):
                return False
            if other.score < ENOUGH * pair.score:
                pair, queue = other, moves(other)
        return self._refined([pair], FINE // 8)


class Optuna(Method):
    """By optuna's TPE sampler, one setting after another."""

    def search(self, bench: Bench) -> str:
        optuna = _optuna()
        before = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        try:
            study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=self.seed))
            scores: list[float] = [0.0]
            while scores:
                trial = study.ask()
                scores = bench.run([self._suggested(trial, bench.steps)])
                if scores:
                    study.tell(trial, scores[0])
        finally:
            optuna.logging.set_verbosity(before)
        return "the budget is spent"

    def _suggested(self, trial: Any, steps: int) -> Optimizer:
        named = {repr(rule): rule for rule in self.rules}
        given = {repr(schedule): schedule for schedule in schedules(steps)}
        name = trial.suggest_categorical("rule", list(named))
        schedule = given[trial.suggest_categorical("schedule", list(given))]
        rule = set_to(named[name], "lr", _rounded(trial.suggest_float(f"{name} lr", 1e-5, 1e2, log=True)))
        for rate in rates(rule):
            gap = trial.suggest_float(f"{name} 1 - {rate}", 1e-4 if "2" in rate else 1e-2, 0.5, log=True)
            rule = set_to(rule, rate, 1 - _rounded(gap))
        return made_of(rule, schedule, steps)


METHODS: dict[str, type[Method]] = {"grid": Grid, "optuna": Optuna}


def schedules(steps: int) -> list[Schedule]:
    """Those that are tried on runs of so many steps, the plainest first."""
    warm = max(1, steps // 10)
    warmed = Warmup(Cosine(), warm), Warmup(LinearDecay(), warm)
    every = (Constant(), Cosine(), LinearDecay(), Exponential(), *warmed)
    return [schedule for schedule in every if schedule.least <= steps]


def made_of(rule: HandMade, schedule: Schedule, steps: int) -> Optimizer:
    """The rule under the schedule; the rule itself under a constant one."""
    return rule if isinstance(schedule, Constant) else Scheduled(rule, schedule, steps)


def set_to(rule: HandMade, name: str, value: float) -> HandMade:
    """The rule with a hyperparameter that starts at ``value``; it stays in its space."""
    known = settings(rule)
    old = known.get(name)
    new = dataclasses.replace(old, start=value) if isinstance(old, Hyper) else value
    return type(rule)(**known | {name: new})


def _standing(optimizer: Optimizer) -> Optimizer:
    """The same with a step size of 1, by which to know others that do the same work."""
    if isinstance(optimizer, Scheduled):
        return dataclasses.replace(optimizer, rule=_standing(optimizer.rule))
    assert isinstance(optimizer, HandMade)
    return set_to(optimizer, "lr", 1.0)


def rates(rule: HandMade) -> list[str]:
    """The momenta and decay rates of a rule, but for those that are fixed."""
    return [name for name, hyper in rule.hypers.items() if isinstance(hyper, Logit) and name in settings(rule)]


def moves(pair: Line) -> list[tuple[HandMade, Schedule]]:
    """A pair with another momentum or decay rate, or a warm-up of another length."""
    rules = [moved(pair.rule, name, factor) for name in rates(pair.rule) for factor in (FACTOR, 1 / FACTOR)]
    found: list[tuple[HandMade, Schedule]] = [(rule, pair.schedule) for rule in rules]
    if isinstance(pair.schedule, Warmup):
        lengths = 2 * pair.schedule.warm, max(1, pair.schedule.warm // 2)
        others = [dataclasses.replace(pair.schedule, warm=warm) for warm in lengths]
        found += [(pair.rule, schedule) for schedule in others if schedule.least <= pair.bench.steps]
    return found


def moved(rule: HandMade, name: str, factor: float) -> HandMade:
    """The rule with a momentum whose distance to 1 is divided by ``factor``."""
    gap = min((1 - rule.hypers[name].start) / factor, 0.9)
    return set_to(rule, name, _rounded(1 - gap, 6))


def _sorted(pairs: Iterable[Line]) -> list[Line]:
    return sorted(pairs, key=lambda pair: pair.score)


def _step_size(exponent: int) -> float:
    return _rounded(10.0 ** (exponent / FINE))


def _rounded(value: float, digits: int = 4) -> float:
    """To so many digits, as it is written down."""
    return float(f"{value:.{digits}g}")


def _finite(score: float) -> float:
    return score if math.isfinite(score) else math.inf


def _no_key(task: Task) -> Tensor:
    """Hand-made rules begin where they are told, whatever the key."""
    return torch.zeros((), dtype=torch.int64, device=task.layout.device)


def _counted(task: Task) -> Callable[[Optimizer], float]:
    from recursion.work import use_work

    return lambda optimizer: use_work(optimizer, task)


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        missing = 'search=optuna needs the package optuna, which is not installed; pip install "descent-tower[tune]"'
        raise ValueError(f"{missing}, or search by grid") from error
    return optuna
