"""A tower in words: what each level is, how much it learns, and what it costs."""

from collections.abc import Iterator
from fractions import Fraction
from itertools import accumulate
from operator import mul

from levels.bound_levels import Level
from levels.level import Level
from recursion.tower import Tower


def describe(tower: Tower) -> str:
    """A few lines a level, the task first; ends with a newline."""
    return "\n".join(_lines(tower)) + "\n"


def _lines(tower: Tower) -> Iterator[str]:
    costs = tower.costs
    copies = list(accumulate((laid.batch for laid in reversed(tower.bound_levels)), mul))[::-1]
    layout = tower.bound_levels[0].problem.layout
    tensors = ", ".join(f"{name} {list(shape)}" for name, shape in layout.entries)
    yield str(tower)
    yield f"task: {tower.task}"
    yield f"  parameters  {layout.size:,}: {tensors}"
    for number, (laid, cost, copy) in enumerate(zip(tower.bound_levels, costs, copies), 1):
        yield from _level(number, laid, cost, copy, number == tower.depth)
    startup = 1 + sum(costs[:-1])
    yield f"one step: {_count(costs[-1], 'base step')}, each on {_count(copies[0], 'copy', 'copies')} of the task"
    yield f"start-up: {_count(startup, 'base step')}; a restart of a level costs one evaluation of the problem below it"


def _level(number: int, laid: Level, cost: int | Fraction, copies: int, top: bool) -> Iterator[str]:
    level, below = laid.level, "the task" if number == 1 else f"level {number - 1}"
    fate = "fixed, for it is the topmost" if top else f"trained by level {number + 1}"
    yield f"level {number}: {level}"
    yield f"  optimizer   {level.optimizer}, updates the {laid.problem.layout.size:,} parameters of {below}"
    yield f"  parameters  {laid.layout.size:,}, {fate}"
    yield f"  unroll      {_count(level.unroll, 'update')} a window{_ahead(level)}"
    yield f"  horizon     {_horizon(level)}"
    yield f"  batch       {_count(laid.batch, 'copy', 'copies')} of {below}; {copies:,} below in all"
    yield f"  cost        {_count(cost, 'base step')} a window"


def _ahead(level: Level) -> str:
    return "" if level.lookahead is None else f", which looks on for {_count(level.reach, 'update')}"


def _horizon(level: Level) -> str:
    if level.episode_length is None:
        return "none, trajectories never restart"
    windows = _count(level.episode_length // level.unroll, "window")
    return f"{_count(level.life, 'update')}, trajectories restart after {windows}"


def _count(number: int | Fraction, one: str, many: str = "") -> str:
    shown = f"{number:,}" if isinstance(number, int) else f"{float(number):,.1f}"
    return f"{shown} {one if number == 1 else many or one + 's'}"
