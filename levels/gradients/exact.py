"""Exact gradients of one window: also through what the gradient itself owes to the parameters, at every level.

First order takes the gradient that feeds the optimizer as data. Here it is a function of the parameters: the window
evaluates the problem by `levels.autodiff.followed`, and autograd follows it. Nothing of the model's graph is kept,
however long the window: each product with the gradient's Jacobian evaluates the problem again, at the same state. Over
unroll T a window costs T evaluations below and T - 1 products, each one evaluation of a task; so unrolls of 1 cost what
first order does.

Mixed towers. First order over exact takes exact gradients as data. Exact over first order, or over a level that clips,
takes that level's answer as the derivative of its value, and differentiates the answer by reverse mode.
"""

import contextlib
import dataclasses
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar

import torch
from torch import Tensor

from levels import keys
from levels.autodiff import followed, hvp
from levels.base import Estimator, Evaluate, LevelLike, Problem, is_level
from levels.fields import require
from levels.gradients.first_order import Backpropagation
from levels.replay import update_vjp
from levels.tree import State


@dataclass(frozen=True, repr=False)
class Exact(Backpropagation):
    """The gradient of a window's meta-loss with every path in it followed; carries are constants at window edges."""

    name = "exact"

    evaluate: ClassVar[Evaluate] = staticmethod(followed)

    def evals(self, level: LevelLike) -> int | Fraction:
        products = (level.lookahead or level.unroll) - 1  # with the Jacobian of the problem's gradient
        return super().evals(level) + products * level.problem.traits.product_evals

    def check(self, level: LevelLike) -> None:
        super().check(level)
        require_followed(self, level)


def require_followed(estimator: Estimator, level: LevelLike) -> None:
    """ValueError, in the name of ``estimator``, unless every gradient below the level can be differentiated."""
    problem: Any = level
    while is_level(problem):
        _check_update(problem)
        problem = problem.problem
        what = f"the level below, {problem}," if is_level(problem) else f"{problem}"
        fix = "use gradient=first-order or gradient=pes on this level"
        good = problem.traits.differentiable
        require(good, f"{what} has a gradient that cannot be differentiated by {estimator}; {fix}")
    _check_gradient(problem)


@torch.enable_grad()
def _check_update(level: LevelLike) -> None:
    """ValueError unless one update can be differentiated twice."""
    optimizer, key = level.optimizer, keys.seed(0, device=level.optimizer.layout.device)
    theta, x = optimizer.init(key).requires_grad_(), level.problem.init(key[None])
    state, f, g = optimizer.init_state(theta.detach(), x, key[None]), x.new_ones(1), x.clone().requires_grad_()
    try:
        dtheta, *_ = update_vjp(optimizer, theta, x, state, f, g, torch.ones_like(x), [])
        if dtheta.requires_grad:
            torch.autograd.grad(dtheta.sum(), (theta, g), allow_unused=True)
    except Exception as error:  # whatever a user's code raises
        fix = "use another optimizer, or gradient=first-order or gradient=pes on this level and those above"
        raise ValueError(f"{optimizer} cannot be differentiated twice ({first_line(error)}); {fix}") from error


@torch.enable_grad()
def _check_gradient(problem: Problem) -> None:
    """ValueError unless a task's gradient can be differentiated, and its derivatives are what differences say."""
    fix = "return what autograd can differentiate twice, or use gradient=first-order or gradient=pes"
    who = f"{problem}"
    with contextlib.suppress(Exception):  # else in its own precision, where rounding hides more
        problem = dataclasses.replace(problem, dtype="float64")  # type: ignore[type-var]
    key = keys.seed(0, device=problem.layout.device)
    x = problem.init(key)
    state, v = problem.init_state(x, key), keys.normal(keys.fold_in(key, 1), (problem.layout.size,), x.dtype)
    v = v / v.norm()  # small enough to meet few kinks
    grad = problem.value_and_grad(x, state)[1]
    leaf = x.clone().requires_grad_()
    try:
        value = problem.value_and_grad(leaf, state)[0]
        with torch.no_grad():
            product = hvp(problem, x, state, v)
        slope = torch.autograd.grad(value.sum(), leaf, allow_unused=True)[0] if value.requires_grad else None
    except Exception as error:  # whatever a user's code raises
        raise ValueError(f"the gradient of {who} cannot be differentiated ({first_line(error)}); {fix}") from error
    expected, scale = (grad * v).sum(), grad.norm() * v.norm()
    measured = expected * 0 if slope is None else (slope * v).sum()
    same = bool((measured - expected).abs() <= 0.01 * scale)
    require(same, f"{who} cuts derivatives: its value has another one than its gradient; {fix}")
    good = any(_moves_so(problem, x, state, v, product, width) for width in (1e-2, 1e-4, 1e-6))
    require(good, f"{who} has a gradient whose derivative is not what differences of it say; {fix}")


def _moves_so(problem: Problem, x: Tensor, state: State, v: Tensor, product: Tensor, width: float) -> bool:
    """Whether the gradient moves along ``v`` by the product with the Hessian, to 10% and what rounding hides."""
    up, down = (problem.value_and_grad(x + way * width * v, state)[1] for way in (1, -1))
    measured, rounding = (up - down) / (2 * width), 100 * torch.finfo(x.dtype).eps * up.norm() / width
    return bool((product - measured).norm() <= 0.1 * measured.norm() + rounding)


def first_line(error: Exception) -> str:
    """The first line of what went wrong."""
    return (str(error) or type(error).__name__).splitlines()[0]
