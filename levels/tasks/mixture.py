"""Mixture: each copy draws one of several tasks, of whatever sizes.

    mixture([quadratic(5), quadratic(10)])

One flat vector serves all: it is as long as the largest member needs, a smaller one reads its front, and the gradient
of the rest is exactly 0. Each evaluation runs every member once, on the copies that drew it.
"""

from dataclasses import dataclass
from functools import cached_property, partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from levels import keys
from levels.base import ProblemTraits
from levels.fields import require
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
    """``tasks``: at least one, all equally likely; their split and dtype are the mixture's.

    The layout is that of the members if they agree, else one tensor ``padded``. A start is that of the member that the
    copy drew, with zeros behind it, if start and state come from the two halves of one key, as in a level.
    """

    name = "mixture"

    tasks: tuple[Task, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        require(len(self.tasks) > 0, f"{self.name}: it needs at least one task, got none")
        require_tasks(self.name, self.tasks)

    @property
    def traits(self) -> ProblemTraits:
        differentiable, copies, *_ = zip(*(task.traits for task in self.tasks))
        return ProblemTraits(differentiable=all(differentiable), copies=max(copies))

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
        lead, flat = params.shape[:-1], params.reshape(-1, params.shape[-1])
        states = list(map_leaves(lambda leaf: leaf.reshape(lead.numel(), *leaf.shape[len(lead) :]), state.states))
        value, grad = flat.new_zeros(len(flat)), torch.zeros_like(flat)
        for number, member in enumerate(self.members):
            rows = (state.member.flatten() == number).nonzero().squeeze(-1)
            if len(rows) > 0:
                put = partial(_put, rows)
                own = map_leaves(partial(torch.index_select, dim=0, index=rows), states[number])
                f, g, own = member.value_and_grad(flat[rows, : member.layout.size], own)
                value, grad, states[number] = map_leaves(put, (value, grad, states[number]), (f, self._padded(g), own))
        after = map_leaves(lambda leaf: leaf.reshape((*lead, *leaf.shape[1:])), tuple(states))
        return value.reshape(lead), grad.reshape(params.shape), MixtureState(state.member, after)

    def hands_out(self) -> list[tuple[Tensor, ...]]:
        return [group for member in self.members for group in member.hands_out()]

    def variants(self) -> dict[str, Task]:
        return {f"{task!r} alone": adopt(self, task) for task in dict.fromkeys(self.tasks)}

    def _draw(self, shared: Tensor) -> Tensor:
        return keys.integers(shared, (1,), len(self.tasks)).squeeze(-1)

    def _padded(self, flat: Tensor) -> Tensor:
        return pad(flat, (0, self.layout.size - flat.shape[-1]))


def _put(rows: Tensor, leaf: Tensor, new: Tensor) -> Tensor:
    return leaf.index_copy(0, rows, new)
