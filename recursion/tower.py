"""Tower: a task and its levels, folded into one problem under one topmost level.

    tower = Tower(Quadratic(), Level(optimizer=LSTM(), unroll=20), Level(optimizer=Adam()))
    state = tower.init(seed=0)
    state, report = tower.step(state)

Each level is trained by the one above; the topmost one's parameters are fixed. One `step` is one window of the topmost
level: with unrolls T1, ..., TN exactly T1 * ... * TN task gradients in first order, restarts apart.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from levels import keys, restart
from levels.autodiff import as_data
from levels.base import Carry, Evals, LevelState, Problem
from levels.fields import clear, require
from levels.gradients.first_order import FirstOrder
from levels.level import Level
from levels.tasks.task import Task
from levels.tree import in_brief
from recursion import looking, mistakes
from recursion.reports import Report, at_step, report_of


@in_brief
class TowerState(NamedTuple):
    """Everything a tower is between two steps; tensors only, so it saves and compares as it is."""

    theta: Tensor  # [m] parameters of the topmost optimizer; they stay as they are
    carry: Carry  # of the topmost level; ``carry.x`` [copies, n] is what the tower trains
    step: Tensor  # int64 scalar, steps done


class Tower:
    """Levels, bottom first, over ``task``; or notation. ValueError, naming the level, where a part does not fit."""

    def __init__(self, task: Problem | str, *levels: Level | str) -> None:
        self.task, self.levels = mistakes.read_stack(task, levels)  # as given, or read
        self.bound, problem = list[Level](), self.task  # each over the one before
        for number, level in enumerate(self.levels, 1):
            try:
                problem = level.over(problem)
            except (TypeError, ValueError) as error:
                refused = getattr(error, "level", None)  # by its estimator; it is not the one above that asked
                who = f"level {number} ({level})" if refused is None else f"level {number - 1} ({refused})"
                raise (TypeError if isinstance(error, TypeError) else ValueError)(clear(f"{who}: {error}")) from error
            self.bound.append(problem)
        self.top = self.bound[-1]
        chooses = self.top.gradient.traits.chooses_lookahead
        what = f"level {self.depth} ({self.levels[-1]}) is the topmost: nothing is trained by what it looks ahead to"
        fix = f"leave {self.top.gradient if chooses else 'ahead'} out"
        require(not chooses and self.top.lookahead is None, f"{what}; {fix}")

    def init(self, seed: int, *, theta: Tensor | None = None) -> TowerState:
        """State at the start, after 1 + T1 + T1*T2 + ... task gradients. ``theta`` ``[m]``: the topmost optimizer's."""
        for_theta, for_carry = keys.split(keys.seed(seed, device=self.top.layout.device), 2)
        theta = self.top.init(for_theta) if theta is None else theta
        takes = f"level {self.depth} ({self.levels[-1]}) takes {self.top.layout.size} parameters"
        require(theta.shape == (self.top.layout.size,), f"{takes}, got shape {list(theta.shape)}")
        with at_step(0):
            return TowerState(theta, restart.started(self.top, theta, for_carry), torch.zeros((), dtype=torch.int64))

    def step(self, state: TowerState) -> tuple[TowerState, Report]:
        """One window of the topmost level. Raises NonFiniteError, naming level and step, unless levels skip."""
        mistakes.check_state(self, state)
        number = int(state.step) + 1
        evaluate = partial(as_data, outer=False, grad=self.top.optimizer.traits.reads_grad)
        with at_step(number):
            carry, window = restart.run(self.top, state.theta, state.carry, evaluate, keep=False)
        new = TowerState(state.theta, carry, state.step + 1)
        return new, report_of(self.bound, self.carries(new), window.losses, number)

    def run(self, state: TowerState, steps: int) -> Iterator[tuple[TowerState, Report]]:
        """``steps`` steps, one at a time: yields what `step` returns."""
        for _ in range(steps):
            state, report = self.step(state)
            yield state, report

    def carries(self, state: TowerState) -> list[Carry]:
        """What each level carries, level 1 first; the leading dimensions are copies, the topmost level's first."""
        carries, problem_state = [state.carry], state.carry.problem_state
        while isinstance(problem_state, LevelState):
            carries.append(problem_state.carry)
            problem_state = problem_state.carry.problem_state
        return carries[::-1]

    def result(self, state: TowerState) -> Tensor:
        """What the tower has trained, ``[copies, n]``: the topmost optimizer's result."""
        return self.top.optimizer.result(state.carry.state, state.carry.x)

    @property
    def costs(self) -> list[Evals]:
        """Task gradients of a window of each level, level 1 first, for each copy of the task; restarts apart."""
        evals, asked = self.top.problem.traits.evals, self.top.optimizer.traits.evals
        costs = [*(level.traits.evals for level in self.bound[:-1]), self.top.unroll * (evals + asked)]
        return [int(cost) if cost == int(cost) else cost for cost in costs]

    hypers, module, describe, _repr_html_ = looking.hypers, looking.module, looking.describe, looking.html
    depth = property(lambda self: len(self.levels), doc="Number of levels.")
    base_steps = property(lambda self: self.costs[-1], doc="Task gradients of one step, start-up and restarts apart.")

    def to(self, device: torch.device | str) -> Tower:
        """The same tower on another device, see `Task.to`. ValueError if its task has no such setting."""
        what = f"{self.task} is not a Task, so it says itself where it computes; move it, and build anew"
        require(isinstance(self.task, Task), what)
        return Tower(self.task.to(device), *self.levels)  # type: ignore[attr-defined]

    def under(self) -> Tower:
        """The tower without its topmost level; the level that becomes topmost never restarts."""
        *rest, top = self.levels[:-1]
        gradient = FirstOrder() if top.gradient.traits.chooses_lookahead else top.gradient
        return Tower(self.task, *rest, dataclasses.replace(top, horizon=None, lookahead=None, gradient=gradient))

    def __repr__(self) -> str:
        *rest, top = self.levels
        last = repr(top).replace(f"{top.optimizer}@1", repr(top.optimizer), 1) if top.unroll == 1 else repr(top)
        return f"{self.task}: " + " / ".join([*map(repr, rest), last])
