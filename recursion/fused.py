"""Fused: one step of a whole tower as one compiled call.

In a tower of unroll 1 every level moves at every base step, and what a level does above the task is arithmetic on a few
numbers: in Python that is some 70 calls and 0.07 ms for each level of SGD. Nothing in such a step depends on what the
numbers are, as long as no level restarts or skips. So the step is run once while torch's tracer writes down every
operation from the tensors of the state to those of the next one, and inductor makes a few kernels of that; the levels
above the task become one.

    fused = Fused(tower)
    answer = fused.window(state.params, state.carry)  # carry and losses, or None: take the plain way

The plain step stays what it is, and what is compiled is that very step, equal to rounding: its first answer is compared
with the plain one, for a compiler errs now and then. What is not finite, what does not fit and what cannot be traced
takes the plain way. `Tower.step` asks for this within `compiling`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import optree
import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from levels.compiled import compile_graph, compiling
from levels.gradients.first_order import FirstOrder
from levels.laid import Laid
from levels.nonfinite import put_off
from levels.tree import State
from levels.window import Carry
from recursion.tower import reported

if TYPE_CHECKING:
    from recursion.tower import Tower

ROUNDING = 1e-2
"""Largest difference of the first compiled answer, over the norm of the plain one."""


def eligible(tower: Tower) -> bool:
    """Whether a step of ``tower`` is the same operations at every step, whatever the numbers.

    Each level has one update to a window and never restarts or skips, its rule is made of hyperparameters, and the task
    says that it is ``traceable``. On a processor only: there numbers are slow one by one.
    """
    rules = [laid.optimizer for laid in tower.laid]
    made = all(rule.hand_made and rule.differentiable for rule in rules)
    swept = all(type(level.gradient) is FirstOrder for level in tower.levels[:-1])
    traceable = getattr(type(tower.task), "traceable", False)
    plain = all(laid.plain for laid in tower.laid)
    return made and swept and traceable and plain and tower.top.layout.device.type == "cpu"


class Fused:
    """The step of a tower, compiled for states like the first that it is asked about."""

    def __init__(self, tower: Tower) -> None:
        self.top = tower.top
        self.off = not eligible(tower)
        self.program: _Program | None = None
        self.last: tuple[Tensor, Carry, list[Tensor]] | None = None  # what was answered, and its tensors

    def window(self, params: Tensor, carry: Carry) -> tuple[Carry, list[float]] | None:
        """One window of the topmost level, and the mean losses below each level (`recursion.tower.reported`).

        None if it is to be run plainly. Compiles at the first call.
        """
        if self.off:
            return None
        flat = self._tensors(params, carry)
        if flat is None or self.program is None:
            return None
        new, (*losses, noted) = self.program(flat)
        if not math.isfinite(noted):
            return None
        _, end = _whole(self.program.tree, new)
        self.last = params, end, new
        return end, losses

    def _tensors(self, params: Tensor, carry: Carry) -> list[Tensor] | None:
        """The tensors of a state; None if it is not like those that the program is for."""
        if self.last is not None and self.last[0] is params and self.last[1] is carry:
            return self.last[2]
        flat, tree = _flat(params, carry)
        if self.program is None:
            self._make(params, carry)
        fits = self.program is not None and self.program.tree == tree and self.program.like == _like(flat)
        return flat if fits else None

    def _make(self, params: Tensor, carry: Carry) -> None:
        """Compile, if nothing looks at a number to decide what to do: a rule may, where only autograd follows it."""
        try:
            program = _Program(self.top, params, carry)
        except RuntimeError:  # the tracer's; what fails for another reason fails again, plainly
            self.off = True
            return
        self.off = not program.sound(_flat(params, carry)[0])
        self.program = None if self.off else program


class _Program:
    """A window of ``top`` from the tensors of a state to those of the next."""

    def __init__(self, top: Laid, params: Tensor, carry: Carry) -> None:
        flat, self.tree = _flat(params, carry)
        self.like = _like(flat)
        self.top = top
        new = self._window(flat)[0]
        self.moved = [i for i, tensor in enumerate(flat) if new[i] is not tensor]  # others are handed on as they are

        def step(*tensors: Tensor) -> list[Tensor]:
            new, told = self._window(tensors)
            return [*(new[i] for i in self.moved), told]

        traced = _traced(step, flat)
        self.read, self.constants = traced.read, traced.constants
        self.run = compile_graph(traced.graph, self._inputs(flat))

    def __call__(self, flat: list[Tensor]) -> tuple[list[Tensor], list[float]]:
        """The next state; the losses to report, and a number that is finite if all that was answered anywhere is."""
        *moved, told = self.run(*self._inputs(flat))
        new = flat.copy()
        for i, tensor in zip(self.moved, moved):
            new[i] = tensor
        return new, told.tolist()

    def sound(self, flat: list[Tensor]) -> bool:
        """Whether the answer is the plain one, as far as that is finite."""
        fast, (slow, told) = self(flat), self._window(flat)
        pairs = [(fast[0][i].double(), slow[i].double()) for i in self.moved]
        return all(_close(a, b) for a, b in [*pairs, (told.new_tensor(fast[1]).double(), told.double())])

    def _inputs(self, flat: list[Tensor]) -> list[Tensor]:
        """What is read of a state, as it would lie in a file, and the constants."""
        return [*(flat[i].contiguous() for i in self.read), *self.constants]

    def _window(self, flat: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
        """Tensors of the next state, and in one tensor what else `__call__` tells."""
        params, carry = _whole(self.tree, flat)
        with put_off() as noted, compiling(False):
            end, window = self.top.window(params, carry, record=False, judged=False)
        assert noted.total is not None
        numbers = [*(loss.mean() for loss in reported(end, window)), noted.total]
        return _flat(params, end)[0], torch.stack(numbers)


def _close(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors differ by rounding at most; a compiler's mistakes are of another size."""
    return not bool(torch.isfinite(b).all()) or bool((a - b).norm() <= ROUNDING * b.norm())


