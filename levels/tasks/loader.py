"""LoaderTask: a user's own DataLoader as a task's data, drawn by keys instead of by the loader.

    task = LoaderTask(make=lambda: nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)),
                      loss_function=nn.functional.cross_entropy, train=DataLoader(dataset, 32, shuffle=True))

Every copy draws its own minibatch: ``batch_size`` numbers from its key, with replacement, those items of
``loader.dataset``, joined by ``loader.collate_fn``. Items may be augmented at random with torch's generator, which is
forked and seeded with the key. A loader with other settings (order, workers, pinned memory, a generator) is refused,
since they would have no effect. Fetching loops in Python: data that fits in two tensors is faster in `ModuleTask`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, RandomSampler

from levels import keys
from levels.config import require
from levels.layout import Layout
from levels.tasks.module import ModuleState, ModuleTask
from levels.tasks.nets import Cursor
from levels.tasks.task import LossTask


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class LoaderTask(LossTask):
    """``make()`` builds the module; ``loss_function(outputs, targets)`` is a mean over a minibatch.

    ``train``, ``validation``, ``test``: loaders with ``shuffle=True`` over datasets with a length, whose collated
    minibatches are pairs of tensors, inputs and targets, always of one shape; the last two may be None if never used.
    ValueError for a loader that sets what is not used here, and for modules that `ModuleTask` refuses.
    """

    name = "loader"
    has_data = True

    make: Callable[[], nn.Module]
    loss_function: Callable[[Tensor, Tensor], Tensor]
    train: DataLoader[Any]
    validation: DataLoader[Any] | None = None
    test: DataLoader[Any] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _vet(self.loader, f"{self.name}: the {self.split} loader")
        _ = self.model  # refuses here what does not fit

    @cached_property
    def loader(self) -> DataLoader[Any]:
        """The loader of this task's split. ValueError if there is none."""
        loader: DataLoader[Any] | None = getattr(self, self.split)
        if loader is None:
            raise ValueError(f"{self.name}: there is no {self.split} loader; pass {self.split}=DataLoader(...)")
        if not isinstance(loader, DataLoader):
            raise TypeError(f"{self.name}: {self.split} must be a DataLoader, got {type(loader).__name__}")
        return loader

    @cached_property
    def model(self) -> ModuleTask:
        """The module as a task on one minibatch: for its layout, its starts, and what it refuses."""
        first = self.fetch(keys.seed(0), torch.zeros(self.minibatch, dtype=torch.int64))
        shared = {name: getattr(self, name) for name in ("make", "loss_function", "dtype", "device")}
        return ModuleTask(train=first, **shared)

    @property
    def minibatch(self) -> int:
        """The loader's batch size."""
        assert self.loader.batch_size is not None
        return self.loader.batch_size

    @property
    def layout(self) -> Layout:
        return self.model.layout

    def init(self, key: Tensor) -> Tensor:
        return self.model.init(self.own(key))

    def init_state(self, params: Tensor, key: Tensor) -> ModuleState:
        own = self.own(key)
        return ModuleState(Cursor.start(own), self.model.init_state(params, own).constants)

    def fetch(self, key: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and targets of the items ``rows`` ``[minibatch]``; a random augmentation draws from ``key`` ``[]``."""
        with seeded(int(key)):
            joined = self.loader.collate_fn([self.loader.dataset[row] for row in rows.tolist()])
        pair = isinstance(joined, (tuple, list)) and len(joined) == 2 and all(isinstance(x, Tensor) for x in joined)
        what = f"{self.name}: minibatches must be pairs of tensors, inputs and targets"
        require(pair, f"{what}, got {type(joined).__name__}; pass a collate_fn that joins items so")
        return joined[0], joined[1]

    def loss(self, params: Tensor, state: ModuleState) -> tuple[Tensor, ModuleState]:
        cursor, count = state.cursor, len(self.loader.dataset)  # type: ignore[arg-type]
        rows = cursor.draw(self.minibatch, count).reshape(-1, self.minibatch)
        fetched = zip(*map(self.fetch, keys.fold_in(cursor.key, cursor.step).flatten(), rows))
        inputs, targets = (self.model.taken(self._stack(tensors)) for tensors in fetched)
        return self.model.losses(params, state.constants, inputs, targets), state._replace(cursor=cursor.next())

    def _stack(self, tensors: tuple[Tensor, ...]) -> Tensor:
        got = sorted({tuple(tensor.shape) for tensor in tensors})
        require(len(got) == 1, f"{self.name}: minibatches must have one shape, got {got}; pad them to one")
        return torch.stack(tensors)


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


def _vet(loader: DataLoader[Any], who: str) -> None:
    """ValueError for a loader with a setting that has no effect where items are drawn by keys."""
    sized = not isinstance(loader.dataset, IterableDataset) and hasattr(loader.dataset, "__len__")
    require(sized, f"{who} reads a stream; give it a dataset with a length and items by number")
    require(loader.batch_size is not None, f"{who} has a batch_sampler or no batches; set batch_size and shuffle=True")
    plain = type(loader.sampler) is RandomSampler and loader.sampler._num_samples is None
    require(plain, f"{who} has an order of its own, but items are drawn at random by keys; build it with shuffle=True")
    require(loader.generator is None, f"{who} has a generator, but items are drawn by keys; leave it out")
    require(loader.num_workers == 0, f"{who} has {loader.num_workers} workers, which are not used; set num_workers=0")
    require(not loader.pin_memory, f"{who} pins memory, which is not done here; leave pin_memory out")
