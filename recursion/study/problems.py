"""Was any problem that is reported on ever trained on?

While a tower trains, a fingerprint of each trajectory that begins is written down: a hash of all that its task knows of
it, or of where it starts if the task has no state. A reported problem is known if its fingerprint is among them.
On a task with data, what a split hands out are examples: there every reported problem is known if more than a quarter
of the examples of its split are among those that were trained and selected on. Fewer are what the data itself has twice
(a phrase that comes again). Fingerprints draw and round nothing, so they change no number.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from levels import keys
from levels.base import Problem
from levels.tasks.task import Task
from levels.tree import State, leaves
from recursion.evaluation.observed import Tally

MANY = 0.25  # share of a split's examples above which they are no coincidence


class Met(Tally):
    """An observer that counts gradients and lists the fingerprints of the problems that begin, in that order."""

    def __init__(self) -> None:
        super().__init__()
        self.prints: list[int] = []

    def began(self, params: Tensor, state: State) -> None:
        self.prints += fingerprints(params, state)

    def reset(self, gradients: float = 0.0, prints: Sequence[int] = ()) -> None:
        """Forget what was asked while a tower was built."""
        self.gradients, self.prints = gradients, list(prints)


def known(task: Task, key: Tensor, seen: set[int]) -> int:
    """How many of the problems of the test split that ``key`` ``[P]`` names were seen before, see above."""
    own = examples(task.on("test"))
    others = set(examples(task.on("train"))) | set(examples(task.on("validation"))) if own else set()
    if sum(each in others for each in own) > MANY * len(own):
        return len(key)
    return sum(each in seen for each in problems(task.on("test"), key))


def problems(task: Problem, key: Tensor) -> list[int]:
    """Fingerprints of the problems that keys ``[P]`` name, as `recursion.evaluation.deploy.run` has them."""
    for_params, for_state = keys.split(key, 2).unbind(-1)
    x = task.init(for_params)
    return fingerprints(x, task.init_state(x, for_state))


def fingerprints(params: Tensor, state: State) -> list[int]:
    """One for each copy of ``params`` ``[*batch, n]`` and its state."""
    return _hashes(leaves(state) or [params], params.shape[:-1].numel())


def examples(task: Task) -> list[int]:
    """Fingerprints of the examples of the task's split; none if it has none, or does not say."""
    return [each for group in task.hands_out() or () for each in _hashes(group, len(group[0]))]


def _hashes(parts: Sequence[Tensor], copies: int) -> list[int]:
    """A hash of each row of tensors whose leading dimensions are ``copies``: 8 bytes as a whole number with a sign."""
    rows = [part.detach().cpu().reshape(copies, -1).contiguous().numpy().view(np.uint8) for part in parts]
    digests = (hashlib.blake2b(b"".join(each), digest_size=8).digest() for each in zip(*rows))
    return [int.from_bytes(digest, "little", signed=True) for digest in digests]
