"""Cutting the work of an optimizer on a large model, as far as its locality allows.

An elementwise optimizer works through a tensor in chunks: beside the state, memory then does not grow with the model,
and on one thread no bit changes. A local one goes tensor by tensor; any other has the whole problem at once, and so has
one with parameters for each tensor or coordinate, which fits one layout only (`levels.base.Locality`).
"""

import math
from collections.abc import Iterator
from functools import cached_property

import optree
import torch
from torch import Tensor

from levels import keys
from levels.base import Optimizer
from levels.layout import Layout
from levels.traits import Locality
from levels.tree import State, leaves, named_leaves, with_leaves

BUDGET = 2**20  # numbers of a chunk's state; what an update computes on its way is a few times that
PROBES = (Layout.of({"one": ()}), Layout.of({"two": (2, 3), "three": (4,)}))
LONE = "state"  # the name of a state that is one tensor and not a tree

Memory = dict[str, Tensor]
"""The tensors of a state by their path in it, each ``[1, ...]`` in memory of its own; changed in place."""


def fits_any_layout(optimizer: Optimizer) -> bool:
    """Whether the optimizer has the same parameters over every problem."""
    try:
        return optimizer.shapes(PROBES[0]) == optimizer.shapes(PROBES[1])
    except ValueError:  # it looks for tensors of certain names or shapes
        return False


