"""Any nn.Module with a loss and data as a task, all copies in one vmap.

    task = ModuleTask(make=lambda: nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)),
                      loss_function=nn.functional.cross_entropy, train=(inputs, targets), validation=..., test=...)

A module draws its start from torch's global generator, so each copy's module is built under a generator forked
and seeded with that copy's key: a loop over copies, at starts and restarts only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from levels import keys
from levels.layout import Layout
from levels.config import require
from levels.tasks.task import LossTask

Data = tuple[Tensor, Tensor]


class ModuleState(NamedTuple):
    """Where a copy stands in its data."""

    key: Tensor  # int64 [*batch]
    step: Tensor  # int64 [*batch], minibatches drawn so far


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class ModuleTask(LossTask):
    """``make()`` builds the module; ``loss_function(outputs, targets)`` is a mean over a minibatch.

    ``train``, ``validation``, ``test``: pairs of tensors ``[examples, ...]``, inputs and targets; the last two may be
    None if never asked for. ``minibatch``: examples in each loss, drawn with replacement. Modules whose output depends
    on the global generator or on what they saw before (dropout, batch norm with running statistics) are refused.
    """

    name = "module"
    has_data = True

    make: Callable[[], nn.Module]
    loss_function: Callable[[Tensor, Tensor], Tensor]
    train: Data
    validation: Data | None = None
    test: Data | None = None
    minibatch: int = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        good = isinstance(self.minibatch, int) and not isinstance(self.minibatch, bool) and self.minibatch >= 1
        require(good, f"module: minibatch must be a whole number of at least 1, got {self.minibatch}")
        data = self.data
        require(
            len(data[0]) == len(data[1]) > 0,
            f"module: {len(data[0])} inputs but {len(data[1])} targets in {self.split}",
        )
        for name, part in self.module.named_modules():
            what = f"module: {name or 'the module'} ({type(part).__name__})"
            drops = isinstance(part, nn.modules.dropout._DropoutNd) and part.p > 0
            require(not drops, f"{what} draws from the global generator; set its p to 0 or leave it out")
            running = getattr(part, "running_mean", None) is not None
            require(not running, f"{what} remembers what it saw; set track_running_stats=False or use GroupNorm")
        _ = self.buffers  # now, outside of whatever transforms `loss`
        require(self.layout.size > 0, "module: it has no parameters; nothing there to optimize")

    @cached_property
    def module(self) -> nn.Module:
        """One module, for its structure; built under a forked generator."""
        with torch.random.fork_rng(devices=[]):
            return self.make()

    @cached_property
    def data(self) -> Data:
        """Inputs and targets of this task's split, floating inputs in the task's dtype."""
        data: Data | None = getattr(self, self.split)
        if data is None:
            raise ValueError(f"module: there is no {self.split} data; pass {self.split}=(inputs, targets)")
        return self._own(data[0]), self._own(data[1])

    @cached_property
    def layout(self) -> Layout:
        shapes = {name: tuple(p.shape) for name, p in self.module.named_parameters()}
        return Layout.of(shapes, self.torch_dtype, self.device)

    def init(self, key: Tensor) -> Tensor:
        starts = []
        for number in self.own(key).flatten().tolist():
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(number)
                named = dict(self.make().named_parameters())
            starts.append(self.layout.ravel({name: self._own(p.detach()) for name, p in named.items()}))
        return torch.stack(starts).reshape(*key.shape, -1)

    def init_state(self, params: Tensor, key: Tensor) -> ModuleState:
        return ModuleState(self.own(key), torch.zeros_like(key))

    def loss(self, params: Tensor, state: ModuleState) -> tuple[Tensor, ModuleState]:
        inputs, targets = self.data
        rows = keys.integers(keys.fold_in(state.key, state.step), (self.minibatch,), len(targets)).reshape(
            -1, self.minibatch
        )
        value = vmap(self._one)(params.reshape(-1, params.shape[-1]), inputs[rows], targets[rows])
        return value.reshape(params.shape[:-1]), state._replace(step=state.step + 1)

    def hands_out(self) -> list[tuple[Tensor, ...]]:
        return [] if getattr(self, self.split) is None else [self.data]

    def _one(self, flat: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
        outputs = functional_call(self.module, {**self.layout.unravel(flat), **self.buffers}, (inputs,))
        return self.loss_function(outputs, targets)

    @cached_property
    def buffers(self) -> dict[str, Tensor]:
        """Of the module, by name."""
        return {name: self._own(buffer) for name, buffer in self.module.named_buffers()}

    def _own(self, tensor: Tensor) -> Tensor:
        """The tensor on the task's device, in its dtype if that is floating."""
        return tensor.to(self.device, self.torch_dtype if tensor.is_floating_point() else None)
