"""What tasks made from other tasks share: whose split and dtype count, and how a start finds its problem.

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
from levels.part import require
from levels.task import Task

Side = Literal["params", "state"]
HALVES: dict[Side, int] = {"params": 1, "state": 2}  # as `keys.split` numbers them
UNMIX_1, UNMIX_2 = ((pow(factor, -1, 2**64) + 2**63) % 2**64 - 2**63 for factor in (keys.MIX_1, keys.MIX_2))
SHARED = 1 << 41  # folded into whole keys; no part draws from that


class Opened(NamedTuple):
    """What one half of a copy's key is good for."""

    shared: Tensor  # int64 [*batch], the same for both halves: what the wrapper draws from
    inner: Tensor  # int64 [*batch], the same half of another key: what the inner task is handed


def open_key(task: Task, key: Tensor, side: Side) -> Opened:
    """Opens keys ``[*batch]`` that `init_params` or `init_state` of the wrapper ``task`` was given, in its split."""
    own = task.own(whole(key, side))
    return Opened(keys.fold(own, SHARED), keys.fold(keys.fold(own, SHARED + 1), HALVES[side]))


def whole(half: Tensor, side: Side) -> Tensor:
    """The key of which ``keys.split(key, 2)`` gave this half, the first one for ``params``: int64 ``[*batch]``."""
    return _unmix(half) ^ _unmix(keys.fold(half.new_zeros(()), HALVES[side]))


def adopt(wrapper: Task, task: Task) -> Task:
    """The inner task with the split and dtype of its wrapper."""
    return dataclasses.replace(task, split=wrapper.split, dtype=wrapper.dtype)


def require_tasks(who: str, tasks: Sequence[object]) -> None:
    """TypeError unless all are tasks; ValueError if one has a split, dtype or judging of its own: none would count."""
    for task in tasks:
        if not isinstance(task, Task):
            raise TypeError(f"{who}: expected a task, got {task!r}")
        plain = task.split == "train" and task.dtype == "float32"
        require(plain, f"{who}: set split and dtype on the {who}, not on the task in it, got {task!r}")
        what = f"{who}: {task!r} counts by other data than it trains on, which would not be asked in here"
        require(task.judging == 0, f"{what}; use the task in it")


def _unmix(z: Tensor) -> Tensor:
    """The inverse of SplitMix64's output function, as `keys` has it."""
    z = _unshift(z, 31) * UNMIX_2
    z = _unshift(z, 27) * UNMIX_1
    return _unshift(z, 30)


def _unshift(z: Tensor, count: int) -> Tensor:
    """The inverse of ``z ^ (z >> count)`` with a logical shift, for a count of at least 22."""
    return z ^ _right(z, count) ^ _right(z, 2 * count)


def _right(z: Tensor, count: int) -> Tensor:
    return (z >> count) & ((1 << (64 - count)) - 1)
