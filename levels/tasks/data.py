"""Labelled data in three parts that share no example, loaded once a process."""

from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from levels.task import SPLITS, Split


class Labelled(NamedTuple):
    """Examples of one split."""

    inputs: Tensor  # [examples, features], standardised by the training split's mean and deviation
    labels: Tensor  # int64 [examples]
    classes: int


@cache
def digits(split: Split, dtype: torch.dtype) -> Labelled:
    """The 8x8 handwritten digits of scikit-learn: 1797 images of 64 pixels, split 60 : 20 : 20 by a fixed shuffle."""
    from sklearn.datasets import load_digits

    data = load_digits()
    return _part(np.asarray(data.data), np.asarray(data.target), split, dtype)


def _part(inputs: np.ndarray, labels: np.ndarray, split: Split, dtype: torch.dtype) -> Labelled:
    order = np.random.default_rng(0).permutation(len(inputs))
    edges = [int(share * len(order)) for share in (0.6, 0.8)]
    parts = dict(zip(SPLITS, np.split(order, edges), strict=True))
    train, rows = inputs[parts["train"]], parts[split]
    images = (inputs[rows] - train.mean()) / train.std()
    return Labelled(torch.tensor(images, dtype=dtype), torch.tensor(labels[rows]), int(labels.max()) + 1)
