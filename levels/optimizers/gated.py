"""A gate on how much of an optimizer's update the level below takes.

    x <- x + o * (inner.update(x) - x),      o = clip(1.2 * sigmoid(gate) - 0.1, 0, 1)

The sigmoid is stretched beyond [0, 1] and clipped (Louizos, Welling and Kingma 2018, "Learning sparse neural networks
through L0 regularization", arXiv 1712.01312, equations 11 to 13 with gamma = -0.1 and zeta = 1.1; without the noise).
So a gate can be exactly 0 (then ``x`` stays as it is, bit for bit) or exactly 1 (then the update is that of ``inner``,
bit for bit). ``gate`` is one more parameter, which the level above moves like the others, or moves by name with an
optimizer of its own:

    task: sgd@1 / gated(sgd, price=1e-3)@1 / by-name(["*gate", "*"], [adam(lr=0.1), sgd])

The clip has slope 0, so an optimizer that follows gradients alone cannot open a closed gate, nor close one that is
fully open. A closed gate stops the update, not the state: momentum goes on with the gradients that are read, so it is
up to date when the gate opens again.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from levels.base import Optimizer
from levels.fields import NonNegative, format_value, require
from levels.hyper import Fixed
from levels.layout import Layout
from levels.optimizers.wrap import Moved, Wrapper, towards

LOW, HIGH = -0.1, 1.1  # what the sigmoid is stretched to


@dataclass(frozen=True, repr=False)
class Gated(Wrapper):
    """``inner``: the optimizer behind the gate. ``gate``: how far it is open at first, between 0 and 1; ``fixed(0.3)``
    keeps it there, from 0 to 1. ``price``: what a fully open gate adds to the level's meta-loss, at least 0.

    Its own state is how far the gate was open at the last update, ``[*batch, copies]``; no update reads that.
    """

    name = "gated"

    inner: Optimizer
    gate: Fixed | float = 0.5
    price: NonNegative = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        good = 0 <= self.gate.start <= 1 if isinstance(self.gate, Fixed) else 0 < self.gate < 1
        fix = "fixed(0) and fixed(1) are closed and open for good"
        require(good, f"gated: gate must be a number between 0 and 1, got {format_value(self.gate)}; {fix}")

    @property
    def _start(self) -> float:
        return self.gate.start if isinstance(self.gate, Fixed) else self.gate

    def own_shapes(self, layout: Layout) -> dict[str, tuple[int, ...]]:
        return {} if isinstance(self.gate, Fixed) else {"gate": ()}

    def own_init(self, key: Tensor) -> Tensor:
        start = (self._start - LOW) / (HIGH - LOW)
        return super().own_init(key) + (math.log(start) - math.log1p(-start))

    def own_state(self, own_theta: Tensor, x: Tensor, key: Tensor) -> Tensor:
        return x.new_full(key.shape, self._start)

    def own_metrics(self, own: Tensor) -> dict[str, Tensor]:
        return {"gate": own}

    def combine(self, own_theta: Tensor, x: Tensor, moves: Sequence[Tensor], own: Any, f: Tensor, g: Tensor) -> Moved:
        openness = self.open(own_theta)[..., None]
        return towards(x, moves[0], openness[..., None]), openness.expand(x.shape[:-1])

    def result(self, state: tuple[Tensor, object], x: Tensor) -> Tensor:
        return torch.where(state[0][..., None] == 0, x, super().result(state, x))

    def penalty(self, theta: Tensor) -> Tensor | None:
        inner = super().penalty(theta)
        if self.price == 0:
            return inner
        own = self.price * self.open(theta)
        return own if inner is None else own + inner

    def open(self, theta: Tensor) -> Tensor:
        """How far the gates of parameters ``[*batch, m]`` are open, from 0 to 1: ``[*batch]``."""
        if isinstance(self.gate, Fixed):
            return theta.new_full(theta.shape[:-1], self._start)
        return (LOW + (HIGH - LOW) * theta[..., 0].sigmoid()).clamp(0, 1)
