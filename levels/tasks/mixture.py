"""Mixture: each copy draws one of several tasks, of whatever sizes.

    mixture([quadratic(5), quadratic(10)])

One flat vector serves all: it is as long as the largest member needs, a smaller one reads its front, and the gradient
of the rest is exactly 0. Each evaluation runs every member once, on the copies that drew it.
"""

import math
from dataclasses import dataclass
from functools import cached_property, partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from levels import keys
from levels.base import ProblemTraits
from levels.config import require
from levels.layout import Layout
from levels.tasks.task import Task
from levels.tasks.wrapping import adopt, open_key, require_tasks
from levels.tree import State, map_leaves


class MixtureState(NamedTuple):
    """The member that a copy drew, and a state of every member; only that of the drawn member advances."""

    member: Tensor  # int64 [*batch]
    states: tuple[State, ...]


@dataclass(frozen=True, repr=False)
class Mixture(Task):
    """``tasks``: at least one, all equally likely, so one given twice is twice as likely. Their split and dtype are
    the mixture's.

    The layout is that of the members if they agree, else one tensor ``padded``. A start is made for the member that the
    copy drew, with zeros behind it, if start and state come from the two halves of one key, as a level makes them.
    """

    name = "mixture"

    tasks: tuple[Task, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        require(len(self.tasks) > 0, f"{self.name}: it needs at least one task, got none")
        require_tasks(self.name, self.tasks)

    @property
    def traits(self) -> ProblemTraits:
        traits = [task.traits for task in self.tasks]
        differentiable = all(trait.differentiable for trait in traits)
        return ProblemTraits(differentiable=differentiable, copies=max(trait.copies for trait in traits))

    @cached_property
    def members(self) -> tuple[Task, ...]:
        """The tasks, in this split and dtype."""
        return tuple(adopt(self, task) for task in self.tasks)

    @cached_property
    def layout(self) -> Layout:
        layouts = [member.layout for member in self.members]
        if all(layout == layouts[0] for layout in layouts):
            return layouts[0]
        return Layout.of({"padded": (max(layout.size for layout in layouts),)}, self.torch_dtype, self.device)

    def init(self, key: Tensor) -> Tensor:
        shared, inner = open_key(self, key, "params")
        starts = torch.stack([self._padded(member.init(inner)) for member in self.members], -2)
        drawn = self._draw(shared)[..., None, None].expand(*key.shape, 1, self.layout.size)
        return starts.gather(-2, drawn).squeeze(-2)

    def init_state(self, params: Tensor, key: Tensor) -> MixtureState:
        shared, inner = open_key(self, key, "state")
        states = tuple(member.init_state(params[..., : member.layout.size], inner) for member in self.members)
        return MixtureState(self._draw(shared), states)

    def value_and_grad(self, params: Tensor, state: MixtureState) -> tuple[Tensor, Tensor, MixtureState]:
        dims, flat = params.dim() - 1, params.reshape(-1, params.shape[-1])
        value, grad, states = flat.new_zeros(len(flat)), torch.zeros_like(flat), list(state.states)
        for number, member in enumerate(self.members):
            rows = (state.member.flatten() == number).nonzero().squeeze(-1)
            if len(rows) == 0:
                continue
            own = map_leaves(partial(_take, rows, dims), states[number])
            f, g, new = member.value_and_grad(flat[rows, : member.layout.size], own)
            value, grad = value.index_copy(0, rows, f), grad.index_copy(0, rows, self._padded(g))
            states[number] = map_leaves(partial(_put, rows, dims), states[number], new)
        lead = params.shape[:-1]
        return value.reshape(lead), grad.reshape(params.shape), MixtureState(state.member, tuple(states))

    def hands_out(self) -> list[tuple[Tensor, ...]]:
        return [group for member in self.members for group in member.hands_out()]

    def variants(self) -> dict[str, Task]:
        return {f"{task!r} alone": adopt(self, task) for task in dict.fromkeys(self.tasks)}

    def _draw(self, shared: Tensor) -> Tensor:
        return keys.integers(shared, (1,), len(self.tasks)).squeeze(-1)

    def _padded(self, flat: Tensor) -> Tensor:
        return pad(flat, (0, self.layout.size - flat.shape[-1]))


def _take(rows: Tensor, dims: int, leaf: Tensor) -> Tensor:
    """Some copies of a leaf ``[*batch, ...]`` with ``dims`` batch dimensions: ``[rows, ...]``."""
    return leaf.reshape(math.prod(leaf.shape[:dims]), *leaf.shape[dims:])[rows]


def _put(rows: Tensor, dims: int, leaf: Tensor, new: Tensor) -> Tensor:
    """The leaf with those copies replaced."""
    flat = leaf.reshape(math.prod(leaf.shape[:dims]), *leaf.shape[dims:])
    return flat.index_copy(0, rows, new).reshape(leaf.shape)
