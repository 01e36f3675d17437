"""Adagrad (Duchi, Hazan and Singer 2011, JMLR 12, Algorithm 1 with diagonal matrices), as torch.optim.Adagrad.

    v <- v + g^2
    x <- x - lr / (1 + (t - 1) * lr_decay) * g / (sqrt(initial + v) + eps)

v starts at 0 and t counts each copy's own steps from 1. ``initial`` is torch's ``initial_accumulator_value``: added
at every step instead of once at the start, which is the same number and has a derivative in every window. Weight
decay adds ``weight_decay * x`` to the gradient first. The smallest normal number under the root keeps hypergradients
finite at v = 0.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from levels.base import OptimizerTraits
from levels.hyper import Hyper, HyperparamOptimizer, Log, hyper
from levels.tree import State


class AdagradState(NamedTuple):
    """Sum of squares and step count of each copy."""

    v: Tensor  # [*batch, copies, n]
    t: Tensor  # int64 [*batch, copies]


@dataclass(frozen=True, repr=False)
class Adagrad(HyperparamOptimizer):
    """All hyperparameters move in log space; those that are None are left out, which is torch's 0."""

    name = "adagrad"

    lr: Hyper | float = hyper(0.01, Log)
    lr_decay: Hyper | float | None = hyper(None, Log)
    initial: Hyper | float | None = hyper(None, Log)
    eps: Hyper | float = hyper(1e-10, Log)
    weight_decay: Hyper | float | None = hyper(None, Log)

    traits = OptimizerTraits(locality="elementwise")

    def init_state(self, theta: Tensor, x: Tensor, key: Tensor) -> AdagradState:
        steps = torch.zeros(x.shape[:-1], dtype=torch.int64, device=x.device)
        return AdagradState(torch.zeros_like(x), steps)

    def update(self, theta: Tensor, x: Tensor, state: State, f: Tensor, g: Tensor) -> tuple[Tensor, AdagradState]:
        h = self.read(theta)
        g = g + h["weight_decay"] * x if "weight_decay" in h else g
        v = state.v + g * g
        rate = h["lr"] / (1 + state.t[..., None] * h["lr_decay"]) if "lr_decay" in h else h["lr"]
        root = torch.sqrt((v + h["initial"] if "initial" in h else v) + torch.finfo(v.dtype).tiny)
        return x - rate * g / (root + h["eps"]), AdagradState(v, state.t + 1)
