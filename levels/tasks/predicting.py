"""Predicting: tasks whose loss is that of predictions, so that an ensemble can average what several networks predict.

    loss  =  cross entropy of predict(params, inputs) with labels,        inputs, labels = examples(state)

Every key draws another start and another order of minibatches, with replacement.
"""

from abc import abstractmethod
from typing import ClassVar

from torch import Tensor

from levels.tasks.data import Labelled, require_installed
from levels.tasks.nets import Cursor, cross_entropy, fresh
from levels.tasks.task import LossTask


class Predicting(LossTask):
    """A classifier; abstract. ``minibatch``: examples in each loss."""

    has_data: ClassVar[bool] = True
    minibatch: int

    @abstractmethod
    def examples(self, state: Cursor) -> tuple[Tensor, Tensor]:
        """The minibatch where a copy stands: inputs ``[*batch, ...]`` and labels, int64 ``[*batch, rows]``."""

    @abstractmethod
    def predict(self, params: Tensor, inputs: Tensor) -> Tensor:
        """Log probabilities up to a constant, ``[*batch, rows, classes]``, for parameters ``[*batch, n]``."""

    def init(self, key: Tensor) -> Tensor:
        return fresh(self.layout, self.own(key))

    def init_state(self, params: Tensor, key: Tensor) -> Cursor:
        return Cursor.start(self.own(key))

    def loss(self, params: Tensor, state: Cursor) -> tuple[Tensor, Cursor]:
        inputs, labels = self.examples(state)
        return cross_entropy(self.predict(params, inputs), labels), state.next()


class Classifying(Predicting):
    """A classifier of labelled examples; abstract in the data and the network."""

    package: ClassVar[str] = ""  # of the extra ``data``, that the data comes with

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.package:
            require_installed(self.package, self.name)

    @abstractmethod
    def data(self) -> Labelled:
        """The examples of this task's split, in its dtype; every loss asks for them, so they are cached."""

    def hands_out(self) -> list[tuple[Tensor, ...]]:
        return [self.data()[:2]]

    def examples(self, state: Cursor) -> tuple[Tensor, Tensor]:
        inputs, labels, _ = self.data()
        rows = state.draw(self.minibatch, len(labels))
        return inputs[rows], labels[rows]
