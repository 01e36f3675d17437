"""Repaying: whether a run is long enough to repay what a twin costs before its first step.

It depends on the tower and the number of steps alone, so a run is the same wherever and whenever it is repeated.
"""

import math

from levels.gradients.exact import Exact
from recursion.accelerate import native
from recursion.accelerate.parts import NATIVE, holds
from recursion.accelerate.tower import compiles_whole
from recursion.accelerate.traced import is_traceable
from recursion.tower import Tower

COMPILED = 10**8  # coordinates updated under exact gradients, where torch compiles for tens of seconds
BUILT = 4 * 10**6  # coordinates updated by rules in C++: each saves 0.2 to 2 us, and building takes two seconds
EACH_UPDATE = 300  # coordinates that the 0.3 ms of any update count as
FUSED = 10**5  # updates of levels where a step is compiled whole: each saves 0.06 ms or more


def repays(tower: Tower, steps: int) -> bool:
    """Whether what `accelerate` compiles is worth its start in a run of ``steps`` steps; never where nothing is."""
    layout = tower.top.layout
    if layout.device.type != "cpu" or not native.compiler():
        return False
    if compiles_whole(tower):
        return steps * len(tower.levels) >= FUSED
    copies = math.prod(level.copies for level in tower.bound)
    if is_traceable(tower.task) and any(holds(level.gradient, {Exact}) for level in tower.levels[:-1]):
        return steps * tower.costs[-1] * copies * tower.task.layout.size >= COMPILED
    return native.suits(layout.device, layout.dtype) and steps * _native_updates(tower) >= BUILT


def _native_updates(tower: Tower) -> int:
    """Coordinates that rules in C++ update in a step of the topmost level, with what an update counts beside."""
    levels = [(number, level) for number, level in enumerate(tower.bound) if holds(level.optimizer, NATIVE)]
    return sum(
        math.prod(one.unroll for one in tower.bound[number:])
        * (math.prod(one.copies for one in tower.bound[number:]) * level.problem.layout.size + EACH_UPDATE)
        for number, level in levels
    )
