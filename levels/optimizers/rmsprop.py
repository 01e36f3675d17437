"""RMSprop (Tieleman and Hinton 2012, Coursera lecture 6.5), as torch.optim.RMSprop, not centered.

    v <- decay * v + (1 - decay) * g^2
    x <- x - lr * g / (sqrt(v) + eps)

``decay`` is torch's ``alpha``. The smallest normal number under the root keeps hypergradients finite at v = 0.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from levels.hyper import HandMade, Hyper, Log, Logit, hyper
from levels.part import require


@dataclass(frozen=True, repr=False)
class RMSprop(HandMade):
    """``lr`` and ``eps`` move in log space, ``decay`` in logit space."""

    name = "rmsprop"

    lr: Hyper | float = hyper(0.01, Log)
    decay: Hyper | float = hyper(0.99, Logit)
    eps: Hyper | float = hyper(1e-8, Log)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(len(self.hypers) == 3, "rmsprop: lr, decay and eps must be numbers, got none for one of them")

    def init_state(self, params: Tensor, x: Tensor) -> Tensor:
        return torch.zeros_like(x)

    def step(self, h: dict[str, Tensor], g: Tensor, state: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        v = h["decay"] * state + (1 - h["decay"]) * g * g
        root = torch.sqrt(v + torch.finfo(x.dtype).tiny)
        return x - h["lr"] * g / (root + h["eps"]), v
