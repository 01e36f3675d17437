"""Adam (Kingma and Ba 2015, arXiv 1412.6980, algorithm 1), with epsilon where torch.optim.Adam has it.

    m <- beta1 * m + (1 - beta1) * g
    v <- beta2 * v + (1 - beta2) * g^2
    x <- x - lr * (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps)

t counts each copy's own steps from 1. Where v is exactly 0 (a weight behind a pixel that is always black) the square
root has no derivative; the smallest normal number is added under it, so hypergradients stay finite.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from levels.base import OptimizerTraits
from levels.hyper import Hyper, HyperparamOptimizer, Log, Logit, hyper

Rate = Tensor | float


class AdamState(NamedTuple):
    """Moments and step count of each copy."""

    m: Tensor  # [*batch, copies, n]
    v: Tensor  # [*batch, copies, n]
    t: Tensor  # int64 [*batch, copies]


@dataclass(frozen=True, repr=False)
class Adam(HyperparamOptimizer):
    """``lr`` and ``eps`` move in log space, ``beta1`` and ``beta2`` in logit space."""

    name = "adam"

    lr: Hyper | float = hyper(1e-3, Log)
    beta1: Hyper | float = hyper(0.9, Logit)
    beta2: Hyper | float = hyper(0.999, Logit)
    eps: Hyper | float = hyper(1e-8, Log)

    traits = OptimizerTraits(locality="elementwise")

    def init_state(self, theta: Tensor, x: Tensor, key: Tensor) -> AdamState:
        return no_moments(x)

    def update(self, theta: Tensor, x: Tensor, state: AdamState, f: Tensor, g: Tensor) -> tuple[Tensor, AdamState]:
        h = self.read(theta)
        m_hat, root, state = moments(h["beta1"], h["beta2"], g, state)
        return x - h["lr"] * m_hat / (root + h["eps"]), state


def no_moments(x: Tensor) -> AdamState:
    """The state before the first step, for ``x`` ``[*batch, copies, n]``."""
    steps = torch.zeros(x.shape[:-1], dtype=torch.int64, device=x.device)
    return AdamState(torch.zeros_like(x), torch.zeros_like(x), steps)


def moments(beta1: Rate, beta2: Rate, g: Tensor, state: AdamState) -> tuple[Tensor, Tensor, AdamState]:
    """The bias-corrected mean of the gradients, the root of that of their squares, and the next state."""
    t = state.t + 1
    power = t[..., None].to(g.dtype)  # a whole number would make beta^t single precision where beta is a number
    m = torch.lerp(state.m, g, 1 - beta1)
    v = torch.lerp(state.v, g * g, 1 - beta2)
    v_hat = v / (1 - beta2**power)
    return m / (1 - beta1**power), torch.sqrt(v_hat + torch.finfo(g.dtype).tiny), AdamState(m, v, t)
