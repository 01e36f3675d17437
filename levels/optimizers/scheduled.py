"""A schedule over the steps of any optimizer.

    x <- x + schedule.factor(t, steps) * (inner.update(x) - x)

t counts each copy's own steps from 0. Where a step is proportional to the step size (SGD with momentum, Adam, AdamW
and its weight decay), this is torch's optimizer under torch's scheduler of that name. The state of ``inner`` advances
as usual. Schedules are in `levels.schedules`:

    digits-mlp: scheduled(adam(lr=0.03), cosine, steps=100)
    digits-mlp: scheduled(sgd(lr=0.3, momentum=0.9), warmup(linear-decay, 10), steps=1000)

After the last of its ``steps`` the factor stays as it is: `cosine` at 0, where nothing moves any more.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from levels.base import Optimizer
from levels.fields import Whole, require
from levels.optimizers.wrap import Moved, Wrapper, towards
from levels.schedules import Schedule


@dataclass(frozen=True, repr=False)
class Scheduled(Wrapper):
    """``inner``: the optimizer whose steps are multiplied. ``schedule``: by what. ``steps``: length of the run, at
    least what the schedule needs. Parameters are those of ``inner``; the own state is t, int64 ``[*batch, copies]``.
    """

    name = "scheduled"

    inner: Optimizer
    schedule: Schedule
    steps: Whole = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        wanted = f"steps must be a whole number of at least {self.schedule.least} for {self.schedule}"
        require(self.steps >= self.schedule.least, f"{self.name}: {wanted}, got {self.steps}")

    def own_state(self, own_theta: Tensor, x: Tensor, key: Tensor) -> Tensor:
        return torch.zeros_like(key)

    def combine(self, own_theta: Tensor, x: Tensor, moves: Sequence[Tensor], own: Any, f: Tensor, g: Tensor) -> Moved:
        factor = self.schedule.factor(own[..., None].to(x.dtype), self.steps)
        return towards(x, moves[0], factor), own + 1
