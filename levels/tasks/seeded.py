"""Seeded: code of a user that draws from the global generators draws from a key instead."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def generators() -> list[Any]:
    """Where the generators of torch, Python's random and numpy stand."""
    numbers = np.random.get_state()
    return [torch.get_rng_state().tolist(), random.getstate(), numbers[1].tolist(), numbers[2]]  # type: ignore[index]


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Inside, the generators of torch, numpy and Python's random draw as ``seed`` says; outside they are left alone."""
    ours, theirs = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed % 2**32)
            yield
    finally:
        random.setstate(ours)
        np.random.set_state(theirs)
