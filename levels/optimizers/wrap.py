"""Wrapper: an optimizer around others. It forwards everything once, so that a new wrapper cannot forget anything.

A wrapper's parameters are its own and then those of the inner optimizers; its state is ``(own, *inner)``. Traits are
joined, penalties are added, metrics are collected, a learned start is that of the inner optimizer that has one. A
subclass declares its inner optimizers as fields and writes `combine`:

    x, own  <-  combine(own_theta, x, moves, own, f, g),        moves = where each inner optimizer would go from x
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from levels.base import Optimizer, OptimizerTraits, Problem
from levels.layout import Layout
from levels.tree import State

Moved = tuple[Tensor, State]
LOCALITIES = ("elementwise", "per_tensor", "global")  # in rising order


@dataclass(frozen=True, repr=False)
class Wrapper(Optimizer):
    """Abstract. Fields that are optimizers, or lists of them, are its inner optimizers, in order."""

    several_starts: ClassVar[bool] = False
    """Whether more than one inner optimizer may have a learned start; then the subclass writes `init_x`."""

    def combine(self, own_theta: Tensor, x: Tensor, moves: Sequence[Tensor], own: Any, f: Tensor, g: Tensor) -> Moved:
        """The next ``x`` and its own next state; by default the move of the one inner optimizer."""
        (move,) = moves
        return move, own

    def own_shapes(self, layout: Layout) -> dict[str, tuple[int, ...]]:
        """Names and shapes of its own parameters, in front of those of the inner optimizers."""
        return {}

    def own_init(self, key: Tensor) -> Tensor:
        """Its own parameters, fresh: ``[*batch, k]`` for keys ``[*batch]``."""
        return torch.zeros(*key.shape, self._sizes[0], dtype=self.param_layout.dtype, device=key.device)

    def own_state(self, own_theta: Tensor, x: Tensor, key: Tensor) -> State:
        """Its own state at the start of trajectories, for keys ``[*batch, copies]``."""
        return None

    def own_metrics(self, own: State) -> dict[str, Tensor]:
        """Numbers to report about its own state, by name: ``[*batch, copies]`` each."""
        return {}

    def part(self, number: int, x: Tensor) -> Tensor:
        """What an inner optimizer sees of ``x`` ``[*batch, copies, n]``, or of a gradient: all of it."""
        return x

    def site_of(self, number: int, site: Problem | Layout) -> Problem | Layout:
        """What an inner optimizer is bound to."""
        return site

    @cached_property
    def wrapped(self) -> dict[str, Optimizer]:
        """The inner optimizers by the prefix of their parameters' names: the field, or the place in a list."""
        each: dict[str, Optimizer] = {}
        for name, inner in self._inner_fields.items():
            each |= {name: inner} if isinstance(inner, Optimizer) else {str(k): one for k, one in enumerate(inner)}
        return each

    @property
    def traits(self) -> OptimizerTraits:
        each = [one.traits for one in self.wrapped.values()]
        return OptimizerTraits(
            differentiable=all(one.differentiable for one in each),
            reads_loss=any(one.reads_loss for one in each),
            reads_grad=any(one.reads_grad for one in each),
            learns_init=any(one.learns_init for one in each),
            locality=max((one.locality for one in each), key=LOCALITIES.index),
            evals=sum(one.evals for one in each),
        )

    def bind(self, site: Problem | Layout) -> Self:
        learned = [str(one) for one in self.wrapped.values() if one.traits.learns_init]
        if len(learned) > 1 and not self.several_starts:
            raise ValueError(f"{self}: {' and '.join(learned)} have a learned start each; keep one of them")
        bound_ones = (one.bind(self.site_of(number, site)) for number, one in enumerate(self.wrapped.values()))
        changes: dict[str, Optimizer | tuple[Optimizer, ...]] = {
            name: next(bound_ones) if isinstance(inner, Optimizer) else tuple(next(bound_ones) for _ in inner)
            for name, inner in self._inner_fields.items()
        }
        bound = dataclasses.replace(self, site=site, **changes)
        bound.shapes(bound.param_layout)  # refuses here what does not fit
        return bound

    def shapes(self, layout: Layout) -> dict[str, tuple[int, ...]]:
        shapes = self.own_shapes(layout)
        for number, (prefix, one) in enumerate(self.wrapped.items()):
            inner = one.shapes(self.site_of(number, layout))  # type: ignore[arg-type]  # the layout of a layout
            shapes = shapes | {f"{prefix}.{name}": shape for name, shape in inner.items()}
        return shapes

    def split_theta(self, theta: Tensor) -> tuple[Tensor, ...]:
        """Its own parameters, and those of each inner optimizer."""
        return torch.split_with_sizes(theta, self._sizes, -1)

    def init(self, key: Tensor) -> Tensor:
        return torch.cat([self.own_init(key), *(one.init(key) for one in self.wrapped.values())], dim=-1)

    def init_x(self, theta: Tensor, key: Tensor) -> Tensor:
        _, *thetas = self.split_theta(theta)
        learned = [one.init_x(inner_theta, key)
                   for one, inner_theta in zip(self.wrapped.values(), thetas) if one.traits.learns_init]  # fmt: skip
        return learned[0] if learned else super().init_x(theta, key)

    def init_state(self, theta: Tensor, x: Tensor, key: Tensor) -> State:
        own, *thetas = self.split_theta(theta)
        states = (one.init_state(thetas[k], self.part(k, x), key) for k, one in enumerate(self.wrapped.values()))
        return (self.own_state(own, x, key), *states)

    def update(self, theta: Tensor, x: Tensor, state: State, f: Tensor, g: Tensor) -> tuple[Tensor, State]:
        (own_theta, *thetas), (own, *states) = self.split_theta(theta), state
        moved = [one.update(thetas[k], self.part(k, x), states[k], f, self.part(k, g))
                 for k, one in enumerate(self.wrapped.values())]  # fmt: skip
        x, own = self.combine(own_theta, x, [move for move, _ in moved], own, f, g)
        return x, (own, *(inner_state for _, inner_state in moved))

    def result(self, state: State, x: Tensor) -> Tensor:
        (one,) = self.wrapped.values()  # a wrapper of several optimizers says itself what the result is
        return one.result(state[1], x)

    def penalty(self, theta: Tensor) -> Tensor | None:
        _, *thetas = self.split_theta(theta)
        terms = [one.penalty(inner_theta) for one, inner_theta in zip(self.wrapped.values(), thetas)]
        penalties = [penalty for penalty in terms if penalty is not None]
        return torch.stack(penalties).sum(0) if penalties else None

    def metrics(self, state: State) -> dict[str, Tensor]:
        numbers = own = self.own_metrics(state[0])
        for (prefix, one), inner_state in zip(self.wrapped.items(), state[1:]):
            for name, value in one.metrics(inner_state).items():
                numbers = numbers | {f"{prefix}.{name}" if len(self.wrapped) > 1 or name in own else name: value}
        return numbers

    @property
    def _inner_fields(self) -> dict[str, Optimizer | tuple[Optimizer, ...]]:
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: value for name, value in fields.items() if isinstance(value, Optimizer) or _is_list(value)}

    @cached_property
    def _sizes(self) -> list[int]:
        own = sum(math.prod(shape) for shape in self.own_shapes(self.param_layout).values())
        return [own, *(one.layout.size for one in self.wrapped.values())]


def towards(x: Tensor, moved: Tensor, factor: Tensor) -> Tensor:
    """``x + factor * (moved - x)``; bit for bit ``x`` where the factor is 0, and ``moved`` where it is 1."""
    moved = torch.where(factor == 0, x, moved)  # 0 times a step that is not finite would be NaN, in derivatives too
    return torch.where(factor == 1, moved, x + factor * (moved - x))


def _is_list(value: object) -> bool:
    return isinstance(value, tuple) and len(value) > 0 and all(isinstance(one, Optimizer) for one in value)
