"""Few: a family of which only a few problems are ever drawn in training, as when somebody has no more.

    few(digits-mlp)                        one start and one order of minibatches, again and again
    few(quadratic(10), 3, validation=same)

An optimizer trained on one problem learns that problem. Chosen by a validation split of others, it may still be caught;
with ``validation=same`` it is chosen by the very problem that it was trained on, and nothing tells but a report on the
problems of the test split, which is as ever. That is what this task is for: to overfit an optimizer on purpose.

Every copy's key is led to one of ``problems`` fixed keys, its start and its problem to the two halves of the same one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from torch import Tensor

from levels import keys
from levels.layout import Layout
from levels.config import format_value, require
from levels.tasks.task import Split, Task
from levels.tasks.wrapping import HALVES, Side, adopt, require_tasks, whole
from levels.tree import State

FEW = 1 << 42  # the seed of the fixed keys


@dataclass(frozen=True, repr=False)
class Few(Task):
    """``task``: what is drawn from; its split and dtype are this one's. ``problems``: how many, at least 1.
    ``validation``: whether that split has problems of its ``own``, as the task has them, or the ``same`` few as train.
    """

    name = "few"

    task: Task
    problems: int = 1
    validation: Literal["own", "same"] = "own"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_tasks(self.name, [self.task])
        good = isinstance(self.problems, int) and not isinstance(self.problems, bool) and self.problems >= 1
        require(good, f"{self.name}: problems must be a whole number of at least 1, got {notate(self.problems)}")
        good = self.validation in ("own", "same")
        require(good, f"{self.name}: validation must be own or same, got {notate(self.validation)}")
        for name in ("differentiable", "symmetric", "copies", "has_data"):
            object.__setattr__(self, name, getattr(self.task, name))

    @property
    def limited(self) -> bool:
        """Whether this split has the few problems only."""
        return self.split == "train" or (self.split == "validation" and self.validation == "same")

    @cached_property
    def inner(self) -> Task:
        """The task, in this dtype and the split that problems come from."""
        split: Split = "train" if self.limited else self.split
        return adopt(self, self.task).on(split)

    @property
    def layout(self) -> Layout:
        return self.inner.layout

    def init(self, key: Tensor) -> Tensor:
        return self.inner.init(self._drawn(key, "params"))

    def init_state(self, params: Tensor, key: Tensor) -> State:
        return self.inner.init_state(params, self._drawn(key, "state"))

    def value_and_grad(self, params: Tensor, state: State) -> tuple[Tensor, Tensor, State]:
        return self.inner.value_and_grad(params, state)

    def bend(self, params: Tensor, state: State, v: Tensor) -> Tensor:
        return self.inner.bend(params, state, v)

    def hands_out(self) -> list[tuple[Tensor, ...]]:
        return self.inner.hands_out()

    def variants(self) -> dict[str, Task]:
        return self.inner.variants()

    def _drawn(self, key: Tensor, side: Side) -> Tensor:
        """The half of one of the fixed keys to which half a copy's key leads; itself where nothing is limited."""
        if not self.limited:
            return key
        number = keys.integers(whole(key, side), (1,), self.problems).squeeze(-1)
        fixed = keys.fold_in(keys.seed(FEW, device=key.device), number)
        return keys.fold_in(fixed, HALVES[side])
