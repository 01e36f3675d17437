"""Logistic regression on a table of real measurements: convex, with one minimum that other solvers find too.

    f(W, b) = mean over examples of -log softmax(W^T u + b)[label] + penalty / 2 |W|^2

Two classes have two columns in W; scikit-learn, which keeps only their difference, has half the penalty for it.
Every key draws another start and, with minibatches, another order of them; splits share no row of the table.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from levels.base import ProblemTraits
from levels.fields import Count, NonNegative
from levels.layout import Layout
from levels.tasks.data import Table, stored
from levels.tasks.nets import Cursor, cross_entropy, dense, dense_shape, fresh
from levels.tasks.task import LossTask, Task


@dataclass(frozen=True, repr=False)
class Logistic(LossTask):
    """``data``: breast-cancer (30 columns, 2 classes) or wine (13 columns, 3 classes). ``penalty``: on the weights, not
    the biases, 0 or more. ``minibatch``: examples in each loss, drawn with replacement; None takes all of them.
    """

    name = "logistic"
    has_data = True

    data: Table = "breast-cancer"
    penalty: NonNegative = 0.01
    minibatch: Count | None = None

    traits = ProblemTraits(copies=16)

    examples = stored("scikit.table", "data")
    """The rows of this task's split, as `levels.tasks.data.Labelled`."""

    @property
    def layout(self) -> Layout:
        inputs, _, classes = self.examples()
        return Layout.of(dense_shape("layer", inputs.shape[1], classes), self.torch_dtype, self.device)

    def init(self, key: Tensor) -> Tensor:
        return fresh(self.layout, self.own(key))

    def init_state(self, params: Tensor, key: Tensor) -> Cursor:
        return Cursor.start(self.own(key))

    def loss(self, params: Tensor, state: Cursor) -> tuple[Tensor, Cursor]:
        inputs, labels, _ = self.examples()
        if self.minibatch is not None:
            rows = state.draw(self.minibatch, len(labels))
            inputs, labels = inputs[rows], labels[rows]
        tensors = self.layout.unravel(params)
        logits = dense(tensors, "layer", inputs)
        fit = cross_entropy(logits, torch.broadcast_to(labels, logits.shape[:-1]))
        return fit + self.penalty / 2 * tensors["layer.weight"].square().sum((-2, -1)), state.next()

    def hands_out(self) -> list[tuple[Tensor, ...]]:
        return [self.examples()[:2]]

    def variants(self) -> dict[str, Task]:
        other: Table = "wine" if self.data == "breast-cancer" else "breast-cancer"
        return {other: replace(self, data=other)}
