"""Multilayer perceptrons on images (L2L 2016, section 3.2): sigmoid units, cross entropy, minibatches.

Every key draws another start and another order of minibatches; splits also share no image. Copies are one
batched matrix product, never a loop.
"""

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from levels import keys
from levels.layout import Layout
from levels.part import require
from levels.task import LossTask, Task
from levels.tasks.data import Labelled, digits

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "relu": torch.relu,
}


class MLPState(NamedTuple):
    """Where a copy stands in its data."""

    key: Tensor  # int64 [*batch]
    step: Tensor  # int64 [*batch], minibatches drawn so far


@dataclass(frozen=True, repr=False)
class MLP(LossTask):
    """A perceptron on labelled data; abstract in the data.

    ``hidden``: units of each hidden layer. ``activation``: sigmoid, tanh or relu. ``minibatch``: examples in each loss,
    drawn with replacement. Weights start normal with deviation 1/sqrt(inputs), biases at 0.
    """

    copies = 4

    hidden: tuple[int, ...] = (20,)
    activation: str = "sigmoid"
    minibatch: int = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.hidden, (tuple, list)):
            object.__setattr__(self, "hidden", (self.hidden,))
        object.__setattr__(self, "hidden", tuple(self.hidden))
        for units in (*self.hidden, self.minibatch):
            good = isinstance(units, int) and not isinstance(units, bool) and units >= 1
            require(good, f"{self.name}: hidden and minibatch must be whole numbers of at least 1, got {units}")
        known = ", ".join(ACTIVATIONS)
        require(
            self.activation in ACTIVATIONS, f"{self.name}: activation must be one of {known}, got {self.activation}"
        )

    @abstractmethod
    def data(self) -> Labelled:
        """The examples of this task's split, in its dtype; cached, for it is asked at every loss."""

    @property
    def layout(self) -> Layout:
        data = self.data()
        widths = (data.inputs.shape[1], *self.hidden, data.classes)
        shapes: dict[str, tuple[int, ...]] = {}
        for i, (fan_in, fan_out) in enumerate(zip(widths, widths[1:])):
            shapes[f"layer{i}.weight"] = (fan_in, fan_out)
            shapes[f"layer{i}.bias"] = (fan_out,)
        return Layout.of(shapes, self.torch_dtype)

    def init_params(self, key: Tensor) -> Tensor:
        layout = self.layout
        views = layout.views(keys.normal(self.own(key), (layout.size,), self.torch_dtype))
        return layout.flat({
            name: view / math.sqrt(view.shape[-2]) if name.endswith("weight") else torch.zeros_like(view)
            for name, view in views.items()
        })  # fmt: skip

    def init_state(self, params: Tensor, key: Tensor) -> MLPState:
        return MLPState(self.own(key), torch.zeros_like(key))

    def loss(self, params: Tensor, state: MLPState) -> tuple[Tensor, MLPState]:
        inputs, labels, _ = self.data()
        rows = keys.integers(keys.fold(state.key, state.step), (self.minibatch,), len(labels))
        out = inputs[rows]  # [*batch, minibatch, features]
        views = list(self.layout.views(params).values())
        activation = ACTIVATIONS[self.activation]
        for i, (weight, bias) in enumerate(zip(views[::2], views[1::2])):
            out = torch.matmul(activation(out) if i else out, weight) + bias[..., None, :]
        chosen = out.gather(-1, labels[rows][..., None]).squeeze(-1)
        value = (out.logsumexp(-1) - chosen).mean(-1)
        return value, state._replace(step=state.step + 1)

    def variants(self) -> dict[str, Task]:
        if not self.hidden:
            return {}
        return {
            f"{2 * self.hidden[0]} units": replace(self, hidden=(2 * self.hidden[0], *self.hidden[1:])),
            f"{len(self.hidden) + 1} layers": replace(self, hidden=(*self.hidden, self.hidden[-1])),
            "relu": replace(self, activation="relu"),
        }


@dataclass(frozen=True, repr=False)
class DigitsMLP(MLP):
    """On scikit-learn's 8x8 digits, 64 inputs and 10 classes: 1,510 parameters with one layer of 20."""

    name = "digits-mlp"

    def data(self) -> Labelled:
        return digits(self.split, self.torch_dtype)
