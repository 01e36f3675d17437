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

from levels.base import OptimizerTraits
from levels.hyper import Hyper, HyperparamOptimizer, Log, Logit, hyper
from levels.tree import State


class RMSpropState(NamedTuple):
    """Averages and buffer of each copy, ``[*batch, copies, n]``; None for what the settings leave out."""

    v: Tensor
    a: Tensor | None
    b: Tensor | None


@dataclass(frozen=True, repr=False)
class RMSprop(HyperparamOptimizer):
    """``lr``, ``eps`` and ``weight_decay`` move in log space, ``decay`` and ``momentum`` in logit space."""

    name = "rmsprop"

    lr: Hyper | float = hyper(0.01, Log)
    decay: Hyper | float = hyper(0.99, Logit)
    eps: Hyper | float = hyper(1e-8, Log)
    momentum: Hyper | float | None = hyper(None, Logit)
    weight_decay: Hyper | float | None = hyper(None, Log)
    centered: bool = False

    traits = OptimizerTraits(locality="elementwise")

    def init_state(self, theta: Tensor, x: Tensor, key: Tensor) -> RMSpropState:
        zeros = torch.zeros_like(x)
        return RMSpropState(zeros, zeros if self.centered else None, None if self.momentum is None else zeros)

    def update(self, theta: Tensor, x: Tensor, state: State, f: Tensor, g: Tensor) -> tuple[Tensor, RMSpropState]:
        h = self.read(theta)
        g = g + h["weight_decay"] * x if "weight_decay" in h else g
        _, a, b = state
        spread = v = h["decay"] * state.v + (1 - h["decay"]) * g * g
        if a is not None:
            a = h["decay"] * a + (1 - h["decay"]) * g
            spread = torch.where(v - a * a > 0, v - a * a, 0.0)
        step = g / (torch.sqrt(spread + torch.finfo(x.dtype).tiny) + h["eps"])
        if b is not None:
            step = b = h["momentum"] * b + step
        return x - h["lr"] * step, RMSpropState(v, a, b)
