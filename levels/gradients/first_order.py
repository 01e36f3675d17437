"""First-order gradients by backpropagation through one window (L2L 2016, section 2: dotted edges dropped).

The gradient that feeds the optimizer enters as data. Then d f_t / d x_t is that very gradient, already at hand,
and nothing below is evaluated or differentiated again: cost is one task gradient a base step at any depth, and
memory is this level's own carries. The window is swept twice: forward, keeping what each update read; backward,

    dx   <- dx + w_t g_t
    dparams, dstate, dx  <-  pullback of update t at (dx, dstate),      dparams summed over t,

and what is left in dx belongs to where the trajectory began, if the optimizer learns that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from levels.autodiff import differentiated, plus
from levels.gradients.backward import Backward, weighted
from levels.base import LevelState
from levels.restart import finite

if TYPE_CHECKING:
    from levels.bound_levels import Level
    from levels.base import Carry, Window


@dataclass(frozen=True, repr=False)
class FirstOrder(Backward):
    """Truncated backpropagation that takes the problem's gradient as data; carries are constants at window edges."""

    name = "first-order"
    steady = True

    def value_and_grad(self, level: Level, params: Tensor, state: LevelState) -> tuple[Tensor, Tensor, LevelState]:
        if level.plain and not differentiated():
            return self._single(level, params, state)
        return super().value_and_grad(level, params, state)

    def _single(self, level: Level, params: Tensor, state: LevelState) -> tuple[Tensor, Tensor, LevelState]:
        """A window of one update, without the lists that a sweep needs: towers of many such levels live on this."""
        x, s, f, g, below, age, *_ = state.carry
        x, s, pull = level.optimizer.linearized(params, f, g, s, x)
        f, g, below = level.problem.value_and_grad(x, below)
        if not finite(f, g):
            return super().value_and_grad(level, params, state)  # which says so
        value, (weight,) = level.meta_loss(f[None])
        dx = weighted(weight, g)
        grad = torch.zeros_like(params) if dx is None else pull(dx, None)[0]
        return value, grad, LevelState(state.carry._replace(x=x, state=s, f=f, g=g, below=below, age=age + 1), None)

    def sweep(
        self, level: Level, params: Tensor, carry: Carry, window: Window, slope: Callable[[int], Tensor | None]
    ) -> Tensor:
        dparams, dx = level.optimizer.sweep(params, window.steps, slope)
        if dx is None:
            return torch.zeros_like(params)
        if level.optimizer.learns_start:
            dparams = plus(dparams, level.optimizer.start_pullback(params, dx, window.begun))
        return torch.zeros_like(params) if dparams is None else dparams
