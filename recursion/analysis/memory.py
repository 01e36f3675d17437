"""Exact, deterministic memory: the bytes of all tensor storages that are alive.

Every storage that a torch operation returns (also as a view) is counted from then until it is freed: tensors in
Python, in autograd graphs, in backward sweeps. Scratch space inside one operation is not counted. Numbers do not depend
on the machine.
"""

import weakref
from typing import Any, Self

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class LiveBytes(TorchDispatchMode):
    """Within this context: ``bytes`` and ``count`` of storages first used in it that are alive, and ``peak`` bytes."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = self.count = self.peak = 0
        self._known: dict[int, Any] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        returned = function(*args, **(kwargs or {}))
        for tensor in returned if isinstance(returned, (tuple, list)) else (returned,):
            if isinstance(tensor, torch.Tensor):
                self._add(tensor.untyped_storage())
        return returned

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        for finalizer in list(self._known.values()):
            finalizer.detach()

    def reset_peak(self) -> Self:
        """Let the peak be what is alive now."""
        self.peak = self.bytes
        return self

    def _add(self, storage: torch.UntypedStorage) -> None:
        if id(storage) in self._known:
            return
        size = storage.nbytes()
        self.bytes, self.count = self.bytes + size, self.count + 1
        self.peak = max(self.peak, self.bytes)
        self._known[id(storage)] = weakref.finalize(storage, self._remove, id(storage), size)

    def _remove(self, name: int, size: int) -> None:
        del self._known[name]
        self.bytes, self.count = self.bytes - size, self.count - 1
