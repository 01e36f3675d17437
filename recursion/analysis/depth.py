"""Learned depth: how far the gates of a tower are open, and how deep they leave it.

    gates(tower, state)             # how far each gate is open
    learned_depth(tower, state)     # levels under the lowest gate that is closed

Towers with gates come from `levels.optimizers.gated`, or from the notation ``depth(...)`` (`recursion.group`).
"""

from typing import NamedTuple

from torch import Tensor

from levels.base import Optimizer
from levels.hyper import Fixed
from levels.level import Level
from levels.optimizers.gated import Gated
from levels.optimizers.partition import Partition
from recursion.group import PATTERNS
from recursion.tower import Tower, TowerState


class Gate(NamedTuple):
    """A gate of a tower: ``level``, from 1, is the one whose updates it lets through."""

    level: int
    each: Tensor  # [*copies] how far it is open in every copy of that level, from 0 to 1; no dimension at the top

    @property
    def mean(self) -> float:
        """Over copies."""
        return float(self.each.mean())

    @property
    def is_closed(self) -> bool:
        """Exactly, in every copy."""
        return bool((self.each == 0).all())

    @property
    def is_open(self) -> bool:
        """Exactly, in every copy."""
        return bool((self.each == 1).all())


def gates(tower: Tower, state: TowerState) -> list[Gate]:
    """The gates of a tower, the lowest first; a gate on what level 1 takes belongs to level 2, and so on.

    A level may have several: optimizers that are `Gated`, and those in a `Partition`.
    """
    thetas = [*(carry.x for carry in tower.carries(state)[1:]), state.theta]
    pairs = enumerate(zip(tower.bound, thetas), 1)
    return [Gate(number, gate) for number, (level, own) in pairs for gate in _gates_of(level.optimizer, own)]


def learned_depth(tower: Tower, state: TowerState) -> int:
    """How many levels lie under the lowest gate that is closed in every copy; all, if none is.

    A gate that was put on one of several tensors by name does not count: it closes on those alone.
    """
    shut = (gate.level for gate in gates(tower, state) if gate.is_closed and whole(tower.levels[gate.level - 1]))
    return min(shut, default=tower.depth + 1) - 1


def whole(level: Level) -> bool:
    """Whether a closed gate of this level stops all that it does to the problem below, other gates apart."""
    optimizer = level.optimizer
    if isinstance(optimizer, Partition):
        return optimizer.patterns == PATTERNS and isinstance(optimizer.optimizers[1], Gated)
    return isinstance(optimizer, Gated)


def _gates_of(optimizer: Optimizer, theta: Tensor) -> list[Tensor]:
    """How far the gates in a bound optimizer with parameters ``[*batch, m]`` are open: ``[*batch]`` each."""
    if isinstance(optimizer, Partition):
        inner = zip(optimizer.optimizers, optimizer.split_theta(theta)[1:])
        return [gate for one, own in inner for gate in _gates_of(one, own)]
    gated = isinstance(optimizer, Gated) and not isinstance(optimizer.gate, Fixed)
    return [optimizer.open(theta)] if gated else []  # type: ignore[attr-defined]
