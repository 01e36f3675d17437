"""Whole episodes: how good an optimizer's parameters are over inner training from a fresh start, and what that costs.

A window in the middle of training tells how parameters do from where they were led. To compare parameters, each runs
one whole episode on the same fresh problems, all copies from the start to the horizon. A copy that fails makes it inf.
"""

from dataclasses import replace
from fractions import Fraction
from functools import partial
from typing import Any

import torch
from torch import Tensor

from levels import keys
from levels.autodiff import as_data
from levels.base import Estimator, LevelLike, ProblemTraits, is_level
from levels.faults import Skip, is_sound
from levels.fields import require
from levels.restart import run


@torch.no_grad()
def whole_episode(level: Any, theta: Tensor, key: Tensor) -> Tensor:
    """Mean meta-loss ``[*batch]`` over the windows of one episode from a fresh start; inf where a copy fails.

    All copies begin together, on problems that keys ``[*batch]`` draw. An endless level runs one window.
    """
    level = tolerant(level)
    windows = episode_windows(level)
    evaluate = partial(as_data, grad=level.optimizer.traits.reads_grad)
    carry = level.begin(theta, keys.split(key, level.copies))
    sound, total = is_sound(carry.f[None], carry.g).all(-1), theta.new_zeros(())
    for _ in range(windows):
        carry, window = run(level, theta, carry, evaluate, keep=False)
        total = total + level.objective.value(window.losses).mean(-1) / windows
    penalty = level.optimizer.penalty(theta)
    total = total if penalty is None else total + penalty
    sound = sound & torch.isfinite(total) & (carry.skipped == 0).all(-1)
    return torch.where(sound, total, torch.inf)


class RefusedError(ValueError):
    """An estimator refuses the ``level`` that it belongs to, which is the problem of the level that was asked."""

    level: Any = None


def check_problem(level: Any, problem: Any) -> None:
    """ValueError unless the problem has parameters, and a gradient if the level's optimizer reads one."""
    if is_level(problem) and level.optimizer.traits.reads_grad:
        try:
            problem.gradient.check(problem)
        except ValueError as error:
            refused = RefusedError(*error.args)
            refused.level = problem
            raise refused from error
    require(problem.layout.size > 0, f"{level} has nothing to optimize; the problem below has no parameters")


def require_differentiable(estimator: Estimator, level: LevelLike) -> None:
    """ValueError, in the name of ``estimator``, unless the level's updates can be differentiated."""
    fix = "let it be the topmost level, use an optimizer that can be differentiated, or estimate by gradient=pes"
    good = level.optimizer.traits.differentiable
    require(good, f"{level.optimizer} cannot be differentiated by {estimator}; {fix}")


def resolved(level: Any) -> tuple[int, int | None]:
    """Copies and episode length of a level, with ``auto`` resolved. ValueError where settings do not fit the unroll."""
    unroll, auto = level.unroll, level.unroll > 1
    horizon = (5 * unroll if auto else None) if level.horizon == "auto" else level.horizon
    near = max(1, round((horizon or unroll) / unroll)) * unroll
    what = f"horizon must be a multiple of the unroll {unroll}, got {horizon}; use {near}"
    require(horizon is None or horizon % unroll == 0, what)
    what = f"ahead must be at least the unroll {unroll}, or none, got {level.lookahead}"
    require(level.lookahead is None or level.lookahead >= unroll, what)
    default = level.problem.traits.copies if level.problem is not None and auto else 1
    return default if level.batch == "auto" else level.batch, horizon


def episode_windows(level: LevelLike) -> int:
    """Windows of an episode, or 1 if there is no horizon."""
    return 1 if level.episode_length is None else level.episode_length // level.unroll


def tolerant(problem: Any) -> Any:
    """The same problem, in which all levels skip copies that fail: for a part that runs levels on its own account."""
    if not is_level(problem):
        return problem
    return replace(problem, nonfinite=Skip()).over(tolerant(problem.problem))


def level_traits(level: Any) -> ProblemTraits:
    """What a level above must know of ``level``; evals are task gradients for each copy of the task."""
    given, optimizer = level.problem.traits, level.optimizer.traits
    starting = given.init_evals + given.evals
    each, span = given.evals + given.outer_evals + optimizer.evals, level.lookahead or level.unroll
    evals = level.gradient.evals(level)
    products = Fraction(evals - span * each) / given.product_evals  # that the gradient takes itself, as exact does
    swept = span * given.product_evals  # those of a product with its Jacobian
    if given.outer_evals:  # the loss that counts has another gradient, and the state between is made again
        swept += span * (given.evals + given.outer_evals) - given.product_evals
    return ProblemTraits(
        differentiable=level.gradient.traits.differentiable,
        evals=evals,
        init_evals=starting,
        scratch_evals=starting + episode_windows(level) * span * each,
        product_evals=evals + swept + products * given.again_evals,
        again_evals=swept + span * given.again_evals + 2 * products * given.again_evals,
    )
