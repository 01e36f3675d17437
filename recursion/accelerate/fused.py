"""Fused: one step of a whole tower of unroll 1 as one compiled call.

What a level does above the task is arithmetic on a few numbers: in Python some 20 calls and 0.06 ms for each level of
SGD. So the step (`recursion.accelerate.straight`) is run once while torch's tracer writes down every operation from the
tensors of the state to those of the next one, and inductor makes a few kernels of that; the levels above the task
become one.

    fused = Fused(tower)
    packed = fused.pack(state.theta, state.carry)   # or None: take the plain way
    packed, losses = fused.advance(packed)          # or None: take the plain way for this step
    theta, carry = fused.unpack(packed)

A tensor that goes in or out costs as much as a level's arithmetic. So tensors of at most `SMALL` numbers are packed
into one for each dtype, which is taken apart and put together within the call. The compiled step equals the plain one
to rounding, and its first answer is compared with it, for a compiler errs now and then. What is not finite, does not
fit or cannot be traced takes the plain way.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import optree
import torch
from torch import Tensor, fx
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors
from torch.fx.experimental.proxy_tensor import make_fx

from levels import tree as trees
from levels.base import Carry
from levels.level import Level
from recursion.accelerate.compiled import agree, compile_parts
from recursion.accelerate.straight import advanced

aten = torch.ops.aten

ROUNDING = 1e-2
"""Largest difference of the first compiled answer, over the norm of the plain one."""

SMALL = 256
"""To copy as many numbers takes less time than to pass one more tensor."""


class Packed(NamedTuple):
    """A state, as the compiled step takes and returns it."""

    moved: list[Tensor]  # what a step changes: large leaves one by one, then the small ones of each dtype in one
    fixed: list[Tensor]  # leaves that no step changes


class Fused:
    """The step of the topmost level of a straight tower, compiled for states like the first that it is asked about."""

    def __init__(self, top: Level) -> None:
        self.top = top
        self.off = False  # whether it cannot be compiled
        self.like: Any = None  # structure, shapes and dtypes of the states that it is compiled for

    def pack(self, theta: Tensor, carry: Carry) -> Packed | None:
        """A state for `advance`; None if it is not like those that are compiled for. Compiles at the first call."""
        state: trees.State = (theta, carry)
        leaves, tree = optree.tree_flatten(state)
        if self.like is None and not self.off:
            self._compile(leaves, tree)
        return self.packing.pack(leaves) if self.like == _like(leaves, tree) else None

    def advance(self, packed: Packed) -> tuple[Packed, list[float]] | None:
        """The state after a step, and the mean losses below each level; None if it is to be run plainly."""
        *moved, numbers = self.run(*packed.moved, *packed.fixed)
        *losses, total = numbers.tolist()
        return (Packed(moved, packed.fixed), losses) if math.isfinite(total) else None

    def unpack(self, packed: Packed) -> tuple[Tensor, Carry]:
        """The state itself: the topmost level's parameters and carry."""
        return optree.tree_unflatten(self.tree, self.packing.unpack(packed))  # type: ignore[return-value]

    def _compile(self, leaves: list[Tensor], tree: Any) -> None:
        """Compile, unless a rule or the task looks at a number, which cannot be traced, or the first answer errs."""
        self.tree = tree
        *plain, numbers = self._step(leaves)
        self.packing = _Packing(leaves, [new is not old for new, old in zip(plain, leaves)])
        first = self.packing.pack(leaves)

        def step(*tensors: Tensor) -> list[Tensor]:
            count = len(first.moved)
            *new, numbers = self._step(self.packing.unpack(Packed([*tensors[:count]], [*tensors[count:]])))
            return [*self.packing.pack(new).moved, numbers]

        try:
            inputs = [*first.moved, *first.fixed]
            traced = make_fx(step)(*inputs)
            _shape_once(traced.graph)
            _number_once(traced.graph)
            self.run = compile_parts(traced, lambda _: 1, inputs, {})
        except RuntimeError:  # the tracer's; what fails for another reason fails again, plainly
            self.off = True
            return
        *moved, number = self.run(*inputs)
        fast = [*self.packing.unpack(Packed(moved, first.fixed)), number]
        self.off = not agree(fast, [*plain, numbers], ROUNDING)
        self.like = None if self.off else _like(leaves, tree)

    def _step(self, leaves: Sequence[Tensor]) -> list[Tensor]:
        """Leaves of the next state; in one tensor the losses, and a number that is finite if all answers are."""
        state: Any = optree.tree_unflatten(self.tree, leaves)
        end, losses, total = advanced(self.top, *state)
        return [*trees.leaves((state[0], end)), torch.cat((losses, total[None]))]


