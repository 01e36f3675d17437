"""Real data in three parts that share no example; read once in a process, and nothing is fetched from a network.

Readers, by source, are imported when a task first needs data: scikit-learn takes longer than all of `levels`. A task
checks when it is made that its data is there; a ValueError says how to install what is missing.
"""

from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from levels.base import Split
from levels.fields import require
from levels.tree import map_leaves

FASHION = "/usr/share/datasets/fashion-mnist"  # where Debian's package dataset-fashion-mnist puts its files
ALPHABET = "\n" + "".join(map(chr, range(32, 127)))
SPLITS: tuple[Split, ...] = get_args(Split)
Table = Literal["breast-cancer", "wine"]


class Labelled(NamedTuple):
    """Examples of one split."""

    inputs: Tensor  # [examples, features], standardised by the training split's mean and deviation
    labels: Tensor  # int64 [examples]
    classes: int


class Text(NamedTuple):
    """One split of a text."""

    codes: Tensor  # int64 [characters], positions in ALPHABET; a character that is not in it counts as "?"
    sha256: str  # of the whole text in UTF-8, all splits together


@cache
def load(reader: str, *args: Any, device: str = "cpu") -> Any:
    """What a reader, ``module.function`` of this package, returns for ``args``, with its tensors on ``device``."""
    module, _, function = reader.partition(".")
    data = getattr(import_module(f"{__name__}.{module}"), function)(*args)
    return map_leaves(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, data)


def stored(reader: str, *fields: str) -> Callable[[Any], Any]:
    """A method of a task: what the ``reader`` returns for its split, its dtype and these of its ``fields``."""

    def data(task: Any) -> Any:
        given = (getattr(task, field) for field in fields)
        return load(reader, task.split, task.torch_dtype, *given, device=task.device)

    return data


def part(data: tuple[np.ndarray, np.ndarray], split: Split, dtype: torch.dtype, axis: int | None = None) -> Labelled:
    """One of three parts, 60 : 20 : 20 by a fixed shuffle, of inputs and labels, standardised along an ``axis``."""
    inputs, labels = data
    order = np.random.default_rng(0).permutation(len(inputs))
    parts = dict(zip(SPLITS, np.split(order, [int(share * len(order)) for share in (0.6, 0.8)])))
    train, rows = inputs[parts["train"]], parts[split]
    images = (inputs[rows] - train.mean(axis)) / train.std(axis)
    return Labelled(torch.tensor(images, dtype=dtype), torch.tensor(labels[rows]), int(labels.max()) + 1)


def require_installed(package: str, who: str) -> None:
    """ValueError unless a package of the extra ``data`` can be imported."""
    what = f"{who}: its data comes with the package {package}, which is not installed"
    require(find_spec(package) is not None, f'{what}; pip install "descent-tower[data]"')


def require_fashion(folder: str, who: str) -> None:
    """ValueError unless the four files of Fashion-MNIST, gzipped or not, are in ``folder``."""
    names = [f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
    here = all(idx_file(folder, name).exists() for name in names)
    require(here, f"{who}: no Fashion-MNIST files in {folder}; apt install dataset-fashion-mnist, or set folder")


def idx_file(folder: str, name: str) -> Path:
    """The plain file, or the gzipped one where there is no plain file."""
    plain = Path(folder) / name
    return plain if plain.exists() else plain.with_name(f"{name}.gz")
