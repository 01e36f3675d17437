"""Cutting the work of an optimizer on a large model, as far as what its update may read allows.

A rule that reads one coordinate at a time works through a tensor in chunks: beside the state, memory then does not grow
with the model, and on one thread no bit changes (several threads split a tensor where chunks do not). One that reads a
tensor goes tensor by tensor, any other one has the whole problem at once; see `Optimizer.scope`. A rule with parameters
for each tensor or coordinate below fits one layout only, so it is never cut.
"""

import math
from collections.abc import Iterator
from functools import cached_property

import optree
import torch
from torch import Tensor

from levels.layout import Layout
from levels.base import Optimizer, Scope
from levels.tree import State, leaves, named_leaves, with_leaves

BUDGET = 2**20  # numbers of a chunk's state; what an update makes on its way is a few times that
PROBES = (Layout.of({"one": ()}), Layout.of({"two": (2, 3), "three": (4,)}))
LONE = "state"  # the name of a state that is one tensor and not a tree

Memory = dict[str, Tensor]
"""The tensors of a rule's state by their path in it, each ``[1, ...]`` in memory of its own; changed in place."""


def fits_any_layout(rule: Optimizer) -> bool:
    """Whether the rule has the same parameters over every problem."""
    try:
        return rule.shapes(PROBES[0]) == rule.shapes(PROBES[1])
    except ValueError:  # it looks for tensors of certain names or shapes
        return False


class Pieces:
    """A rule with fixed parameters ``weights`` ``[m]`` at work on tensors of any size, one copy of each.

    ``chunk``: most coordinates at once of a rule that reads one at a time; None for about as many as `BUDGET` allows.
    """

    def __init__(self, rule: Optimizer, weights: Tensor, *, chunk: int | None = None) -> None:
        self.rule, self.weights = rule, weights
        self.free = fits_any_layout(rule)
        self.scope: Scope = rule.scope if self.free else "problem"
        self.chunk = chunk or (self._affordable() if self.scope == "coordinate" else 0)
        self._laid: dict[Layout, _Piece] = {}

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
        what the rule says, to the last bit.
        """
        shared: Memory = {}
        for start, piece in self._pieces(layout):
            now, axes = _row(x, start, piece.layout), self._axes(piece)
            old = [
                memory[name] if axis is None else memory[name].narrow(axis, start, piece.layout.size)
                for name, axis in zip(piece.names, axes)
            ]
            new_x, new = piece.step(f, _row(g, start, piece.layout), old, now)
            new = _apart(new, [x, *memory.values()])
            moved = new_x if scale == 1 else now + scale * (new_x - now)
            x[start : start + piece.layout.size].copy_(moved[0])
            for name, axis, leaf, was in zip(piece.names, axes, new, old):
                if axis is None:
                    shared[name] = leaf
                else:
                    was.copy_(leaf)
        for name, leaf in shared.items():
            memory[name].copy_(leaf)

    def size(self, layout: Layout) -> int:
        """How many parameters the rule takes there."""
        return self.rule.over(layout).layout.size

    def _pieces(self, layout: Layout) -> Iterator[tuple[int, "_Piece"]]:
        """Where each piece begins in the tensor, and the piece."""
        if self.scope != "coordinate":
            yield 0, self._piece(layout)
            return
        for start in range(0, layout.size, self.chunk):
            size = min(self.chunk, layout.size - start)
            yield start, self._piece(Layout.of({"chunk": (size,)}, layout.dtype, layout.device))

    def _piece(self, layout: Layout) -> "_Piece":
        if layout not in self._laid:
            self._laid[layout] = _Piece(self.rule, self.weights, layout)
        return self._laid[layout]

    def _axes(self, piece: "_Piece") -> tuple[int | None, ...]:
        return self._coordinate_axes if self.scope == "coordinate" else (None,) * len(piece.names)

    @cached_property
    def _coordinate_axes(self) -> tuple[int | None, ...]:
        """For each tensor of the state, the axis that counts coordinates; None if they share it, as they do a count."""
        two, three = (leaves(_Piece(self.rule, self.weights, _flat(n)).template) for n in (2, 3))
        found: list[int | None] = []
        for a, b in zip(two, three, strict=True):
            axes = [axis for axis, sizes in enumerate(zip(a.shape, b.shape)) if sizes == (2, 3)]
            assert len(axes) <= 1, f"{self.rule} has a state that grows as a power of the coordinates"
            found.append(axes[0] if axes else None)
        return tuple(found)

    def _affordable(self) -> int:
        """Coordinates in a chunk, a power of 2, so that vectorized kernels split it as they split the whole.

        The width of what an update makes for a coordinate is guessed from its state and from the number of weights.
        """
        state = sum(leaf.numel() for leaf in leaves(_Piece(self.rule, self.weights, _flat(1)).template))
        width = 1 + state + math.isqrt(self.weights.numel())
        return max(1024, 1 << (BUDGET // width).bit_length() - 1)


class _Piece:
    """A rule laid over one piece, with its weights in the piece's dtype, on its device."""

    def __init__(self, rule: Optimizer, weights: Tensor, layout: Layout) -> None:
        self.rule, self.layout = rule.over(layout), layout
        self.params = weights.to(layout.dtype).to(layout.device)

    @cached_property
    def template(self) -> State:
        """A state, for its structure; kept without its memory."""
        zeros = torch.zeros(1, self.layout.size, dtype=self.layout.dtype, device=self.layout.device)
        state = self.fresh(zeros)
        return with_leaves(state, [leaf.new_empty(1).expand(leaf.shape) for leaf in leaves(state)])

    @cached_property
    def names(self) -> list[str]:
        """Of the tensors of the state."""
        return [name or LONE for name in named_leaves(self.template)]

    def fresh(self, x: Tensor) -> State:
        """The state at the start, for ``x`` ``[1, n]``."""
        return self.rule.init_state(self.params, x)

    def step(self, f: Tensor, g: Tensor, old: list[Tensor], x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """One update of the rule, which must not look at the casts of an autocast around it."""
        with torch.autocast(x.device.type, enabled=False):
            state = optree.tree_unflatten(optree.tree_structure(self.template), old)
            new_x, new = self.rule.update(self.params, f, g, state, x)
        return new_x, leaves(new)


def _flat(n: int) -> Layout:
    return Layout.of({"chunk": (n,)})


def _row(tensor: Tensor, start: int, layout: Layout) -> Tensor:
    """Part of ``[n]`` as ``[1, size]`` in the dtype that the rule computes in."""
    return tensor[None, start : start + layout.size].to(layout.dtype)


def _apart(new: list[Tensor], old: list[Tensor]) -> list[Tensor]:
    """New tensors, none a view of old ones, which are about to be overwritten."""
    held = {leaf.untyped_storage().data_ptr() for leaf in old}
    return [leaf.clone() if leaf.untyped_storage().data_ptr() in held else leaf for leaf in new]
