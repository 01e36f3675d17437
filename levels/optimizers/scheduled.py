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
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from levels.layout import Layout
from levels.optimizer import Optimizer, Pulled, Scope
from levels.part import require
from levels.problem import Problem
from levels.schedules import Schedule
from levels.tree import State, leaves


class ScheduledState(NamedTuple):
    """The rule's state, and how many steps there were."""

    rule: State
    t: Tensor  # int64 [*batch, copies]


@dataclass(frozen=True, repr=False)
class Scheduled(Optimizer):
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

    @property
    def differentiable(self) -> bool:  # type: ignore[override]
        """As the rule is."""
        return self.rule.differentiable

    @property
    def scope(self) -> Scope:  # type: ignore[override]
        """As the rule's: the factor is the same for all."""
        return self.rule.scope

    @property
    def reads_loss(self) -> bool:  # type: ignore[override]
        """As the rule does."""
        return self.rule.reads_loss

    @property
    def reads_gradient(self) -> bool:  # type: ignore[override]
        """As the rule does."""
        return self.rule.reads_gradient

    @property
    def asking(self) -> int | Fraction:  # type: ignore[override]
        """As the rule does."""
        return self.rule.asking

    @property
    def compiles(self) -> bool:  # type: ignore[override]
        """As the rule does."""
        return self.rule.compiles

    @property
    def learns_start(self) -> bool:
        """As the rule does."""
        return self.rule.learns_start

    def bound(self, problem: Problem) -> Scheduled:
        return replace(self, rule=self.rule.bound(problem))

    def shapes(self, below: Layout) -> dict[str, tuple[int, ...]]:
        return {f"rule.{name}": shape for name, shape in self.rule.shapes(below).items()}

    def init_params(self, key: Tensor) -> Tensor:
        return self._laid_rule.init_params(key)

    def start(self, params: Tensor, fresh: Callable[[Tensor], Tensor], key: Tensor) -> Tensor:
        return self._laid_rule.start(params, fresh, key)

    def start_pullback(self, params: Tensor, dx: Tensor, begun: Tensor) -> Tensor | None:
        return self._laid_rule.start_pullback(params, dx, begun)

    def init_state(self, params: Tensor, x: Tensor) -> ScheduledState:
        return ScheduledState(self._laid_rule.init_state(params, x), _none_yet(x))

    def begin_state(self, params: Tensor, x: Tensor, key: Tensor) -> ScheduledState:
        return ScheduledState(self._laid_rule.begin_state(params, x, key), _none_yet(x))

    def charge(self, params: Tensor) -> tuple[Tensor, Tensor] | None:
        return self._laid_rule.charge(params)

    def outcome(self, state: ScheduledState, x: Tensor) -> Tensor:
        return self._laid_rule.outcome(state.rule, x)

    def notes(self, state: ScheduledState) -> dict[str, Tensor]:
        return self._laid_rule.notes(state.rule)

    def update(
        self, params: Tensor, f: Tensor, g: Tensor, state: ScheduledState, x: Tensor
    ) -> tuple[Tensor, ScheduledState]:
        moved, rule = self._laid_rule.update(params, f, g, state.rule, x)
        return _part_way(self._factor(state, x), x, moved), ScheduledState(rule, state.t + 1)

    def linearized(
        self, params: Tensor, f: Tensor, g: Tensor, state: ScheduledState, x: Tensor
    ) -> tuple[Tensor, ScheduledState, Callable[[Tensor, list[Tensor | None] | None], Pulled]]:
        moved, rule, pull = self._laid_rule.linearized(params, f, g, state.rule, x)
        factor, last = self._factor(state, x), len(leaves(rule))  # where t is among the tensors of the state

        def back(dx: Tensor, dstate: list[Tensor | None] | None) -> Pulled:
            dparams, dold, dx_old = pull(factor * dx, dstate[:last] if dstate else None)
            return dparams, [*dold, None], dx_old + (1 - factor) * dx

        return _part_way(factor, x, moved), ScheduledState(rule, state.t + 1), back

    def pullback(
        self,
        params: Tensor,
        f: Tensor,
        g: Tensor,
        state: ScheduledState,
        x: Tensor,
        dx: Tensor,
        dstate: list[Tensor | None] | None,
    ) -> Pulled:
        return self.linearized(params, f, g, state, x)[2](dx, dstate)

    def _factor(self, state: ScheduledState, x: Tensor) -> Tensor:
        """Of the step that comes: ``[*batch, copies, 1]``."""
        return self.schedule.factor(state.t[..., None].to(x.dtype), self.steps)

    @cached_property
    def _laid_rule(self) -> Optimizer:
        return self.rule.over(self.below)


def _none_yet(x: Tensor) -> Tensor:
    return torch.zeros(x.shape[:-1], dtype=torch.int64, device=x.device)


def _part_way(factor: Tensor, x: Tensor, moved: Tensor) -> Tensor:
    """From ``x`` so far towards ``moved``; ``moved`` itself, to the last bit, for a factor of 1."""
    return torch.where(factor == 1, moved, x + factor * (moved - x))
