"""Checkpoints: one safetensors file that holds a tower's whole state and says which tower it is of.

Tensors go by their path in the state (``carry.problem_state.carry.x``). The file also holds the tower's spec and its
notation, the step, the seed, and what the writer adds (`recursion.sealed`).

    save("first.safetensors", tower, state, seed=0, extra={"seconds": 12.5})
    saved = load("first.safetensors")            # the tower from its spec
    saved = load("first.safetensors", tower)     # or refused, unless it is of this very tower

A tower whose parts notation does not know (a task made of your own `nn.Module`) has no spec; its checkpoint can only be
loaded with the tower given, and is then compared by the names, shapes and dtypes of its tensors.
"""

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from levels.faults import Stop
from levels.fields import require
from levels.importing import names_in
from levels.reading import located
from levels.tree import map_leaves, named_leaves, with_leaves
from recursion.sealed import Format, described, read_sealed, write_sealed
from recursion.spec import from_spec, to_spec
from recursion.tower import Tower, TowerState

IF_DAMAGED = "restore it from a copy, or delete it and train again"
IF_OLDER = "go on with the older program, or train again in another folder"
FIELDS: dict[str, Any] = {"spec": (dict, type(None)), "notation": str, "step": int, "seed": int, "extra": dict}
FORMAT = Format("descent-tower checkpoint", "checkpoint", 2, "a checkpoint of a tower", IF_DAMAGED, IF_OLDER, FIELDS)


class Saved(NamedTuple):
    """What a checkpoint holds."""

    tower: Tower
    state: TowerState
    seed: int
    extra: dict[str, Any]


def settled(state: TowerState) -> TowerState:
    """The same numbers, each tensor contiguous at the start of its own memory, as a loaded checkpoint has them.

    Kernels may round differently on another layout or alignment. A run that settles its state after each step is
    therefore equal, bit for bit, to one that went through a file there.
    """

    def rest(tensor: Tensor) -> Tensor:
        tensor = tensor.detach()
        whole = tensor.is_contiguous() and tensor.storage_offset() == 0
        return tensor if whole else tensor.clone(memory_format=torch.contiguous_format)

    return TowerState(*map_leaves(rest, state))


def save(
    path: str | Path, tower: Tower, state: TowerState, *, seed: int, extra: Mapping[str, Any] | None = None
) -> None:
    """Write a checkpoint, whole or not at all; ``extra`` is JSON. Raises OSError; the file before it then stays."""
    about = {"spec": spec_of(tower), "notation": str(tower), "step": int(state.step), "seed": seed}
    write_sealed(Path(path), FORMAT, {**about, "extra": dict(extra or {})}, named_leaves(state))


def load(path: str | Path, tower: Tower | None = None, *, device: str = "cpu", trust: Sequence[str] = ()) -> Saved:
    """Read a checkpoint back, bit for bit. Without ``tower``, it is built from the spec in the file, on ``device``.

    ``trust``: modules and files whose code may run because the file names it, beside those in ``tower``.

    Raises OSError if the file cannot be read; ValueError, in one sentence, if it is truncated or garbled, is something
    else, was written by another version, is of another tower, or does not fit. A level's `nonfinite` policy may differ:
    it changes what happens next, not what happened.
    """
    path = Path(path)
    content, tensors = read_sealed(path, FORMAT)
    tower = _rebuilt(path, content, trust).to(device) if tower is None else tower
    spec = spec_of(tower)
    trust = (*trust, *names_in(spec))
    fits = spec is None if content["spec"] is None else spec is not None and same(_rebuilt(path, content, trust), tower)
    which = f"{path} is of the tower '{content['notation']}', not of '{tower}'"
    require(fits, f"{which}; give that one, or choose another folder")
    template = tower.init(content["seed"])
    wanted = named_leaves(template)
    for name in sorted(wanted.keys() | tensors.keys()):
        has, needs = (described(group.get(name)) for group in (tensors, wanted))
        what = f"{name} is {has} in the file, the tower needs {needs}"
        require(has == needs, f"{path} does not fit its tower: {what}; {IF_DAMAGED}")
    state = with_leaves(template, [tensors[name].to(leaf.device) for name, leaf in wanted.items()])
    return Saved(tower, TowerState(*state), content["seed"], content["extra"])


def spec_of(tower: Tower) -> dict[str, Any] | None:
    """The tower's spec, or None if it has parts that notation does not know."""
    with contextlib.suppress(TypeError, ValueError):
        return to_spec(tower)
    return None


def same(one: Tower, other: Tower) -> bool:
    """Whether two towers do the same to finite numbers: their specs agree but for what is done to the others."""
    strict = (Tower(t.task, *(dataclasses.replace(each, nonfinite=Stop()) for each in t.levels)) for t in (one, other))
    first, second = map(spec_of, strict)
    return first == second


def _rebuilt(path: Path, content: Mapping[str, Any], trust: Sequence[str]) -> Tower:
    own = f"{path} is of {content['notation']}, which has parts of your own; load it with the tower given"
    require(content["spec"] is not None, own)
    with located(path):
        return from_spec(content["spec"], trust)
