"""Problems: was any problem that is reported on ever trained on?

While a tower trains, each trajectory that begins is written down as a fingerprint: a hash of all that its task knows of
it, or of where it starts if the task remembers nothing. A reported problem is known if its fingerprint is among them.
On a task with data, what a split hands out are examples: there a reported problem is known too if more than a quarter
of the examples of its split are among those of the splits that were trained and selected on. Fewer are what the data
itself has twice (a digit that two people wrote alike, a phrase that comes again); they are counted apart.

Nothing is drawn or rounded for a fingerprint, so writing them down changes no number.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import Tensor

from levels import keys
from levels.derivatives import differentiated
from levels.problem import Problem
from levels.task import Task
from levels.tree import State, leaves
from recursion.files import explained
from recursion.observed import Tally

MANY = 0.25  # share of a split's examples above which they are no coincidence


class Met(Tally):
    """An observer that counts gradients and writes down which problems begin."""

    def __init__(self) -> None:
        super().__init__()
        self.prints: list[bytes] = []  # 8 bytes each, in the order in which they began

    def began(self, params: Tensor, state: State) -> None:
        """Write them down; but what begins within a derivative began before it, plainly, from the same key."""
        if not differentiated():
            self.prints += fingerprints(params, state)


class Diary:
    """Fingerprints in a file, 8 bytes each; only ever appended to."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def cut(self, count: int) -> None:
        """Forget all but the first ``count``: what comes after the state that a run goes on from."""
        with explained("write", self.path), self.path.open("ab") as file:
            file.truncate(8 * count)

    def append(self, prints: list[bytes]) -> None:
        """Write more down."""
        with explained("write", self.path), self.path.open("ab") as file:
            file.write(b"".join(prints))

    def read(self) -> set[bytes]:
        """All of them."""
        with explained("read", self.path):
            whole = self.path.read_bytes() if self.path.exists() else b""
        return {whole[start : start + 8] for start in range(0, len(whole), 8)}


class Known(NamedTuple):
    """What of a report was known before."""

    problems: int  # reported problems that were trained or selected on
    examples: int | None  # of the reported split, those that the other splits have too; None if there is no data
    of: int | None  # examples that the reported split has


def known(task: Task, key: Tensor, met: set[bytes]) -> Known:
    """How many of the problems of the test split that ``key`` ``[P]`` names were met before, see above."""
    reported = problems(task.on("test"), key)
    count = sum(each in met for each in reported)
    own = examples(task.on("test"))
    if own is None:
        return Known(count, None, None)
    others = set(examples(task.on("train")) or ()) | set(examples(task.on("validation")) or ())
    common = sum(each in others for each in own)
    return Known(len(reported) if common > MANY * len(own) else count, common, len(own))


def problems(task: Problem, key: Tensor) -> list[bytes]:
    """Fingerprints of the problems that keys ``[P]`` name, as `recursion.deploy.run` has them."""
    for_params, for_state = keys.split(key, 2).unbind(-1)
    x = task.init_params(for_params)
    return fingerprints(x, task.init_state(x, for_state))


def fingerprints(params: Tensor, state: State) -> list[bytes]:
    """One for each copy of ``params`` ``[*batch, n]`` and its state: 8 bytes."""
    copies = params.shape[:-1].numel()
    parts = [_rows(leaf, copies) for leaf in leaves(state) or [params]]
    return [_hash(*(part[copy] for part in parts)) for copy in range(copies)]


def examples(task: Task) -> list[bytes] | None:
    """Fingerprints of the examples of the task's split; None if it has none, or does not say."""
    groups = task.hands_out()
    if not groups:
        return None
    found: list[bytes] = []
    for group in groups:
        parts = [_rows(column, len(group[0])) for column in group]
        found += [_hash(*(part[row] for part in parts)) for row in range(len(group[0]))]
    return found


def _rows(leaf: Tensor, copies: int) -> np.ndarray:
    """The bytes of a tensor whose leading dimensions are ``copies``, one row each."""
    return leaf.detach().cpu().reshape(copies, -1).contiguous().numpy().view(np.uint8)


def _hash(*parts: np.ndarray) -> bytes:
    summed = hashlib.blake2b(digest_size=8)
    for part in parts:
        summed.update(part.data)
    return summed.digest()
