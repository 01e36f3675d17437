"""Any nn.Module with a loss and data as a task, all copies in one vmap.

    task = ModuleTask(make=lambda: nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)),
                      loss_function=nn.functional.cross_entropy, train=(inputs, targets), validation=..., test=...)

Each copy's module is built under a forked global generator, seeded with the copy's key: a loop over copies, at starts
and restarts only.

What is trained are the parameters that require a gradient and have one, as in torch. All else that a module holds
(frozen, integer and unused parameters, buffers) is a constant, as ``make`` made it: one for all copies where two
modules made apart agree, else each copy's own, of another draw than the copy's start.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from levels.config import Count, require
from levels.layout import Layout
from levels.tasks.nets import Cursor
from levels.tasks.norms import PlainNorms
from levels.tasks.task import LossTask
from levels.tree import map_leaves

Data = tuple[Tensor, Tensor]


class ModuleState(NamedTuple):
    """Where a copy stands in its data, and what its module holds beside what is trained, where copies differ in it."""

    cursor: Cursor
    constants: dict[str, Tensor]  # [*batch, *shape] by name


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class ModuleTask(LossTask):
    """``make()`` builds the module; ``loss_function(outputs, targets)`` is a mean over a minibatch.

    ``train``, ``validation``, ``test``: pairs of tensors ``[examples, ...]``, inputs and targets; the last two may be
    None if they are never used. ``minibatch``: examples in each loss, drawn with replacement. Raises ValueError for
    modules whose output depends on the global generator (dropout) or on earlier inputs (batch norm with running
    statistics, a buffer that a forward changes), and for complex parameters.
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
        for name, parameter in self.module.named_parameters():
            require(not parameter.is_complex(), f"module: {name} is complex; split it into real and imaginary parts")
        require(self.layout.size > 0, "module: it has no parameters; nothing there to optimize")

    @cached_property
    def module(self) -> nn.Module:
        """One module, for its structure."""
        return self.build(0)

    def build(self, seed: int) -> nn.Module:
        """A module whose draws are those of ``seed``; torch's generator is left alone."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
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
        parameters = dict(self.module.named_parameters())
        return Layout.of({name: tuple(parameters[name].shape) for name in self.trained}, self.torch_dtype, self.device)

    @cached_property
    def trained(self) -> list[str]:
        """Names of the parameters that require a gradient and have one, by a plain evaluation of one minibatch.

        Raises ValueError if that changes a buffer.
        """
        tensors = {name: self.taken(tensor.detach()).clone() for name, tensor in tensors_of(self.module).items()}
        wanted = [name for name, p in self.module.named_parameters() if p.requires_grad and p.is_floating_point()]
        for name in wanted:
            tensors[name].requires_grad_()
        before = {name: tensor.detach().clone() for name, tensor in tensors.items()}
        inputs, targets = (part[: self.minibatch] for part in self.data)
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            loss = self.loss_function(functional_call(self.module, tensors, (inputs,)), targets)
        for name, _ in self.module.named_buffers():
            what = f"module: a forward changes its buffer {name}, which would not be carried from loss to loss"
            require(torch.equal(tensors[name], before[name]), f"{what}; compute it from the parameters and the inputs")
        if not wanted or not loss.requires_grad:
            return []
        grads = torch.autograd.grad(loss.sum(), [tensors[name] for name in wanted], allow_unused=True)
        return [name for name, grad in zip(wanted, grads) if grad is not None]

    def init(self, key: Tensor) -> Tensor:
        return self.layout.ravel(self._built(self.own(key), self.trained))

    def init_state(self, params: Tensor, key: Tensor) -> ModuleState:
        own = self.own(key)
        varying = [name for name in tensors_of(self.module) if name not in self.shared and name not in self.trained]
        return ModuleState(Cursor.start(own), self._built(own, varying) if varying else {})

    def loss(self, params: Tensor, state: ModuleState) -> tuple[Tensor, ModuleState]:
        inputs, targets = self.data
        rows = state.cursor.draw(self.minibatch, len(targets)).reshape(-1, self.minibatch)
        losses = self.losses(params, state.constants, inputs[rows], targets[rows])
        return losses, state._replace(cursor=state.cursor.next())

    def losses(self, params: Tensor, constants: dict[str, Tensor], inputs: Tensor, targets: Tensor) -> Tensor:
        """Losses ``[*batch]`` of parameters ``[*batch, n]``, each on a minibatch ``[copies, minibatch, ...]``."""
        batch = params.shape[:-1]
        flat, own = map_leaves(lambda leaf: leaf.reshape(-1, *leaf.shape[len(batch) :]), (params, constants))
        _ = self.shared  # read before vmap, which allows no draws
        return vmap(self._one)(flat, own, inputs, targets).reshape(batch)

    def _one(self, flat: Tensor, constants: dict[str, Tensor], inputs: Tensor, targets: Tensor) -> Tensor:
        tensors = {**self.layout.unravel(flat), **self.shared, **constants}
        with PlainNorms():
            return self.loss_function(functional_call(self.module, tensors, (inputs,)), targets)

    def hands_out(self) -> list[tuple[Tensor, ...]]:
        return [] if getattr(self, self.split) is None else [self.data]

    @cached_property
    def shared(self) -> dict[str, Tensor]:
        """What is not trained and is the same in every module that `make` returns, by name."""
        other = tensors_of(self.build(1))
        same = {name: tensor for name, tensor in tensors_of(self.module).items() if torch.equal(tensor, other[name])}
        return {name: self.taken(tensor.detach()) for name, tensor in same.items() if name not in self.trained}

    def _built(self, key: Tensor, names: list[str]) -> dict[str, Tensor]:
        """Tensors ``[*batch, *shape]`` by name, of a module made anew for each key ``[*batch]``."""
        modules = [tensors_of(self.build(number)) for number in key.flatten().tolist()]
        stacked = {name: torch.stack([self.taken(module[name].detach()) for module in modules]) for name in names}
        return {name: tensor.reshape(*key.shape, *tensor.shape[1:]) for name, tensor in stacked.items()}

    def taken(self, tensor: Tensor) -> Tensor:
        """The tensor on the task's device, in its dtype if that is floating."""
        return tensor.to(self.device, self.torch_dtype if tensor.is_floating_point() else None)


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}
