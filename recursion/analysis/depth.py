"""Learned depth: levels with a gate on what each takes from above, written out as ordinary levels, and read off.

    quadratic: depth(sgd@1 / sgd@1 / sgd@1, gates=adam(lr=0.1), price=1e-3) / sgd

is short for

    quadratic: sgd@1 / gated(sgd, price=0.001)@1
      / by-name(["*gate", "*"], [adam(lr=0.1), gated(sgd, price=0.001)])@1
      / by-name(["*gate", "*"], [adam(lr=0.1), sgd])

Each level of the group but the last has a gate on the update that it takes from the next (`levels.optimizers.gated`). A
gate belongs to the optimizer whose updates it lets through, so the level above that one moves it: by name, by an
optimizer of the same kind on each level. Nobody but this file knows that they are anything special. A tower that was
trained is then as deep as its gates leave it (`learned_depth`), and can be cut to that (`recursion.analysis.pruning`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from levels.hyper import Fixed
from levels.level import Level
from levels.base import Optimizer
from levels.optimizers.partition import Partition
from levels.optimizers.gated import Gated
from levels.config import format_value, require
from levels.base import Problem
from recursion.tower import Tower, TowerState

PATTERNS = ("*gate", "*")


@dataclass(frozen=True, kw_only=True)
class Depth:
    """What a group of levels is told beside them.

    ``gates``: the optimizer that moves the gates; None for that of the level above the group, which then moves the
    topmost gate with all that it moves. ``price``: what an open gate costs for each base step, in units of the
    meta-loss, at least 0. ``start``: how far gates are open at first, between 0 and 1.
    """

    gates: Optimizer | None = None
    price: float = 0.0
    start: float = 0.5

    def __post_init__(self) -> None:
        price, start = self.price, self.start
        good = isinstance(price, (int, float)) and not isinstance(price, bool) and 0 <= price < math.inf
        require(good, f"depth: price must be 0 or more, got {notate(price)}")
        good = isinstance(start, (int, float)) and not isinstance(start, bool) and 0 < start < 1
        require(good, f"depth: start must be a number between 0 and 1, got {notate(start)}")


def depth(
    task: Problem, group: Sequence[Level], above: Level, settings: Depth | None = None, *, under: Sequence[Level] = ()
) -> list[Level]:
    """The levels of ``group`` with gates between them, and ``above`` with what moves the topmost gate: bottom first.

    ``under``: the levels between the task and the group. A gate's price is that of a base step times the base steps of
    a window of its level. Raises ValueError for a group of one level.
    """
    settings = settings or Depth()
    one = f"depth({', '.join(map(str, group))}): a group of one level has no depth to learn"
    require(len(group) >= 2, f"{one}; put another level into it")
    costs = _costs(task, [*under, *group])[len(under) :] if settings.price else [0.0] * len(group)
    mover = above.optimizer if settings.gates is None else settings.gates
    found = [group[0]]
    for place, (level, cost) in enumerate(zip(group[1:], costs[1:])):
        gated = Gated(level.optimizer, gate=settings.start, price=settings.price * cost)
        found.append(_moving(mover, gated, level) if place else dataclasses.replace(level, optimizer=gated))
    return [*found, above if settings.gates is None else _moving(mover, above.optimizer, above)]


def _moving(mover: Optimizer, rule: Optimizer, level: Level) -> Level:
    """``level`` with gates moved by ``mover`` and everything else by ``rule``."""
    return dataclasses.replace(level, optimizer=Partition(PATTERNS, (mover, rule)))


def _costs(task: Problem, levels: Sequence[Level]) -> list[float]:
    """Base steps of a window of each level."""
    below, costs = task, []
    for level in levels:
        below = level.over(below)
        costs.append(float(below.cost))
    return costs


class Gate(NamedTuple):
    """A gate of a tower: ``level``, from 1, is the one whose updates it lets through."""

    level: int
    each: Tensor  # [*copies] how far it is open in every copy of that level, from 0 to 1; no dimension at the top

    @property
    def mean(self) -> float:
        """Over copies."""
        return float(self.each.mean())

    @property
    def closed(self) -> bool:
        """Exactly, in every copy."""
        return bool((self.each == 0).all())

    @property
    def opened(self) -> bool:
        """Exactly, in every copy."""
        return bool((self.each == 1).all())


def gates(tower: Tower, state: TowerState) -> list[Gate]:
    """The gates of a tower as they stand, the lowest first; one on what level 1 takes belongs to level 2, and so on.

    Found are the gates of optimizers that are `Gated`, or have one in a `ByName`. Several of one level are one each.
    """
    params = [*(carry.x for carry in tower.carries(state)[1:]), state.params]
    return [
        Gate(number, gate)
        for number, (laid, own) in enumerate(zip(tower.bound, params), 1)
        for gate in _gates_of(laid.optimizer, own)
    ]


def learned_depth(tower: Tower, state: TowerState) -> int:
    """How many levels lie under the lowest gate that is closed in every copy; all, if none is.

    A gate that was put on one of several tensors by name does not count: it closes on those alone.
    """
    closed = (gate.level for gate in gates(tower, state) if gate.closed and whole(tower.levels[gate.level - 1]))
    return min(closed, default=tower.depth + 1) - 1


def whole(level: Level) -> bool:
    """Whether a closed gate of this level stops all that it does to the problem below, other gates apart."""
    rule = level.optimizer
    if isinstance(rule, Partition):
        return rule.patterns == PATTERNS and isinstance(rule.optimizers[1], Gated)
    return isinstance(rule, Gated)


def _gates_of(laid: Optimizer, params: Tensor) -> list[Tensor]:
    """How far the gates in an optimizer with parameters ``[*batch, m]`` are open: ``[*batch]`` each."""
    if isinstance(laid, Partition):
        return [gate for share in laid.shares for gate in _gates_of(share.rule, params[..., share.params])]
    if isinstance(laid, Gated) and not isinstance(laid.gate, Fixed):
        return [laid.open(params)]
    return []
