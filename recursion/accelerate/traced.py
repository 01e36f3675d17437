"""Traced: a task's gradient and Hessian-vector product as lists of plain operations, traced once and compiled.

Both are made by autograd, and `torch.compile` cannot follow autograd differentiating twice. But what autograd does for
one loss is always the same list of operations on tensors, and such a list compiles like any other. So within
`levels.compiled.compiling` and `tracing`, a task that says it is `levels.task.Task.traceable` is run once under a
tracer, on problems drawn for that, for each shape in which it is asked. The list is parted:

    state -> data                                    which minibatch, and fetching it
    data, params, directions -> answer               value and gradient; a Hessian-vector product

and each is compiled by itself: together, the integer arithmetic of the first is written into every loop of the second,
and takes a compiler minutes. What depends on neither is computed once and given to both. That includes ranges of
integers: torch makes a range times a large number into arithmetic on a loop's counter, which overflows where a key is
drawn from, and a C++ compiler takes it that this cannot happen (the loop did not end).

Compiled is one evaluation, whatever the unroll, and nothing of it is differentiated: what is, stays plain.

A trace bakes in all that is not among the tensors it was given. So nothing is guessed: a task says that it is
traceable, and is taken at its word only after its compiled answers equalled its plain ones on two other problems. A
loss that writes in place or draws from torch's generator is refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

import optree
import torch
from torch import Tensor

from levels import keys
from levels.compiled import compile_graph, is_compiling
from levels.config import require
from levels.tree import State, leaves, with_leaves

if TYPE_CHECKING:
    from torch.fx import Graph, GraphModule, Node

    from levels.tasks.task import LossTask

Method = Callable[..., Any]
"""``(task, params [*batch, n], state, *directions [*batch, n])`` to a tree of tensors."""

M = TypeVar("M", bound=Method)

MOST = 8
"""Shapes for which a task compiles a method; in others it stays plain. Each costs seconds to a minute."""

TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-9}
"""Largest difference between compiled and plain, over the norm of the plain answer."""

STORE = {"realize_opcount_threshold": 8}
"""For inductor: long chains of arithmetic are stored, not written again into each loop that reads them. That takes a
fifth of the time to compile where keys are drawn from; elsewhere it makes wrong sums (torch 2.13, CPU)."""

FIX = "let its loss read nothing but its arguments and settings, or leave traceable out"


_wanted: ContextVar[bool] = ContextVar("_wanted", default=False)


@contextmanager
def tracing() -> Iterator[None]:
    """Within this context, and `levels.compiled.compiling`, what is `traced` is compiled.

    Those ask for it who ask one task so often, and for so much, that it repays a minute: exact gradients.
    """
    before = _wanted.set(True)
    try:
        yield
    finally:
        _wanted.reset(before)


def traced(method: M) -> M:
    """``method`` of a traceable task, which is compiled at its first call within `tracing` for shapes of its inputs.

    The method must not change its inputs, and not be called where a transform of `torch.func` is at work.
    """

    @wraps(method)
    def call(task: LossTask, params: Tensor, state: State, *directions: Tensor) -> Any:
        if not (task.traceable and is_compiling() and _wanted.get()):
            return method(task, params, state, *directions)
        shapes = _shapes(method, params, state, directions)
        if shapes not in task.traces and len(task.traces) < MOST:
            task.traces[shapes] = _compiled(method, task, params, state, directions)
        return task.traces.get(shapes, method.__get__(task))(params, state, *directions)

    return cast(M, call)


def _shapes(method: Method, params: Tensor, state: State, directions: tuple[Tensor, ...]) -> Hashable:
    """All that a trace depends on beside the values of its inputs."""
    tensors = (params, *directions, *leaves(state))
    return method.__name__, optree.tree_structure(state), tuple((t.shape, t.dtype, t.device) for t in tensors)


def _compiled(method: Method, task: LossTask, params: Tensor, state: State, directions: tuple[Tensor, ...]) -> Method:
    """``method`` bound to ``task``, for inputs of these shapes. ValueError if it cannot be traced after all."""
    plain: Method = method.__get__(task)
    probes = [_probe(task, number, params.shape[:-1], len(directions)) for number in range(3)]
    if _shapes(method, probes[0][0], probes[0][1], probes[0][2:]) != _shapes(method, params, state, directions):
        return plain  # a state unlike those that it starts with: no problem at hand to compare on
    compiled = _Compiled(task, plain, *probes[0])
    for probe in probes[1:]:
        for fast, slow in zip(leaves(compiled(*probe)), leaves(plain(*probe)), strict=True):
            _compare(task, fast, slow)
    return compiled


def _probe(task: LossTask, number: int, batch: tuple[int, ...], directions: int) -> tuple[Any, ...]:
    """Parameters, state and directions of some problem."""
    key = keys.split(keys.seed(number, device=task.layout.device), math.prod(batch)).reshape(batch)
    params = task.init(keys.fold_in(key, 1))
    ways = (keys.normal(keys.fold_in(key, 3 + i), (task.layout.size,), params.dtype) for i in range(directions))
    return params, task.init_state(params, keys.fold_in(key, 2)), *ways


def _compare(task: LossTask, fast: Tensor, slow: Tensor) -> None:
    """ValueError if the trace answers otherwise than the task itself."""
    what = f"{task} says that it is traceable, but its compiled answers are others than its plain ones; {FIX}"
    require(fast.shape == slow.shape and fast.dtype == slow.dtype, what)
    if slow.is_floating_point():
        gap, scale = torch.linalg.vector_norm(fast - slow), torch.linalg.vector_norm(slow)
        require(bool(gap <= TOLERANCE.get(slow.dtype, 1e-3) * scale), what)
    else:
        require(torch.equal(fast, slow), what)


class _Compiled:
    """A method for inputs of the shapes that ``params``, ``state`` and ``directions`` have."""

    def __init__(self, task: LossTask, plain: Method, params: Tensor, state: State, *directions: Tensor) -> None:
        self.structure = optree.tree_structure(plain(params, state, *directions))

        def ravel(*tensors: Tensor) -> list[Tensor]:
            ways, inner = tensors[1 : 1 + len(directions)], list(tensors[1 + len(directions) :])
            return leaves(plain(tensors[0], with_leaves(state, inner), *ways))

        parts = _part(_trace(task, flat, [params, *directions, *leaves(state)]), 1 + len(directions))
        self.made, self.given, self.for_data, self.for_math = parts[2:]
        with torch.no_grad():
            read = [*_laid_out(*leaves(state)), *self.for_data]
            moving = [*_laid_out(params.detach(), *directions), *parts.data(*read)[: self.given], *self.for_math]
            self.data = compile_graph(parts.data, read, **STORE)
            self.math = compile_graph(parts.math, moving)

    def __call__(self, params: Tensor, state: State, *directions: Tensor) -> Any:
        with torch.no_grad():
            given = self.data(*_laid_out(*leaves(state)), *self.for_data)
            found = self.math(*_laid_out(params.detach(), *directions), *given[: self.given], *self.for_math)
        return optree.tree_unflatten(self.structure, [(found if made else given)[i] for made, i in self.made])


def _laid_out(*tensors: Tensor) -> list[Tensor]:
    """Tensors in the one layout that is compiled for."""
    return [tensor.contiguous() for tensor in tensors]


def _trace(task: LossTask, function: Callable[..., list[Tensor]], inputs: list[Tensor]) -> GraphModule:
    """What ``function`` of a task does to tensors of these shapes, as far as it leads anywhere."""
    from torch.fx.experimental.proxy_tensor import make_fx

    try:
        with torch.no_grad():
            traced = make_fx(function)(*inputs)
    except Exception as error:  # whatever a stranger's code raises
        raise ValueError(f"{task} says that it is traceable, but it is not ({_first(error)}); {FIX}") from error
    for node in traced.graph.nodes:
        target = node.target
        good = not isinstance(target, torch._ops.OpOverload) or not (
            target._schema.is_mutable or torch.Tag.nondeterministic_seeded in target.tags
        )
        require(good, f"{task} says that it is traceable, but writes in place or draws numbers ({target}); {FIX}")
    traced.graph.eliminate_dead_code()
    return traced


class _Parts(NamedTuple):
    """A trace in two, what reads the state alone and what reads parameters, and the constants that each is given."""

    data: GraphModule  # (*leaves of the state, *for_data) -> what math is given, outputs without parameters in them
    math: GraphModule  # (params, *directions, *given, *for_math) -> the other outputs
    made: list[tuple[bool, int]]  # for each output, whether math makes it, and its number there
    given: int  # how much of what data returns math is given
    for_data: tuple[Tensor, ...]
    for_math: tuple[Tensor, ...]


def _part(traced: GraphModule, moving: int) -> _Parts:
    """Part a trace of which the first inputs, so many, are parameters and directions."""
    kinds = _kinds(traced.graph, moving)
    outputs: list[Node] = list(next(reversed(traced.graph.nodes)).args[0])
    nodes = {kind: [node for node in kinds if kinds[node] == kind] for kind in ("constant", "data", "moving")}
    given = _read_by("moving", nodes["data"], kinds)
    fixed = [node for node in outputs if kinds[node] != "moving"]
    found = [node for node in outputs if kinds[node] == "moving"]
    once = _read_by("data", nodes["constant"], kinds, fixed), _read_by("moving", nodes["constant"], kinds)
    for_data, for_math = _copied(traced, nodes["constant"], [], once)()
    data = _copied(traced, nodes["data"], once[0], [*given, *fixed])
    math = _copied(traced, nodes["moving"], [*given, *once[1]], found)
    places = {node: (False, len(given) + i) for i, node in enumerate(fixed)}
    places |= {node: (True, i) for i, node in enumerate(found)}
    return _Parts(data, math, [places[node] for node in outputs], len(given), for_data, for_math)


def _kinds(graph: Graph, moving: int) -> dict[Node, str]:
    """What each node reads: ``moving`` if parameters, else ``data`` if the state, else ``constant``."""
    kinds: dict[Node, str] = {}
    inputs = 0
    for node in graph.nodes:
        read = {kinds[other] for other in node.all_input_nodes}
        kinds[node] = next((kind for kind in ("moving", "data") if kind in read), "constant")
        if node.op == "placeholder":
            kinds[node] = "moving" if inputs < moving else "data"
            inputs += 1
    kinds[node] = "output"
    return kinds


def _read_by(kind: str, nodes: list[Node], kinds: dict[Node, str], also: Sequence[Node] = ()) -> list[Node]:
    """Those ``nodes`` that some node of a kind reads, and those that are among ``also``."""
    return [node for node in nodes if node in also or any(kinds[user] == kind for user in node.users)]


def _copied(traced: GraphModule, nodes: list[Node], given: list[Node], outputs: Any) -> GraphModule:
    """A module of some of a trace's nodes; those ``given`` are inputs, behind the inputs among ``nodes``."""
    graph = torch.fx.Graph()
    own = [node for node in nodes if node.op == "placeholder"]
    copies = {node: graph.placeholder(node.name) for node in (*own, *given)}
    for node in nodes:
        if node.op != "placeholder":
            copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(torch.fx.node.map_arg(outputs, copies.__getitem__))
    graph.eliminate_dead_code()
    return torch.fx.GraphModule(traced, graph)


def _first(error: Exception) -> str:
    """The first line of what went wrong."""
    return (str(error) or type(error).__name__).splitlines()[0]
