"""Backward: what estimators share that sweep a window twice, forward and then backward.

They differ in what they follow on the way back (`sweep`). What the objective says of each ``x`` of the window is
where a sweep begins; so another way to judge a window (`levels.gradients.bootstrapped`) needs no sweep of its own.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from levels.base import Estimator, LevelState
from levels.config import require

if TYPE_CHECKING:
    from levels.bound_levels import Level
    from levels.base import Carry, Window


class Backward(Estimator):
    """Truncated backpropagation; abstract. What stands in the carry at the window's edge is a constant."""

    differentiable = True

    asks: ClassVar[bool] = False
    """Whether `sweep` reads `Window.asked`."""

    @abstractmethod
    def sweep(
        self, level: Level, params: Tensor, carry: Carry, window: Window, slope: Callable[[int], Tensor | None]
    ) -> Tensor:
        """Gradient ``[*batch, m]`` of what has the derivative ``slope(t)`` in ``x`` after update t, counted from 0.

        ``slope(t)`` is ``[*batch, copies, n]``, or None for zero. ``carry`` is the one that the window returned.
        """

    def check(self, level: Level) -> None:
        fix = "let it be the topmost level, use an optimizer that can be differentiated, or estimate by gradient=pes"
        require(level.optimizer.differentiable, f"{level.optimizer} cannot be differentiated by {self}; {fix}")

    def init_state(self, level: Level, params: Tensor, key: Tensor) -> LevelState:
        return LevelState(level.start(params, key), None)

    def value(self, level: Level, params: Tensor, state: LevelState) -> tuple[Tensor, LevelState]:
        carry, window = level.window(params, state.carry, record=False)
        return level.meta_loss(window.losses)[0], LevelState(carry, None)

    def value_and_grad(self, level: Level, params: Tensor, state: LevelState) -> tuple[Tensor, Tensor, LevelState]:
        carry, window = level.window(params, state.carry, pulls=not self.asks, asked=self.asks)
        value, weights = level.meta_loss(window.losses)
        grad = self.sweep(level, params, carry, window, lambda t: weighted(weights[t], window.grads[t]))
        return value, grad, LevelState(carry, None)


def weighted(weight: Tensor | float, grad: Tensor) -> Tensor | None:
    """A gradient ``[*batch, copies, n]`` times its loss's weight, a number or ``[*batch, copies]``; None for zero."""
    if isinstance(weight, Tensor):
        return weight[..., None] * grad
    if weight == 0:
        return None
    return grad if weight == 1 else weight * grad
