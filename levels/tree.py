"""States are trees of tensors (tuples, named tuples, dicts, None); this is all that is done to them.

Every tensor of a state begins with the batch dimensions of the parameters that it belongs to, so copies can be taken
out of a state, put back, or repeated, whatever part it belongs to.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import optree
import torch
from torch import Tensor

Kind = TypeVar("Kind")
BRIEF = 12  # tensors that are shown of a state
State = Any
"""A tree of tensors; private to the part that made it."""


def leaves(state: State) -> list[Tensor]:
    """The tensors of a state, in a fixed order."""
    return optree.tree_leaves(state)


def named_leaves(state: State) -> dict[str, Tensor]:
    """The tensors of a state by their path in it: field names and indices joined by dots."""
    accessors, tensors, _ = optree.tree_flatten_with_accessor(state)
    names = (".".join(str(getattr(entry, "field", entry.entry)) for entry in accessor) for accessor in accessors)
    return dict(zip(names, tensors))


def with_leaves(state: State, tensors: list[Tensor]) -> State:
    """A state of the same structure that holds other tensors."""
    return optree.tree_unflatten(optree.tree_structure(state), tensors)


def map_leaves(function: Callable[..., Any], state: State, *others: State) -> State:
    """``function`` of each tensor (and its counterparts in the other states)."""
    return optree.tree_map(function, state, *others)


def brief(state: State) -> str:
    """A state in a few lines: the shapes of its tensors, and how many numbers they are."""
    named = named_leaves(state)
    shown = [f"  {name} {list(leaf.shape) if isinstance(leaf, Tensor) else leaf}" for name, leaf in named.items()]
    more = [f"  and {len(named) - BRIEF} more"] if len(named) > BRIEF else []
    numbers = sum(leaf.numel() for leaf in named.values() if isinstance(leaf, Tensor))
    head = f"{type(state).__name__}: {len(named)} tensors, {numbers:,} numbers"
    return "\n".join([head, *shown[:BRIEF], *more])


def in_brief(kind: type[Kind]) -> type[Kind]:
    """A class decorator: states of this kind print as `brief` has them."""
    kind.__repr__ = brief  # type: ignore[method-assign]
    return kind


def choose(mask: Tensor, new: State, old: State) -> State:
    """Copies of ``new`` where ``mask`` ``[*batch]`` is true, else of ``old``; leaves ``[*batch, ...]``."""

    def pick(a: Tensor, b: Tensor) -> Tensor:
        return torch.where(mask.reshape(mask.shape + (1,) * (a.dim() - mask.dim())), a, b)

    return map_leaves(pick, new, old)


def scatter(rows: Tensor, new: State, old: State, batch_dims: int) -> State:
    """``old`` with the copies ``rows`` ``[k]``, along its ``batch_dims`` leading dimensions taken as one, of ``new``.

    The tensors of ``new`` are ``[k, 1, ...]``, as they come from k parameters with a batch of one each.
    """

    def put(fresh: Tensor, leaf: Tensor) -> Tensor:
        flat = leaf.flatten(0, batch_dims - 1)
        return flat.index_copy(0, rows, fresh.flatten(0, 1)).reshape(leaf.shape)

    return map_leaves(put, new, old)


def keep_named(name: str, new: State, old: State) -> State:
    """``new``, but with the tensors of ``old`` wherever a field of that name holds one: counts survive a restart."""
    named = [before if path.rpartition(".")[2] == name else after
            for (path, after), before in zip(named_leaves(new).items(), leaves(old), strict=True)]  # fmt: skip
    return with_leaves(new, named)
