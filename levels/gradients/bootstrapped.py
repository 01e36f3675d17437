"""Bootstrapped gradients: an optimizer is moved so that it gets sooner to where it would get anyway
(Flennerhag et al. 2022, "Bootstrapped meta-learning", arXiv 2109.04504, equation 1).

The window looks ``ahead`` of its unroll T. Where it ends is the target, a constant; what is minimised is how far away
from it the parameters after T updates are:

    L(theta) = 1/2 |x_T(theta) - x_ahead|^2,    mean over copies

Only the T updates are differentiated: an optimizer learns from a future that lies beyond what is backpropagated, and
steps that were good for nothing but the loss at T are not rewarded.

Deviations: the target is the state that the level itself comes to, without the paper's last gradient step; the distance
is Euclidean, in the parameters' own units (the paper matches outputs by a Kullback-Leibler divergence where it can).
The level's value is still the objective of the T losses: that is what is reported, and what a level above judges by.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch import Tensor

from levels.gradients.backward import Backward
from levels.base import Estimator, LevelState
from levels.gradients.first_order import FirstOrder
from levels.config import format_value, require

if TYPE_CHECKING:
    from levels.bound_levels import Level
    from levels.level import Level
    from levels.base import Window


@dataclass(frozen=True, repr=False)
class Bootstrapped(Estimator):
    """As ``sgd@5[ahead=20, gradient=bootstrapped(exact)]``; ``through``: ``first-order`` or ``exact``, how the distance
    is differentiated. The level's ``ahead`` must be above its unroll; ValueError when the tower is built if not.
    """

    name = "bootstrapped"

    through: Estimator = FirstOrder()

    def __post_init__(self) -> None:
        good = isinstance(self.through, Backward)
        require(good, f"bootstrapped: through must be first-order or exact, got {notate(self.through)}")

    def evaluations(self, level: Level, judging: int = 0) -> int:
        swept = self.through.evaluations(replace(level, lookahead=None)) - level.unroll
        return level.reach * (1 + judging) + swept

    def check(self, level: Level) -> None:
        unroll, lookahead = level.level.unroll, level.level.reach
        fix = f"set ahead={4 * unroll}"
        require(lookahead > unroll, f"{self} moves towards where the level gets after its window of {unroll}; {fix}")
        self.through.check(level)

    def init_state(self, level: Level, params: Tensor, key: Tensor) -> LevelState:
        return self.through.init_state(level, params, key)

    def value_and_grad(self, level: Level, params: Tensor, state: LevelState) -> tuple[Tensor, Tensor, LevelState]:
        assert isinstance(self.through, Backward)
        carry, whole = level.window(params, state.carry, pulls=not self.through.asks, asked=self.through.asks)
        window, last = _first(whole, level.level.unroll), level.level.unroll - 1
        value, _ = level.meta_loss(window.losses)
        gap = (carry.x - whole.x.detach()) / carry.x.shape[-2]
        grad = self.through.sweep(level, params, carry, window, lambda t: gap if t == last else None)
        return value, grad, LevelState(carry, None)


def _first(window: Window, count: int) -> Window:
    """The window's first updates."""
    return window._replace(
        steps=window.steps[:count],
        losses=window.losses[:count],
        grads=window.grads[:count],
        asked=window.asked[:count],
    )
