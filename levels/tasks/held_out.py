"""Held out: inner steps on training data, counted by data that they never see.

    held-out(digits-mlp): lstm@20 / adam

An optimizer that is paid for training loss learns to fit training data. Here its gradients come from the task's
training split, while what the level above counts is the loss of the same parameters on the validation split: the
meta-gradient is taken through the training steps, of losses elsewhere (as hyperparameters are tuned by Maclaurin et al.
2015, arXiv 1502.03492, and initialisations by Finn et al. 2017, arXiv 1703.03400).

That makes the validation split data that the level above trains on; the test split stays untouched. Each update that
counts costs one evaluation more. Asked on another split than ``train``, this is the bare task on that split, so what is
reported is not touched either.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from torch import Tensor

from levels.layout import Layout
from levels.config import require
from levels.tasks.task import Split, Task
from levels.tasks.wrapping import adopt, require_tasks
from levels.tree import State


class HeldOutState(NamedTuple):
    """Where a copy stands in both kinds of data."""

    training: State
    counted: State


@dataclass(frozen=True, repr=False)
class HeldOut(Task):
    """``task``: what is trained; its dtype is this one's. ValueError for a task whose splits are not other data for the
    same problem, as with random quadratics, where every key of every split is a problem of its own.
    """

    name = "held-out"
    judging = 1

    task: Task

    def __post_init__(self) -> None:
        super().__post_init__()
        require_tasks(self.name, [self.task])
        what = f"{self.name}: {self.task} has no data that could be held out; its splits are other problems"
        require(self.task.has_data, f"{what}; use a task on data, as digits-mlp")
        require(self.split == "train", f"{self.name}: asked on a split, it is the bare task; use {self.task!r}")
        _ = self.counted.layout  # a task without validation data says so now
        for name in ("differentiable", "symmetric", "copies"):
            object.__setattr__(self, name, getattr(self.task, name))

    @cached_property
    def inner(self) -> Task:
        """The task on training data."""
        return adopt(self, self.task)

    @cached_property
    def counted(self) -> Task:
        """The task on validation data."""
        return self.inner.on("validation")

    def on(self, split: Split) -> Any:
        return self if split == "train" else self.inner.on(split)

    @property
    def layout(self) -> Layout:
        return self.inner.layout

    def init(self, key: Tensor) -> Tensor:
        return self.inner.init(key)

    def init_state(self, params: Tensor, key: Tensor) -> HeldOutState:
        return HeldOutState(self.inner.init_state(params, key), self.counted.init_state(params, key))

    def value_and_grad(self, params: Tensor, state: HeldOutState) -> tuple[Tensor, Tensor, HeldOutState]:
        value, grad, training = self.inner.value_and_grad(params, state.training)
        return value, grad, HeldOutState(training, state.counted)

    def bend(self, params: Tensor, state: HeldOutState, v: Tensor) -> Tensor:
        return self.inner.bend(params, state.training, v)

    def outer_value_and_grad(self, params: Tensor, f: Tensor, g: Tensor, state: HeldOutState) -> tuple[Tensor, Tensor, HeldOutState]:
        value, grad, counted = self.counted.value_and_grad(params, state.counted)
        return value, grad, HeldOutState(state.training, counted)

    def hands_out(self) -> list[tuple[Tensor, ...]]:
        return self.inner.hands_out()

    def variants(self) -> dict[str, Task]:
        return self.inner.variants()
