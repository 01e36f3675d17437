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

from levels.hyper import HandMade, Hyper, Log, hyper
from levels.part import require


class AdagradState(NamedTuple):
    """Sum of squares and step count of each copy."""

    v: Tensor  # [*batch, copies, n]
    t: Tensor  # int64 [*batch, copies]


@dataclass(frozen=True, repr=False)
class Adagrad(HandMade):
    """All hyperparameters move in log space; those that are None are left out, which is torch's 0."""

    name = "adagrad"
    scope = "coordinate"

    lr: Hyper | float = hyper(0.01, Log)
    lr_decay: Hyper | float | None = hyper(None, Log)
    initial: Hyper | float | None = hyper(None, Log)
    eps: Hyper | float = hyper(1e-10, Log)
    weight_decay: Hyper | float | None = hyper(None, Log)

    def __post_init__(self) -> None:
        super().__post_init__()
        missing = self.lr is None or self.eps is None
        require(not missing, "adagrad: lr and eps must be numbers, got none for one of them")

    def init_state(self, params: Tensor, x: Tensor) -> AdagradState:
        steps = torch.zeros(x.shape[:-1], dtype=torch.int64, device=x.device)
        return AdagradState(torch.zeros_like(x), steps)

    def step(self, h: dict[str, Tensor], g: Tensor, state: AdagradState, x: Tensor) -> tuple[Tensor, AdagradState]:
        if "weight_decay" in h:
            g = g + h["weight_decay"] * x
        v = state.v + g * g
        rate = h["lr"]
        if "lr_decay" in h:
            rate = rate / (1 + state.t[..., None] * h["lr_decay"])
        under = v + h["initial"] if "initial" in h else v
        root = torch.sqrt(under + torch.finfo(x.dtype).tiny)
        return x - rate * g / (root + h["eps"]), AdagradState(v, state.t + 1)
