"""A pretended GPU: tensors that say they are on it, while their numbers are kept and computed on the CPU.

It is as strict as a real one. Tensors from both places in one operation raise (but for single numbers); who waits for
the device, or copies to or from it, is counted; and while a graph is recorded that raises. A recorded graph is the list
of operations that were done, and replaying it does them again on the same memory, whatever Python would do now.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from levels import captured

NAME = "pretended"
DEVICE = f"{NAME}:0"
WAITING = {"_local_scalar_dense", "nonzero", "masked_select"}


class There(Tensor):
    """A tensor of the pretended device; ``kept`` has its numbers."""

    kept: Tensor

    @staticmethod
    def __new__(cls, kept: Tensor) -> "There":
        settings = {"strides": kept.stride(), "storage_offset": kept.storage_offset(), "dtype": kept.dtype}
        made: There = Tensor._make_wrapper_subclass(cls, kept.shape, device=DEVICE, **settings)
        made.kept = kept
        return made

    def __repr__(self) -> str:
        return f"There({self.kept})"

    def tolist(self) -> Any:
        GPU.wait("tolist")
        return self.kept.tolist()

    def numpy(self, *, force: bool = False) -> Any:
        if not force:
            raise TypeError(f"a tensor on {DEVICE} is no array; copy it to the CPU first")
        GPU.wait("numpy")
        return self.kept.numpy(force=True)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return GPU.do(func, args, kwargs or {})


class Device:
    """What the pretended device has done."""

    def __init__(self) -> None:
        self.waits: list[str] = []  # who waited for it, or copied
        self.operations = 0  # that were asked for one by one
        self.replays = 0
        self.recording: Graph | None = None

    def wait(self, who: str) -> None:
        assert self.recording is None, f"{who} while a graph is recorded"
        self.waits.append(who)

    def do(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """One operation, wherever its tensors are."""
        read = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        there = any(isinstance(tensor, There) for tensor in read)
        wanted = kwargs.get("device")
        to = there if wanted is None else torch.device(wanted).type == NAME
        name = func.overloadpacket.__name__
        if name in ("_to_copy", "copy_", "lift_fresh"):
            if len({isinstance(tensor, There) for tensor in read} | {to}) > 1:
                self.wait(name)
        else:
            mixed = there and any(not isinstance(tensor, There) and tensor.dim() > 0 for tensor in read)
            assert not mixed, f"{name}: tensors on both devices"
        masks = [tensor for tensor in read[1:] if tensor.dtype == torch.bool] if name.startswith("index") else []
        if there and (name in WAITING or masks):
            self.wait(name)
        if wanted is not None:
            kwargs = kwargs | {"device": "cpu"}
        inside = tree_map(_kept, (args, kwargs))
        answer = func(*inside[0], **inside[1])
        if there or to:
            self.operations += 1
            if self.recording is not None:
                self.recording.add(func, inside, answer)
        if func._schema.is_mutable:
            return args[0] if not isinstance(args[0], (list, tuple)) else None
        return tree_map(_put, answer) if to else answer


class Graph:
    """Stands in for `torch.cuda.CUDAGraph`."""

    def __init__(self) -> None:
        self.done: list[tuple[Any, Any, Any]] = []

    def add(self, func: Any, inside: Any, answer: Any) -> None:
        read = {t.untyped_storage().data_ptr() for t in tree_leaves(inside) if isinstance(t, Tensor)}
        made = [t for t in tree_leaves(answer) if isinstance(t, Tensor)]
        view = all(t.untyped_storage().data_ptr() in read for t in made) and not func._schema.is_mutable
        if not view:  # what is a view of something stays one
            self.done.append((func, inside, answer))

    def replay(self) -> None:
        assert Cuda.current == torch.device(DEVICE)
        GPU.replays += 1
        for func, (args, kwargs), answer in self.done:
            again = func(*args, **kwargs)
            if not func._schema.is_mutable:
                for old, new in zip(tree_leaves(answer), tree_leaves(again), strict=True):
                    if isinstance(old, Tensor):
                        old.copy_(new)


class Cuda:
    """Stands in for `torch.cuda`, as far as graphs need it."""

    CUDAGraph = Graph
    current: torch.device | None = None

    class Stream:
        def wait_stream(self, other: Any) -> None:
            assert isinstance(other, Cuda.Stream)

    @staticmethod
    def current_stream() -> "Cuda.Stream":
        return Cuda.Stream()

    @staticmethod
    @contextmanager
    def stream(one: "Cuda.Stream") -> Iterator[None]:
        yield

    @staticmethod
    @contextmanager
    def device(one: torch.device) -> Iterator[None]:
        Cuda.current = one
        yield
        Cuda.current = None

    @staticmethod
    @contextmanager
    def graph(one: Graph) -> Iterator[None]:
        assert Cuda.current == torch.device(DEVICE), "a graph of another device"
        GPU.recording = one
        try:
            yield
        finally:
            GPU.recording = None


class _Pretending(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return GPU.do(func, args, kwargs or {})


GPU = Device()


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    """A fresh pretended device, which `levels.captured` takes for the real one."""
    if not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"):
        pytest.skip("this torch has no devices made in Python")
    if torch._C._get_privateuse1_backend_name() != NAME:
        backend_registration._setup_privateuseone_for_python_backend(NAME)
    monkeypatch.setattr(captured, "cuda", Cuda)
    monkeypatch.setattr(captured, "KIND", NAME)
    GPU.__init__()  # type: ignore[misc]
    torch._C._set_only_lift_cpu_tensors(True)  # so that torch.tensor(..., device=) is seen
    try:
        with _Pretending():
            yield GPU
    finally:
        torch._C._set_only_lift_cpu_tensors(False)


def _kept(value: Any) -> Any:
    return value.kept if isinstance(value, There) else value


def _put(value: Any) -> Any:
    return There(value) if isinstance(value, Tensor) else value
