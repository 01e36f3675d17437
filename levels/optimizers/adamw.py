"""AdamW: Adam with decoupled weight decay (Loshchilov and Hutter 2019, arXiv 1711.05101, Algorithm 2).

    m, v as in Adam
    x <- x - lr * weight_decay * x
    x <- x - lr * (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps)

As torch.optim.AdamW. A deviation of both from the paper: the decay is multiplied with ``lr``, where the paper has a
schedule of its own for both. In Adam's L2 penalty the decay would be part of g and be divided by sqrt(v).
"""

from dataclasses import dataclass

from torch import Tensor

from levels.base import OptimizerTraits
from levels.hyper import Hyper, HyperparamOptimizer, Log, Logit, hyper
from levels.optimizers.adam import AdamState, moments, no_moments


@dataclass(frozen=True, repr=False)
class AdamW(HyperparamOptimizer):
    """``lr``, ``eps`` and ``weight_decay`` move in log space, ``beta1`` and ``beta2`` in logit space."""

    name = "adamw"

    lr: Hyper | float = hyper(1e-3, Log)
    beta1: Hyper | float = hyper(0.9, Logit)
    beta2: Hyper | float = hyper(0.999, Logit)
    eps: Hyper | float = hyper(1e-8, Log)
    weight_decay: Hyper | float = hyper(0.01, Log)

    @property
    def traits(self) -> OptimizerTraits:
        return OptimizerTraits(locality="elementwise")

    def init_state(self, theta: Tensor, x: Tensor, key: Tensor) -> AdamState:
        return no_moments(x)

    def update(self, theta: Tensor, x: Tensor, state: AdamState, f: Tensor, g: Tensor) -> tuple[Tensor, AdamState]:
        h = self.read(theta)
        m_hat, root, state = moments(h["beta1"], h["beta2"], g, state)
        return x * (1 - h["lr"] * h["weight_decay"]) - h["lr"] * m_hat / (root + h["eps"]), state
