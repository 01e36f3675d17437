"""Windows: the twins of `first-order`, `accumulated` and `exact`, for an optimizer that has a sweep.

A window runs without a graph. Whether all is finite is asked once, at its end. Where it is not, or where an exact level
above follows the answer, the plain estimator answers from the same state; it raises, or skips copies.
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from levels.autodiff import is_followed
from levels.base import Carry, LevelLike, LevelState
from levels.faults import is_finite
from levels.gradients.accumulated import Accumulated
from levels.gradients.first_order import FirstOrder
from levels.restart import restarted
from recursion.accelerate.followed import CompiledExact, product
from recursion.accelerate.sweeps import SWEEPS, Read

Swept = tuple[Tensor, Tensor, LevelState]


@dataclass(frozen=True, repr=False)
class SweptFirstOrder(FirstOrder):
    """First-order gradients by the sweep of the level's optimizer."""

    def value_and_grad(self, level: LevelLike, theta: Tensor, state: LevelState) -> Swept:
        return _swept(level, theta, state) or super().value_and_grad(level, theta, state)


@dataclass(frozen=True, repr=False)
class SweptAccumulated(Accumulated):
    """The same, for all copies together: a sweep has no graph of which parts could be kept."""

    def value_and_grad(self, level: LevelLike, theta: Tensor, state: LevelState) -> Swept:
        answer = _swept(level, theta, state) if type(self.through) is SweptFirstOrder else None
        return answer or super().value_and_grad(level, theta, state)


@dataclass(frozen=True, repr=False)
class SweptExact(CompiledExact):
    """Exact gradients over a compiled task: the sweep, with one product with the Hessian between two updates."""

    def value_and_grad(self, level: LevelLike, theta: Tensor, state: LevelState) -> Swept:
        return _swept(level, theta, state, exact=True) or super().value_and_grad(level, theta, state)


def _swept(level: LevelLike, theta: Tensor, state: LevelState, *, exact: bool = False) -> Swept | None:
    """The answer of the window, or None where the plain estimator must answer."""
    if is_followed(theta) or type(level.optimizer) not in SWEEPS:
        return None
    with torch.no_grad():
        return _answer(level, theta.detach(), state, exact)


def _answer(level: LevelLike, theta: Tensor, state: LevelState, exact: bool) -> Swept | None:
    """The answer by the sweep; None where something is not finite, or exact gradients are those of another loss."""
    start = restarted(level, theta, state.carry)
    twin = SWEEPS[type(level.optimizer)](level.optimizer, theta)
    x, rest, f, g, problem_state = start[:5]
    reads, losses, slopes, hvp = [], [], [], None
    for t in range(1, (level.lookahead or level.unroll) + 1):
        read = Read(x, rest, f, g, hvp)
        reads.append(read._replace(state=None) if twin.replays and t > 1 else read)
        x, rest = twin.update(read)
        hvp = partial(product, level.problem, x, problem_state) if exact else None
        f, g, problem_state = level.problem.value_and_grad(x, problem_state)
        loss, slope, problem_state = level.problem.outer_value_and_grad(x, problem_state, f, g)
        losses.append(loss)
        slopes.append(slope)
        if t == level.unroll:
            end = Carry(x, rest, f, g, problem_state, start.age + level.unroll, start.key, start.skipped)
    together = torch.stack(losses)
    if not is_finite(together, g, end.f) or (exact and slope is not g):
        return None
    weights = level.objective.weights(together) / together.shape[-1]
    grad = twin.vjp(reads, weights[..., None] * torch.stack(slopes))
    return level.objective.value(together).mean(-1), grad, LevelState(end, None)
