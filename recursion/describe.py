"""A tower in words: what each level is, how much it learns, and what it costs."""

from collections.abc import Iterator
from fractions import Fraction
from itertools import accumulate
from operator import mul

from levels.level import Level
from recursion.tower import Tower


def describe(tower: Tower) -> str:
    """A few lines a level, the task first; ends with a newline."""
    return "\n".join(_lines(tower)) + "\n"


def _lines(tower: Tower) -> Iterator[str]:
    costs, levels = tower.costs, tower.bound
    copies = list(accumulate((level.copies for level in reversed(levels)), mul))[::-1]
    layout = tower.task.layout
    yield str(tower)
    yield f"task: {tower.task}"
    yield f"  parameters  {layout.size:,}: {', '.join(f'{name} {list(shape)}' for name, shape in layout.entries)}"
    for number, (level, cost, copy) in enumerate(zip(levels, costs, copies), 1):
        problem = "the task" if number == 1 else f"level {number - 1}"
        fate = "fixed, for it is the topmost" if level is tower.top else f"trained by level {number + 1}"
        further = f", the meta-loss over {_count(level.lookahead, 'update')}" if level.lookahead else ""
        yield f"level {number}: {level}"
        yield f"  optimizer   {level.optimizer}, updates the {level.problem.layout.size:,} parameters of {problem}"
        yield f"  parameters  {level.layout.size:,}, {fate}"
        yield f"  unroll      {_count(level.unroll, 'update')} a window{further}"
        yield f"  horizon     {_horizon(level)}"
        yield f"  batch       {_count(level.copies, 'copy', 'copies')} of {problem}; {copy:,} below in all"
        yield f"  cost        {_count(cost, 'base step')} a window"
    startup = 1 + sum(costs[:-1])
    yield f"one step: {_count(costs[-1], 'base step')}, each on {_count(copies[0], 'copy', 'copies')} of the task"
    yield f"start-up: {_count(startup, 'base step')}; a restart of a level costs one evaluation of the problem below it"


def _horizon(level: Level) -> str:
    if level.episode_length is None:
        return "none, trajectories never restart"
    windows = _count(level.episode_length // level.unroll, "window")
    return f"{_count(level.episode_length, 'update')}, trajectories restart after {windows}"


def _count(number: int | Fraction, one: str, many: str = "") -> str:
    shown = f"{number:,}" if isinstance(number, int) else f"{float(number):,.1f}"
    return f"{shown} {one if number == 1 else many or one + 's'}"
