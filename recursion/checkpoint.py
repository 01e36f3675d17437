"""Checkpoints: one safetensors file that holds a tower's whole state and says which tower it is of.

Tensors go by their path in the state (``carry.below.carry.x``). The metadata holds the format's name and version, a
digest of everything, and one JSON object: the tower's spec in full and its notation, the step, the seed, and what
the writer adds. There is no pickle in it.

    save("first.safetensors", tower, state, seed=0, extra={"seconds": 12.5})
    saved = load("first.safetensors")            # the tower from its spec
    saved = load("first.safetensors", tower)     # or refused, unless it is of this very tower

A tower whose parts notation does not know (a task made of your own `nn.Module`) has no spec; its checkpoint can
only be loaded with the tower given, and is then compared by the names, shapes and dtypes of its tensors.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from levels.restart import Stop
from levels.tree import map_leaves, named_leaves, with_leaves
from recursion.files import explained, replace_file
from recursion.tower import Tower, TowerState

FORMAT = "descent-tower checkpoint"
VERSION = 1


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

    def coerce(tensor: Tensor) -> Tensor:
        tensor = tensor.detach()
        return tensor if tensor.is_contiguous() and tensor.storage_offset() == 0 else tensor.contiguous().clone()

    settled_state: TowerState = map_leaves(coerce, state)
    return settled_state


def save(
    path: str | Path, tower: Tower, state: TowerState, *, seed: int, extra: Mapping[str, Any] | None = None
) -> None:
    """Write a checkpoint, whole or not at all; ``extra`` is JSON. Raises OSError, what was there before then stays."""
    tensors = {
        name: leaf.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, leaf in named_leaves(state).items()
    }
    about = {"spec": spec_of(tower), "notation": str(tower), "step": int(state.step), "seed": seed}
    content = json.dumps({**about, "extra": dict(extra or {})})
    metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "digest": digest(content, tensors),
        "content": content,
    }
    replace_file(Path(path), to_bytes(tensors, metadata))


def load(path: str | Path, tower: Tower | None = None, *, device: str = "cpu") -> Saved:
    """Read a checkpoint back, bit for bit. Without ``tower``, it is built from the spec in the file, on ``device``.

    Raises OSError if the file cannot be read; ValueError, in one sentence, if it is truncated or garbled, is something
    else, was written by a newer version, is of another tower, or does not fit. A level's `nonfinite` policy may differ:
    it changes what happens next, not what happened.
    """
    path = Path(path)
    content, tensors = read_sealed(path, _check_format, LOST)
    tower = _rebuilt(path, content).to(device) if tower is None else tower
    _check_tower(path, content, tower)
    state = _restored(path, tower.init(content["seed"]), tensors)
    return Saved(tower, state, content["seed"], content["extra"])


LOST = "restore it from a copy, or delete it and train again"


def read_sealed(
    path: Path, check: Callable[[Path, Mapping[str, str]], None], lost: str
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Content and tensors of a safetensors file whose metadata ``check`` accepts and whose digest fits.

    ``lost``: what to do about one that is damaged. Raises OSError if it cannot be read, ValueError if it is damaged.
    """
    with explained("read", path):
        path.open("rb").close()
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            check(path, metadata)
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole file, it is truncated or garbled ({error}); {lost}") from error
    if digest(metadata["content"], tensors) != metadata["digest"]:
        raise ValueError(f"{path} is garbled, its digest does not fit what it holds; {lost}")
    return json.loads(metadata["content"]), tensors


def spec_of(tower: Tower) -> dict[str, Any] | None:
    """The tower's spec as JSON gives it back, or None if it has parts that notation does not know."""
    from recursion.spec import to_spec

    try:
        spec: dict[str, Any] = json.loads(json.dumps(to_spec(tower)))
    except (TypeError, ValueError):
        return None
    return spec


def same(one: Tower, other: Tower) -> bool:
    """Whether two towers do the same to finite numbers: their specs agree but for what is done to the others."""
    specs = [spec_of(Tower(t.task, *(dataclasses.replace(level, nonfinite=Stop()) for level in t.levels)))
             for t in (one, other)]  # fmt: skip
    return specs[0] == specs[1]


def _check_format(path: Path, metadata: Mapping[str, str]) -> None:
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{path} is a safetensors file of something else, not a checkpoint of a tower")
    version = metadata.get("version", "")
    if version.isdecimal() and int(version) > VERSION:
        raise ValueError(
            f"{path} has checkpoint version {version}, this program reads up to {VERSION}; update descent-tower"
        )
    if version != str(VERSION) or not {"digest", "content"} <= metadata.keys():
        raise ValueError(f"{path} is garbled, its metadata is incomplete; {LOST}")


def _rebuilt(path: Path, content: Mapping[str, Any]) -> Tower:
    from recursion.spec import from_spec

    if content["spec"] is None:
        raise ValueError(
            f"{path} is of {content['notation']}, which has parts of your own; load it with the tower given"
        )
    try:
        tower: Tower = from_spec(content["spec"])
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
    return tower


def _check_tower(path: Path, content: Mapping[str, Any], tower: Tower) -> None:
    spec = spec_of(tower)
    fits = spec is None if content["spec"] is None else spec is not None and same(_rebuilt(path, content), tower)
    if not fits:
        raise ValueError(
            f"{path} is of the tower '{content['notation']}', not of '{tower}'; give that one, or choose another folder"
        )


def _restored(path: Path, template: TowerState, tensors: Mapping[str, Tensor]) -> TowerState:
    """``tensors`` in the structure of ``template``; ValueError unless names, shapes and dtypes are the same."""
    wanted = named_leaves(template)
    for name in sorted(wanted.keys() | tensors.keys()):
        has, needs = (_described(group.get(name)) for group in (tensors, wanted))
        if has != needs:
            raise ValueError(
                f"{path} does not fit its tower: {name} is {has} in the file, the tower needs {needs}; {LOST}"
            )
    state: TowerState = with_leaves(template, [tensors[name].to(leaf.device) for name, leaf in wanted.items()])
    return state


def _described(tensor: Tensor | None) -> str:
    return "nothing" if tensor is None else f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def digest(content: str, tensors: Mapping[str, Tensor]) -> str:
    """A hash of some text and of tensors on the CPU, with their names, dtypes and shapes."""
    summed = hashlib.blake2b(content.encode(), digest_size=16)
    for name in sorted(tensors):
        summed.update(f"{name} {_described(tensors[name])}".encode())
        summed.update(tensors[name].reshape(-1).view(torch.uint8).numpy().data)
    return summed.hexdigest()
