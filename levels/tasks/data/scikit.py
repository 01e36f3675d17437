"""What scikit-learn carries: digits, tables and photos."""

from functools import cache

import numpy as np
import torch
from sklearn import datasets
from torch import Tensor

from levels.base import Split
from levels.tasks.data import SPLITS, Labelled, Table, part


@cache
def digits(split: Split, dtype: torch.dtype) -> Labelled:
    """The 8x8 handwritten digits of scikit-learn: 1797 images of 64 pixels."""
    return part(datasets.load_digits(return_X_y=True), split, dtype)


@cache
def table(split: Split, dtype: torch.dtype, name: Table) -> Labelled:
    """A table, each column standardised: breast-cancer (569 rows, 30 columns, 2 classes) or wine (178, 13, 3)."""
    load = datasets.load_wine if name == "wine" else datasets.load_breast_cancer
    return part(load(return_X_y=True), split, dtype, axis=0)


@cache
def photos(split: Split, dtype: torch.dtype) -> Tensor:
    """scikit-learn's two photos, China and a flower: ``[2, 427, columns, 3]``, from -1 (dark) to 1.

    Each is cut into three strips by its 640 columns: 384 for training, 128 for validation, 128 for test.
    """
    whole = np.stack([datasets.load_sample_image(name) for name in ("china.jpg", "flower.jpg")])
    strip = np.split(whole, [384, 512], axis=2)[SPLITS.index(split)]
    return torch.tensor(strip).to(dtype) / 127.5 - 1
