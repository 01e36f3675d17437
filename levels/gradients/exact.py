"""Exact gradients of one window: also through what the gradient itself owes to the parameters, at every level.

First order takes the gradient that feeds the optimizer as data. Here ``g_t = grad P(x_t)`` is a function of ``x_t``, so
its cotangent comes back to ``x_t`` by the Jacobian J of the gradient, and that of ``f_t`` by the gradient:

    dx   <- dx + w_t g_t + df g_t + J(x_t)^T dg
    dparams, df, dg, dstate, dx  <-  pullback of update t at (dx, dstate),      dparams summed over t.

J is a Hessian, so symmetric, and ``J^T dg`` is forward mode through the problem's answer at ``x_t`` (mixed mode, Kemaev
et al. 2025, arXiv 2505.00793): asked again, from the state with which it was asked before. Where nothing above
differentiates, a task given by its loss takes the same product by autograd twice, which is quicker, and holds the graph
of one evaluation for it (`levels.task.LossTask.bend`). What is kept of a window are the carries; of the model's
backward graph nothing, however long the window. What stands in the carry at the window's edge is a constant for every
derivative. Over unroll T a window costs 2T - 1 evaluations below, T - 1 of them with tangents, so unrolls of 1 cost
what first order does, and levels multiply.

All that runs here composes with `torch.func`. So an exact level over an exact level differentiates this file's two
sweeps forward, and so on up.

Mixed towers. First order over exact takes exact gradients as data. Exact over first order, or over a level that clips:
that level's answer is taken at its word as the derivative of its value (there is no other at hand), but its Jacobian
is not symmetric, so ``J^T dg`` is reverse mode through it. It holds the graph of one window below, one at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from levels import keys
from levels.compiled import compiling
from levels.autodiff import Cotangents, pull_gradient, pull_init_state, push
from levels.gradients.backward import Backward
from levels.base import LevelState
from levels.bound_levels import Level
from levels.level import Level
from levels.config import require
from levels.base import Problem
from levels.traced import tracing
from levels.base import Carry, Window


@dataclass(frozen=True, repr=False)
class Exact(Backward):
    """The gradient of a window's meta-loss with every path in it followed; carries are constants at window edges."""

    name = "exact"
    asks = True

    def check(self, level: Level) -> None:
        super().check(level)
        problem: Problem = level
        while isinstance(problem, Level):
            _check_update(problem)
            problem = problem.problem
            what = f"the level below, {problem.level}," if isinstance(problem, Level) else f"{problem}"
            fix = "use gradient=first-order or gradient=pes on this level"
            require(problem.differentiable, f"{what} has a gradient that cannot be differentiated by {self}; {fix}")
        _check_gradient(problem)

    def evaluations(self, level: Level, judging: int = 0) -> int:
        return level.reach * (2 + judging) - 1

    def symmetric(self, level: Level) -> bool:
        return level.problem.symmetric

    def value_and_grad(self, level: Level, params: Tensor, state: LevelState) -> tuple[Tensor, Tensor, LevelState]:
        with tracing():
            return super().value_and_grad(level, params, state)

    def sweep(
        self, level: Level, params: Tensor, carry: Carry, window: Window, slope: Callable[[int], Tensor | None]
    ) -> Tensor:
        dparams, dx, df, dg = (torch.zeros_like(tensor) for tensor in (params, carry.x, carry.f, carry.g))
        dstate: list[Tensor | None] = []
        pull, last = level.optimizer.pull_all(params), len(window.steps) - 1
        for t in range(last, -1, -1):
            counted = slope(t)
            dx = dx if counted is None else dx + counted
            if t < last:  # what the last answer feeds lies beyond the edge
                dx = dx + df[..., None] * window.steps[t + 1].g + _bent(level, window, t, dg)
            step = window.steps[t]
            dp, df, dg, dstate, dx = pull(*step[:4], dx, dstate)
            dparams = dparams + dp
        if not window.begun.any():
            return dparams
        return dparams + _start_slopes(level, params, carry.key, window, Cotangents(dp, df, dg, dstate, dx))


