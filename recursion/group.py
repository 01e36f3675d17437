"""Groups of levels in notation: levels with a gate on what each takes from above, written out as ordinary levels.

    quadratic: depth(sgd@1 / sgd@1 / sgd@1, gates=adam(lr=0.1), price=1e-3) / sgd

is short for

    quadratic: sgd@1 / gated(sgd, price=0.001)@1
      / by-name(["*gate", "*"], [adam(lr=0.1), gated(sgd, price=0.001)])@1
      / by-name(["*gate", "*"], [adam(lr=0.1), sgd])

Each level of the group but the last has a gate on the update that it takes from the next (`levels.optimizers.gated`). A
gate belongs to the optimizer whose updates it lets through, so the level above that one moves it, by name. A trained
tower is as deep as its gates leave it; `recursion.analysis` reads them.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from levels.base import Optimizer, Problem
from levels.config import Config
from levels.fields import NonNegative, Probability, require
from levels.level import Level
from levels.optimizers.gated import Gated
from levels.optimizers.partition import Partition

PATTERNS = ("*gate", "*")


@dataclass(frozen=True, kw_only=True, repr=False)
class Depth(Config):
    """The settings of a group.

    ``gates``: the optimizer that moves the gates; None for that of the level above the group, which then moves the
    topmost gate with all that it moves. ``price``: what an open gate costs for each base step, in units of the
    meta-loss, at least 0. ``start``: how far gates are open at first, between 0 and 1.
    """

    name = "depth"

    gates: Optimizer | None = None
    price: NonNegative = 0.0
    start: Probability = 0.5


def gated_levels(
    task: Problem, group: Sequence[Level], above: Level, settings: Depth | None = None, *, under: Sequence[Level] = ()
) -> list[Level]:
    """The levels of ``group`` with gates between them, and ``above`` with what moves the topmost gate: bottom first.

    ``under``: the levels between the task and the group. A gate's price is that of a base step times the base steps of
    a window of its level. Raises ValueError for a group of one level.
    """
    settings = settings or Depth()
    one = f"depth({', '.join(map(str, group))}): a group of one level has no depth to learn"
    require(len(group) >= 2, f"{one}; put another level into it")
    costs = [0.0] * len(group)
    if settings.price:
        over: Iterator[Any] = accumulate((*under, *group), lambda problem, level: level.over(problem), initial=task)
        costs = [float(problem.traits.evals) for problem in over][-len(group) :]
    mover = above.optimizer if settings.gates is None else settings.gates
    levels = [group[0]]
    for place, (level, cost) in enumerate(zip(group[1:], costs[1:])):
        gated = Gated(level.optimizer, gate=settings.start, price=settings.price * cost)
        levels.append(_moving(mover, gated, level) if place else dataclasses.replace(level, optimizer=gated))
    return [*levels, above if settings.gates is None else _moving(mover, above.optimizer, above)]


def _moving(mover: Optimizer, inner: Optimizer, level: Level) -> Level:
    """``level`` with gates moved by ``mover`` and everything else by ``inner``."""
    return dataclasses.replace(level, optimizer=Partition(PATTERNS, (mover, inner)))
