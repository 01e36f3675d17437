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

from levels.gradients.backward import Backward

if TYPE_CHECKING:
    from levels.level import Carry, Laid, Window


@dataclass(frozen=True, repr=False)
class FirstOrder(Backward):
    """Truncated backpropagation that takes the problem's gradient as data; carries are constants at window edges."""

    name = "first-order"

    def sweep(
        self, level: Laid, params: Tensor, carry: Carry, window: Window, slope: Callable[[int], Tensor]
    ) -> Tensor:
        dparams = torch.zeros_like(params)
        dx, dstate = torch.zeros_like(carry.x), None
        for t in reversed(range(len(window.steps))):
            dx = dx + slope(t)
            step = window.steps[t]
            pull = step.pull or partial(level.optimizer.pullback, params, *step[:4])
            dp, dstate, dx = pull(dx, dstate)
            dparams = dparams + dp
        dp_start = level.optimizer.start_pullback(params, dx, window.begun)
        return dparams if dp_start is None else dparams + dp_start