def _bent(level: Level, window: Window, t: int, dg: Tensor) -> Tensor:
    """The cotangent that the gradient after update ``t``, counted from 0, sends back to where it was taken.

    None comes from copies that stood still, where the problem may answer anything.
    """
    dx = pull_gradient(level.problem, window.steps[t + 1].x, window.asked[t], dg)
    return dx if window.stood is None else torch.where(window.stood[..., None], 0.0, dx)


def _start_slopes(level: Level, params: Tensor, key: Tensor, window: Window, slopes: Cotangents) -> Tensor:
    """What the parameters have to do with where trajectories began: ``[*batch, m]``.

    There too the problem was asked, so ``g`` and ``f`` at the start have cotangents that come back to it.
    """
    optimizer, start, begun = level.optimizer, window.steps[0], window.begun
    dparams, dx = pull_init_state(optimizer, params, start.x, slopes.state, begun)
    dx = dx + slopes.x + slopes.f[..., None] * start.g
    if optimizer.start_pullback(params, dx, begun) is None:
        return dparams
    rows = begun.flatten().nonzero().squeeze(-1)
    x, dg = start.x.flatten(0, -2)[rows], slopes.g.flatten(0, -2)[rows]
    with compiling(False):  # any number of copies may begin, and each number would be compiled by itself
        bent = pull_gradient(level.problem, x, level.asked_first(x, key.flatten()[rows]), dg)
    dx = dx.flatten(0, -2).index_add(0, rows, bent).reshape(dx.shape)
    dstart = optimizer.start_pullback(params, dx, begun)
    return dparams if dstart is None else dparams + dstart


def _check_update(level: Level) -> None:
    """ValueError unless one update can be differentiated forward and backward."""
    optimizer, key = level.optimizer, keys.seed(0, device=level.layout.device)
    params, x = optimizer.init(key), level.problem.init(key[None])
    state, f = optimizer.init_state(params, x), x.new_ones(1)
    optimizer.update(params, f, x, state, x)  # plainly first: what a part caches must not belong to a transform

    def pulled(g: Tensor) -> Tensor:
        return optimizer.pull_all(params)(f, g, state, x, torch.ones_like(x), []).params

    try:
        push(pulled, torch.ones_like(x), torch.ones_like(x))
    except Exception as error:  # whatever a stranger's code raises
        fix = "use another optimizer, or gradient=first-order or gradient=pes on this level and those above"
        raise ValueError(f"{optimizer} cannot be differentiated by torch.func ({_first(error)}); {fix}") from error


def _check_gradient(problem: Problem) -> None:
    """ValueError unless a task's answer can be differentiated forward, and says so of its gradient."""
    key = keys.seed(0, device=problem.layout.device)
    x = problem.init(key)
    state, v = problem.init_state(x, key), keys.normal(keys.fold_in(key, 1), (problem.layout.size,), x.dtype)
    fix = "return what torch.func can differentiate, or use gradient=first-order or gradient=pes"
    grad, beside = problem.value_and_grad(x, state)[1], problem.value_and_grad(x + 1e-3 * v, state)[1]
    try:
        _, (slope, bend) = push(lambda x: problem.value_and_grad(x, state)[:2], x, v)
    except Exception as error:  # whatever a stranger's code raises
        raise ValueError(f"the gradient of {problem} cannot be differentiated ({_first(error)}); {fix}") from error
    expected, scale = (grad * v).sum(), grad.norm() * v.norm()
    lost = problem.symmetric and not (slope - expected).abs() <= 0.01 * scale
    require(not lost, f"{problem} cuts derivatives: its value has another one than its gradient; {fix}")
    lost = not bend.any() and bool((beside - grad).norm() > 1e-5 * grad.norm())
    require(not lost, f"{problem} cuts derivatives: its gradient moves, but its derivative is 0; {fix}")


def _first(error: Exception) -> str:
    """The first line of what went wrong."""
    return (str(error) or type(error).__name__).splitlines()[0]
