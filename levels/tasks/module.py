"""Any nn.Module with a loss and data in two tensors as a task; see `levels.tasks.network`.

task = ModuleTask(make=lambda: nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)),
                  loss_function=nn.functional.cross_entropy, train=(inputs, targets), validation=..., test=...)
"""

from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from levels.fields import Count, require
from levels.tasks.nets import Cursor
from levels.tasks.network import NetworkTask

Data = tuple[Tensor, Tensor]


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class ModuleTask(NetworkTask):
    """``train``, ``validation``, ``test``: pairs of tensors or arrays ``[examples, ...]``, inputs and targets; the last
    two may be None if they are never used. ``minibatch``: examples in each loss, drawn with replacement; None: all.
    """

    name = "module"

    train: Data
    validation: Data | None = None
    test: Data | None = None
    minibatch: Count | None = 128

    @cached_property
    def data(self) -> Data:
        """Inputs and targets of this task's split; floating ones in the task's dtype."""
        data: Data | None = getattr(self, self.split)
        if data is None:
            raise ValueError(f"module: there is no {self.split} data; pass {self.split}=(inputs, targets)")
        inputs, targets = self.taken(data[0]), self.taken(data[1])
        fit = len(inputs) == len(targets) > 0
        require(fit, f"module: {len(inputs)} inputs but {len(targets)} targets in {self.split}")
        return inputs, targets

    def example(self) -> Data:
        inputs, targets = self.data
        return inputs[: self.minibatch], targets[: self.minibatch]

    def minibatches(self, cursor: Cursor) -> Data:
        inputs, targets = self.data
        if self.minibatch is None:
            return inputs.expand(len(cursor.key), *inputs.shape), targets.expand(len(cursor.key), *targets.shape)
        rows = cursor.draw(self.minibatch, len(targets))
        return inputs[rows], targets[rows]

    def hands_out(self) -> list[tuple[Tensor, ...]]:
        return [] if getattr(self, self.split) is None else [self.data]
