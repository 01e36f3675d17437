"""What a tower learned, in one file, for use outside of any tower.

    exported = learned_by(tower, state, seed=0)      # or export(LSTM(), weights)
    exported.save("lstm.safetensors")
    make = load("lstm.safetensors")
    optimizer = make(model.parameters())             # a torch.optim.Optimizer

The file is safetensors: one tensor ``weights`` ``[m]``, and as metadata the format's name and version, a digest, and
one JSON object with the spec of the optimizer alone, the layout that it was learned on, and where it comes from.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as to_bytes
from torch import Tensor

from levels.layout import Layout
from levels.base import Optimizer
from levels.config import require
from recursion.checkpoint import digest, read_sealed
from recursion.evaluate.deploy import is_optimizer, learned
from recursion.torch_optimizer import LearnedTorchOptimizer
from recursion.files import replace_file
from recursion.pieces import fits_any_layout
from recursion.spec import part_from_spec, part_to_spec
from recursion.tower import Tower, TowerState

FORMAT = "descent-tower optimizer"
VERSION = 1


@dataclass(frozen=True, eq=False)
class Exported:
    """An optimizer with what it learned: call it with the parameters of a model, as a class of `torch.optim`.

    ``weights`` ``[m]``: the optimizer's own parameters. ``below``: the layout that they were learned on, if known; a
    rule with parameters for each tensor or coordinate fits no other one. ``source``: where they come from, JSON data.
    """

    optimizer: Optimizer
    weights: Tensor
    below: Layout | None = None
    source: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, params: Any, *, lr: float | Tensor = 1.0) -> LearnedTorchOptimizer:
        """A `torch.optim.Optimizer` over ``params``; ``lr`` multiplies the step. ValueError if it does not fit."""
        return LearnedTorchOptimizer(params, self.optimizer, self.weights, below=self.below, lr=lr)

    def save(self, path: str | Path) -> None:
        """Write the file, whole or not at all. Raises OSError; ValueError if the optimizer holds Python objects."""
        tensors = {"weights": self.weights.detach().cpu().contiguous().clone()}
        entries = None if self.below is None else [[name, list(shape)] for name, shape in self.below.entries]
        content = json.dumps({
            "optimizer": part_to_spec(self.optimizer),
            "notation": str(self.optimizer),
            "below": entries,
            "source": dict(self.source),
        })  # fmt: skip
        about = {"format": FORMAT, "version": str(VERSION), "digest": digest(content, tensors), "content": content}
        replace_file(Path(path), to_bytes(tensors, about))


def export(
    optimizer: Optimizer, weights: Tensor, *, below: Layout | None = None, source: Mapping[str, Any] | None = None
) -> Exported:
    """An optimizer and its parameters ``[m]``, as `Exported`. ValueError if the weights cannot be its.

    ``below``: the layout that they were learned on, if known. ``source``: where they come from, JSON data.
    """
    good = weights.dim() == 1 and weights.is_floating_point() and bool(torch.isfinite(weights).all())
    require(good, f"{optimizer}: its weights must be finite numbers [m], got {weights.dtype} {list(weights.shape)}")
    if below is not None or fits_any_layout(optimizer):
        size = optimizer.over(below or Layout.of({"one": ()})).layout.size
        require(size == len(weights), f"{optimizer} takes {size} parameters, got {len(weights)}")
    return Exported(optimizer, weights.detach().clone(), below, dict(source or {}))


def learned_by(
    tower: Tower,
    state: TowerState,
    *,
    seed: int,
    copy: int = 1,
    windows: int | None = None,
    deploy_seed: int = 0,
) -> Exported:
    """What a tower's training produced for level 1, see `recursion.evaluate.deploy.learned`.

    ``seed``: that the tower was trained with, for the record. ``copy``: which of the optimizers that it trained side by
    side, from 1. ``windows``, ``deploy_seed``: of the runs that get it out of a tower of depth 3 or more. Raises
    ValueError if there is no such copy, and for a tower that is itself the optimizer and learns nothing to keep.
    """
    keeps = f"{tower}: it is itself the optimizer, tunes itself on each problem and learns nothing to keep"
    require(not is_optimizer(tower), f"{keeps}; give level 1 an unroll above 1 to learn something, as in lstm@20")
    found = learned(tower, state, windows=windows, seed=deploy_seed)
    copies = len(found.params)
    require(1 <= copy <= copies, f"copy must be from 1 to {copies}, the optimizers that the tower trained, got {copy}")
    source = {
        "tower": str(tower),
        "step": int(state.step),
        "seed": seed,
        "copy": copy,
        "base_steps": found.base_steps,
    }
    return export(tower.levels[0].optimizer, found.params[copy - 1], below=tower.task.layout, source=source)


def load(path: str | Path) -> Exported:
    """Read an exported optimizer back, bit for bit.

    Raises OSError if the file cannot be read; ValueError, in one sentence, if it is truncated or garbled, is something
    else, was written by a newer version, or names an optimizer that is not here.
    """
    path = Path(path)
    content, tensors = read_sealed(path, _check_format, LOST)
    try:
        optimizer = part_from_spec(content["optimizer"], "optimizer")
        below = None if content["below"] is None else Layout.of(dict(content["below"]), tensors["weights"].dtype)
        return export(optimizer, tensors["weights"], below=below, source=content["source"])
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


LOST = "restore it from a copy, or export it again"


def _check_format(path: Path, metadata: Mapping[str, str]) -> None:
    if metadata.get("format") != FORMAT:
        other = "a checkpoint of a tower: make one with tower export" if "tower" in metadata.get("format", "") else ""
        raise ValueError(
            f"{path} is not an exported optimizer, it is {other or 'a safetensors file of something else'}"
        )
    version = metadata.get("version", "")
    if version.isdecimal() and int(version) > VERSION:
        reads = f"this program reads up to {VERSION}"
        raise ValueError(f"{path} has export version {version}, {reads}; update descent-tower")
    if version != str(VERSION) or not {"digest", "content"} <= metadata.keys():
        raise ValueError(f"{path} is garbled, its metadata is incomplete; {LOST}")
