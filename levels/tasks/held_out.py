"""Held out: inner steps on training data, a meta-loss on other data.

    held-out(digits-mlp): lstm@20 / adam

An optimizer that is trained by the training loss learns to fit the training data. Here its gradients come from the
training split, and the meta-loss of the level above is the loss of the same parameters on the validation split, through
the training steps (as Maclaurin et al. 2015, arXiv 1502.03492, tune hyperparameters, and Finn et al. 2017, arXiv
1703.03400, initialisations). Each update that counts costs one more evaluation. The test split is not used. On another
split than ``train`` this is the bare task on that split.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from torch import Tensor

from levels.base import ProblemTraits, Split
from levels.fields import require
from levels.tasks.task import Task
from levels.tasks.wrapping import TaskWrapper
from levels.tree import State


class HeldOutState(NamedTuple):
    """Where a copy stands in both kinds of data."""

    training: State
    counted: State


@dataclass(frozen=True, repr=False)
class HeldOut(TaskWrapper):
    """``task``: what is trained; its dtype is this one's. ValueError for a task whose splits are other problems (random
    quadratics) rather than other data for the same one.
    """

    name = "held-out"

    def __post_init__(self) -> None:
        super().__post_init__()
        what = f"{self.name}: {self.task} has no data that could be held out; its splits are other problems"
        require(self.task.has_data, f"{what}; use a task on data, as digits-mlp")
        require(self.split == "train", f"{self.name}: on another split it is the bare task; use {self.task!r}")
        _ = self.counted.layout  # refuses here a task without validation data

    @cached_property
    def counted(self) -> Task:
        """The task on validation data, as it is evaluated."""
        return self.inner.on("validation").evaluated()

    @property
    def traits(self) -> ProblemTraits:
        return self.inner.traits._replace(outer_evals=1, scratch_evals=2)

    def on(self, split: Split) -> Any:
        return self if split == "train" else self.inner.on(split)

    def init(self, key: Tensor) -> Tensor:
        return self.inner.init(key)

    def init_state(self, params: Tensor, key: Tensor) -> HeldOutState:
        return HeldOutState(self.inner.init_state(params, key), self.counted.init_state(params, key))

    def value_and_grad(self, params: Tensor, state: HeldOutState) -> tuple[Tensor, Tensor, HeldOutState]:
        value, grad, training = self.inner.value_and_grad(params, state.training)
        return value, grad, HeldOutState(training, state.counted)

    def outer_value_and_grad(
        self, params: Tensor, state: HeldOutState, f: Tensor, g: Tensor
    ) -> tuple[Tensor, Tensor, HeldOutState]:
        counted = self.counted.remembering(state.counted, state.training)
        value, grad, counted = self.counted.value_and_grad(params, counted)
        return value, grad, HeldOutState(state.training, counted)
