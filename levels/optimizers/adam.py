"""Adam (Kingma and Ba 2015, arXiv 1412.6980, Algorithm 1), with epsilon where torch.optim.Adam has it.

    m <- beta1 * m + (1 - beta1) * g
    v <- beta2 * v + (1 - beta2) * g^2
    x <- x - lr * (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps)

t counts each copy's own steps from 1. Where v is exactly 0 (a weight behind a pixel that is always black) the
square root has no derivative; the smallest normal number is added under it, so hypergradients stay finite.
"""

from collections.abc import Container
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from levels.hyper import HyperparamOptimizer, Hyper, Log, Logit, hyper
from levels.config import require


class AdamState(NamedTuple):
    """Moments and step count of each copy."""

    m: Tensor  # [*batch, copies, n]
    v: Tensor  # [*batch, copies, n]
    t: Tensor  # int64 [*batch, copies]


@dataclass(frozen=True, repr=False)
class Adam(HyperparamOptimizer):
    """``lr`` and ``eps`` move in log space, ``beta1`` and ``beta2`` in logit space."""

    name = "adam"
    scope = "coordinate"

    lr: Hyper | float = hyper(1e-3, Log)
    beta1: Hyper | float = hyper(0.9, Logit)
    beta2: Hyper | float = hyper(0.999, Logit)
    eps: Hyper | float = hyper(1e-8, Log)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(len(self.hypers) == 4, "adam: lr, beta1, beta2 and eps must be numbers, got none for one of them")

    def init_state(self, params: Tensor, x: Tensor) -> AdamState:
        return no_moments(x)

    def step(self, h: dict[str, Tensor], g: Tensor, state: AdamState, x: Tensor) -> tuple[Tensor, AdamState]:
        m_hat, root, state = moments(h["beta1"], h["beta2"], g, state)
        return x - h["lr"] * m_hat / (root + h["eps"]), state

    def step_pullback(
        self, h: dict[str, Tensor], g: Tensor, state: AdamState, x: Tensor, dx: Tensor, dstate: list[Tensor | None]
    ) -> tuple[dict[str, Tensor], list[Tensor | None], Tensor]:
        slopes = moments_pullback(h, self.learned, g, state, dx, dstate)
        return slopes.h, slopes.state(h), dx

    def full_pullback(
        self, h: dict[str, Tensor], g: Tensor, state: AdamState, x: Tensor, dx: Tensor, dstate: list[Tensor | None]
    ) -> tuple[dict[str, Tensor], list[Tensor | None], Tensor, Tensor]:
        slopes = moments_pullback(h, self.learned, g, state, dx, dstate)
        return slopes.h, slopes.state(h), dx, slopes.g(h, g)


class MomentSlopes(NamedTuple):
    """Cotangents of an Adam step: of the hyperparameters, and of both moments behind the step."""

    h: dict[str, Tensor]
    m: Tensor  # [*batch, copies, n]
    v: Tensor  # [*batch, copies, n]

    def state(self, h: dict[str, Tensor]) -> list[Tensor | None]:
        """Those of the state before the step."""
        return [h["beta1"] * self.m, h["beta2"] * self.v, None]

    def g(self, h: dict[str, Tensor], g: Tensor) -> Tensor:
        """That of the gradient ``g``."""
        return (1 - h["beta1"]) * self.m + 2 * (1 - h["beta2"]) * g * self.v


def no_moments(x: Tensor) -> AdamState:
    """The state before the first step, for ``x`` ``[*batch, copies, n]``."""
    steps = torch.zeros(x.shape[:-1], dtype=torch.int64, device=x.device)
    return AdamState(torch.zeros_like(x), torch.zeros_like(x), steps)


def moments(
    beta1: Tensor | float, beta2: Tensor | float, g: Tensor, state: AdamState
) -> tuple[Tensor, Tensor, AdamState]:
    """The bias-corrected mean of the gradients, the root of that of their squares, and the state advanced."""
    t = state.t + 1
    power = t[..., None].to(g.dtype)  # a whole number would make beta^t single precision where beta is a number
    m = beta1 * state.m + (1 - beta1) * g
    v = beta2 * state.v + (1 - beta2) * g * g
    m_hat = m / (1 - beta1**power)
    v_hat = v / (1 - beta2**power)
    return m_hat, torch.sqrt(v_hat + torch.finfo(g.dtype).tiny), AdamState(m, v, t)


def moments_pullback(
    h: dict[str, Tensor],
    learned: Container[str],
    g: Tensor,
    state: AdamState,
    dx: Tensor,
    dstate: list[Tensor | None],
) -> MomentSlopes:
    """Cotangents of the hyperparameters that are ``learned`` and of what Adam's step made of the moments.

    ``dx`` and ``dstate`` are those of the next ``x`` and of the state behind the step. With
    u = m_hat / (root + eps) and x <- x - lr u:

        dlr = -u dx,   deps = -u du',   dm_hat = du',   dv_hat = -u du' / (2 root),   du' = -lr dx / (root + eps)
    """
    m_hat, root, new = moments(h["beta1"], h["beta2"], g, state)
    power, eps = new.t[..., None].to(g.dtype), h["eps"]
    scale = 1 / (root + eps)
    u, dm_hat = m_hat * scale, -h["lr"] * dx * scale
    deps = -u * dm_hat
    dv_hat = deps / (2 * root)
    one, two = 1 / (1 - h["beta1"] ** power), 1 / (1 - h["beta2"] ** power)  # of the bias: numbers, not coordinates
    dm, dv = dm_hat * one, dv_hat * two
    dh = {"lr": -u * dx, "eps": deps}
    if "beta1" in learned:  # beyond the average itself, through what corrects its bias
        dh["beta1"] = dm * m_hat * (power * h["beta1"] ** (power - 1))
    if "beta2" in learned:
        dh["beta2"] = dv * (new.v * two) * (power * h["beta2"] ** (power - 1))
    dm = dm if dstate[0] is None else dm + dstate[0]
    dv = dv if dstate[1] is None else dv + dstate[1]
    if "beta1" in learned:
        dh["beta1"] = dh["beta1"] + dm * (state.m - g)
    if "beta2" in learned:
        dh["beta2"] = dh["beta2"] + dv * (state.v - g * g)
    return MomentSlopes(dh, dm, dv)
