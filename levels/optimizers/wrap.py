"""Wrapping: an optimizer around another one, which passes on all of it that it does not change.

What it is asked about the rule (what it reads, what it costs, where trajectories begin, what is charged, what they come
to) it asks the rule.
"""

from __future__ import annotations

import dataclasses
import math
from abc import abstractmethod
from collections.abc import Callable
from fractions import Fraction
from functools import cached_property
from typing import Any, Self

import torch
from torch import Tensor

from levels.layout import Layout
from levels.base import Optimizer, Pulled, Scope
from levels.base import Problem
from levels.tree import State


class Around(Optimizer):
    """Abstract: a frozen dataclass with a field ``rule``, and what holds of that."""

    rule: Optimizer

    @cached_property
    def laid_rule(self) -> Optimizer:
        """The rule, laid over the same."""
        return self.rule.over(self.below)

    @property
    def differentiable(self) -> bool:  # type: ignore[override]
        """As the rule is."""
        return self.rule.differentiable

    @property
    def scope(self) -> Scope:  # type: ignore[override]
        """As the rule's."""
        return self.rule.scope

    @property
    def reads_loss(self) -> bool:  # type: ignore[override]
        """As the rule does."""
        return self.rule.reads_loss

    @property
    def reads_grad(self) -> bool:  # type: ignore[override]
        """As the rule does."""
        return self.rule.reads_grad

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

    def bound(self, problem: Problem) -> Self:
        return dataclasses.replace(self, rule=self.rule.bound(problem))  # type: ignore[type-var]


class Wrapping(Around):
    """Abstract: parameters are its own, if it has any, and then the rule's; its state holds the rule's.

    A subclass writes `update`, and `linearized`, of which this makes the `pullback`; `holding` and `held`; and, if it
    has parameters of its own, `own_shapes` and `own_params`.
    """

    def __init_subclass__(cls, **settings: Any) -> None:
        written = "pullback" in vars(cls)
        super().__init_subclass__(**settings)
        if not written:  # rewriting `update` alone would have it asked of autograd
            cls.pullback = Wrapping.pullback  # type: ignore[method-assign]

    @abstractmethod
    def holding(self, params: Tensor, x: Tensor, rule: State) -> State:
        """The state around that of the rule."""

    @abstractmethod
    def held(self, state: State) -> State:
        """The rule's state in it."""

    def own_shapes(self, below: Layout) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the parameters in front of the rule's."""
        return {}

    def own_params(self, like: Tensor) -> Tensor:
        """These, fresh, for fresh ones of the rule ``[*batch, m]``: ``[*batch, k]``."""
        return like[..., :0]

    @cached_property
    def own_size(self) -> int:
        """How many parameters are in front of the rule's."""
        return sum(math.prod(shape) for shape in self.own_shapes(self.below).values())

    def rest(self, params: Tensor) -> Tensor:
        """The rule's parameters among all."""
        return params[..., self.own_size :]

    def padded(self, slopes: Tensor) -> Tensor:
        """Cotangents of the rule's parameters as those of all."""
        return torch.nn.functional.pad(slopes, (self.own_size, 0)) if self.own_size else slopes

    def shapes(self, below: Layout) -> dict[str, tuple[int, ...]]:
        rule = {f"rule.{name}": shape for name, shape in self.rule.shapes(below).items()}
        return {**self.own_shapes(below), **rule}

    def init(self, key: Tensor) -> Tensor:
        rule = self.laid_rule.init(key)
        return torch.cat((self.own_params(rule), rule), dim=-1) if self.own_size else rule

    def start(self, params: Tensor, fresh: Callable[[Tensor], Tensor], key: Tensor) -> Tensor:
        return self.laid_rule.start(self.rest(params), fresh, key)

    def start_pullback(self, params: Tensor, dx: Tensor, begun: Tensor) -> Tensor | None:
        slopes = self.laid_rule.start_pullback(self.rest(params), dx, begun)
        return None if slopes is None else self.padded(slopes)

    def init_state(self, params: Tensor, x: Tensor) -> State:
        return self.holding(params, x, self.laid_rule.init_state(self.rest(params), x))

    def begin_state(self, params: Tensor, x: Tensor, key: Tensor) -> State:
        return self.holding(params, x, self.laid_rule.begin_state(self.rest(params), x, key))

    def penalty(self, params: Tensor) -> tuple[Tensor, Tensor] | None:
        penalty = self.laid_rule.penalty(self.rest(params))
        return None if penalty is None else (penalty[0], self.padded(penalty[1]))

    def result(self, state: State, x: Tensor) -> Tensor:
        return self.laid_rule.result(self.held(state), x)

    def metrics(self, state: State) -> dict[str, Tensor]:
        return self.laid_rule.metrics(self.held(state))

    def pullback(
        self,
        params: Tensor,
        f: Tensor,
        g: Tensor,
        state: State,
        x: Tensor,
        dx: Tensor,
        dstate: list[Tensor | None] | None,
    ) -> Pulled:
        return self.linearized(params, f, g, state, x)[2](dx, dstate)
