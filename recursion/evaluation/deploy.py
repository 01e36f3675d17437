"""Deployment: what a tower learned, run on problems that it never saw.

A tower of depth 2 learns the parameters of the optimizer at level 1. A deeper tower trains the optimizer under its top,
a trainer, which becomes the top of a fresh tower below and trains that, and so on down to level 1. A tower that moves
all levels at every step and never restarts is itself the optimizer, and starts anew on each problem.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from levels import keys
from levels.base import STATE, Optimizer, Problem
from levels.faults import NonFiniteError
from levels.fields import Count, described, fits, require, shown
from levels.level import Level
from levels.tasks.task import Task
from levels.tree import State
from recursion.evaluation.afresh import is_optimizer, run_afresh
from recursion.evaluation.observed import Observed, Tally
from recursion.tower import Tower, TowerState

CHUNK = 2**17  # most task parameters that `run` moves at once; a learned optimizer's state is tens of times that
CHOOSING_PROBLEMS, CHOOSING_STEPS = 8, 100  # `learned` compares the optimizers of a run on so many problems and steps


class Learned(NamedTuple):
    """What a tower's training produced."""

    params: Tensor  # [copies, m] of the optimizer at level 1
    base_steps: int  # task gradients spent to get them out of the tower, each copy counted; 0 at depth 2


class Point(NamedTuple):
    """One point of a run; leading dimensions ``[S, P]``."""

    x: Tensor  # [S, P, n]
    f: Tensor
    problem_state: State  # with which the task was asked there
    state: State  # the optimizer's


def require_counts(who: str, **values: int | None) -> None:
    """ValueError, in the name of ``who``, unless all values are whole numbers of at least 1, or None."""
    for name, value in values.items():
        good = fits(value, Count | None)
        require(good, f"{who}{name} must be {described(Count)}, got {shown(value)}")


