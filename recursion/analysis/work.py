"""Work: what a tower does in a step, all of it in base steps, the same at every call and on every machine.

    work = work_of(tower)
    print(work.gradients, work.optimizer)  # task gradients of a top step; what each level does beside them

Operations are counted as torch dispatches them, in the plain form in which nothing is compiled. A matrix product, a
convolution or an attention counts the floating point operations of torch's own formulas (``torch.utils.flop_counter``:
two for each multiplication with its addition). Every other operation counts the numbers that it writes: one each for
an addition, a sine, a random draw, a gather or a copy, and as many as remain for a sum. Views, and memory that is
allocated or filled with a constant, are free. A base step is what one gradient of the task takes for one copy
(`base_flops`), and work is a number of operations divided by that. Bytes moved, Python and the looking at whether
numbers are finite cost time, but are no work here.

A level's own work is what happens while it is asked, less what happens while the one below it is: its updates, their
derivatives, its meta-loss, its noise. The topmost level is not asked for a gradient, so it does its updates only.
What a rule does to put the problem on trial (`levels.asking`) counts in gradients, and not as work.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import zip_longest
from typing import NamedTuple

import torch

from levels import keys
from levels.bound_levels import STATE, Level
from levels.base import Optimizer
from levels.base import Problem
from recursion.analysis.metering import COPIES, Meter, Operations, Pass, measure, plainly
from recursion.analysis.metering import base_flops as base_flops
from recursion.evaluate.observed import Observed
from recursion.tower import Tower


class Work(NamedTuple):
    """Work in base steps: gradients of the task, each copy counted, and each level's own, level 1 first."""

    gradients: float
    optimizer: tuple[float, ...]

    @property
    def total(self) -> float:
        """Gradients and everybody's own work."""
        return self.gradients + sum(self.optimizer)

    def plus(self, other: Work, times: float = 1) -> Work:
        """This work and ``times`` the other."""
        pairs = zip_longest(self.optimizer, other.optimizer, fillvalue=0.0)
        return Work(self.gradients + times * other.gradients, tuple(a + times * b for a, b in pairs))


NOTHING = Work(0.0, ())


class Lived(NamedTuple):
    """Work of a tower that restarts now and then."""

    start: Work  # of `Tower.init`
    step: Work  # of a step, on the average over the lives of its levels


def use_work(optimizer: Optimizer, task: Problem) -> float:
    """Work of one update of an optimizer at use on one copy of the task, in base steps; the gradient apart."""
    return _update(optimizer, task) / base_flops(task)


def work_of(tower: Tower) -> Work:
    """Work of one top step, start-up and restarts apart."""
    return _worked(met(tower, restarts=False)[1], own_work(tower))


def lived_work(tower: Tower, own: tuple[float, ...] | None = None) -> Lived:
    """Work of start-up, and of a top step with the restarts that fall into it on the average.

    ``own``: what `own_work` says of the tower, if that is at hand.
    """
    own = own or own_work(tower)
    start, step = met(tower, restarts=True)
    return Lived(_worked(start, own), _worked(step, own))


def own_work(tower: Tower) -> tuple[float, ...]:
    """Work of one window of one copy of each level, level 1 first, in base steps; what is below it apart."""
    operations = Operations()
    (measured,) = measure(tower, Pass(operations, lambda: operations.count))
    return measured.work(tower)


def own_work_under(tower: Tower, own: tuple[float, ...]) -> tuple[float, ...]:
    """`own_work` of the tower without its topmost level, where ``own`` is the tower's."""
    *lower, laid = tower.bound_levels[:-1]
    updates = laid.level.unroll * laid.batch * _update(laid.level.optimizer, laid.problem)
    return (*own[: len(lower)], updates / base_flops(tower.task))


def _update(optimizer: Optimizer, problem: Problem) -> float:
    """Operations of one update on one copy of the problem; those of a task that it asks apart."""
    key = keys.split(keys.seed(0, device=problem.layout.device), COPIES)
    operations, meter = Operations(), Meter()
    with plainly():
        rule = optimizer.bound(problem if isinstance(problem, Level) else Observed(problem, meter)).over(problem.layout)
        params, x = rule.init(key[0]), problem.init(key)
        state, f, g = rule.begin_state(params, x, keys.fold_in(key, STATE)), torch.ones_like(x[..., 0]), x
        x, state = rule.update(params, f, g, state, x)
        meter.reset(Pass(operations, lambda: operations.count))
        with operations, meter.at(1, COPIES):
            rule.update(params, f, g, state, x)
    return meter.measured(1).own[1]


def _worked(windows: list[float], own: tuple[float, ...]) -> Work:
    return Work(windows[0], tuple(count * each for count, each in zip(windows[1:], own, strict=True)))


def met(tower: Tower, *, restarts: bool) -> tuple[list[float], list[float]]:
    """Gradients of the task (place 0) and windows of each level that a start and a window of the topmost come to.

    A window of a level with B copies asks the one below for as many windows as its estimator evaluates, for each; one
    that restarts every L updates has in every L / T windows a start below, and the first window there.
    """
    start, first, window = [0.0], [1.0], [1.0]
    for laid in tower.bound_levels:
        level, top = laid.level, laid is tower.top
        asked = level.unroll if top else level.gradient.evaluations(level, laid.problem.judging)
        updates = level.unroll if top else level.gradient.updates(level)
        trajectories = laid.batch if top else laid.batch * updates / level.reach
        begun = [a + b for a, b in zip(start, first)]  # for each trajectory that begins
        often = level.unroll / level.episode_length if restarts and level.episode_length is not None else 0.0
        below = [laid.batch * asked * each for each in window]
        below[0] += float(laid.batch * updates * laid.optimizer.asking * math.prod(_copies_below(laid)))
        start, first = [*(trajectories * a for a in begun), 0.0], [*below, 1.0]
        window = [*(a + often * trajectories * b for a, b in zip(below, begun)), 1.0]
    return start, window


def _copies_below(laid: Level) -> Iterator[int]:
    """Batches of the levels under this one."""
    problem = laid.problem
    while isinstance(problem, Level):
        yield problem.batch
        problem = problem.problem
