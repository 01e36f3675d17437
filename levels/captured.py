"""Captured: what a GPU does for a window, recorded as one CUDA graph, and asked for by one call.

A GPU does an update of a small optimizer in less time than Python takes to ask for it. A graph holds any number of such
requests and is started by one, but it is fixed: the same kernels on the same memory, whatever the numbers are. So it
holds windows in which nothing looks at a number to decide what to do: copies restart before one, and whether all was
finite is looked at behind it (`levels.laid`).

    graphs = Graphs()
    with capturing():
        value, grad, state = graphs(function, params, state)

The first call for inputs of some shapes is a plain one, and watched: a function that waits for the device, or copies to
or from it, stays plain. The second call records. What comes back is copied out of the graph's memory, so that states
stay what they are; a tensor that the function hands on is the very one that it was given. Without the switch, where
something is to be differentiated, and on CPUs, nothing is recorded.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import optree
import torch
from torch import Tensor, cuda
from torch.utils._python_dispatch import TorchDispatchMode

from levels.compiled import compiling
from levels.autodiff import differentiated
from levels.tree import State, leaves

KIND = "cuda"
"""The kind of device that graphs are for."""

MOST = 8
"""Shapes of inputs for which a function is recorded; each keeps memory of its own."""

WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "equal")
"""Operations that answer only when the device is done."""

_on: ContextVar[bool] = ContextVar("_on", default=False)


@contextmanager
def capturing(on: bool = True) -> Iterator[None]:
    """Within this context windows on a GPU are recorded, if ``on``."""
    before = _on.set(on)
    try:
        yield
    finally:
        _on.reset(before)


def serves(tensor: Tensor) -> bool:
    """Whether work on tensors like this one is to be recorded, here and now."""
    return _on.get() and tensor.device.type == KIND and not differentiated()


class Graphs:
    """A function of tensors without side effects, recorded for each kind of inputs that it is given."""

    def __init__(self) -> None:
        self.made: dict[Hashable, _Graph | None] = {}  # None: it stays plain

    def __call__(self, function: Callable[..., State], *inputs: Any) -> Any:
        """``function(*inputs)``; the same function at every call."""
        given: State = inputs
        tensors, tree = optree.tree_flatten(given)
        kind = tree, tuple((tensor.shape, tensor.dtype, tensor.device) for tensor in tensors)
        if kind not in self.made and len(self.made) < MOST:
            with capturing(False), _Watch() as watch:
                answer = function(*inputs)
            self.made[kind] = None if watch.waited else _Graph(function, tensors, tree)
            return answer
        graph = self.made.get(kind)
        if graph is None:
            return function(*inputs)
        try:
            with cuda.device(graph.device):  # of several, a graph is of the one that is current
                return graph(tensors)
        except RuntimeError as error:
            self.made[kind] = None
            told = (str(error) or type(error).__name__).splitlines()[0]
            warnings.warn(f"a window cannot be recorded as a CUDA graph, and stays plain ({told})", stacklevel=2)
            return function(*inputs)


class _Graph:
    """A function, to be recorded at the first call, from inputs to outputs that stay where they are in memory."""

    def __init__(self, function: Callable[..., State], tensors: list[Tensor], tree: Any) -> None:
        self.function, self.tree, self.device = function, tree, tensors[0].device
        self.inputs = [torch.empty_like(tensor) for tensor in tensors]
        self.fed: list[Tensor | None] = [None] * len(tensors)  # of which the inputs are copies
        self.graph: Any = None

    def __call__(self, tensors: list[Tensor]) -> State:
        for place, (own, tensor) in enumerate(zip(self.inputs, tensors)):
            if self.fed[place] is not tensor:
                own.copy_(tensor)
        self.fed = list(tensors)
        if self.graph is None:
            self.graph = self._recorded()
        self.graph.replay()
        copied = [out.clone() if place is None else tensors[place] for out, place in self.outputs]
        return optree.tree_unflatten(self.outline, copied)

    def _recorded(self) -> Any:
        """The graph, after a run on a stream of its own, as torch wants it, for what libraries do at first."""
        inputs: Any = optree.tree_unflatten(self.tree, self.inputs)
        with capturing(False), compiling(False):
            aside = cuda.Stream()  # type: ignore[no-untyped-call]
            aside.wait_stream(cuda.current_stream())
            with cuda.stream(aside):
                self.function(*inputs)
            cuda.current_stream().wait_stream(aside)
            graph = cuda.CUDAGraph()
            with cuda.graph(graph):
                answer = self.function(*inputs)
        found, self.outline = optree.tree_flatten(answer)
        places = {id(tensor): place for place, tensor in enumerate(self.inputs)}
        self.outputs = [(tensor, places.get(id(tensor))) for tensor in found]
        return graph


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes whether anything that runs within it waits for a device, or copies from one to another."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.waited = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        answer = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        read = [leaf for leaf in leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        masked = name.startswith("index") and any(mask.dtype in (torch.bool, torch.uint8) for mask in read[1:])
        made = [leaf for leaf in leaves(answer) if isinstance(leaf, Tensor)]
        across = name in ("_to_copy", "copy_") and len({tensor.device for tensor in (*read, *made)}) > 1
        lifted = name == "lift_fresh" and read[0].device.type == KIND  # torch.tensor(..., device=) has copied it there
        self.waited |= name in WAITING or masked or across or lifted
        return answer