class _Traced(NamedTuple):
    """A function as a graph."""

    graph: fx.GraphModule
    read: list[int]  # which inputs it takes, by number
    constants: list[Tensor]  # what it takes behind them: a task's data, numbers that are not learned


def _traced(function: Callable[..., list[Tensor]], inputs: list[Tensor]) -> _Traced:
    """``function`` as a graph that takes what it reads, and constants as inputs, so that no data is compiled in."""
    module = make_fx(function)(*inputs)
    graph, read = module.graph, []
    places = [node for node in graph.nodes if node.op == "placeholder"]
    for i, node in enumerate(places):
        if node.users:
            read.append(i)
        else:
            graph.erase_node(node)
    first = next(node for node in graph.nodes if node.op != "placeholder")
    lifted: dict[str, fx.Node] = {}
    for node in [node for node in graph.nodes if node.op == "get_attr"]:
        if node.target not in lifted:
            with graph.inserting_before(first):
                lifted[node.target] = graph.placeholder(node.target)
        node.replace_all_uses_with(lifted[node.target])
    for node in [node for node in graph.nodes if node.op == "get_attr"]:
        graph.erase_node(node)
    return _Traced(fx.GraphModule({}, graph), read, [getattr(module, name).detach() for name in lifted])


def _flat(params: Tensor, carry: Carry) -> tuple[list[Tensor], Any]:
    state: State = (params, carry)
    return optree.tree_flatten(state)


def _whole(tree: Any, flat: Sequence[Tensor]) -> tuple[Tensor, Carry]:
    """The inverse of `_flat`."""
    whole: Any = optree.tree_unflatten(tree, flat)
    return whole  # type: ignore[no-any-return]


def _like(flat: list[Tensor]) -> list[tuple[torch.Size, torch.dtype]]:
    return [(tensor.shape, tensor.dtype) for tensor in flat]
