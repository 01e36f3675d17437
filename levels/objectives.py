"""Objectives: how the losses of a window become one meta-loss.

An objective is a function of the losses ``[T, ...]`` of one window and, in closed form, its derivative with
respect to each of them: the weights ``w_t`` with which gradients rise a level.
"""

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from levels.layout import constants
from levels.config import Config, format_value, require


class Objective(Config):
    """Abstract; both methods treat everything behind the first dimension elementwise."""

    @abstractmethod
    def value(self, losses: Tensor) -> Tensor:
        """The meta-loss ``[...]`` of losses ``[T, ...]``, the loss after the first update first."""

    @abstractmethod
    def weights(self, losses: Tensor) -> Tensor:
        """Derivative of `value` with respect to ``losses``; ``[T, ...]``."""

    def slopes(self, losses: Tensor) -> Sequence[Tensor | float]:
        """`weights`, one for each loss; plain numbers if the losses have no say in them, which saves work."""
        return self.weights(losses).unbind(0)


class Weighted(Objective):
    """A sum of losses with weights that are known beforehand; abstract."""

    @abstractmethod
    def numbers(self, count: int) -> list[float]:
        """The weights of ``count`` losses, the first one's first."""

    def weights(self, losses: Tensor) -> Tensor:
        weights = constants(self.numbers(len(losses)), losses)
        return weights.reshape(-1, *[1] * (losses.dim() - 1)).expand_as(losses)

    def slopes(self, losses: Tensor) -> list[float]:
        return self.numbers(len(losses))


@dataclass(frozen=True, repr=False)
class Sum(Weighted):
    """L = sum_t f_t: every step counts (L2L 2016, equation 3 with w_t = 1)."""

    name = "sum"

    def value(self, losses: Tensor) -> Tensor:
        return losses.sum(0) if len(losses) > 1 else losses[0]

    def numbers(self, count: int) -> list[float]:
        return [1.0] * count


@dataclass(frozen=True, repr=False)
class Last(Weighted):
    """L = f_T: only where the window ends counts (L2L 2016, equation 2)."""

    name = "last"

    def value(self, losses: Tensor) -> Tensor:
        return losses[-1]

    def numbers(self, count: int) -> list[float]:
        return [0.0] * (count - 1) + [1.0]


@dataclass(frozen=True, repr=False)
class MeanLog(Objective):
    """L = mean_t log f_t: a factor gained counts the same at any scale of the loss. Losses must be above 0."""

    name = "mean-log"

    def value(self, losses: Tensor) -> Tensor:
        return losses.log().mean(0)

    def weights(self, losses: Tensor) -> Tensor:
        return 1 / (losses * len(losses))


@dataclass(frozen=True, repr=False)
class Discounted(Weighted):
    """L = sum_t discount^(t-1) f_t, t from 1; ``discount`` above 0 and at most 1."""

    name = "discounted"
    discount: float = 0.9

    def __post_init__(self) -> None:
        good = isinstance(self.discount, (int, float)) and 0 < self.discount <= 1
        require(good, f"discounted: discount must be above 0 and at most 1, got {self.discount}")

    def value(self, losses: Tensor) -> Tensor:
        return (self.weights(losses) * losses).sum(0)

    def numbers(self, count: int) -> list[float]:
        return [self.discount**t for t in range(count)]


@dataclass(frozen=True, repr=False)
class TimeTo(Objective):
    """L = sum_t sigmoid((log f_t - log target) / width): updates of the window at which the loss is above ``target``.

    Over the windows of a trajectory that comes down for good, the sum is the time to the target. ``width`` above 0 is
    the range of log f in which an update counts in part: losses further off than some widths have next to no gradient,
    so begin wide, or estimate by evolution, for which a narrow one will do. Losses and ``target`` must be above 0.
    """

    name = "time-to"

    target: float
    width: float = 1.0

    def __post_init__(self) -> None:
        for name in ("target", "width"):
            value = getattr(self, name)
            good = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < math.inf
            require(good, f"time-to: {name} must be a number above 0, got {notate(value)}")

    def value(self, losses: Tensor) -> Tensor:
        return self._above(losses).sum(0)

    def weights(self, losses: Tensor) -> Tensor:
        above = self._above(losses)
        return above * (1 - above) / (losses * self.width)

    def _above(self, losses: Tensor) -> Tensor:
        return torch.sigmoid((losses.log() - math.log(self.target)) / self.width)
