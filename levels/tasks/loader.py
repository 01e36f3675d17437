"""LoaderTask: a user's own DataLoader as a task's data; see `levels.tasks.network`.

    task = LoaderTask(make=lambda: nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)),
                      loss_function=nn.functional.cross_entropy, train=DataLoader(dataset, 32, shuffle=True))

Every copy goes through the data in epochs of its own, as the loader's sampler orders them: shuffled anew, in order,
weighted, or in batches that a sampler makes. What the sampler draws comes from the copy's key and the epoch, and what
an item's augmentation draws from the key and the step, whether from torch, numpy or Python's random. So equal keys are
equal minibatches, and a state says all. Items are fetched in this process: a loader's workers and pinned memory, which
change its speed and not its data, are not used. Data that fits in two tensors is faster in `ModuleTask`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from levels import keys
from levels.fields import require
from levels.tasks.nets import Cursor
from levels.tasks.network import NetworkTask
from levels.tasks.seeded import seeded
from levels.tree import State, leaves, map_leaves

TARGETS = ("targets", "target", "labels", "label")  # of a minibatch that is a dict, the first that it has
REMEMBERED = 4096  # orders of epochs that are kept


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class LoaderTask(NetworkTask):
    """``train``, ``validation``, ``test``: loaders, or data sets, which are taken in shuffled minibatches of 128; the
    last two may be None if they are never used. Minibatches are pairs of inputs and targets, or dicts with one of
    `TARGETS`. Inputs are a tensor, or several in a tuple or a dict, which are the module's arguments.

    ValueError for a loader that reads a stream.
    """

    name = "loader"

    train: DataLoader[Any] | Dataset[Any]
    validation: DataLoader[Any] | Dataset[Any] | None = None
    test: DataLoader[Any] | Dataset[Any] | None = None

    @cached_property
    def loader(self) -> DataLoader[Any]:
        """The loader of this task's split. ValueError if there is none, or one that cannot be used."""
        given, who = getattr(self, self.split), f"{self.name}: the {self.split} loader"
        if given is None:
            raise ValueError(f"{self.name}: there is no {self.split} loader; pass {self.split}=DataLoader(...)")
        data: Any = given.dataset if isinstance(given, DataLoader) else given
        sized = not isinstance(data, IterableDataset) and hasattr(data, "__len__") and hasattr(data, "__getitem__")
        require(sized, f"{who} reads a stream; give it a dataset with a length and items by number")
        require(len(data) > 0, f"{who} is empty")
        loader: DataLoader[Any] = given if isinstance(given, DataLoader) else DataLoader(data, 128, shuffle=True)
        require(len(loader) > 0, f"{who} has no minibatch; lower its batch_size, or set drop_last=False")
        return loader

    @cached_property
    def _orders(self) -> dict[tuple[int, int], list[Any]]:
        return {}

    def order(self, key: int, epoch: int) -> list[Any]:
        """What an epoch fetches: numbers of items, a list for each minibatch."""
        if (key, epoch) not in self._orders:
            if len(self._orders) >= REMEMBERED:
                self._orders.clear()
            seed = int(keys.fold_in(torch.tensor(key), epoch))
            sampler = self.loader.batch_sampler or self.loader.sampler
            owners = (self.loader, sampler, getattr(sampler, "sampler", None))
            own = {id(each): each for owner in owners if (each := getattr(owner, "generator", None)) is not None}
            before = [generator.get_state() for generator in own.values()]
            with seeded(seed):
                for generator in own.values():
                    generator.manual_seed(seed)
                self._orders[key, epoch] = list(sampler)
            for generator, state in zip(own.values(), before):
                generator.set_state(state)
        return self._orders[key, epoch]

    def fetch(self, key: int, numbers: Any) -> State:
        """Inputs and targets of the items ``numbers``; a random augmentation draws from ``key``."""
        data, join = self.loader.dataset, self.loader.collate_fn
        with seeded(key):
            joined = join(data[numbers] if self.loader.batch_sampler is None else [data[number] for number in numbers])
        inputs, targets = self._parted(joined)
        inputs = tuple(inputs) if isinstance(inputs, list) else inputs
        return map_leaves(self.taken, (inputs, targets))

    def _parted(self, joined: Any) -> Sequence[Any]:
        """A minibatch as inputs and targets."""
        if isinstance(joined, dict):
            targets = [name for name in TARGETS if name in joined]
            what = f"{self.name}: a minibatch that is a dict needs one of {', '.join(TARGETS)}"
            require(bool(targets) and len(joined) > 1, f"{what} beside its inputs, got {', '.join(map(str, joined))}")
            rest = {name: value for name, value in joined.items() if name != targets[0]}
            return (rest if len(rest) > 1 else next(iter(rest.values()))), joined[targets[0]]
        pair = isinstance(joined, (tuple, list)) and len(joined) == 2
        got = f"{len(joined)} parts" if isinstance(joined, (tuple, list)) else type(joined).__name__
        what = f"{self.name}: minibatches must be pairs of inputs and targets"
        require(pair, f"{what}, got {got}; pass a collate_fn that joins items so")
        return joined  # type: ignore[no-any-return]

    def example(self) -> State:
        return self.fetch(0, self.order(0, 0)[0])

    def minibatches(self, cursor: Cursor) -> State:
        drawn, fetched, count = keys.fold_in(cursor.key, cursor.step).tolist(), [], len(self.loader)
        for key, step, seed in zip(cursor.key.tolist(), cursor.step.tolist(), drawn):
            fetched.append(self.fetch(seed, self.order(key, step // count)[step % count]))
        shapes = {tuple(leaf.shape for leaf in leaves(each)) for each in fetched}
        return fetched if len(shapes) > 1 else map_leaves(lambda *each: torch.stack(each), *fetched)
