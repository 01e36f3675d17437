"""Work: what a tower does in a step, all of it in base steps, the same at every call and on every machine.

    work = work_of(tower)
    print(work.gradients, work.optimizer)  # task gradients of a top step; what each level does beside them

Operations are counted as torch dispatches them, with nothing compiled. A matrix product, a convolution or an attention
counts the floating point operations of torch's own formulas (``torch.utils.flop_counter``: two for each multiplication
with its addition). Every other operation counts the numbers that it writes: one each for an addition, a sine, a random
draw, a gather or a copy, and as many as remain for a sum. Views are free, and so is memory that is allocated or filled
with a constant. Work is a number of operations over those of a base step, one gradient of the task for one copy
(`base_flops`). Bytes moved and Python cost time, but no work.

A level's own work is what happens in its calls, without the calls of the level below: its updates, their derivatives,
its meta-loss, its noise; for the topmost level its updates only. What an optimizer asks of the problem itself
(`OptimizerTraits.evals`) counts in gradients, and not as work.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from itertools import zip_longest
from typing import NamedTuple

import torch

from levels import keys
from levels.base import STATE, Optimizer, Problem, ProblemTraits
from levels.level import Level
from recursion.analysis.metering import COPIES, Meter, Operations, Pass, measure
from recursion.analysis.metering import base_flops as base_flops
from recursion.evaluation.observed import Observed, Tally
from recursion.tower import Tower


class Work(NamedTuple):
    """Work in base steps: gradients of the task, each copy counted, and each level's own, level 1 first."""

    gradients: float
    optimizer: tuple[float, ...]

    @property
    def total(self) -> float:
        """Gradients and the work of all levels."""
        return self.gradients + sum(self.optimizer)

    def plus(self, other: Work, times: float = 1) -> Work:
        """This work and ``times`` the other."""
        pairs = zip_longest(self.optimizer, other.optimizer, fillvalue=0.0)
        return Work(self.gradients + times * other.gradients, tuple(a + times * b for a, b in pairs))


NOTHING = Work(0.0, ())


class Lived(NamedTuple):
    """Work of a tower with its restarts."""

    start: Work  # of `Tower.init`
    step: Work  # of a step, on the average over the episodes of its levels


def use_work(optimizer: Optimizer, task: Problem) -> float:
    """Work of one update of an optimizer on one copy of the task, in base steps, without the gradient."""
    return _update(optimizer, task) / base_flops(task)


def work_of(tower: Tower) -> Work:
    """Work of one top step, without start-up and restarts."""
    return _worked(windows_of(tower, restarts=False)[1], own_work(tower))


def lived_work(tower: Tower, own: tuple[float, ...] | None = None) -> Lived:
    """Work of start-up, and of a top step with its share of restarts; ``own``: the tower's `own_work`, if known."""
    own = own or own_work(tower)
    start, step = windows_of(tower, restarts=True)
    return Lived(_worked(start, own), _worked(step, own))


def own_work(tower: Tower) -> tuple[float, ...]:
    """Work of one window of one copy of each level, level 1 first, in base steps, without what is below it."""
    operations = Operations()
    (measured,) = measure(tower, Pass(operations, lambda: operations.count))
    return measured.work(tower)


def own_work_under(tower: Tower, own: tuple[float, ...]) -> tuple[float, ...]:
    """`own_work` of the tower without its topmost level, where ``own`` is the tower's."""
    *lower, level = tower.bound[:-1]
    updates = level.unroll * level.copies * _update(level.optimizer, level.problem)
    return (*own[: len(lower)], updates / base_flops(tower.task))


def _update(optimizer: Optimizer, problem: Problem) -> float:
    """Operations of one update on one copy of the problem, without those of a task that the rule asks itself."""
    key = keys.split(keys.seed(0, device=problem.layout.device), COPIES)
    operations, meter = Operations(), Meter()
    with torch.no_grad():
        over_it = optimizer.bind(problem if isinstance(problem, Level) else Observed(problem, meter))
        theta, x = over_it.init(key[0]), problem.init(key)
        state, f, g = over_it.init_state(theta, x, keys.fold_in(key, STATE)), torch.ones_like(x[..., 0]), x
        x, state = over_it.update(theta, x, state, f, g)
        meter.reset(Pass(operations, lambda: operations.count))
        with operations, meter.at(1, COPIES):
            over_it.update(theta, x, state, f, g)
    return meter.measured(1).own[1]


def _worked(windows: list[float], own: tuple[float, ...]) -> Work:
    return Work(windows[0], tuple(count * each for count, each in zip(windows[1:], own, strict=True)))


def windows_of(tower: Tower, *, restarts: bool) -> tuple[list[float], list[float]]:
    """Gradients of the task (place 0) and windows of each level, for a start and for a window of the topmost level.

    A window of a level with B copies runs as many windows below as its estimator evaluates, for each copy. A level that
    restarts every L updates adds, in every L / T windows, a start below and the first window there.
    """
    start, first, window = [0.0], [1.0], [1.0]
    for level in tower.bound:
        asked, updates = (level.unroll, level.unroll) if level is tower.top else _evaluations(level)
        trajectories = level.copies * updates / (level.lookahead or level.unroll)
        begin = [a + b for a, b in zip(start, first)]  # for each trajectory that begins
        often = level.unroll / level.episode_length if restarts and level.episode_length is not None else 0.0
        evaluations = [level.copies * asked * each for each in window]
        evaluations[0] += float(level.copies * updates * level.optimizer.traits.evals * math.prod(_copies_below(level)))
        start, first = [*(trajectories * a for a in begin), 0.0], [*evaluations, 1.0]
        window = [*(a + often * trajectories * b for a, b in zip(evaluations, begin)), 1.0]
    return start, window


def _evaluations(level: Level) -> tuple[float, float]:
    """Evaluations of the problem below in a window, and updates of the optimizer, for each copy.

    The cost that an estimator names is linear in the costs of an evaluation, of a Jacobian product, and of an outer
    evaluation, which is one for each update.
    """
    traits, one = level.problem.traits, Fraction(max(1, level.problem.traits.evals))
    free, asked, counted = (
        float(level.gradient.evals(replace(level, problem=_Priced(level.problem, *costs))))
        for costs in ((0, 0, 0), (1, traits.outer_evals / one, traits.product_evals / one), (0, 1, 0))
    )
    return asked - free, counted - free


class _Priced(Observed):
    """A problem whose evaluations have other costs."""

    def __init__(self, problem: Problem, *costs: int | Fraction) -> None:
        super().__init__(problem, Tally())
        self.costs = costs

    @property
    def traits(self) -> ProblemTraits:
        evals, outer, product = self.costs
        return self.problem.traits._replace(evals=evals, outer_evals=outer, product_evals=product)


def _copies_below(level: Level) -> Iterator[int]:
    """Copies of the levels under this one."""
    while isinstance(level.problem, Level):
        level = level.problem
        yield level.copies
