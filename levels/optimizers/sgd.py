"""Stochastic gradient descent, with momentum of Polyak or Nesterov.

    x <- x - lr * g
    b <- momentum * b + g
    x <- x - lr * b                      (Polyak 1964, as torch.optim.SGD with dampening 0)
    x <- x - lr * (g + momentum * b)     (Nesterov 1983, in the form of Sutskever et al. 2013)

Without momentum there is no buffer. Weight decay adds ``weight_decay * x`` to the gradient first.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from levels.base import OptimizerTraits
from levels.fields import require
from levels.hyper import Hyper, HyperparamOptimizer, Log, Logit, hyper
from levels.tree import State


@dataclass(frozen=True, repr=False)
class SGD(HyperparamOptimizer):
    """``lr`` and ``weight_decay`` move in log space, ``momentum`` in logit space, unless a `Hyper` says otherwise."""

    name = "sgd"

    lr: Hyper | float = hyper(0.01, Log)
    momentum: Hyper | float | None = hyper(None, Logit)
    weight_decay: Hyper | float | None = hyper(None, Log)
    nesterov: bool = False

    traits = OptimizerTraits(locality="elementwise")

    def __post_init__(self) -> None:
        super().__post_init__()
        require(not self.nesterov or self.momentum is not None, "sgd: nesterov needs momentum; set momentum=0.9")

    def init_state(self, theta: Tensor, x: Tensor, key: Tensor) -> State:
        return None if self.momentum is None else torch.zeros_like(x)

    def update(self, theta: Tensor, x: Tensor, state: State, f: Tensor, g: Tensor) -> tuple[Tensor, State]:
        h = self.read(theta)
        if "weight_decay" in h:
            g = g + h["weight_decay"] * x
        if state is None:
            return x - h["lr"] * g, None
        buffer = h["momentum"] * state + g
        direction = g + h["momentum"] * buffer if self.nesterov else buffer
        return x - h["lr"] * direction, buffer
