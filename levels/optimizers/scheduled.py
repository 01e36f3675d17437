"""A schedule over any rule's steps.

    x <- x + schedule.factor(t, steps) * (rule.update(x) - x)

t counts each copy's own steps from 0. For rules whose step is proportional to their step size (SGD with momentum, Adam,
AdamW and its weight decay), this is torch.optim's rule under the scheduler of that name. The rule's state advances as
ever. Schedules are in `levels.schedules`:

    digits-mlp: scheduled(adam(lr=0.03), cosine, steps=100)
    digits-mlp: scheduled(sgd(lr=0.3, momentum=0.9), warmup(linear-decay, 10), steps=1000)

Behind the last of its ``steps`` a schedule stays where it is: `cosine` at 0, where nothing moves any more.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from levels.base import Optimizer, Pulled
from levels.optimizers.wrap import Wrapping
from levels.config import require
from levels.schedules import Schedule
from levels.tree import State, leaves


class ScheduledState(NamedTuple):
    """The rule's state, and how many steps there were."""

    rule: State
    t: Tensor  # int64 [*batch, copies]


@dataclass(frozen=True, repr=False)
class Scheduled(Wrapping):
    """``rule``: whose steps are multiplied. ``schedule``: by what. ``steps``: of the run, at least what the schedule
    needs. Its parameters are the rule's.
    """

    name = "scheduled"

    rule: Optimizer
    schedule: Schedule
    steps: int = 100

    def __post_init__(self) -> None:
        require(isinstance(self.rule, Optimizer), f"{self.name}: rule must be an optimizer, got {self.rule!r}")
        require(isinstance(self.schedule, Schedule), f"{self.name}: expected a schedule, got {self.schedule!r}")
        least, whole = self.schedule.least, isinstance(self.steps, int) and not isinstance(self.steps, bool)
        wanted = f"steps must be a whole number of at least {least} for {self.schedule}"
        require(whole and self.steps >= least, f"{self.name}: {wanted}, got {self.steps}")

    def holding(self, params: Tensor, x: Tensor, rule: State) -> ScheduledState:
        return ScheduledState(rule, torch.zeros(x.shape[:-1], dtype=torch.int64, device=x.device))

    def held(self, state: ScheduledState) -> State:
        return state.rule

    def update(
        self, params: Tensor, f: Tensor, g: Tensor, state: ScheduledState, x: Tensor
    ) -> tuple[Tensor, ScheduledState]:
        moved, rule = self.laid_rule.update(params, f, g, state.rule, x)
        return _part_way(self._factor(state, x), x, moved), ScheduledState(rule, state.t + 1)

    def linearized(
        self, params: Tensor, f: Tensor, g: Tensor, state: ScheduledState, x: Tensor
    ) -> tuple[Tensor, ScheduledState, Callable[[Tensor, list[Tensor | None] | None], Pulled]]:
        moved, rule, pull = self.laid_rule.linearized(params, f, g, state.rule, x)
        factor, last = self._factor(state, x), len(leaves(rule))  # where t is among the tensors of the state

        def back(dx: Tensor, dstate: list[Tensor | None] | None) -> Pulled:
            dparams, dold, dx_old = pull(factor * dx, dstate[:last] if dstate else None)
            return dparams, [*dold, None], dx_old + (1 - factor) * dx

        return _part_way(factor, x, moved), ScheduledState(rule, state.t + 1), back

    def _factor(self, state: ScheduledState, x: Tensor) -> Tensor:
        """Of the step that comes: ``[*batch, copies, 1]``."""
        return self.schedule.factor(state.t[..., None].to(x.dtype), self.steps)


def _part_way(factor: Tensor, x: Tensor, moved: Tensor) -> Tensor:
    """From ``x`` so far towards ``moved``; ``moved`` itself, to the last bit, for a factor of 1."""
    return torch.where(factor == 1, moved, x + factor * (moved - x))
