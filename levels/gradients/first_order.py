"""First-order gradients by backpropagation through one window (L2L 2016, section 2: dotted edges dropped).

The gradient that feeds the optimizer enters as data. Then d f_t / d x_t is that very gradient, already at hand,
and nothing below is evaluated or differentiated again: cost is one task gradient a base step at any depth, and
memory is this level's own carries. The window is swept twice: forward, keeping what each update read; backward,

    dx   <- dx + w_t g_t
    dparams, dstate, dx  <-  pullback of update t at (dx, dstate),      dparams summed over t,

and what is left in dx belongs to where the trajectory began, if the optimizer learns that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from levels.gradients.estimator import Estimator, LevelState
from levels.part import require

if TYPE_CHECKING:
    from levels.level import Laid


@dataclass(frozen=True, repr=False)
class FirstOrder(Estimator):
    """Truncated backpropagation that takes the problem's gradient as data; carries are constants at window edges."""

    name = "first-order"
    differentiable = True

    def check(self, level: Laid) -> None:
        fix = "let it be the topmost level, use an optimizer that can be differentiated, or estimate by gradient=pes"
        require(level.optimizer.differentiable, f"{level.optimizer} cannot be differentiated by {self}; {fix}")

    def init_state(self, level: Laid, params: Tensor, key: Tensor) -> LevelState:
        return LevelState(level.start(params, key), None)

    def value_and_grad(self, level: Laid, params: Tensor, state: LevelState) -> tuple[Tensor, Tensor, LevelState]:
        carry, window = level.window(params, state.carry)
        value, weights = level.meta_loss(window.losses)
        dparams = torch.zeros_like(params)
        dx, dstate = torch.zeros_like(carry.x), None
        for t in reversed(range(len(window.steps))):
            dx = dx + weights[t][..., None] * window.grads[t]
            step = window.steps[t]
            dp, dstate, dx = level.optimizer.pullback(params, step.f, step.g, step.state, step.x, dx, dstate)
            dparams = dparams + dp
        dp_start = level.optimizer.start_pullback(params, dx, window.begun)
        if dp_start is not None:
            dparams = dparams + dp_start
        return value, dparams, LevelState(carry, None)
