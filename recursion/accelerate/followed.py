"""Followed: the twin of `levels.gradients.Exact` over a compiled task.

The products with a Hessian that an exact gradient needs are one compiled call each. The task is asked for nothing else
on the way back, where plain code evaluates it with a graph and differentiates that. The products cannot be
differentiated in their turn: where an exact level above follows the answer, the plain estimator gives it.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from levels.autodiff import as_data, followed, hvp, is_followed
from levels.base import Answer, Evaluate, LevelLike, LevelState, Problem
from levels.gradients.exact import Exact
from levels.tree import State
from recursion.accelerate.traced import CompiledTask


def quickly_followed(problem: Problem, x: Tensor, problem_state: State, answer: Answer | None = None) -> Answer:
    """As `levels.autodiff.followed`, for one derivative where the problem is a compiled task."""
    f, g, behind, loss, slope = answer = as_data(problem, x, problem_state, answer)
    if not isinstance(problem, CompiledTask) or loss is not f or slope is not g:
        return followed(problem, x, problem_state, answer)
    f, g = _Quickly.apply(x, f, g, problem, problem_state)  # type: ignore[no-untyped-call]
    return Answer(f, g, behind, f, g)


def product(problem: Problem, x: Tensor, problem_state: State, v: Tensor) -> Tensor:
    """As `levels.autodiff.hvp`, compiled where the problem is a compiled task."""
    return problem.hvp(x, problem_state, v) if isinstance(problem, CompiledTask) else hvp(problem, x, problem_state, v)


class _Quickly(torch.autograd.Function):
    """A value and a gradient that are known at ``x``, as functions of ``x`` that can be differentiated once."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, f: Tensor, g: Tensor, task: CompiledTask, problem_state: State
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, g)
        ctx.task, ctx.problem_state = task, problem_state
        return f.clone(), g.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, df: Tensor | None, dg: Tensor | None) -> tuple[Tensor | None, None, None, None, None]:
        x, g = ctx.saved_tensors
        dx = None
        if dg is not None:
            dx = ctx.task.hvp(x, ctx.problem_state() if callable(ctx.problem_state) else ctx.problem_state, dg)
        if df is not None:
            dx = df[..., None] * g if dx is None else torch.addcmul(dx, df[..., None], g)
        return dx, None, None, None, None


@dataclass(frozen=True, repr=False)
class CompiledExact(Exact):
    """Exact gradients whose products with a compiled task's Hessian are compiled."""

    evaluate: ClassVar[Evaluate] = staticmethod(quickly_followed)

    def value_and_grad(self, level: LevelLike, theta: Tensor, state: LevelState) -> tuple[Tensor, Tensor, LevelState]:
        if is_followed(theta):
            return Exact().value_and_grad(level, theta, state)
        return super().value_and_grad(level, theta, state)
