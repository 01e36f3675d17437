"""Kept: what a run has found so far, in files, so that whoever is killed goes on from there.

    kept = Kept(folder)
    losses = kept.tensors("start on report", lambda: {"losses": run(...)})["losses"]

Each piece of a run is a function of what the run is and of pieces before it, and is made once: it is written whole or
not at all, and read back ever after. What is made is read back too, so nothing depends on who made it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from recursion.files import explained, replace_file


class Kept:
    """Pieces in ``folder``, made if need be, by name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with explained("make the folder", folder):
            folder.mkdir(parents=True, exist_ok=True)

    def numbers(self, name: str, make: Callable[[], Any]) -> Any:
        """A piece of plain data: what JSON holds, and numbers that are not finite."""
        path = self._path(name, "json")
        found = self._read(path)
        if found is None:
            found = json.dumps(make()).encode()
            replace_file(path, found)
        try:
            return json.loads(found)
        except ValueError as error:
            raise ValueError(f"{path} is not a whole file ({error}); delete it and run again") from error

    def tensors(self, name: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """A piece that is tensors, by name."""
        path = self._path(name, "safetensors")
        found = self._read(path)
        if found is None:
            found = save({key: tensor.detach().cpu().contiguous() for key, tensor in make().items()})
            replace_file(path, found)
        try:
            return load(found)
        except SafetensorError as error:
            raise ValueError(f"{path} is not a whole file ({error}); delete it and run again") from error

    def _path(self, name: str, kind: str) -> Path:
        return self.folder / f"{re.sub('[^a-z0-9]+', '-', name.lower())}.{kind}"

    def _read(self, path: Path) -> bytes | None:
        with explained("read", path):
            return path.read_bytes() if path.exists() else None
