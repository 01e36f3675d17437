"""AdamW: Adam with decoupled weight decay (Loshchilov and Hutter 2019, arXiv 1711.05101, Algorithm 2).

    m, v as in Adam
    x <- x - lr * weight_decay * x
    x <- x - lr * (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps)

As torch.optim.AdamW. A deviation of both from the paper: the decay is multiplied with ``lr``, where the paper has a
schedule of its own for both. In Adam's L2 penalty the decay would be part of g and be divided by sqrt(v).
"""

from dataclasses import dataclass

from torch import Tensor

from levels.hyper import Hyper, Log, hyper
from levels.optimizers.adam import Adam, AdamState, moments


@dataclass(frozen=True, repr=False)
class AdamW(Adam):
    """The hyperparameters of `Adam`, and ``weight_decay``, which moves in log space."""

    name = "adamw"

    weight_decay: Hyper | float = hyper(0.01, Log)

    def update(self, theta: Tensor, x: Tensor, state: AdamState, f: Tensor, g: Tensor) -> tuple[Tensor, AdamState]:
        h = self.read(theta)
        m_hat, root, state = moments(h["beta1"], h["beta2"], g, state)
        return x * (1 - h["lr"] * h["weight_decay"]) - h["lr"] * m_hat / (root + h["eps"]), state
