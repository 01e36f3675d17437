"""Fused: one step of a whole tower as one compiled call.

In a tower of unroll 1 every level moves at every base step, and what a level does above the task is arithmetic on a few
numbers: in Python that is some 70 calls and 0.07 ms for each level of SGD. Nothing in such a step depends on what the
numbers are, as long as no level restarts or skips. So the step is run once while torch's tracer writes down every
operation from the tensors of the state to those of the next one, and inductor makes a few kernels of that; the levels
above the task become one.

    fused = Fused(tower)
    answer = fused.window(state.params, state.carry)  # carry and window, or None: take the plain way

The plain step stays what it is, and what is compiled is that very step, equal to rounding. What is not finite, what
does not fit and what cannot be traced takes the plain way. `Tower.step` asks for this within `compiling`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import optree
import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from levels.compiled import compile_graph, compiling
from levels.gradients.first_order import FirstOrder
from levels.hyper import HandMade
from levels.level import Laid
from levels.nonfinite import put_off
from levels.tree import State
from levels.window import Carry, Window

if TYPE_CHECKING:
    from recursion.tower import Tower


def eligible(tower: Tower) -> bool:
    """Whether a step of ``tower`` is the same operations at every step, whatever the numbers.

    Each level has one update to a window and never restarts or skips, its rule is made of hyperparameters, and the task
    says that it is ``traceable``. On a processor only: there numbers are slow one by one.
    """
    rules = [laid.optimizer for laid in tower.laid]
    made = all(isinstance(rule, HandMade) and rule.differentiable for rule in rules)
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

    def window(self, params: Tensor, carry: Carry) -> tuple[Carry, Window] | None:
        """One window of the topmost level; None if it is to be run plainly. Compiles at the first call."""
        if self.off:
            return None
        flat = self._tensors(params, carry)
        if flat is None or self.program is None:
            return None
        new, losses, finite = self.program(flat)
        if not finite:
            return None
        _, end = _whole(self.program.tree, new)
        self.last = params, end, new
        return end, Window([], losses, [], end.x, carry.age, [])

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
            self.program = _Program(self.top, params, carry)
        except RuntimeError:  # the tracer's; what fails for another reason fails again, plainly
            self.off = True


class _Program:
    """A window of ``top`` from the tensors of a state to those of the next."""

    def __init__(self, top: Laid, params: Tensor, carry: Carry) -> None:
        flat, self.tree = _flat(params, carry)
        self.like = _like(flat)
        new = self._window(top, flat)[0]
        self.moved = [i for i, tensor in enumerate(flat) if new[i] is not tensor]  # others are handed on as they are

        def step(*tensors: Tensor) -> list[Tensor]:
            new, losses, total = self._window(top, tensors)
            return [*(new[i] for i in self.moved), losses, torch.isfinite(total)]

        traced = _traced(step, flat)
        self.read, self.constants = traced.read, traced.constants
        self.run = compile_graph(traced.graph, self._inputs(flat))

    def __call__(self, flat: list[Tensor]) -> tuple[list[Tensor], Tensor, bool]:
        """The next state, the losses of the topmost level, and whether all that was answered anywhere is finite."""
        *moved, losses, finite = self.run(*self._inputs(flat))
        new = flat.copy()
        for i, tensor in zip(self.moved, moved):
            new[i] = tensor
        return new, losses, bool(finite)

    def _inputs(self, flat: list[Tensor]) -> list[Tensor]:
        """What is read of a state, as it would lie in a file, and the constants."""
        return [*(flat[i].contiguous() for i in self.read), *self.constants]

    def _window(self, top: Laid, flat: Sequence[Tensor]) -> tuple[list[Tensor], Tensor, Tensor]:
        """Tensors of the next state, the losses, and a number that is finite if all that was answered is."""
        params, carry = _whole(self.tree, flat)
        with put_off() as noted, compiling(False):
            end, window = top.window(params, carry, record=False, judged=False)
        assert noted.total is not None
        return _flat(params, end)[0], window.losses, noted.total


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
