"""Wrapper: an optimizer around others. It forwards everything once, so that a new wrapper cannot forget anything.

A wrapper's parameters are its own and then those of the inner optimizers; its state is ``(own, *inner)``. Traits are
joined, penalties are added, metrics are collected, a learned start is that of the inner optimizer that has one. A
subclass declares its inner optimizers as fields and writes `combine`:

    x, own  <-  combine(own_theta, x, moves, own, f, g),        moves = where each inner optimizer would go from x
"""

from __future__ import annotations

import dataclasses
import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import torch
from torch import Tensor

from levels.base import Optimizer, OptimizerTraits, Problem
from levels.config import require
from levels.layout import Layout
from levels.tree import State

LOCALITIES = ("elementwise", "per_tensor", "global")  # in rising order


@dataclass(frozen=True, repr=False)
class Wrapper(Optimizer):
    """Abstract. Fields that are optimizers, or lists of them, are its inner optimizers, in order."""

    @abstractmethod
    def combine(
        self, own_theta: Tensor, x: Tensor, moves: Sequence[Tensor], own: State, f: Tensor, g: Tensor
    ) -> tuple[Tensor, State]:
        """The next ``x`` and its own next state; ``moves``: where each inner optimizer would go, as `part` of ``x``."""

    def own_shapes(self, layout: Layout) -> dict[str, tuple[int, ...]]:
        """Names and shapes of its own parameters, in front of those of the inner optimizers."""
        return {}

    def own_init(self, key: Tensor) -> Tensor:
        """Its own parameters, fresh: ``[*batch, k]`` for keys ``[*batch]``."""
        return torch.zeros(*key.shape, self.own_size, dtype=self.param_layout.dtype, device=key.device)

    def own_state(self, own_theta: Tensor, x: Tensor, key: Tensor) -> State:
        """Its own state at the start of trajectories, for keys ``[*batch, copies]``."""
        return None

    def part(self, number: int, x: Tensor) -> Tensor:
        """What an inner optimizer sees of ``x`` ``[*batch, copies, n]``, or of a gradient: all of it."""
        return x

    def site_of(self, number: int, site: Problem | Layout) -> Problem | Layout:
        """What an inner optimizer is bound to."""
        return site

    @cached_property
    def inner(self) -> dict[str, Optimizer]:
        """The inner optimizers by the prefix of their parameters' names: the field, or the place in a list."""
        found: dict[str, Optimizer] = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Optimizer):
                found[field.name] = value
            elif isinstance(value, tuple) and value and all(isinstance(one, Optimizer) for one in value):
                found |= {str(place): one for place, one in enumerate(value)}
        return found

    @property
    def traits(self) -> OptimizerTraits:
        each = [one.traits for one in self.inner.values()]
        return OptimizerTraits(
            differentiable=all(one.differentiable for one in each),
            reads_loss=any(one.reads_loss for one in each),
            reads_grad=any(one.reads_grad for one in each),
            learns_init=any(one.learns_init for one in each),
            locality=max((one.locality for one in each), key=LOCALITIES.index),
            evals=sum(one.evals for one in each),
        )

    def bind(self, site: Problem | Layout) -> Self:
        learned = [str(one) for one in self.inner.values() if one.traits.learns_init]
        require(len(learned) < 2, f"{self}: {' and '.join(learned)} have a learned start each; keep one of them")
        bound, number = dataclasses.replace(self, site=site), 0
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            group = value if isinstance(value, tuple) else (value,)
            if group and all(isinstance(one, Optimizer) for one in group):
                each = tuple(one.bind(bound.site_of(number + k, site)) for k, one in enumerate(group))
                object.__setattr__(bound, field.name, each if isinstance(value, tuple) else each[0])
                number += len(group)
        return bound

    def shapes(self, layout: Layout) -> dict[str, tuple[int, ...]]:
        shapes = dict(self.own_shapes(layout))
        for number, (prefix, one) in enumerate(self.inner.items()):
            seen = self.site_of(number, layout)
            assert isinstance(seen, Layout)
            shapes |= {f"{prefix}.{name}": shape for name, shape in one.shapes(seen).items()}
        return shapes

    @cached_property
    def own_size(self) -> int:
        """How many parameters are its own."""
        return sum(math.prod(shape) for shape in self.own_shapes(self.param_layout).values())

    @cached_property
    def _sizes(self) -> list[int]:
        return [self.own_size, *(one.layout.size for one in self.inner.values())]

    def split(self, theta: Tensor) -> tuple[Tensor, ...]:
        """Its own parameters, and those of each inner optimizer."""
        return torch.split_with_sizes(theta, self._sizes, -1)

    def init(self, key: Tensor) -> Tensor:
        return torch.cat([self.own_init(key), *(one.init(key) for one in self.inner.values())], dim=-1)

    def init_x(self, theta: Tensor, key: Tensor) -> Tensor:
        for one, inner_theta in zip(self.inner.values(), self.split(theta)[1:]):
            if one.traits.learns_init:
                return one.init_x(inner_theta, key)
        return super().init_x(theta, key)

    def init_state(self, theta: Tensor, x: Tensor, key: Tensor) -> State:
        own, *thetas = self.split(theta)
        states = (one.init_state(inner_theta, self.part(number, x), key)
                  for number, (one, inner_theta) in enumerate(zip(self.inner.values(), thetas)))  # fmt: skip
        return (self.own_state(own, x, key), *states)

    def update(self, theta: Tensor, x: Tensor, state: State, f: Tensor, g: Tensor) -> tuple[Tensor, State]:
        (own_theta, *thetas), (own, *states), moves, new = self.split(theta), state, [], []
        for number, (one, inner_theta, inner_state) in enumerate(zip(self.inner.values(), thetas, states)):
            move, inner_state = one.update(inner_theta, self.part(number, x), inner_state, f, self.part(number, g))
            moves.append(move)
            new.append(inner_state)
        x, own = self.combine(own_theta, x, moves, own, f, g)
        return x, (own, *new)

    def result(self, state: State, x: Tensor) -> Tensor:
        (one, *more), inner_state = self.inner.values(), state[1]
        assert not more, "a wrapper of several optimizers says itself what the result is"
        return one.result(inner_state, x)

    def penalty(self, theta: Tensor) -> Tensor | None:
        found = [one.penalty(inner_theta) for one, inner_theta in zip(self.inner.values(), self.split(theta)[1:])]
        penalties = [penalty for penalty in found if penalty is not None]
        return torch.stack(penalties).sum(0) if penalties else None

    def metrics(self, state: State) -> dict[str, Tensor]:
        found: dict[str, Any] = {}
        for (prefix, one), inner_state in zip(self.inner.items(), state[1:]):
            before = f"{prefix} " if len(self.inner) > 1 else ""
            found |= {f"{before}{name}": value for name, value in one.metrics(inner_state).items()}
        return found
