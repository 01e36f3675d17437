"""Any nn.Module with a loss and data as a task, all copies in one vmap.

    task = ModuleTask(make=lambda: nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)),
                      loss_function=nn.functional.cross_entropy, train=(inputs, targets), validation=..., test=...)

Each copy's module is built under a forked global generator, seeded with the copy's key: a loop over copies, at starts
and restarts only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from levels.config import Count, require
from levels.layout import Layout
from levels.tasks.nets import Cursor
from levels.tasks.task import LossTask

Data = tuple[Tensor, Tensor]


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class ModuleTask(LossTask):
    """``make()`` builds the module; ``loss_function(outputs, targets)`` is a mean over a minibatch.

    ``train``, ``validation``, ``test``: pairs of tensors ``[examples, ...]``, inputs and targets; the last two may be
    None if never used. ``minibatch``: examples in each loss, drawn with replacement. ValueError for modules whose
    output depends on the global generator or on earlier inputs (dropout, batch norm with running statistics).
    """

    name = "module"
    has_data = True

    make: Callable[[], nn.Module]
    loss_function: Callable[[Tensor, Tensor], Tensor]
    train: Data
    validation: Data | None = None
    test: Data | None = None
    minibatch: Count = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        inputs, targets = self.data
        fits = len(inputs) == len(targets) > 0
        require(fits, f"module: {len(inputs)} inputs but {len(targets)} targets in {self.split}")
        for name, part in self.module.named_modules():
            what = f"module: {name or 'the module'} ({type(part).__name__})"
            drops = isinstance(part, nn.modules.dropout._DropoutNd) and part.p > 0
            require(not drops, f"{what} draws from the global generator; set its p to 0 or leave it out")
            running = getattr(part, "running_mean", None) is not None
            require(not running, f"{what} remembers what it saw; set track_running_stats=False or use GroupNorm")
        require(self.layout.size > 0, "module: it has no parameters; nothing there to optimize")

    @cached_property
    def module(self) -> nn.Module:
        """One module, for its structure; built under a forked generator."""
        with torch.random.fork_rng(devices=[]):
            return self.make()

    @cached_property
    def data(self) -> Data:
        """Inputs and targets of this task's split; floating ones in the task's dtype."""
        data: Data | None = getattr(self, self.split)
        if data is None:
            raise ValueError(f"module: there is no {self.split} data; pass {self.split}=(inputs, targets)")
        return self.taken(data[0]), self.taken(data[1])

    @cached_property
    def layout(self) -> Layout:
        shapes = {name: tuple(p.shape) for name, p in self.module.named_parameters()}
        return Layout.of(shapes, self.torch_dtype, self.device)

    def init(self, key: Tensor) -> Tensor:
        starts = []
        for number in self.own(key).flatten().tolist():
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(number)
                starts.append(self.layout.ravel(self._taken(self.make().named_parameters())))
        return torch.stack(starts).reshape(*key.shape, -1)

    def init_state(self, params: Tensor, key: Tensor) -> Cursor:
        return Cursor.start(self.own(key))

    def loss(self, params: Tensor, state: Cursor) -> tuple[Tensor, Cursor]:
        inputs, targets = self.data
        rows = state.draw(self.minibatch, len(targets)).reshape(-1, self.minibatch)
        return self.losses(params, inputs[rows], targets[rows]), state.next()

    def losses(self, params: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
        """Losses ``[*batch]`` of parameters ``[*batch, n]``, each on a minibatch ``[copies, minibatch, ...]``."""
        return vmap(self._one)(params.reshape(-1, params.shape[-1]), inputs, targets).reshape(params.shape[:-1])

    def _one(self, flat: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
        outputs = functional_call(self.module, self.layout.unravel(flat) | self._buffers, (inputs,))
        return self.loss_function(outputs, targets)

    def hands_out(self) -> list[tuple[Tensor, ...]]:
        return [] if getattr(self, self.split) is None else [self.data]

    @cached_property
    def _buffers(self) -> dict[str, Tensor]:
        return self._taken(self.module.named_buffers())

    def _taken(self, named: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
        return {name: self.taken(tensor.detach()) for name, tensor in named}

    def taken(self, tensor: Tensor) -> Tensor:
        """The tensor on the task's device, in its dtype if that is floating."""
        return tensor.to(self.device, self.torch_dtype if tensor.is_floating_point() else None)
