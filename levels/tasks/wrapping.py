"""What tasks around other tasks share: whose split, dtype and device count, and how a start finds its problem.

A level splits the key of a copy in two: one half for its start and one for its problem. What a wrapper draws (which
member, which scale) concerns both. SplitMix64 is a bijection, so either half leads back to the whole key, from which
both sides draw. Halves of different keys give the start of one problem and the data of another, of the right size.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

from torch import Tensor

from levels import keys
from levels.base import ProblemTraits
from levels.fields import require
from levels.layout import Layout
from levels.tasks.task import Task

Side = Literal["params", "state"]
HALVES: dict[Side, int] = {"params": 1, "state": 2}  # as `keys.split` numbers them
SHARED = 1 << 41  # folded into whole keys; no part draws from that


class Opened(NamedTuple):
    """What follows from one half of a copy's key."""

    shared: Tensor  # int64 [*batch], equal for both halves: what the wrapper draws from
    inner: Tensor  # int64 [*batch], the same half of another key: what the inner task is given


def open_key(task: Task, key: Tensor, side: Side) -> Opened:
    """Keys ``[*batch]`` that the wrapper ``task`` was given in `init` or `init_state`, opened in its split."""
    own = task.own(whole(key, side))
    return Opened(keys.fold_in(own, SHARED), keys.fold_in(keys.fold_in(own, SHARED + 1), HALVES[side]))


def whole(half: Tensor, side: Side) -> Tensor:
    """The key of which ``keys.split(key, 2)`` gave this half, the first one for ``params``: int64 ``[*batch]``."""
    return keys.unfold_in(half, HALVES[side])


def adopt(wrapper: Task, task: Task) -> Task:
    """The inner task with the split, dtype and device of its wrapper."""
    return dataclasses.replace(task, split=wrapper.split, dtype=wrapper.dtype, device=wrapper.device)


def require_tasks(who: str, tasks: Sequence[Task]) -> None:
    """ValueError if a task sets what its wrapper decides, or counts other data: neither would have an effect."""
    for task in tasks:
        plain = task.split == "train" and task.dtype == "float32" and task.device == "cpu"
        require(plain, f"{who}: set split, dtype and device on the {who}, not on the task in it, got {task!r}")
        what = f"{who}: {task!r} counts other data than it trains on, which would have no effect in here"
        require(task.traits.outer_evals == 0, f"{what}; use the task in it")


@dataclass(frozen=True, repr=False)
class TaskWrapper(Task):
    """A task around another one, ``task``, with its parameters; abstract."""

    task: Task

    def __post_init__(self) -> None:
        super().__post_init__()
        require_tasks(self.name, [self.task])

    @cached_property
    def inner(self) -> Task:
        """The task, in this split, dtype and device."""
        return adopt(self, self.task)

    @property
    def traits(self) -> ProblemTraits:
        return self.inner.traits

    @cached_property
    def layout(self) -> Layout:
        return self.inner.layout

    def hands_out(self) -> list[tuple[Tensor, ...]]:
        return self.inner.hands_out()

    def variants(self) -> dict[str, Task]:
        return self.inner.variants()
