"""Faults: losses and gradients that are not finite, and what a level does about them: stop and say where, or skip."""

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from levels.base import LevelState, is_level
from levels.config import Config


class NonFiniteError(ArithmeticError):
    """A loss or gradient is not finite: ``what`` happened at which level, and the ``fix``."""

    def __init__(self, level: Any, what: str, fix: str, step: int | None = None) -> None:
        number, problem = 1, level.problem
        while is_level(problem):
            number, problem = number + 1, problem.problem
        when = "" if step is None else f" at top step {step}"
        super().__init__(f"level {number} ({level}): {what}{when}; {fix}")
        self.level, self.what, self.fix, self.number = level, what, fix, number


class NonFinite(Config):
    """Policy for copies that fail; abstract."""

    @abstractmethod
    def handle(self, level: Any, what: str, fix: str) -> None:
        """Raise, or return to have the copies skipped and counted."""


@dataclass(frozen=True, repr=False)
class Stop(NonFinite):
    """Raise `NonFiniteError` with the level, what was not finite, and what to change."""

    name = "stop"

    def handle(self, level: Any, what: str, fix: str) -> None:
        raise NonFiniteError(level, what, fix)


@dataclass(frozen=True, repr=False)
class Skip(NonFinite):
    """Go on without the copies concerned; each window in which a copy is skipped adds one to its count."""

    name = "skip"

    def handle(self, level: Any, what: str, fix: str) -> None:
        return None


def vetted(level: Any, value: Tensor, grad: Tensor, state: LevelState) -> tuple[Tensor, LevelState]:
    """The gradient as the level clips it, and the state; one that is not finite is skipped as the policy says."""
    if torch.is_inference_mode_enabled():
        raise ValueError(f"{level} has no gradients under torch.inference_mode, not even its own; use torch.no_grad")
    if is_finite(value, grad):
        return clipped(grad, level.clip, state)
    if not torch.isfinite(value).all():
        fix = f"{level.objective} does not fit such losses (a log needs losses above 0)"
        raise NonFiniteError(level, "the losses are finite but the meta-loss is not", fix)
    failed = ~torch.isfinite(grad).all(-1)
    if failed.any():
        fix = "shorten its unroll or lower its learning rate, or skip such windows with nonfinite=skip"
        level.nonfinite.handle(level, "gradient of the meta-loss is not finite", fix)
        carry = state.carry._replace(skipped=state.carry.skipped + failed[..., None])
        grad, state = torch.where(failed[..., None], 0.0, grad), state._replace(carry=carry)
    return clipped(grad, level.clip, state)


def clipped(grad: Tensor, largest: float | None, state: LevelState) -> tuple[Tensor, LevelState]:
    """The gradient ``[*batch, m]``, scaled to the norm ``largest`` where it is longer, and a state that knows the norm.

    None: both as they are.
    """
    if largest is None:
        return grad, state
    norm = torch.linalg.vector_norm(grad, dim=-1, keepdim=True, dtype=torch.float64)  # no overflow
    scale: Tensor = largest / norm.clamp_min(largest)
    return grad * scale.to(grad.dtype), state._replace(norm=norm.detach().squeeze(-1))


def is_finite(*answers: Tensor) -> bool:
    """Whether all numbers are finite (a false alarm if their sum is not); waits for the device once."""
    return math.isfinite(sum(answer.detach().sum() for answer in answers).item())  # type: ignore[union-attr]


def is_sound(losses: Tensor, grad: Tensor | None = None) -> Tensor:
    """Whether all losses ``[T, ...]``, and the squares of the gradient ``[..., n]``, are finite: ``[...]``."""
    sound = torch.isfinite(losses.detach()).all(0)
    return sound if grad is None else sound & torch.isfinite(grad.detach().square().sum(-1))