class Pieces:
    """An optimizer with fixed parameters ``weights`` ``[m]`` at work on tensors of any size, one copy of each.

    ``chunk``: most coordinates at once of an elementwise rule; None for about as many as `BUDGET` allows.
    """

    def __init__(self, optimizer: Optimizer, weights: Tensor, *, chunk: int | None = None) -> None:
        self.optimizer, self.weights = optimizer, weights
        self.free = fits_any_layout(optimizer)
        self.locality: Locality = optimizer.traits.locality if self.free else "global"
        self.chunk = chunk or (self._affordable() if self.locality == "elementwise" else 0)
        self._bound: dict[Layout, _Piece] = {}

    def init_state(self, layout: Layout, x: Tensor) -> Memory:
        """The state at the start, for ``x`` ``[n]`` in any floating dtype."""
        memory: Memory = {}
        for start, piece in self._pieces(layout):
            part = piece.fresh(_row(x, start, piece.layout))
            for name, leaf, axis in zip(piece.names, leaves(part), self._axes(piece)):
                if axis is None:
                    memory.setdefault(name, leaf.detach().clone(memory_format=torch.contiguous_format))
                    continue
                if name not in memory:
                    memory[name] = leaf.new_empty([*leaf.shape[:axis], layout.size, *leaf.shape[axis + 1 :]])
                memory[name].narrow(axis, start, piece.layout.size).copy_(leaf)
        return memory

    def update(self, layout: Layout, f: Tensor, g: Tensor, memory: Memory, x: Tensor, scale: float | Tensor) -> None:
        """One step, in place: ``x`` ``[n]`` becomes ``x + scale * (update - x)``, and the memory is advanced.

        ``f`` ``[1]`` and ``g`` ``[n]`` are the value and gradient at ``x``. With a scale of exactly 1, ``x`` becomes
        the optimizer's update to the last bit.
        """
        shared: Memory = {}  # by all chunks, so it changes behind the last
        for start, piece in self._pieces(layout):
            now, axes, size = _row(x, start, piece.layout), self._axes(piece), piece.layout.size
            old = [memory[name] if axis is None else memory[name].narrow(axis, start, size)
                   for name, axis in zip(piece.names, axes)]  # fmt: skip
            new_x, new = piece.step(now, old, f, _row(g, start, piece.layout))
            new = _apart(new, [x, *memory.values()])
            x[start : start + size].copy_((new_x if scale == 1 else now + scale * (new_x - now))[0])
            for name, axis, leaf, before in zip(piece.names, axes, new, old):
                if axis is None:
                    shared[name] = leaf
                else:
                    before.copy_(leaf)
        for name, leaf in shared.items():
            memory[name].copy_(leaf)

    def _pieces(self, layout: Layout) -> Iterator[tuple[int, "_Piece"]]:
        """Where each piece begins in the tensor, and the piece."""
        if self.locality != "elementwise":
            yield 0, self._piece(layout)
            return
        for start in range(0, layout.size, self.chunk):
            size = min(self.chunk, layout.size - start)
            yield start, self._piece(Layout.of({"chunk": (size,)}, layout.dtype, layout.device))

    def _piece(self, layout: Layout) -> "_Piece":
        if layout not in self._bound:
            self._bound[layout] = _Piece(self.optimizer, self.weights, layout)
        return self._bound[layout]

    def _axes(self, piece: "_Piece") -> tuple[int | None, ...]:
        return self._coordinate_axes if self.locality == "elementwise" else (None,) * len(piece.names)

    @cached_property
    def _coordinate_axes(self) -> tuple[int | None, ...]:
        """For each tensor of the state, the axis that counts coordinates; None if they share it, as they do a count."""
        two, three = (leaves(_Piece(self.optimizer, self.weights, _flat(n)).template) for n in (2, 3))
        axes: list[int | None] = []
        for a, b in zip(two, three, strict=True):
            grows = [axis for axis, sizes in enumerate(zip(a.shape, b.shape)) if sizes == (2, 3)]
            assert len(grows) <= 1, f"{self.optimizer} has a state that grows as a power of the coordinates"
            axes.append(grows[0] if grows else None)
        return tuple(axes)

    def _affordable(self) -> int:
        """Coordinates in a chunk, a power of 2, so that vectorized kernels split it as they split the whole.

        The width of what an update computes for a coordinate is guessed from its state and the number of weights.
        """
        state = sum(leaf.numel() for leaf in leaves(_Piece(self.optimizer, self.weights, _flat(1)).template))
        width = 1 + state + math.isqrt(self.weights.numel())
        return max(1024, 1 << (BUDGET // width).bit_length() - 1)


class _Piece:
    """An optimizer bound to the layout of one piece, with its weights in the piece's dtype, on its device."""

    def __init__(self, optimizer: Optimizer, weights: Tensor, layout: Layout) -> None:
        self.optimizer, self.layout = optimizer.bind(layout), layout
        self.theta = weights.to(layout.dtype).to(layout.device)

    @cached_property
    def template(self) -> State:
        """A state, for its structure; without its memory."""
        state = self.fresh(torch.zeros(1, self.layout.size, dtype=self.layout.dtype, device=self.layout.device))
        return with_leaves(state, [leaf.new_empty(1).expand(leaf.shape) for leaf in leaves(state)])

    @cached_property
    def names(self) -> list[str]:
        """Of the tensors of the state."""
        return [name or LONE for name in named_leaves(self.template)]

    def fresh(self, x: Tensor) -> State:
        """The state at the start, for ``x`` ``[1, n]``."""
        return self.optimizer.init_state(self.theta, x, keys.seed(0, device=x.device)[None])

    def step(self, x: Tensor, old: list[Tensor], f: Tensor, g: Tensor) -> tuple[Tensor, list[Tensor]]:
        """One update; the casts of an autocast around it are switched off."""
        with torch.autocast(x.device.type, enabled=False):
            state = optree.tree_unflatten(optree.tree_structure(self.template), old)
            new_x, new = self.optimizer.update(self.theta, x, state, f, g)
        return new_x, leaves(new)


def _flat(n: int) -> Layout:
    return Layout.of({"chunk": (n,)})


def _row(tensor: Tensor, start: int, layout: Layout) -> Tensor:
    """Part of ``[n]`` as ``[1, size]`` in the dtype that the optimizer computes in."""
    return tensor[None, start : start + layout.size].to(layout.dtype)


def _apart(new: list[Tensor], old: list[Tensor]) -> list[Tensor]:
    """New tensors, none a view of old ones, which are about to be overwritten."""
    taken = {leaf.untyped_storage().data_ptr() for leaf in old}
    return [leaf.clone() if leaf.untyped_storage().data_ptr() in taken else leaf for leaf in new]
