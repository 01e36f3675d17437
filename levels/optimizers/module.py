"""Any nn.Module as a learned optimizer, the same for all coordinates.

    optimizer = ModuleOptimizer(make=lambda: nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 1)))

    x <- x + scale * module(u)                  u = LogAndSign(g), or what ``features`` makes of g and x
    x <- x + scale * out,  h <- new             out, new = module(u, h)  with ``memory`` numbers h a coordinate

The module's weights are the parameters of the optimizer: what the level above moves. Coordinates are rows: the module
maps ``[rows, k]`` to ``[rows, 1]``, or ``[rows, k]`` and ``[rows, memory]`` to ``[rows, 1]`` and ``[rows, memory]``,
and must not mix rows. One vmap runs it for all optimizers of a batch, so it must be something that vmap can take:
nn.LSTMCell is not, a cell of plain matrix products is. LogAndSign is that of `levels.optimizers.lstm`, with p = 10.

A module draws its start from torch's global generator, so each optimizer's is built under a generator forked and
seeded with its key. Notation cannot write a function down: build the tower in Python, or write a class of one's own.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from levels.base import Optimizer, OptimizerTraits
from levels.fields import Positive, Whole, require
from levels.layout import Layout
from levels.optimizers.cells import by_feature, log_and_sign
from levels.tree import State

MIXING = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class ModuleOptimizer(Optimizer):
    """``make()`` builds the module. ``features(g, x)`` maps ``[*batch, copies, n]`` to ``[*batch, copies, n, k]``,
    coordinate by coordinate and differentiably in x; None is LogAndSign of g, k = 2. ``memory``: numbers that each
    coordinate remembers, from 0 on. ``scale`` of the step, above 0.

    Modules that draw from the global generator or mix rows (dropout, batch norm) are refused.
    """

    name = "module"

    make: Callable[[], nn.Module]
    features: Callable[[Tensor, Tensor], Tensor] | None = None
    memory: Whole = 0
    scale: Positive = 0.1

    traits = OptimizerTraits(locality="elementwise")

    def __post_init__(self) -> None:
        super().__post_init__()
        got = f"got one of type {type(self.module).__name__}"
        require(isinstance(self.module, nn.Module), f"module: make() must build an nn.Module, {got}")
        for name, part in self.module.named_modules():
            what = f"module: {name or 'the module'} ({type(part).__name__})"
            drops = isinstance(part, nn.modules.dropout._DropoutNd) and part.p > 0
            require(not drops, f"{what} draws from the global generator; set its p to 0 or leave it out")
            require(not isinstance(part, MIXING), f"{what} mixes the rows of different copies; use LayerNorm")
        require(bool(list(self.module.parameters())), "module: it has no parameters; nothing there to learn")

    @cached_property
    def module(self) -> nn.Module:
        """One module, for its structure; built under a forked generator."""
        with torch.random.fork_rng(devices=[]):
            return self.make()

    def shapes(self, layout: Layout) -> dict[str, tuple[int, ...]]:
        return {name: tuple(p.shape) for name, p in self.module.named_parameters()}

    def init(self, key: Tensor) -> Tensor:
        starts = []
        for number in key.flatten().tolist():
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(number)
                named = self.make().named_parameters()
                starts.append(self.layout.ravel({name: self._cast(p.detach()) for name, p in named}))
        return torch.stack(starts).reshape(*key.shape, -1)

    def init_state(self, theta: Tensor, x: Tensor, key: Tensor) -> State:
        return x.new_zeros(*x.shape, self.memory) if self.memory else None

    def update(self, theta: Tensor, x: Tensor, state: State, f: Tensor, g: Tensor) -> tuple[Tensor, State]:
        u = log_and_sign(g, 10.0) if self.features is None else self.features(g, x)
        inputs = [by_feature(rows).mT for rows in ((u,) if state is None else (u, state))]
        buffers = {name: self._cast(buffer) for name, buffer in self.module.named_buffers()}
        out, *memory = vmap(partial(self._one, buffers))(theta.reshape(-1, theta.shape[-1]), *inputs)
        new = x + self.scale * _shaped(out, inputs[0], 1).reshape(x.shape)
        return new, None if state is None else _shaped(memory[0], inputs[1], self.memory).reshape(state.shape)

    def _one(self, buffers: dict[str, Tensor], flat: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The module with one set of weights, over the rows that belong to it."""
        answer = functional_call(self.module, {**self.layout.unravel(flat), **buffers}, inputs)
        return answer if isinstance(answer, tuple) else (answer,)

    def _cast(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.layout.device, self.layout.dtype if tensor.is_floating_point() else None)


def _shaped(answer: Tensor, rows: Tensor, width: int) -> Tensor:
    """``answer`` if it has ``width`` numbers for each of the rows."""
    shape, got = (*rows.shape[:2], width), list(answer.shape[1:])
    require(answer.shape == shape, f"module: expected {list(shape[1:])} from it, a row each, got {got}")
    return answer
