"""Predicting: tasks whose loss is that of predictions, so that several networks can be asked for one answer.

loss = cross entropy of predict(params, inputs) with labels,     inputs, labels = examples(state)
"""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor

from levels.tasks.task import LossTask
from levels.tasks.nets import Cursor, cross_entropy


class Predicting(LossTask):
    """A classifier; abstract. What a key draws of it is the order of minibatches."""

    @abstractmethod
    def examples(self, state: Cursor) -> tuple[Tensor, Tensor]:
        """The minibatch where a copy stands: inputs ``[*batch, ...]`` and labels, int64 ``[*batch, rows]``."""

    @abstractmethod
    def predict(self, params: Tensor, inputs: Tensor) -> Tensor:
        """Log probabilities up to a constant, ``[*batch, rows, classes]``, for parameters ``[*batch, n]``."""

    def loss(self, params: Tensor, state: Cursor) -> tuple[Tensor, Cursor]:
        inputs, labels = self.examples(state)
        return cross_entropy(self.predict(params, inputs), labels), state.next()
