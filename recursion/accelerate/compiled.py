"""Compiled: a graph of plain operations, given to the compiler behind `torch.compile`.

`torch.compile` cannot follow autograd differentiating twice. But the operations that autograd makes of one function are
always the same, and such a list compiles like any other. A caller traces it (`torch.fx`) and has it compiled here; a
call of the result costs microseconds, where a call through `torch.compile` costs a tenth of a millisecond.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.fx import GraphModule
from torch.fx.experimental.symbolic_shapes import ShapeEnv

OPTIONS: dict[str, Any] = {
    "pattern_matcher": False,  # it makes wrong sums of products of a small perceptron's Hessian (torch 2.13, CPU)
    "cpp_wrapper": True,  # one C++ file for a graph, not one for each kernel: compiles in half the time, calls in less
    "size_asserts": False,
}
"""For inductor."""


def compile_graph(graph: GraphModule, inputs: Sequence[Tensor], **more: Any) -> Callable[..., Sequence[Tensor]]:
    """A graph of plain operations, which returns a list of tensors, compiled for inputs of these shapes and strides.

    ``more``: options beside `OPTIONS`. The caller must compare what the result answers with what the graph answers
    before it relies on it: torch 2.13's compiler was caught with wrong sums.
    """
    fake = FakeTensorMode(shape_env=ShapeEnv())  # without the latter, the compiler's cache is not read
    like: list[Any] = [fake.from_tensor(tensor, static_shapes=True) for tensor in inputs]
    for node in graph.graph.nodes:
        node.meta.clear()  # the tracer's notes on its own inputs
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own deprecations
        inductor = importlib.import_module("torch._inductor")  # seconds, which no other command should pay
        run: Callable[..., Sequence[Tensor]] = inductor.compile(graph, like, options=OPTIONS | more)
    return run
