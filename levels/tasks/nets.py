"""What the networks among the tasks share: starts, layers over copies, minibatches drawn from keys.

Activations are ``[*batch, rows, features]``, weights ``[*batch, inputs, outputs]``: all copies are one batched
matrix product, never a loop.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from levels import keys
from levels.base import ProblemTraits
from levels.layout import Layout
from levels.tasks.task import Task

Activation = Literal["sigmoid", "tanh", "relu"]
ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]]
ACTIVATIONS = {"sigmoid": torch.sigmoid, "tanh": torch.tanh, "relu": torch.relu}


class Cursor(NamedTuple):
    """Where a copy stands in its data."""

    key: Tensor  # int64 [*batch]
    step: Tensor  # int64 [*batch], minibatches drawn so far

    @classmethod
    def start(cls, key: Tensor) -> Cursor:
        """At the first minibatch of keys ``[*batch]``."""
        return cls(key, torch.zeros_like(key))

    def draw(self, count: int, high: int) -> Tensor:
        """``count`` numbers below ``high`` for this minibatch, with replacement: int64 ``[*batch, count]``."""
        return keys.integers(keys.fold_in(self.key, self.step), (count,), high)

    def next(self) -> Cursor:
        """At the next minibatch."""
        return self._replace(step=self.step + 1)


def fresh(layout: Layout, key: Tensor) -> Tensor:
    """Starts ``[*batch, n]`` by the last word of each name.

    ``weight`` is normal with deviation 1/sqrt(inputs), inputs being all dimensions but the last; ``embedding`` is
    standard normal; ``scale`` is 1; anything else is 0.
    """
    tensors = layout.unravel(keys.normal(key, (layout.size,), layout.dtype))
    for name, shape in layout.entries:
        kind = name.rpartition(".")[2]
        if kind == "weight":
            tensors[name] = tensors[name] / math.sqrt(math.prod(shape[:-1]))
        elif kind != "embedding":
            tensors[name] = torch.full_like(tensors[name], float(kind == "scale"))
    return layout.ravel(tensors)


def dense_shapes(widths: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the dense layers between ``widths``."""
    shapes: dict[str, tuple[int, ...]] = {}
    for i, (inputs, outputs) in enumerate(zip(widths, widths[1:])):
        shapes |= dense_shape(f"layer{i}", inputs, outputs)
    return shapes


def dense_shape(name: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of one dense layer."""
    return {f"{name}.weight": (inputs, outputs), f"{name}.bias": (outputs,)}


def dense(tensors: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    """``x W + b`` of the layer ``name``: ``[*batch, rows, inputs]`` to ``[*batch, rows, outputs]``."""
    return torch.matmul(x, tensors[f"{name}.weight"]) + tensors[f"{name}.bias"][..., None, :]


def perceptron(tensors: Mapping[str, Tensor], x: Tensor, activation: Activation) -> Tensor:
    """Dense layers ``layer0``, ``layer1``, ... with an activation between them; the last is linear."""
    for i in range(sum(name.endswith(".weight") for name in tensors)):
        x = dense(tensors, f"layer{i}", ACTIVATIONS[activation](x) if i else x)
    return x


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over rows, in nats: ``[*batch, rows, classes]`` and int64 ``[*batch, rows]`` to ``[*batch]``."""
    chosen = logits.gather(-1, labels[..., None]).squeeze(-1)
    return (logits.logsumexp(-1) - chosen).mean(-1)


class Network(Task):
    """A task over a network with a setting, called ``widths``, for the width of each layer; a number is one layer."""

    traits = ProblemTraits(copies=4)
    widths: ClassVar[str] = "hidden"

    def __post_init__(self) -> None:
        given = getattr(self, self.widths)
        object.__setattr__(self, self.widths, tuple(given) if isinstance(given, (tuple, list)) else (given,))
        super().__post_init__()