@torch.no_grad()
def run(optimizer: Optimizer, params: Tensor, task: Problem, key: Tensor, steps: int) -> Tensor:
    """Losses ``[steps + 1, S, P]``, the one at the start first, of S settings of an optimizer on the same P problems.

    ``params`` ``[S, m]`` stay fixed; ``key`` ``[P]`` names the problems of ``task``. A NaN counts as inf. Raises
    ValueError if ``params`` do not fit the optimizer over the task.
    """
    require(steps >= 1, f"steps must be at least 1, got {steps}")
    n, optimizer = task.layout.size, optimizer.bind(task)
    takes, given = optimizer.layout.size, list(params.shape)
    require(params.shape[-1] == takes, f"{optimizer} takes {takes} parameters in the last dimension, got shape {given}")
    problems = max(1, min(len(key), CHUNK // n))
    settings = max(1, CHUNK // (n * problems))
    rows = []
    for some in torch.split(params, settings):
        points = (walk(optimizer, some, task, part, steps) for part in torch.split(key, problems))
        rows.append(torch.cat([torch.stack([point.f for point in each]) for each in points], dim=-1))
    losses = torch.cat(rows, dim=1)
    return losses.masked_fill(losses.isnan(), torch.inf)


def walk(optimizer: Optimizer, params: Tensor, task: Problem, key: Tensor, steps: int) -> Iterator[Point]:
    """The start, then the point after each of ``steps`` updates, of an optimizer bound to the task; as in `run`."""
    for_x, for_state = keys.split(key.expand(len(params), -1), 2).unbind(-1)  # [S, P] each
    x = optimizer.init_x(params, for_x)
    state = optimizer.init_state(params, x, keys.fold_in(key.expand(len(params), -1), STATE))
    task_state = task.init_state(x, for_state)
    for step in range(steps + 1):
        asked = task_state
        f, g, task_state = task.value_and_grad(x, asked)
        yield Point(x, f, asked, state)
        if step < steps:
            x, state = optimizer.update(params, x, state, f, g)


def learned(tower: Tower, state: TowerState, *, windows: int | None = None, seed: int) -> Learned:
    """What the tower's training produced for level 1.

    Each tower below runs for ``windows`` of its steps (None: `trained_windows`), or until it diverges. Of the
    optimizers at level 1 along the run, the one with the lowest mean loss on validation problems counts. ``seed``: of
    the fresh towers below; they draw from the task as the tower has it (its training split). Raises ValueError for a
    tower of depth 1, which trains no optimizer; NonFiniteError if a tower below diverges at once.
    """
    what = f"{tower}: a tower of depth 1 trains no optimizer"
    require(tower.depth >= 2, f"{what}; put a level on top, as in '/ adam'")
    require(windows is None or windows >= 1, f"windows must be at least 1, got {windows}")
    trained = tower.result(state)  # [copies, m] of the optimizer under the top
    if tower.depth == 2:
        return Learned(trained, 0)
    under, tally, count = tower.under(), Tally(), windows or trained_windows(tower.levels[-2])
    counted, results = Tower(Observed(tower.task, tally), *under.levels), []
    for params in trained:
        states: list[TowerState] = []
        try:
            states.extend(after for after, _ in counted.run(counted.init(seed, theta=params), count))
        except NonFiniteError:
            if not states:
                raise
        deeper = under.depth > 2
        results.append(learned(under, states[-1], windows=windows, seed=seed) if deeper else _best(under, states, seed))
    spent = int(tally.gradients) + sum(each.base_steps for each in results)
    return Learned(torch.cat([each.params for each in results]), spent)


def trained_windows(level: Level) -> int:
    """Windows of ``level`` from a start to the next restart in training; 20 if it never restarts."""
    return 20 if level.episode_length is None else level.episode_length // level.unroll


def _best(tower: Tower, states: Sequence[TowerState], seed: int) -> Learned:
    """Of the parameters along a run of a tower of depth 2, for each copy those that do best on validation problems."""
    task = tower.task
    if not isinstance(task, (Task, Observed)):
        raise TypeError(f"choosing by validation problems needs a task with splits, got {task!r}")
    candidates = torch.stack([state.carry.x for state in states])  # [states, copies, m]
    key = keys.split(keys.fold_in(keys.seed(seed, device=candidates.device), 2), CHOOSING_PROBLEMS)
    losses = run(tower.levels[0].optimizer, candidates.flatten(0, 1), task.on("validation"), key, CHOOSING_STEPS)
    best = losses[1:].mean((0, 2)).reshape(candidates.shape[:2]).argmin(0)
    return Learned(candidates[best, torch.arange(len(best), device=best.device)], losses.numel())


class Subject(NamedTuple):
    """What of a tower is evaluated: parameters learned for level 1, or the tower itself as an optimizer."""

    tower: Tower
    itself: bool
    params: list[Tensor]  # learned: [copies, m] for each state; itself: [1, m] of the top, those that differ
    base_steps: int

    @classmethod
    def of(cls, tower: Tower, states: Sequence[TowerState], *, windows: int | None, seed: int) -> Subject:
        """From states after training, one for each training seed."""
        if is_optimizer(tower):
            distinct = torch.unique(torch.stack([state.theta for state in states]), dim=0)
            return cls(tower, True, list(distinct[:, None]), 0)
        results = [learned(tower, state, windows=windows, seed=seed) for state in states]
        return cls(tower, False, [each.params for each in results], sum(each.base_steps for each in results))

    @property
    def sizes(self) -> list[int]:
        """Copies of each training seed."""
        return [len(params) for params in self.params]

    def losses(self, task: Task, problems: int, steps: int, seed: int) -> tuple[Tensor, Tensor, int]:
        """Losses ``[steps + 1, S, P]`` on problems of ``task``, the keys ``[P]`` of these, and base steps spent."""
        if self.itself:
            runs = [run_afresh(self.tower, task, problems, steps, seed=seed, theta=each[0]) for each in self.params]
            return torch.cat([r.losses for r in runs], dim=1), runs[0].key, sum(r.base_steps for r in runs)
        key = keys.split(keys.seed(seed, device=task.layout.device), problems)
        losses = run(self.tower.levels[0].optimizer, torch.cat(self.params), task, key, steps)
        return losses, key, losses.numel()

    def misfit(self, task: Task) -> str | None:
        """Why the subject cannot work on ``task``; None if it can."""
        if self.itself:
            return None
        optimizer, have = self.tower.levels[0].optimizer, self.params[0].shape[-1]
        needed = optimizer.bind(task).layout.size
        return None if needed == have else f"{optimizer} takes {needed} parameters on {task}, {have} were learned"
