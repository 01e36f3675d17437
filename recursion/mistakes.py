"""Mistakes that newcomers make when they build a tower in Python, each answered by one sentence that says the fix."""

from typing import Any

import torch
from torch import nn

from levels.base import Optimizer, Problem
from levels.catalog import Setting
from levels.fields import require
from levels.level import Level
from levels.reading import read_value
from recursion.reading import read, read_level

MOST = 60  # levels


def read_stack(task: Any, levels: tuple[Any, ...]) -> tuple[Problem, tuple[Level, ...]]:
    """The task and the levels of a tower; text among them is read as notation.

    TypeError for what is no task and no level; ValueError for a tower without a level.
    """
    if isinstance(task, str) and not levels:
        task, every = read(task)
        return task, tuple(every)
    task = read_value(task, Setting("the task", Problem)) if isinstance(task, str) else task
    levels = tuple(read_level(one, at) if isinstance(one, str) else one for at, one in enumerate(levels, 1))
    if not isinstance(task, Problem):
        wrap = "wrap it: ModuleTask(make=lambda: ..., loss_function=..., train=(inputs, targets))"
        raise TypeError(f"a tower stands on a task, got {task!r}{f'; {wrap}' if isinstance(task, nn.Module) else ''}")
    require(bool(levels), "a tower needs at least one level, got none; add an optimizer, as in 'quadratic: adam'")
    many = "the copies of each are a dimension, of which torch has 64"
    require(len(levels) <= MOST, f"a tower has at most {MOST} levels, got {len(levels)}: {many}")
    for number, level in enumerate(levels, 1):
        if not isinstance(level, Level):
            raise TypeError(f"level {number} must be a Level, got {level!r}; {_fix(level)}")
    return task, levels


def _fix(value: Any) -> str:
    """What to write instead of what was given for a level."""
    if isinstance(value, (list, tuple)):
        return "give levels one by one: Tower(task, *levels)"
    if isinstance(value, type) and issubclass(value, torch.optim.Optimizer):
        return f"write Level(optimizer=TorchOptim({value.__name__!r}))"
    name = getattr(value, "__name__", type(value).__name__)
    ours = isinstance(value, Optimizer) or (isinstance(value, type) and issubclass(value, Optimizer))
    return f"write Level(optimizer={name}(...))" if ours else "write Level(optimizer=..., unroll=20)"


def check_state(tower: Any, state: Any) -> None:
    """ValueError for the state of another tower, as far as heights and sizes tell."""
    size = tower.top.layout.size
    good = hasattr(state, "theta") and state.theta.shape == (size,) and len(tower.carries(state)) == tower.depth
    got = "that of another tower" if hasattr(state, "theta") else type(state).__name__
    require(good, f"a tower of {tower.depth} levels under {size} parameters steps a state that it made, got {got}")
