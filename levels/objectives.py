"""Objectives: how the losses of a window become one meta-loss.

The derivative of an objective in each loss f_t is the weight w_t of the gradient g_t that enters the meta-gradient.
"""

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from levels.base import Objective
from levels.fields import Above, Positive
from levels.layout import constants


@dataclass(frozen=True, repr=False)
class Sum(Objective):
    """L = sum_t f_t: every step counts (L2L 2016, equation 3 with w_t = 1)."""

    name = "sum"

    def value(self, losses: Tensor) -> Tensor:
        return losses.sum(0)

    def weights(self, losses: Tensor) -> Tensor:
        return torch.ones_like(losses)


@dataclass(frozen=True, repr=False)
class Last(Objective):
    """L = f_T: only the last loss of the window counts (L2L 2016, equation 2)."""

    name = "last"

    def value(self, losses: Tensor) -> Tensor:
        return losses[-1]


@dataclass(frozen=True, repr=False)
class MeanLog(Objective):
    """L = mean_t log f_t: a factor gained counts the same at any scale of the loss. Losses must be above 0."""

    name = "mean-log"

    def value(self, losses: Tensor) -> Tensor:
        return losses.log().mean(0)


@dataclass(frozen=True, repr=False)
class Discounted(Objective):
    """L = sum_t discount^(t-1) f_t, t from 1; ``discount`` above 0 and at most 1."""

    name = "discounted"
    discount: Annotated[float, Above(0, at_most=1)] = 0.9

    def value(self, losses: Tensor) -> Tensor:
        factors = constants([self.discount**t for t in range(len(losses))], losses)
        return (factors.reshape(-1, *[1] * (losses.dim() - 1)) * losses).sum(0)


@dataclass(frozen=True, repr=False)
class TimeTo(Objective):
    """L = sum_t sigmoid((log f_t - log target) / width): updates of the window at which the loss is above ``target``.

    Where the loss falls for good, the sum over windows is the time to the target. Losses further off than ``width``, in
    log f, have almost no gradient: begin wide, or estimate by evolution. Losses must be above 0.
    """

    name = "time-to"
    target: Positive
    width: Positive = 1.0

    def value(self, losses: Tensor) -> Tensor:
        return torch.sigmoid((losses.log() - math.log(self.target)) / self.width).sum(0)
