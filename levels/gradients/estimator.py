"""Estimator: how a level gets the gradient of its meta-loss. The recursion knows these methods only.

An estimator decides with which parameters windows are run and what is kept from them; running a window,
restarting, and everything below are the level's. So backpropagation, evolution and forward mode are peers.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from levels.config import Config

if TYPE_CHECKING:
    from levels.bound_levels import Level
    from levels.level import Level
    from levels.base import Carry


class LevelState(NamedTuple):
    """State of a level: what its window carries, and what its estimator remembers (None if nothing)."""

    carry: Carry
    memory: Any


class Estimator(Config):
    """Abstract. ``level`` is the laid level that asks; ``params`` ``[*batch, m]`` are its optimizer's parameters."""

    differentiable: bool = False
    """Whether `value_and_grad` composes with `torch.func`, so that exact gradients can be taken above."""

    chooses_ahead: bool = False
    """Whether it says itself how far a window looks, rather than the level's ``ahead``."""

    steady: bool = False
    """Whether `value_and_grad` does the same whatever the numbers are, once the copies that were due have restarted."""

    def symmetric(self, level: Level) -> bool:
        """Whether what this gives for ``level`` is the derivative of the value, rather than an estimate of it."""
        return False

    def evaluations(self, level: Level, judging: int = 0) -> int:
        """Evaluations of the problem below that a window of ``level`` costs, for each of its copies.

        ``judging``: what the problem adds to each update that counts (`Problem.judging`).
        """
        return level.reach * (1 + judging)

    def updates(self, level: Level) -> int:
        """Updates of the level's optimizer that a window costs, for each copy."""
        return level.reach

    def value(self, level: Level, params: Tensor, state: LevelState) -> tuple[Tensor, LevelState]:
        """`value_and_grad` without the gradient, for an optimizer above that does not read it."""
        value, _, state = self.value_and_grad(level, params, state)
        return value, state

    def metrics(self, state: LevelState) -> dict[str, Tensor]:
        """What a user should hear of a state: counts and the like by name, ``[*batch]`` each."""
        return {}

    @abstractmethod
    def check(self, level: Level) -> None:
        """Raise ValueError, with what to use instead, if this cannot estimate gradients of ``level``."""

    @abstractmethod
    def init_state(self, level: Level, params: Tensor, key: Tensor) -> LevelState:
        """State at the start, for keys ``[*batch]``."""

    @abstractmethod
    def value_and_grad(self, level: Level, params: Tensor, state: LevelState) -> tuple[Tensor, Tensor, LevelState]:
        """Meta-loss ``[*batch]`` of the next window, its gradient ``[*batch, m]``, and the state behind it."""
