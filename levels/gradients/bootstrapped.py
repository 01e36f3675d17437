"""Bootstrapped gradients: an optimizer is moved so that it gets sooner to where it would get anyway
(Flennerhag et al. 2022, "Bootstrapped meta-learning", arXiv 2109.04504, equation 1).

The window runs for ``lookahead`` updates, more than the unroll T. Where it ends is the target, a constant; the distance
of the parameters after T updates from it is what is minimised:

    L(theta) = 1/2 |x_T(theta) - x_lookahead|^2,    mean over copies

Only the T updates are differentiated: an optimizer learns from a future beyond what is backpropagated, and is not
rewarded for steps that lower the loss at T and nothing else.

Deviations: the target is the state that the level itself reaches, without the paper's last gradient step; the distance
is Euclidean, in the parameters' own units (the paper matches outputs by a Kullback-Leibler divergence where it can).
The level's value is still the objective of the T losses: it is what a tower reports, and what a search above compares.
"""

import dataclasses
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from levels.base import Estimator, LevelLike, LevelState
from levels.fields import require
from levels.gradients.first_order import Backpropagation, FirstOrder
from levels.restart import run


@dataclass(frozen=True, repr=False)
class Bootstrapped(Estimator):
    """As ``sgd@5[ahead=20, gradient=bootstrapped(exact)]``; ``through``: ``first-order`` or ``exact``, how the distance
    is differentiated. The level's ``lookahead`` must be above its unroll; ValueError when the tower is built if not.
    """

    name = "bootstrapped"

    through: Backpropagation = FirstOrder()

    def evals(self, level: Any) -> int | Fraction:
        window = dataclasses.replace(level, lookahead=None)
        return super().evals(level) + self.through.evals(window) - super().evals(window)

    def check(self, level: LevelLike) -> None:
        unroll, lookahead = level.unroll, level.lookahead or level.unroll
        what = f"{self} moves towards where the level gets after its window of {unroll}; set ahead={4 * unroll}"
        require(lookahead > unroll, what)
        self.through.check(level)

    def init(self, level: LevelLike, theta: Tensor, key: Tensor) -> LevelState:
        return self.through.init(level, theta, key)

    def value_and_grad(self, level: LevelLike, theta: Tensor, state: LevelState) -> tuple[Tensor, Tensor, LevelState]:
        with torch.enable_grad():
            theta = theta.detach().requires_grad_()
            carry, window = run(level, theta, state.carry, self.through.evaluate)
        value = level.objective.value(window.losses[: level.unroll]).mean(-1).detach()
        x, target = window.steps[level.unroll - 1].x, window.steps[-1].x.detach()
        gap = (x.detach() - target) / x.shape[-2]
        if window.was_skipped is not None:
            gap = torch.where(window.was_skipped[..., None], 0.0, gap)
        (grad,) = torch.autograd.grad(x, theta, gap)
        return value, grad, LevelState(carry, None)
