"""Derivatives of what a level asks, in plain autograd: how a problem is evaluated, and products with its Jacobians.

A window takes *how the problem is evaluated* as an argument. `as_data` gives value and gradient as constants: first
order. `followed` gives them as functions of ``x``, through one `torch.autograd.Function`:

    backward(df, dg)  =  df g + J^T dg,      J = Jacobian of the gradient at x (the Hessian H, for a task)

It keeps no graph of the model: its backward evaluates the problem again, with a graph, at the same state. Reverse mode
needs no symmetry, so it is right above a level whose gradient is an estimate; and it nests to any depth.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from levels.base import Answer, Problem
from levels.tree import State, map_leaves


def is_followed(params: Tensor) -> bool:
    """Whether the answer at ``params`` must be a function of them, rather than data."""
    return params.requires_grad and torch.is_grad_enabled()


def stop_gradient(state: State) -> State:
    """The state as a constant for every derivative."""
    return map_leaves(torch.detach, state)


@torch.no_grad()
def as_data(
    problem: Problem, x: Tensor, state: State, answer: Answer | None = None, *, outer: bool = True, grad: bool = True
) -> Answer:
    """The problem's answer at ``x`` as constants; an ``answer`` that is known already is taken as it is.

    Without ``outer``, the loss that the optimizer reads also counts. Without ``grad``, gradients are zeros, uncomputed.
    """
    if answer is not None:
        return answer
    x = x.detach()
    if grad:
        f, g, state = problem.value_and_grad(x, state)
    else:
        (f, state), g = problem.value(x, state), torch.zeros_like(x)
    loss, slope, state = problem.outer_value_and_grad(x, state, f, g) if outer else (f, g, state)
    return Answer(f, g, state, loss, slope)


def followed(problem: Problem, x: Tensor, state: State, answer: Answer | None = None) -> Answer:
    """The problem's answer at ``x`` as a function of ``x``; the state, or a function that makes it, is a constant."""
    f, g, behind, loss, slope = as_data(problem, x, state, answer)

    def inner(at: Tensor) -> tuple[Tensor, Tensor]:
        return problem.value_and_grad(at, state() if callable(state) else state)[:2]

    def outer(at: Tensor) -> tuple[Tensor, Tensor]:
        between = problem.value_and_grad(at.detach(), state)[2]
        return problem.outer_value_and_grad(at, between, f, g)[:2]

    same = loss is f
    f, g = _Followed.apply(x, f, g, inner)  # type: ignore[no-untyped-call]
    loss, slope = (f, g) if same else _Followed.apply(x, loss, slope, outer)  # type: ignore[no-untyped-call]
    return Answer(f, g, behind, loss, slope)


class _Followed(torch.autograd.Function):
    """A value and a gradient that are known at ``x``, as functions of ``x``; ``ask`` computes them again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, f: Tensor, g: Tensor, ask: Callable[..., Any]) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, f, g)
        ctx.ask = ask
        return f.clone(), g.clone()

    @staticmethod
    def backward(ctx: Any, df: Tensor | None, dg: Tensor | None) -> tuple[Tensor | None, None, None, None]:
        x, f, g = ctx.saved_tensors
        dx = None if dg is None else vjp(lambda at: ctx.ask(at)[1], x, dg)
        if df is not None:
            again = torch.is_grad_enabled()  # whether this product is differentiated in its turn
            slope = _Followed.apply(x, f, g, ctx.ask)[1] if again else g  # type: ignore[no-untyped-call]
            dx = df[..., None] * slope if dx is None else torch.addcmul(dx, df[..., None], slope)
        return dx, None, None, None


def vjp(function: Callable[[Tensor], Tensor | None], x: Tensor, v: Tensor) -> Tensor:
    """``J^T v`` for the Jacobian of ``function`` at ``x``, a function of ``x`` and ``v`` where these are followed."""
    again = torch.is_grad_enabled() and (x.requires_grad or v.requires_grad)
    with torch.enable_grad():
        at = x.view_as(x) if again and x.requires_grad else x.detach().requires_grad_()
        value = function(at)
        if value is None or not value.requires_grad:  # a constant
            return torch.zeros_like(x)
        return torch.autograd.grad(value, at, v, create_graph=again, materialize_grads=True)[0]


def hvp(problem: Problem, x: Tensor, state: State, v: Tensor) -> Tensor:
    """The Hessian of a task at ``x`` times ``v``; for any problem, its gradient's Jacobian, transposed, times ``v``."""
    return vjp(lambda at: problem.value_and_grad(at, state)[1], x, v)
