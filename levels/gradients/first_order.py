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
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from levels.gradients.backward import Backward, plus

if TYPE_CHECKING:
    from levels.level import Carry, Laid, Window


@dataclass(frozen=True, repr=False)
class FirstOrder(Backward):
    """Truncated backpropagation that takes the problem's gradient as data; carries are constants at window edges."""

    name = "first-order"

    def sweep(
        self, level: Laid, params: Tensor, carry: Carry, window: Window, slope: Callable[[int], Tensor | None]
    ) -> Tensor:
        dparams, dx, dstate = None, None, None
        for t in reversed(range(len(window.steps))):
            dx, step = plus(dx, slope(t)), window.steps[t]
            if dx is None:
                continue  # nothing that counts comes after this update
            pull = step.pull or partial(level.optimizer.pullback, params, *step[:4])
            dp, dstate, dx = pull(dx, dstate)
            dparams = plus(dparams, dp)
        if dx is None:
            return torch.zeros_like(params)
        if level.optimizer.learns_start:
            dparams = plus(dparams, level.optimizer.start_pullback(params, dx, window.begun))
        return torch.zeros_like(params) if dparams is None else dparams
