"""Few: a family of which training draws only a few problems.

    few(digits-mlp)                        one start and one order of minibatches, again and again
    few(quadratic(10), 3, validation=same)

It is there to overfit an optimizer on purpose. A validation split of other problems detects that; with
``validation=same`` validation uses the training problems, and only a report on the test split shows it. Every copy's
key leads to one of ``problems`` fixed keys; its start and its problem come from the two halves of one.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from torch import Tensor

from levels import keys
from levels.fields import Count
from levels.tasks.task import Task
from levels.tasks.wrapping import HALVES, Side, TaskWrapper, adopt, whole
from levels.tree import State

FEW = 1 << 42  # the seed of the fixed keys


@dataclass(frozen=True, repr=False)
class Few(TaskWrapper):
    """``task``: what is drawn from; its split and dtype are this one's. ``problems``: how many, at least 1.
    ``validation``: whether that split has problems of its ``own``, as the task has them, or the ``same`` few as train.
    """

    name = "few"

    problems: Count = 1
    validation: Literal["own", "same"] = "own"

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "has_data", self.task.has_data)

    @property
    def limited(self) -> bool:
        """Whether this split has the few problems only."""
        return self.split == "train" or (self.split == "validation" and self.validation == "same")

    @cached_property
    def inner(self) -> Task:
        """The task, in this dtype and the split that problems come from."""
        return adopt(self, self.task).on("train" if self.limited else self.split)

    def init(self, key: Tensor) -> Tensor:
        return self.inner.init(self._drawn(key, "params"))

    def init_state(self, params: Tensor, key: Tensor) -> State:
        return self.inner.init_state(params, self._drawn(key, "state"))

    def value_and_grad(self, params: Tensor, state: State) -> tuple[Tensor, Tensor, State]:
        return self.inner.value_and_grad(params, state)

    def _drawn(self, key: Tensor, side: Side) -> Tensor:
        """The same half of the fixed key to which half a copy's key leads; ``key`` itself where not `limited`."""
        if not self.limited:
            return key
        number = keys.integers(whole(key, side), (1,), self.problems).squeeze(-1)
        return keys.fold_in(keys.fold_in(keys.seed(FEW, device=key.device), number), HALVES[side])
