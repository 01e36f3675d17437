"""Augmented: a task whose parameters come in another unit for every copy, as in the training of VeLO and Celo2.

    augmented(quadratic(10)):    g(x) = f(s x),    g'(x) = s f'(s x),    log s uniform in [log low, log high)

The problem is the same, but a step in x of one size is a step of any size for the task; an optimizer that does well on
all copies must adapt to each. Starts are the task's own, divided by s (Metz et al. 2022, "VeLO", arXiv 2211.09760).
"""

import math
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from levels import keys
from levels.fields import Positive, require, setting
from levels.tasks.task import Task
from levels.tasks.wrapping import TaskWrapper, open_key
from levels.tree import State


class AugmentedState(NamedTuple):
    """The unit that a copy drew, and the task's own state."""

    scale: Tensor  # [*batch, n], s of each coordinate
    inner: State


@dataclass(frozen=True, repr=False)
class Augmented(TaskWrapper):
    """``task``: what is augmented; its split and dtype are this one's. ``low``, ``high``: bounds of the scale, above 0.
    ``shared_over``: one scale for a ``copy`` or one for each ``tensor`` of it; notation writes ``per``. A start has the
    scale of its problem if both come from the two halves of one key, as in a level.
    """

    name = "augmented"

    low: Positive = 1e-3
    high: Positive = 1e3
    shared_over: Literal["copy", "tensor"] = setting("copy", word="per")

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.low <= self.high, f"{self.name}: low must be at most high, got {self.low} and {self.high}")

    def init(self, key: Tensor) -> Tensor:
        shared, inner = open_key(self, key, "params")
        return self.inner.init(inner) / self._scale(shared)

    def init_state(self, params: Tensor, key: Tensor) -> AugmentedState:
        shared, inner = open_key(self, key, "state")
        scale = self._scale(shared)
        return AugmentedState(scale, self.inner.init_state(scale * params, inner))

    def value_and_grad(self, params: Tensor, state: AugmentedState) -> tuple[Tensor, Tensor, AugmentedState]:
        value, grad, inner = self.inner.value_and_grad(state.scale * params, state.inner)
        return value, state.scale * grad, AugmentedState(state.scale, inner)

    def variants(self) -> dict[str, Task]:
        return {f"{label}, augmented": replace(self, task=task) for label, task in self.task.variants().items()}

    def _scale(self, shared: Tensor) -> Tensor:
        """``s`` ``[*batch, n]``."""
        tensors = len(self.layout.entries)
        share = keys.uniform(shared, (tensors if self.shared_over == "tensor" else 1,), self.torch_dtype)
        scale = torch.exp(math.log(self.low) + share * math.log(self.high / self.low))
        return self.layout.spread(scale.expand(*shared.shape, tensors))
