"""What a run has found so far, in files: a run that is killed goes on from there.

Each piece of a run is a function of what the run is and of pieces before it, and is made once: it is written whole or
not at all, and read ever after. A piece just made is read back too, so nothing depends on which process made it.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from recursion.files import explained, replace_file


class Store:
    """Pieces in ``folder``, by name; a missing one is made."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with explained("make the folder", folder):
            folder.mkdir(parents=True, exist_ok=True)

    def numbers(self, name: str, make: Callable[[], Any]) -> Any:
        """A piece of plain data: what JSON holds, and numbers that are not finite."""
        return self._once(f"{name}.json", lambda: json.dumps(make()).encode(), json.loads)

    def tensors(self, name: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """A piece that is tensors, by name."""

        def written() -> bytes:
            return bytes(save({key: tensor.detach().cpu().contiguous() for key, tensor in make().items()}))

        return dict(self._once(f"{name}.safetensors", written, load))

    def _once(self, name: str, make: Callable[[], bytes], read: Callable[[bytes], Any]) -> Any:
        path = self.folder / re.sub("[^a-z0-9.]+", "-", name.lower())
        if not path.exists():
            replace_file(path, make())
        with explained("read", path):
            data = path.read_bytes()
        try:
            return read(data)
        except (ValueError, SafetensorError) as error:
            raise ValueError(f"{path} is not a whole file ({error}); delete it and run again") from error
