"""Compiled: a graph of plain operations, given to the compiler behind `torch.compile`.

`torch.compile` cannot follow autograd differentiating twice. But the operations that autograd makes of one function are
always the same, and such a list compiles like any other. A caller traces it (`torch.fx`) and has it compiled here; a
call of the result costs microseconds, where a call through `torch.compile` costs a tenth of a millisecond.
"""

import importlib
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.fx.passes.split_module import split_module

Compiled = Callable[..., Sequence[Tensor]]

OPTIONS: dict[str, Any] = {
    "pattern_matcher": False,  # it makes wrong sums of products of a small perceptron's Hessian (torch 2.13, CPU)
    "cpp_wrapper": True,  # one C++ file for a graph, not one for each kernel: compiles in half the time, calls in less
    "size_asserts": False,
}
"""For inductor."""

CONSTANT = 0
"""Number of the part that is run once, when the others are compiled."""


@torch.no_grad()
def compile_parts(
    traced: fx.GraphModule, part: Callable[[fx.Node], int], inputs: Sequence[Tensor], options: dict[int, Any]
) -> Compiled:
    """A traced function that returns a list of tensors, compiled in parts for inputs of these shapes and strides.

    ``part``: the number of a node's part; no part may read from one with a higher number. ``options``: those of a part,
    beside `OPTIONS`. What the tracer met as constants is given to the parts, so no data is compiled in. The caller must
    compare what the result answers with what the trace answers before it relies on it: torch 2.13's compiler was caught
    with wrong sums.
    """
    whole = split_module(traced, torch.nn.Module(), part)
    _Compiling(whole, options).run(*inputs)
    forward: Compiled = whole.forward
    return forward


def agree(fast: Sequence[Tensor], slow: Sequence[Tensor], tolerance: float) -> bool:
    """Whether each compiled answer is the plain one, to ``tolerance`` of its norm; norms that are not finite agree."""
    return all(_agrees(a, b, tolerance) for a, b in zip(fast, slow, strict=True))


def _agrees(fast: Tensor, slow: Tensor, tolerance: float) -> bool:
    if fast.shape != slow.shape or fast.dtype != slow.dtype:
        return False
    if not slow.is_floating_point():
        return torch.equal(fast, slow)
    gap, scale = (fast - slow).double().norm(), slow.double().norm()
    return bool(gap <= tolerance * scale) or not bool(torch.isfinite(scale))


class _Compiling(fx.Interpreter):
    """Runs a graph of parts, and puts what is compiled of each part into its place."""

    def __init__(self, whole: fx.GraphModule, options: dict[int, Any]) -> None:
        super().__init__(whole)
        self.options = {f"submod_{number}": more for number, more in options.items()}

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        part = self.fetch_attr(target)
        answer = part(*args)
        delattr(self.module, target)
        setattr(self.module, target, self._compiled(target, part, answer, args))
        return answer

    def _compiled(self, target: str, part: fx.GraphModule, answer: Any, args: Any) -> Callable[..., Any]:
        if target == f"submod_{CONSTANT}":
            return lambda *_: answer
        single = isinstance(answer, Tensor)
        if single:  # the compiler wants a list
            output = part.graph.output_node()
            output.args = (output.args,)
            part.recompile()
        run = compile_graph(part, args, **self.options.get(target, {}))
        return (lambda *inputs: run(*inputs)[0]) if single else run


def compile_graph(graph: fx.GraphModule, inputs: Sequence[Tensor], **more: Any) -> Compiled:
    """A graph of plain operations, which returns a list of tensors, compiled for inputs of these shapes and strides."""
    fake = FakeTensorMode(shape_env=ShapeEnv())  # without the latter, the compiler's cache is not read
    like: list[Any] = [fake.from_tensor(tensor, static_shapes=True) for tensor in inputs]
    for node in graph.graph.nodes:
        node.meta.clear()  # the tracer's notes on its own inputs
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own deprecations
        inductor = importlib.import_module("torch._inductor")  # seconds, which no other command should pay
        run: Compiled = inductor.compile(graph, like, options=OPTIONS | more)
    return run
