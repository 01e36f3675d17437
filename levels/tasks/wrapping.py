"""What tasks made from other tasks share: whose split, dtype and device count, and how a start finds its problem.

A level splits the key of a copy in two, one half for its start and one for its problem. What a wrapper draws (which
member, which scale) concerns both. Either half leads back to the whole key, because SplitMix64 is a bijection; so
both sides draw it from there, and agree. Halves of different keys give the start of one problem and the data of
another: of the right size, but not made for each other.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal, NamedTuple

from torch import Tensor

from levels import keys
from levels.config import require
from levels.tasks.task import Task

Side = Literal["params", "state"]
HALVES: dict[Side, int] = {"params": 1, "state": 2}  # as `keys.split` numbers them
SHARED = 1 << 41  # folded into whole keys; no part draws from that


class Opened(NamedTuple):
    """What one half of a copy's key is good for."""

    shared: Tensor  # int64 [*batch], the same for both halves: what the wrapper draws from
    inner: Tensor  # int64 [*batch], the same half of another key: what the inner task is handed


def open_key(task: Task, key: Tensor, side: Side) -> Opened:
    """Opens keys ``[*batch]`` that `init_params` or `init_state` of the wrapper ``task`` was given, in its split."""
    own = task.own(whole(key, side))
    return Opened(keys.fold_in(own, SHARED), keys.fold_in(keys.fold_in(own, SHARED + 1), HALVES[side]))


def whole(half: Tensor, side: Side) -> Tensor:
    """The key of which ``keys.split(key, 2)`` gave this half, the first one for ``params``: int64 ``[*batch]``."""
    return keys.unfold_in(half, HALVES[side])


def adopt(wrapper: Task, task: Task) -> Task:
    """The inner task with the split, dtype and device of its wrapper."""
    return dataclasses.replace(task, split=wrapper.split, dtype=wrapper.dtype, device=wrapper.device)


def require_tasks(who: str, tasks: Sequence[object]) -> None:
    """TypeError unless all are tasks; ValueError if one has a split, dtype, device or judging of its own: none would
    count."""
    for task in tasks:
        if not isinstance(task, Task):
            raise TypeError(f"{who}: expected a task, got {task!r}")
        plain = task.split == "train" and task.dtype == "float32" and task.device == "cpu"
        require(plain, f"{who}: set split, dtype and device on the {who}, not on the task in it, got {task!r}")
        what = f"{who}: {task!r} counts by other data than it trains on, which would not be asked in here"
        require(task.judging == 0, f"{what}; use the task in it")
