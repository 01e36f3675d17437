"""Traced: a task whose gradient and Hessian-vector product are traced once and compiled.

A task that is traceable runs once under a tracer, on problems drawn for that. Its operations have two parts:

    state -> data                                    which minibatch, and fetching it
    data, params, directions -> answer               value and gradient; a Hessian-vector product

Each is compiled by itself: together, the integer arithmetic of the first would be written into every loop of the
second, which takes a compiler minutes. What depends on neither is computed once and given to both. That includes ranges
of integers: torch makes a range times a large number into arithmetic on a loop's counter, which overflows where a key
is drawn from, and a C++ compiler assumes that this cannot happen (the loop did not end).

One evaluation is compiled, whatever the unroll, for the copies that a tower has. For others, as where some copies
restart, and where an answer is followed further than by one product, the task answers plainly.

A trace contains everything that is not among its inputs. So a task says that it is ``traceable`` (in the class itself;
a subclass must say so anew), or is in `TRACEABLE`, and is used only after its compiled answers equalled its plain ones
on two other problems. A loss that writes in place or draws from torch's generator is refused.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import optree
import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx

from levels import keys
from levels.autodiff import hvp, is_followed
from levels.base import Problem, ProblemTraits, Split
from levels.fields import require
from levels.gradients.exact import first_line
from levels.layout import Layout
from levels.tasks.convnet import DigitsConvNet, FashionConvNet, MnistConvNet
from levels.tasks.logistic import Logistic
from levels.tasks.mlp import DigitsMLP, FashionMLP, Mnist1dMLP, MnistMLP
from levels.tasks.photo import Photo
from levels.tasks.quadratic import Quadratic
from levels.tasks.text import CharTransformer
from levels.tree import State, leaves, with_leaves
from recursion.accelerate.compiled import CONSTANT, agree, compile_parts

Method = Callable[..., Any]
"""``(params [*batch, n], state, *directions [*batch, n])`` to a tree of tensors."""

TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-9}
"""Largest difference between compiled and plain, over the norm of the plain answer."""

DATA, MOVING = 1, 2
"""Parts of a trace, beside `CONSTANT`: what reads the state alone, and what reads parameters."""

STORE = {"realize_opcount_threshold": 8}
"""For inductor: long chains of arithmetic are stored, not written again into each loop that reads them. That takes a
fifth of the time to compile where keys are drawn from; elsewhere it makes wrong sums (torch 2.13, CPU)."""

FIX = "let its loss read nothing but its arguments and settings, or leave traceable out"

TRACEABLE: set[type[Problem]] = {
    CharTransformer, DigitsConvNet, DigitsMLP, FashionConvNet, FashionMLP, Logistic, Mnist1dMLP, MnistConvNet, MnistMLP,
    Photo, Quadratic,
}  # fmt: skip


def is_traceable(task: Problem) -> bool:
    """Whether a task always runs the same operations, and reads nothing but its arguments and settings."""
    return type(task) in TRACEABLE or vars(type(task)).get("traceable", False) is True


class CompiledTask(Problem):
    """A traceable task that answers ``batch`` copies by compiled code, else plainly.

    ``batch``: leading dimensions of its parameters. Compiles at first use, which takes seconds to a minute. A task that
    cannot be traced after all, or whose compiled answers differ, stays plain, with a warning.
    """

    def __init__(self, task: Problem, batch: tuple[int, ...]) -> None:
        self.task, self.batch = task, batch
        self.compiled: dict[str, Method] = {}

    @property
    def layout(self) -> Layout:
        return self.task.layout

    @property
    def traits(self) -> ProblemTraits:
        return self.task.traits

    def init(self, key: Tensor) -> Tensor:
        return self.task.init(key)

    def init_state(self, params: Tensor, key: Tensor) -> State:
        return self.task.init_state(params, key)

    def value_and_grad(self, params: Tensor, state: State) -> tuple[Tensor, Tensor, State]:
        if is_followed(params) or params.shape[:-1] != self.batch:
            return self.task.value_and_grad(params, state)
        return self._ask("value_and_grad", self.task.value_and_grad, params, state)  # type: ignore[no-any-return]

    def hvp(self, params: Tensor, state: State, v: Tensor) -> Tensor:
        """The Hessian at ``params`` ``[*batch, n]`` times ``v``."""
        if params.shape[:-1] != self.batch:
            return hvp(self.task, params, state, v)
        return self._ask("hvp", partial(hvp, self.task), params, state, v)  # type: ignore[no-any-return]

    def value(self, params: Tensor, state: State) -> tuple[Tensor, State]:
        return self.task.value(params, state)

    def outer_value_and_grad(self, params: Tensor, state: State, f: Tensor, g: Tensor) -> tuple[Tensor, Tensor, State]:
        return self.task.outer_value_and_grad(params, state, f, g)

    def evaluate_from_scratch(self, params: Tensor, key: Tensor) -> Tensor:
        return self.task.evaluate_from_scratch(params, key)

    def on(self, split: Split) -> CompiledTask:
        return CompiledTask(self.task.on(split), self.batch)

    def _ask(self, name: str, plain: Method, params: Tensor, state: State, *directions: Tensor) -> Any:
        if name not in self.compiled:
            self.compiled[name] = _compiled(self.task, plain, params, state, directions)
        return self.compiled[name](params, state, *directions)


def _compiled(task: Problem, plain: Method, params: Tensor, state: State, directions: tuple[Tensor, ...]) -> Method:
    """``plain`` compiled for inputs of these shapes; itself, with a warning, where that cannot be relied on."""
    probes = [_probe(task, number, params.shape[:-1], len(directions)) for number in range(3)]
    if _shapes(*probes[0]) != _shapes(params, state, *directions):
        return plain  # a state unlike those that it starts with: no problem at hand to compare on
    try:
        compiled = _Compiled(plain, *probes[0])
        for probe in probes[1:]:
            same = agree(leaves(compiled(*probe)), leaves(plain(*probe)), TOLERANCE.get(params.dtype, 1e-3))
            require(same, f"its compiled answers differ from its plain ones; {FIX}")
    except ValueError as error:
        warnings.warn(f"{task} is not compiled: {error}", stacklevel=2)
        return plain
    return compiled


def _shapes(params: Tensor, state: State, *directions: Tensor) -> Any:
    """All that a trace depends on beside the values of its inputs."""
    tensors = (params, *directions, *leaves(state))
    return optree.tree_structure(state), [(one.shape, one.dtype, one.device) for one in tensors]


def _probe(task: Problem, number: int, batch: tuple[int, ...], directions: int) -> tuple[Any, ...]:
    """Parameters, state and directions of some problem."""
    key = keys.split(keys.seed(number, device=task.layout.device), math.prod(batch)).reshape(batch)
    params = task.init(keys.fold_in(key, 1))
    ways = (keys.normal(keys.fold_in(key, 3 + i), (task.layout.size,), params.dtype) for i in range(directions))
    return params, task.init_state(params, keys.fold_in(key, 2)), *ways


class _Compiled:
    """A method for inputs of the shapes that ``params``, ``state`` and ``directions`` have."""

    def __init__(self, plain: Method, params: Tensor, state: State, *directions: Tensor) -> None:
        self.structure = optree.tree_structure(plain(params, state, *directions))

        def flat(*tensors: Tensor) -> list[Tensor]:
            ways, inner = tensors[1 : 1 + len(directions)], list(tensors[1 + len(directions) :])
            return leaves(plain(tensors[0], with_leaves(state, inner), *ways))

        inputs = _contiguous(params, state, *directions)
        traced = _trace(flat, inputs)
        self.run = compile_parts(traced, _parts(traced.graph, 1 + len(directions)), inputs, {DATA: STORE})

    def __call__(self, params: Tensor, state: State, *directions: Tensor) -> Any:
        with torch.no_grad():
            return optree.tree_unflatten(self.structure, self.run(*_contiguous(params, state, *directions)))


def _contiguous(params: Tensor, state: State, *directions: Tensor) -> list[Tensor]:
    """The tensors in order, in the one layout that is compiled for."""
    return [tensor.detach().contiguous() for tensor in (params, *directions, *leaves(state))]


def _trace(function: Callable[..., list[Tensor]], inputs: list[Tensor]) -> GraphModule:
    """The operations of ``function`` on tensors of these shapes, without those that no output needs."""
    try:
        with torch.no_grad():
            traced = make_fx(function)(*inputs)
    except Exception as error:  # whatever a user's code raises
        raise ValueError(f"it cannot be traced ({first_line(error)}); {FIX}") from error
    for node in traced.graph.nodes:
        target = node.target
        good = not isinstance(target, torch._ops.OpOverload) or not (
            target._schema.is_mutable or torch.Tag.nondeterministic_seeded in target.tags
        )
        require(good, f"it writes in place or draws numbers ({target}); {FIX}")
    traced.graph.eliminate_dead_code()
    return traced


def _parts(graph: Graph, moving: int) -> Callable[[Node], int]:
    """The part of each node, by what it reads: of the inputs the first, so many, are parameters and directions."""
    parts: dict[Node, int] = {}
    for number, node in enumerate(graph.nodes):  # inputs come first
        read = max((parts[other] for other in node.all_input_nodes), default=CONSTANT)
        parts[node] = read if node.op != "placeholder" else MOVING if number < moving else DATA
    return parts.__getitem__