class _Packing:
    """Where the leaves of a state lie in a packed one. All that is packed is contiguous, as it would lie in a file."""

    def __init__(self, leaves: list[Tensor], moved: list[bool]) -> None:
        packed = [yes and leaf.numel() <= SMALL for yes, leaf in zip(moved, leaves)]
        kinds = dict.fromkeys(leaf.dtype for leaf, yes in zip(leaves, packed) if yes)
        self.groups = [[i for i, leaf in enumerate(leaves) if packed[i] and leaf.dtype == kind] for kind in kinds]
        self.shapes = [[torch.empty_like(leaves[i]) for i in group] for group in self.groups]
        self.alone = [i for i, yes in enumerate(moved) if yes and not packed[i]]
        self.fixed = [i for i, yes in enumerate(moved) if not yes]
        order = [*self.alone, *(i for group in self.groups for i in group), *self.fixed]
        self.order = sorted(range(len(order)), key=order.__getitem__)

    def pack(self, leaves: Sequence[Tensor]) -> Packed:
        groups = [[leaves[i] for i in group] for group in self.groups]
        together = [_flatten_dense_tensors(group) for group in groups]  # type: ignore[no-untyped-call]
        alone, fixed = ([leaves[i].contiguous() for i in place] for place in (self.alone, self.fixed))
        return Packed([*alone, *together], fixed)

    def unpack(self, packed: Packed) -> list[Tensor]:
        """The leaves: small ones are views."""
        parts = packed.moved[: len(self.alone)]
        for tensor, shapes in zip(packed.moved[len(self.alone) :], self.shapes):
            parts.extend(_unflatten_dense_tensors(tensor, shapes))  # type: ignore[no-untyped-call]
        parts.extend(packed.fixed)
        return [parts[i] for i in self.order]


SHAPINGS = {aten.detach.default, aten.select.int, aten.squeeze.dim, aten.unsqueeze.default, aten.view.default}
"""Operations that change nothing but the shape, if all numbers stay."""


def _shape_once(graph: fx.Graph) -> None:
    """Join changes of shape in a row to one: a loss goes through every level, and inductor looks through them all."""
    origin: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        if node.target in SHAPINGS and _shape(node).numel() == _shape(node.args[0]).numel():
            origin[node] = origin.get(node.args[0], node.args[0])
            node.target, node.args = aten.reshape.default, (origin[node], list(_shape(node)))
    graph.eliminate_dead_code()


def _number_once(graph: fx.Graph) -> None:
    """Store single numbers that many others are computed from. Inductor would compute them anew in the loop over those,
    and a power of a decay rate takes as long as the rest of such a loop."""
    for node in [*graph.nodes]:
        is_pointwise = isinstance(node.target, torch._ops.OpOverload) and torch.Tag.pointwise in node.target.tags
        if is_pointwise and _shape(node).numel() == 1 and _spreads(node):
            with graph.inserting_after(node):  # a strided result is stored
                moving = graph.call_function(
                    aten.as_strided.default, (node, list(_shape(node)), [1] * len(_shape(node)))
                )
            node.replace_all_uses_with(moving, delete_user_cb=lambda user, moving=moving: user is not moving)


def _spreads(node: fx.Node) -> bool:
    """Whether more than `SMALL` numbers are computed from this one, through changes of shape as well."""
    read_by = [user for user in node.users if "tensor_meta" in user.meta]
    reshaped = (user for user in read_by if user.target is aten.reshape.default)
    return any(_shape(user).numel() > SMALL for user in read_by) or any(map(_spreads, reshaped))


def _shape(node: fx.Node) -> torch.Size:
    shape: torch.Size = node.meta["tensor_meta"].shape
    return shape


def _like(leaves: list[Tensor], tree: Any) -> Any:
    return tree, [(leaf.shape, leaf.dtype) for leaf in leaves]
