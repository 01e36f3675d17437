"""RMSprop (Tieleman and Hinton 2012, Coursera lecture 6.5), as torch.optim.RMSprop.

    v <- decay * v + (1 - decay) * g^2
    x <- x - lr * g / (sqrt(v) + eps)

Centered (Graves 2013, arXiv 1308.0850, equations 38 to 45), v - a^2 takes the place of v under the root, a variance:

    a <- decay * a + (1 - decay) * g

With momentum the step has a buffer:

    b <- momentum * b + g / (sqrt(v) + eps)
    x <- x - lr * b

``decay`` is torch's ``alpha``; weight decay adds ``weight_decay * x`` to the gradient first. The smallest normal number
under the root keeps hypergradients finite at v = 0. Where v - a^2 rounds to 0 or below (a gradient that never
changes) it counts as a constant 0; torch has the root of the negative number there, nan.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from levels.hyper import HyperparamOptimizer, Hyper, Log, Logit, hyper
from levels.config import require


class RMSpropState(NamedTuple):
    """Averages and buffer of each copy, ``[*batch, copies, n]``; None for what the settings leave out."""

    v: Tensor
    a: Tensor | None
    b: Tensor | None


@dataclass(frozen=True, repr=False)
class RMSprop(HyperparamOptimizer):
    """``lr``, ``eps`` and ``weight_decay`` move in log space, ``decay`` and ``momentum`` in logit space."""

    name = "rmsprop"
    scope = "coordinate"

    lr: Hyper | float = hyper(0.01, Log)
    decay: Hyper | float = hyper(0.99, Logit)
    eps: Hyper | float = hyper(1e-8, Log)
    momentum: Hyper | float | None = hyper(None, Logit)
    weight_decay: Hyper | float | None = hyper(None, Log)
    centered: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        missing = None in (self.lr, self.decay, self.eps)
        require(not missing, "rmsprop: lr, decay and eps must be numbers, got none for one of them")
        require(isinstance(self.centered, bool), f"rmsprop: centered must be true or false, got {self.centered}")

    def init_state(self, params: Tensor, x: Tensor) -> RMSpropState:
        zeros = torch.zeros_like(x)
        return RMSpropState(zeros, zeros if self.centered else None, None if self.momentum is None else zeros)

    def step(self, h: dict[str, Tensor], g: Tensor, state: RMSpropState, x: Tensor) -> tuple[Tensor, RMSpropState]:
        g = g + h["weight_decay"] * x if "weight_decay" in h else g
        v, a, spread = _averages(h, g, state)
        step = g / (torch.sqrt(spread + torch.finfo(x.dtype).tiny) + h["eps"])
        b = state.b
        if b is not None:
            step = b = h["momentum"] * b + step
        return x - h["lr"] * step, RMSpropState(v, a, b)

    def step_pullback(
        self, h: dict[str, Tensor], g: Tensor, state: RMSpropState, x: Tensor, dx: Tensor, dstate: list[Tensor | None]
    ) -> tuple[dict[str, Tensor], list[Tensor | None], Tensor]:
        dh, dold, dx, _ = self.full_pullback(h, g, state, x, dx, dstate)
        return dh, dold, dx

    def full_pullback(
        self, h: dict[str, Tensor], g: Tensor, state: RMSpropState, x: Tensor, dx: Tensor, dstate: list[Tensor | None]
    ) -> tuple[dict[str, Tensor], list[Tensor | None], Tensor, Tensor]:
        """With u = g / (root + eps), b <- momentum b + u, x <- x - lr b; each cotangent is named as what it is of."""
        g = g + h["weight_decay"] * x if "weight_decay" in h else g
        _, a, spread = _averages(h, g, state)
        root = torch.sqrt(spread + torch.finfo(x.dtype).tiny)
        scale, given, dh = 1 / (root + h["eps"]), iter(dstate), {}
        step = u = g * scale
        dv, da = next(given), None if a is None else next(given)
        du = -h["lr"] * dx
        if state.b is not None:
            step, dstep = h["momentum"] * state.b + u, next(given)
            du = du if dstep is None else du + dstep
            dh["momentum"] = du * state.b
        dh |= {"lr": -step * dx, "eps": -u * scale * du}
        dspread = dh["eps"] / (2 * root)
        if a is not None:
            dspread = torch.where(spread > 0, dspread, 0.0)
            da = -2 * a * dspread if da is None else da - 2 * a * dspread
        dv = dspread if dv is None else dv + dspread
        dh["decay"] = dv * (state.v - g * g)
        dg = scale * du + 2 * (1 - h["decay"]) * g * dv
        dold: list[Tensor | None] = [h["decay"] * dv]
        if state.a is not None and da is not None:
            dh["decay"], dg = dh["decay"] + da * (state.a - g), dg + (1 - h["decay"]) * da
            dold.append(h["decay"] * da)
        if state.b is not None:
            dold.append(h["momentum"] * du)
        if "weight_decay" in h:
            dh["weight_decay"], dx = dg * x, dx + h["weight_decay"] * dg
        return dh, dold, dx, dg


def _averages(h: dict[str, Tensor], g: Tensor, state: RMSpropState) -> tuple[Tensor, Tensor | None, Tensor]:
    """The averages behind the step, of squares and, if centered, of gradients; and what stands under the root."""
    v = h["decay"] * state.v + (1 - h["decay"]) * g * g
    if state.a is None:
        return v, None, v
    a = h["decay"] * state.a + (1 - h["decay"]) * g
    spread = v - a * a
    return v, a, torch.where(spread > 0, spread, 0.0)
