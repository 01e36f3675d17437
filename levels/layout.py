"""Layout: what the entries of a flat parameter vector mean.

Parameters of every problem are one flat tensor ``[*batch, n]``. An optimizer that needs shapes (one step size a tensor,
one network for convolutions and one for dense layers) asks the problem's layout for named views.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

Shapes = Mapping[str, tuple[int, ...]]


def constants(values: Sequence[float], like: Tensor) -> Tensor:
    """Some numbers ``[k]`` in the dtype of a tensor, made on its device: nothing is copied there."""
    return torch.cat([like.new_full((1,), value) for value in values])


@dataclass(frozen=True)
class Layout:
    """Unique names, and shapes, of the tensors that make up a flat vector, in order, with their dtype and device."""

    entries: tuple[tuple[str, tuple[int, ...]], ...]
    dtype: torch.dtype = torch.float32
    device: torch.device = torch.device("cpu")

    def __post_init__(self) -> None:
        if len(dict(self.entries)) != len(self.entries):
            raise ValueError(f"a layout's names must differ, got {[name for name, _ in self.entries]}")

    @staticmethod
    def of(shapes: Shapes, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> "Layout":
        """The layout of named shapes; a scalar has the shape ``()``."""
        return Layout(tuple((name, tuple(shape)) for name, shape in shapes.items()), dtype, torch.device(device))

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Entries of each tensor."""
        return tuple(math.prod(shape) for _, shape in self.entries)

    @cached_property
    def size(self) -> int:
        """``n``: entries of all tensors together."""
        return sum(self.sizes)

    def unravel(self, flat: Tensor) -> dict[str, Tensor]:
        """``[*batch, n]`` as named views ``[*batch, *shape]``; nothing is copied."""
        if flat.shape[-1] != self.size:
            names = ", ".join(f"{name}{list(shape)}" for name, shape in self.entries)
            raise ValueError(f"expected a last dimension of {self.size} ({names}), got shape {list(flat.shape)}")
        parts = torch.split_with_sizes(flat, self.sizes, dim=-1)
        return {name: part.reshape(flat.shape[:-1] + shape) for (name, shape), part in zip(self.entries, parts)}

    def ravel(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Named tensors ``[*batch, *shape]`` as one ``[*batch, n]``: the inverse of `unravel`."""
        return torch.cat([tensors[name].flatten(tensors[name].dim() - len(shape)) if shape else tensors[name][..., None]
                          for name, shape in self.entries], dim=-1)  # fmt: skip

    def spread(self, per_tensor: Tensor) -> Tensor:
        """One number per tensor ``[*batch, tensors]``, repeated for its entries: ``[*batch, n]``."""
        return per_tensor.repeat_interleave(self._repeats, dim=-1, output_size=self.size)

    @cached_property
    def _repeats(self) -> Tensor:
        return torch.cat([torch.full((1,), size, device=self.device) for size in self.sizes])
