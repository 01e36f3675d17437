"""Schedules: by what a step is multiplied, as a function of how many steps there were before.

A schedule says `factor`; `levels.optimizers.scheduled` multiplies a rule's steps by it. To add one, write a class with
that method here, or anywhere (then it is named by its dotted path). Its steps are those of a whole run: behind the last
of them the factor stays as it is.
"""

import math
from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from levels.config import Config, format_value, require


class Schedule(Config):
    """Abstract."""

    @abstractmethod
    def factor(self, t: Tensor, steps: int) -> Tensor:
        """The factor of the step that ``t`` others came before, elementwise; ``t`` is floating and at least 0.

        ``steps``: of the run, at least `least`.
        """

    @property
    def least(self) -> int:
        """The shortest run, in steps, that the schedule fits."""
        return 1


@dataclass(frozen=True, repr=False)
class Constant(Schedule):
    """Always 1."""

    name = "constant"

    def factor(self, t: Tensor, steps: int) -> Tensor:
        return torch.ones_like(t)


@dataclass(frozen=True, repr=False)
class _Falling(Schedule):
    """From 1 to ``end``; abstract. ``end``: from 0 to 1."""

    end: float = 0.0

    def __post_init__(self) -> None:
        good = _number(self.end) and 0 <= self.end <= 1
        require(good, f"{self.name}: end must be from 0 to 1, got {notate(self.end)}")


@dataclass(frozen=True, repr=False)
class LinearDecay(_Falling):
    """1 + (end - 1) t / steps, as torch.optim.lr_scheduler.LinearLR with a start factor of 1."""

    name = "linear-decay"

    def factor(self, t: Tensor, steps: int) -> Tensor:
        return 1 + (self.end - 1) * _share(t, steps)


@dataclass(frozen=True, repr=False)
class Cosine(_Falling):
    """end + (1 - end) (1 + cos(pi t / steps)) / 2 (Loshchilov and Hutter 2017, "SGDR", arXiv 1608.03983, equation 5).

    As torch.optim.lr_scheduler.CosineAnnealingLR; without the paper's warm restarts: behind ``steps`` it stays at the
    end, where torch's rises again.
    """

    name = "cosine"

    def factor(self, t: Tensor, steps: int) -> Tensor:
        return self.end + (1 - self.end) * (1 + torch.cos(math.pi * _share(t, steps))) / 2


@dataclass(frozen=True, repr=False)
class Exponential(Schedule):
    """end^(t / steps), as torch.optim.lr_scheduler.ExponentialLR with a gamma of end^(1 / steps). ``end``: above 0, at
    most 1.
    """

    name = "exponential"

    end: float = 0.01

    def __post_init__(self) -> None:
        good = _number(self.end) and 0 < self.end <= 1
        require(good, f"{self.name}: end must be above 0 and at most 1, got {notate(self.end)}")

    def factor(self, t: Tensor, steps: int) -> Tensor:
        return torch.exp(math.log(self.end) * _share(t, steps))


@dataclass(frozen=True, repr=False)
class Warmup(Schedule):
    """(t + 1) / warm for the first ``warm`` steps, then the schedule ``then`` over those that are left."""

    name = "warmup"

    then: Schedule
    warm: int = 10

    def __post_init__(self) -> None:
        require(isinstance(self.then, Schedule), f"{self.name}: then must be a schedule, got {notate(self.then)}")
        good = isinstance(self.warm, int) and not isinstance(self.warm, bool) and self.warm >= 1
        require(good, f"{self.name}: warm must be a whole number of at least 1, got {notate(self.warm)}")

    @property
    def least(self) -> int:
        return self.warm + self.then.least

    def factor(self, t: Tensor, steps: int) -> Tensor:
        rest = self.then.factor((t - self.warm).clamp_min(0), steps - self.warm)
        return torch.where(t < self.warm, (t + 1) / self.warm, rest)


def _share(t: Tensor, steps: int) -> Tensor:
    """How much of the run is over, at most 1."""
    return (t / steps).clamp_max(1)


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
