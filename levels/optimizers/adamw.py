"""AdamW: Adam with decoupled weight decay (Loshchilov and Hutter 2019, arXiv 1711.05101, Algorithm 2).

    m, v as in Adam
    x <- x - lr * weight_decay * x
    x <- x - lr * (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps)

As torch.optim.AdamW. A deviation of both from the paper: the decay is multiplied with ``lr``, where the paper has a
schedule of its own for both. In Adam's L2 penalty the decay would be part of g and be divided by sqrt(v).
"""

from dataclasses import dataclass

from torch import Tensor

from levels.hyper import HyperparamOptimizer, Hyper, Log, Logit, hyper
from levels.optimizers.adam import AdamState, MomentSlopes, moments, moments_pullback, no_moments
from levels.config import require


@dataclass(frozen=True, repr=False)
class AdamW(HyperparamOptimizer):
    """``lr``, ``eps`` and ``weight_decay`` move in log space, ``beta1`` and ``beta2`` in logit space."""

    name = "adamw"
    scope = "coordinate"

    lr: Hyper | float = hyper(1e-3, Log)
    beta1: Hyper | float = hyper(0.9, Logit)
    beta2: Hyper | float = hyper(0.999, Logit)
    eps: Hyper | float = hyper(1e-8, Log)
    weight_decay: Hyper | float = hyper(0.01, Log)

    def __post_init__(self) -> None:
        super().__post_init__()
        fix = "adamw: lr, beta1, beta2, eps and weight_decay must be numbers, got none; adam has no weight_decay"
        require(len(self.hypers) == 5, fix)

    def init_state(self, params: Tensor, x: Tensor) -> AdamState:
        return no_moments(x)

    def step(self, h: dict[str, Tensor], g: Tensor, state: AdamState, x: Tensor) -> tuple[Tensor, AdamState]:
        m_hat, root, state = moments(h["beta1"], h["beta2"], g, state)
        return x * (1 - h["lr"] * h["weight_decay"]) - h["lr"] * m_hat / (root + h["eps"]), state

    def step_pullback(
        self, h: dict[str, Tensor], g: Tensor, state: AdamState, x: Tensor, dx: Tensor, dstate: list[Tensor | None]
    ) -> tuple[dict[str, Tensor], list[Tensor | None], Tensor]:
        slopes, dx = self._slopes(h, g, state, x, dx, dstate)
        return slopes.h, slopes.state(h), dx

    def full_pullback(
        self, h: dict[str, Tensor], g: Tensor, state: AdamState, x: Tensor, dx: Tensor, dstate: list[Tensor | None]
    ) -> tuple[dict[str, Tensor], list[Tensor | None], Tensor, Tensor]:
        slopes, dx = self._slopes(h, g, state, x, dx, dstate)
        return slopes.h, slopes.state(h), dx, slopes.g(h, g)

    def _slopes(
        self, h: dict[str, Tensor], g: Tensor, state: AdamState, x: Tensor, dx: Tensor, dstate: list[Tensor | None]
    ) -> tuple[MomentSlopes, Tensor]:
        """Cotangents of what Adam's part of the step reads, those of all hyperparameters, and that of ``x``."""
        slopes = moments_pullback(h, self.learned, g, state, dx, dstate)
        shrunk = x * dx
        slopes.h["lr"] = slopes.h["lr"] - h["weight_decay"] * shrunk
        slopes.h["weight_decay"] = -h["lr"] * shrunk
        return slopes, dx * (1 - h["lr"] * h["weight_decay"])
