"""First-order gradients: truncated backpropagation through one window (L2L 2016, section 2: dotted edges dropped).

The gradient that feeds the optimizer enters as data. The parameters x_t are then functions of theta through the
updates alone, and g_t, already at hand, is the derivative of the loss at x_t. So nothing is evaluated again:

    dL/dtheta  =  sum_t  (dx_t / dtheta)^T  w_t g_t,            w_t = dL / df_t

A window costs one task gradient a base step at any depth. Memory is this level's own optimizer over one window.
"""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from levels.autodiff import as_data, followed, is_followed
from levels.base import Estimator, EstimatorTraits, Evaluate, LevelLike, LevelState, Window
from levels.episode import require_differentiable
from levels.replay import swept
from levels.restart import run, started


class Backpropagation(Estimator):
    """Backpropagation through one window; abstract. The carry at the window's edge is a constant."""

    described = "first-order or exact"
    evaluate: ClassVar[Evaluate] = staticmethod(as_data)

    traits = EstimatorTraits(differentiable=True)

    def check(self, level: LevelLike) -> None:
        require_differentiable(self, level)

    def init(self, level: LevelLike, theta: Tensor, key: Tensor) -> LevelState:
        return LevelState(started(level, theta, key), None)

    @torch.no_grad()
    def value(self, level: LevelLike, theta: Tensor, state: LevelState) -> tuple[Tensor, LevelState]:
        evaluate = partial(as_data, grad=level.optimizer.traits.reads_grad)
        carry, window = run(level, theta, state.carry, evaluate, keep=False)
        return level.objective.value(window.losses).mean(-1), LevelState(carry, None)

    def value_and_grad(self, level: LevelLike, theta: Tensor, state: LevelState) -> tuple[Tensor, Tensor, LevelState]:
        again = is_followed(theta)
        with torch.enable_grad():
            theta = theta.view_as(theta) if again else theta.detach().requires_grad_()
            carry, window = run(level, theta, state.carry, self.evaluate)  # x_t are functions of theta
        losses = window.losses if again else window.losses.detach()
        grad = window_vjp(level, theta, window, again)
        return level.objective.value(losses).mean(-1), grad, LevelState(carry, None)


@dataclass(frozen=True, repr=False)
class FirstOrder(Backpropagation):
    """The problem's gradient is data; carries are constants at window edges."""

    name = "first-order"

    def value_and_grad(self, level: LevelLike, theta: Tensor, state: LevelState) -> tuple[Tensor, Tensor, LevelState]:
        if not is_followed(theta):
            return super().value_and_grad(level, theta, state)
        carry, window = run(level, theta, state.carry, followed)  # for an exact level above: the sum is a function of g
        grad = swept(level, theta, window, meta_cotangents(level, window))
        return level.objective.value(window.losses).mean(-1), grad, LevelState(carry, None)


def meta_cotangents(level: LevelLike, window: Window) -> Tensor:
    """The derivative of the meta-loss, the mean over copies, at each x_t: ``w_t g_t [T, *batch, copies, n]``."""
    weights = level.objective.weights(window.losses) / window.losses.shape[-1]
    return weights[..., None] * torch.stack([step.answer.slope for step in window.steps])


def window_vjp(level: LevelLike, theta: Tensor, window: Window, again: bool = False) -> Tensor:
    """The gradient ``[*batch, m]`` of a window whose x_t are functions of theta; ``again``: as a function of theta."""
    with torch.enable_grad():
        xs = torch.stack([step.x for step in window.steps])
    if not xs.requires_grad:
        return torch.zeros_like(theta)
    cotangents = meta_cotangents(level, window)
    return torch.autograd.grad(xs, theta, cotangents, create_graph=again, materialize_grads=True)[0]
