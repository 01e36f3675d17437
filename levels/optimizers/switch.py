"""A relay: one optimizer moves the parameters for a while, then hands them to another.

    task: lstm@20 / relay(adam(lr=3e-3), self, after=500)

trains an LSTM by Adam for 500 updates, and by itself from then on. The second begins where the first left off, with a
fresh state. Its parameters are the first's and then the second's.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from levels.layout import Layout
from levels.base import Optimizer
from levels.config import require
from levels.base import Problem
from levels.tree import State, choose


class Baton(NamedTuple):
    """What both remember; leading dimensions ``[*batch, copies]``."""

    first: State
    second: State
    updates: Tensor  # int64, since the trajectory began
    key: Tensor  # int64


@dataclass(frozen=True, repr=False)
class Switch(Optimizer):
    """``first`` and ``second``: optimizers. ``after``: updates of the first, at least 1."""

    name = "relay"

    first: Optimizer
    second: Optimizer
    after: int = 100

    def __post_init__(self) -> None:
        good = isinstance(self.after, int) and not isinstance(self.after, bool) and self.after >= 1
        require(good, f"relay: after must be a whole number of at least 1, got {self.after}")
        for rule in (self.first, self.second):
            require(isinstance(rule, Optimizer), f"relay: expected an optimizer, got {rule!r}")

    def bound(self, problem: Problem) -> Switch:
        return Switch(self.first.bound(problem), self.second.bound(problem), self.after)

    @property
    def differentiable(self) -> bool:  # type: ignore[override]
        """If both are."""
        return self.first.differentiable and self.second.differentiable

    @property
    def reads_loss(self) -> bool:  # type: ignore[override]
        """If one of them does."""
        return self.first.reads_loss or self.second.reads_loss

    @property
    def reads_grad(self) -> bool:  # type: ignore[override]
        """If one of them does."""
        return self.first.reads_grad or self.second.reads_grad

    @property
    def compiles(self) -> bool:  # type: ignore[override]
        """If one of them does."""
        return self.first.compiles or self.second.compiles

    @property
    def asking(self) -> int | Fraction:  # type: ignore[override]
        """That of the second, in the long run; what the first asks is neglected."""
        return self.second.asking

    @cached_property
    def rules(self) -> tuple[Optimizer, Optimizer]:
        """Both, laid."""
        return self.first.over(self.below), self.second.over(self.below)

    def shapes(self, below: Layout) -> dict[str, tuple[int, ...]]:
        named = (("first", self.first), ("second", self.second))
        return {f"{part}.{name}": shape for part, rule in named for name, shape in rule.shapes(below).items()}

    def init(self, key: Tensor) -> Tensor:
        return torch.cat([rule.init(key) for rule in self.rules], dim=-1)

    def init_state(self, params: Tensor, x: Tensor) -> Baton:
        return self.begin_state(params, x, torch.zeros(x.shape[:-1], dtype=torch.int64, device=x.device))

    def begin_state(self, params: Tensor, x: Tensor, key: Tensor) -> Baton:
        (rule, other), (own, theirs) = self.rules, self._split(params)
        first, second = rule.begin_state(own, x, key), other.begin_state(theirs, x, key)
        return Baton(first, second, torch.zeros_like(key), key)

    def update(self, params: Tensor, f: Tensor, g: Tensor, state: Baton, x: Tensor) -> tuple[Tensor, Baton]:
        over = state.updates >= self.after
        (rule, other), (own, theirs) = self.rules, self._split(params)
        state = state._replace(updates=state.updates + 1)
        if not bool(over.any()):
            moved, first = rule.update(own, f, g, state.first, x)
            return moved, state._replace(first=first)
        begun = state.updates == self.after + 1
        second = state.second
        if bool(begun.any()):
            second = choose(begun, other.begin_state(theirs, x, state.key), second)
        moved, second = other.update(theirs, f, g, second, x)
        if bool(over.all()):
            return moved, state._replace(second=second)
        still, first = rule.update(own, f, g, state.first, x)
        return torch.where(over[..., None], moved, still), state._replace(
            first=choose(over, state.first, first), second=choose(over, second, state.second)
        )

    def result(self, state: Baton, x: Tensor) -> Tensor:
        over = (state.updates > self.after)[..., None]
        return torch.where(over, self.rules[1].result(state.second, x), self.rules[0].result(state.first, x))

    def metrics(self, state: Baton) -> dict[str, Tensor]:
        return self.rules[0].metrics(state.first) | self.rules[1].metrics(state.second)

    def _split(self, params: Tensor) -> list[Tensor]:
        return list(torch.split_with_sizes(params, [rule.layout.size for rule in self.rules], -1))
