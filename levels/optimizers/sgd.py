"""Stochastic gradient descent with momentum: x <- x - lr * g, and what Polyak and Nesterov made of it.

    b <- momentum * b + g
    x <- x - lr * b                      (Polyak 1964, as torch.optim.SGD with dampening 0)
    x <- x - lr * (g + momentum * b)     (Nesterov 1983, in the form of Sutskever et al. 2013)

Without momentum there is no buffer. Weight decay adds ``weight_decay * x`` to the gradient first.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from levels.hyper import HyperparamOptimizer, Hyper, Log, Logit, hyper
from levels.config import require


@dataclass(frozen=True, repr=False)
class SGD(HyperparamOptimizer):
    """``lr`` and ``weight_decay`` move in log space, ``momentum`` in logit space, unless a `Hyper` says otherwise."""

    name = "sgd"
    scope = "coordinate"

    lr: Hyper | float = hyper(0.01, Log)
    momentum: Hyper | float | None = hyper(None, Logit)
    weight_decay: Hyper | float | None = hyper(None, Log)
    nesterov: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.lr is not None, "sgd: lr must be a number, got none")
        require(not self.nesterov or self.momentum is not None, "sgd: nesterov needs momentum; set momentum=0.9")

    def init_state(self, params: Tensor, x: Tensor) -> Tensor | None:
        return None if self.momentum is None else torch.zeros_like(x)

    def step(self, h: dict[str, Tensor], g: Tensor, state: Tensor | None, x: Tensor) -> tuple[Tensor, Tensor | None]:
        if "weight_decay" in h:
            g = g + h["weight_decay"] * x
        if state is None:
            return x - h["lr"] * g, None
        buffer = h["momentum"] * state + g
        direction = g + h["momentum"] * buffer if self.nesterov else buffer
        return x - h["lr"] * direction, buffer

    def step_pullback(
        self,
        h: dict[str, Tensor],
        g: Tensor,
        state: Tensor | None,
        x: Tensor,
        dx: Tensor,
        dstate: list[Tensor | None],
    ) -> tuple[dict[str, Tensor], list[Tensor | None], Tensor]:
        if state is None and "weight_decay" not in h:
            return {"lr": -g * dx}, [], dx
        dh, dold, dx, _ = self._slopes(h, g, state, x, dx, dstate)
        return dh, dold, dx

    def full_pullback(
        self,
        h: dict[str, Tensor],
        g: Tensor,
        state: Tensor | None,
        x: Tensor,
        dx: Tensor,
        dstate: list[Tensor | None],
    ) -> tuple[dict[str, Tensor], list[Tensor | None], Tensor, Tensor]:
        return self._slopes(h, g, state, x, dx, dstate)

    def _slopes(
        self,
        h: dict[str, Tensor],
        g: Tensor,
        state: Tensor | None,
        x: Tensor,
        dx: Tensor,
        dstate: list[Tensor | None],
    ) -> tuple[dict[str, Tensor], list[Tensor | None], Tensor, Tensor]:
        """Cotangents of the hyperparameters, the state, ``x`` and ``g``."""
        g = g + h["weight_decay"] * x if "weight_decay" in h else g
        along = -h["lr"] * dx  # the cotangent of the direction
        dg, direction = along, g
        dh: dict[str, Tensor] = {}
        dold: list[Tensor | None] = []
        if state is not None:
            direction = buffer = h["momentum"] * state + g
            dbuffer, dh["momentum"] = along, torch.zeros_like(x)
            if self.nesterov:
                direction = g + h["momentum"] * buffer
                dbuffer, dh["momentum"] = h["momentum"] * along, along * buffer
            if dstate[0] is not None:
                dbuffer = dbuffer + dstate[0]
            dh["momentum"] = dh["momentum"] + dbuffer * state
            dg = along + dbuffer if self.nesterov else dbuffer
            dold = [h["momentum"] * dbuffer]
        dh["lr"] = -direction * dx
        if "weight_decay" in h:
            dh["weight_decay"] = dg * x
            dx = dx + h["weight_decay"] * dg
        return dh, dold, dx, dg
