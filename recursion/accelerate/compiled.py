"""Compiled: the pieces of an update that repay a compiler, and the switch that says whether one is used.

`torch.compile` cannot be differentiated twice from outside, and a whole window takes a minute to compile. What is
compiled here is small and never differentiated: one step of a learned rule forward, and its derivative, which is
written out; so it takes seconds, whatever the unroll, and serves towers of any depth.

    with compiling():
        state, report = tower.step(state)

The plain functions stay what they are; compiled ones equal them to rounding, and so do pieces that are written in C++
besides (`levels.native`). Without the switch, where something is to be differentiated, and on machines without a C++
compiler, the plain ones run.

What somebody has traced himself, as a graph of plain operations, needs nothing of `torch.compile` that looks at Python:
`compile_graph` gives it to the compiler behind that, and a call of what comes back costs microseconds instead of a
tenth of a millisecond.
"""

import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.fx import GraphModule

from levels.autodiff import differentiated
from levels.config import require

P = ParamSpec("P")
R = TypeVar("R")

OPTIONS: dict[str, Any] = {
    "pattern_matcher": False,  # it makes wrong sums of products of a small perceptron's Hessian (torch 2.13, CPU)
    "cpp_wrapper": True,  # one C++ file for a graph, not one for each kernel: compiles in half the time, calls in less
    "size_asserts": False,
}
"""For inductor, in `compile_graph`."""

_on: ContextVar[bool] = ContextVar("_on", default=False)


def compilable(function: Callable[P, R]) -> Callable[P, R]:
    """A function of tensors without side effects that is compiled at its first call within `compiling`."""
    made: list[Callable[P, R]] = []

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if not _on.get() or differentiated() or torch.is_grad_enabled():
            return function(*args, **kwargs)
        if not made:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch warns about itself while it compiles
                made.append(torch.compile(function))
                return made[0](*args, **kwargs)
        return made[0](*args, **kwargs)

    return call


@contextmanager
def compiling(on: bool = True) -> Iterator[None]:
    """Within this context compilable functions are compiled, if ``on``. ValueError if there is no C++ compiler."""
    require(not on or has_compiler(), "compiling needs a C++ compiler, and there is none; install g++, or leave it off")
    before = _on.set(on)
    try:
        yield
    finally:
        _on.reset(before)


def is_compiling() -> bool:
    """Whether this is within `compiling`."""
    return _on.get()


def has_compiler() -> bool:
    """Whether there is a C++ compiler where torch looks for one: ``CXX``, then g++, then clang++."""
    return compiler() != ""


def compiler() -> str:
    """The C++ compiler that there is, or nothing."""
    return next((name for name in (os.environ.get("CXX", ""), "g++", "clang++") if name and shutil.which(name)), "")


def compile_graph(graph: GraphModule, inputs: Sequence[Tensor], **more: Any) -> Callable[..., Sequence[Tensor]]:
    """A graph of plain operations, which returns a list of tensors, compiled for inputs of these shapes and strides.

    ``more``: options beside `OPTIONS`. Whoever calls this compares what comes back with the graph before he trusts it.
    """
    from torch import _inductor
    from torch._subclasses import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    fake = FakeTensorMode(shape_env=ShapeEnv())  # without the latter, what was compiled before is not looked up
    like: list[Any] = [fake.from_tensor(tensor, static_shapes=True) for tensor in inputs]
    for node in graph.graph.nodes:
        node.meta.clear()  # what its tracer noted, of other such inputs
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns about itself while it compiles
        run: Callable[..., Sequence[Tensor]] = _inductor.compile(graph, like, options=OPTIONS | more)
    return run
