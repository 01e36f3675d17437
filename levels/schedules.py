"""Schedules: the factor of a step, as a function of how many steps there were before.

`levels.optimizers.scheduled` multiplies the steps of an optimizer by it. To add one, write a class with `factor`, here
or in a module of your own (its notation is then the dotted path). Its steps are those of a whole run: after the last
of them the factor stays as it is.
"""

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from levels.config import Config
from levels.fields import Above, Count, UnitInterval


class Schedule(Config):
    """Abstract."""

    @abstractmethod
    def factor(self, t: Tensor, steps: int) -> Tensor:
        """The factor of the step after ``t`` others (floating, from 0) of ``steps`` (at least `least`), elementwise."""

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
class LinearDecay(Schedule):
    """1 + (end - 1) t / steps, as torch.optim.lr_scheduler.LinearLR with a start factor of 1."""

    name = "linear-decay"

    end: UnitInterval = 0.0

    def factor(self, t: Tensor, steps: int) -> Tensor:
        return 1 + (self.end - 1) * _share(t, steps)


@dataclass(frozen=True, repr=False)
class Cosine(Schedule):
    """end + (1 - end) (1 + cos(pi t / steps)) / 2 (Loshchilov and Hutter 2017, "SGDR", arXiv 1608.03983, equation 5).

    As torch.optim.lr_scheduler.CosineAnnealingLR, but it stays at the end after ``steps``, where torch's rises again.
    """

    name = "cosine"

    end: UnitInterval = 0.0

    def factor(self, t: Tensor, steps: int) -> Tensor:
        return self.end + (1 - self.end) * (1 + torch.cos(math.pi * _share(t, steps))) / 2


@dataclass(frozen=True, repr=False)
class Exponential(Schedule):
    """end^(t / steps), as torch.optim.lr_scheduler.ExponentialLR with a gamma of end^(1 / steps)."""

    name = "exponential"

    end: Annotated[float, Above(0, at_most=1)] = 0.01

    def factor(self, t: Tensor, steps: int) -> Tensor:
        return torch.exp(math.log(self.end) * _share(t, steps))


@dataclass(frozen=True, repr=False)
class Warmup(Schedule):
    """(t + 1) / warm for the first ``warm`` steps, then the schedule ``then`` over those that are left."""

    name = "warmup"

    then: Schedule
    warm: Count = 10

    @property
    def least(self) -> int:
        return self.warm + self.then.least

    def factor(self, t: Tensor, steps: int) -> Tensor:
        rest = self.then.factor((t - self.warm).clamp_min(0), steps - self.warm)
        return torch.where(t < self.warm, (t + 1) / self.warm, rest)


def _share(t: Tensor, steps: int) -> Tensor:
    """How much of the run is over, at most 1."""
    return (t / steps).clamp_max(1)
