"""A pretended GPU: tensors that say they are on it, while their numbers are kept and computed on the CPU.

It is as strict as a real one: tensors from both places in one operation raise (but for single numbers), and each wait
for the device, and each copy to or from it, is counted.
"""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

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
        GPU.waits.append("tolist")
        return self.kept.tolist()

    def numpy(self, *, force: bool = False) -> Any:
        if not force:
            raise TypeError(f"a tensor on {DEVICE} is no array; copy it to the CPU first")
        GPU.waits.append("numpy")
        return self.kept.numpy(force=True)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return GPU.do(func, args, kwargs or {})


class Device:
    """What the pretended device has done."""

    def __init__(self) -> None:
        self.waits: list[str] = []  # what waited for it, or copied

    def do(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """One operation, wherever its tensors are."""
        read = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        there = any(isinstance(tensor, There) for tensor in read)
        wanted = kwargs.get("device")
        to = there if wanted is None else torch.device(wanted).type == NAME
        name = func.overloadpacket.__name__
        if name in ("_to_copy", "copy_", "lift_fresh"):
            if len({isinstance(tensor, There) for tensor in read} | {to}) > 1:
                self.waits.append(name)
        else:
            mixed = there and any(not isinstance(tensor, There) and tensor.dim() > 0 for tensor in read)
            assert not mixed, f"{name}: tensors on both devices"
        masks = [tensor for tensor in read[1:] if tensor.dtype == torch.bool] if name.startswith("index") else []
        if there and (name in WAITING or masks):
            self.waits.append(name)
        if wanted is not None:
            kwargs = kwargs | {"device": "cpu"}
        inside = tree_map(_kept, (args, kwargs))
        answer = func(*inside[0], **inside[1])
        if func._schema.is_mutable:
            return args[0] if not isinstance(args[0], (list, tuple)) else None
        return tree_map(_put, answer) if to else answer


class _Pretending(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return GPU.do(func, args, kwargs or {})


GPU = Device()


@pytest.fixture
def gpu() -> Iterator[Device]:
    """A fresh pretended device."""
    if not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"):
        pytest.skip("this torch has no devices made in Python")
    if torch._C._get_privateuse1_backend_name() != NAME:
        backend_registration._setup_privateuseone_for_python_backend(NAME)
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
