"""Tower: a task and its levels, folded into one problem under one topmost level.

    tower = Tower(Quadratic(), Level(optimizer=LSTM(), unroll=20), Level(optimizer=Adam()))
    state = tower.init(seed=0)
    state, report = tower.step(state)

Each level but the topmost is trained by the one above it. The topmost runs with fixed parameters: nothing
differentiates it. One `step` is one window of the topmost level, so a tower with unrolls T1, ..., TN pays
exactly T1 * ... * TN task gradients for it in first order, and one more evaluation below for each restart.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from functools import cached_property, partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from levels import captured, keys
from levels.compiled import is_compiling
from levels.base import Estimator, LevelState
from levels.gradients.first_order import FirstOrder
from levels.bound_levels import Level
from levels.level import Level
from levels.restart import NonFiniteError, Stop, put_off
from levels.base import Optimizer
from levels.base import Problem
from levels.tasks.task import Task
from levels.base import Carry, Window

if TYPE_CHECKING:
    from recursion.fused import Fused
    from recursion.running import Running


class TowerState(NamedTuple):
    """Everything a tower is between two steps; tensors only, so it saves and compares as it is."""

    params: Tensor  # [m] parameters of the topmost optimizer; nothing moves them
    carry: Carry  # of the topmost level; ``carry.x`` [copies, n] is what the tower trains
    step: Tensor  # int64 scalar, steps done


class Report(NamedTuple):
    """What one step tells: all plain numbers, level 1 first."""

    step: int
    losses: list[float]  # of the problem below each level, mean over copies (for the topmost: over its window too)
    skipped: list[int]  # copies skipped so far at each level, as not finite
    metrics: Mapping[str, float] = MappingProxyType({})  # what parts have to say, as "level 2 refused", mean over copies


class Tower:
    """Levels stacked over a task.

    ``task``: the problem at the bottom. ``levels``: at least one, bottom first. Raises ValueError, naming the level,
    when a part does not fit the one below.
    """

    def __init__(self, task: Problem, *levels: Level) -> None:
        if not isinstance(task, Problem):
            raise TypeError(f"a tower stands on a task, got {task!r}")
        if not levels:
            raise ValueError("a tower needs at least one level, got none; add an optimizer, as in 'quadratic: adam'")
        self.task = task
        self.levels = levels
        self.bound_levels: list[Level] = []
        below = task
        for number, level in enumerate(levels, 1):
            try:
                below = level.over(below)
                if number < len(levels) and levels[number].optimizer.reads_grad:
                    level.gradient.check(below)
            except (TypeError, ValueError) as error:
                raise type(error)(f"level {number} ({level}): {error}") from error
            self.bound_levels.append(below)
        self.top = self.bound_levels[-1]
        kinds = (type(laid.optimizer).metrics is Optimizer.metrics for laid in self.bound_levels)
        quiet = (type(level.gradient).metrics is Estimator.metrics for level in levels)
        self._notes = not (all(kinds) and all(quiet))  # somebody has something to say
        self._stops = all(type(level.nonfinite) is Stop for level in levels)  # nothing is ever skipped
        if levels[-1].lookahead is not None or levels[-1].gradient.chooses_ahead:
            what = f"level {len(levels)} ({levels[-1]}) is the topmost: nothing is trained by what it looks ahead to"
            raise ValueError(f"{what}; leave {'ahead' if levels[-1].ahead is not None else levels[-1].gradient} out")

    def to(self, device: torch.device | str) -> Tower:
        """The same tower on another device, see `levels.task.Task.to`. ValueError if its task has no such setting."""
        if not isinstance(self.task, Task):
            raise ValueError(f"{self.task} is not a Task, so it says itself where it computes; move it, and build anew")
        return Tower(self.task.to(device), *self.levels)

    @property
    def depth(self) -> int:
        """Number of levels."""
        return len(self.levels)

    @property
    def costs(self) -> list[int | Fraction]:
        """Task gradients that a window of each level costs, level 1 first, for each copy of the task; restarts apart.

        The product of the unrolls, where gradients are first-order; see `Estimator.evaluations` for the others. Rules
        that ask the problem themselves (`Optimizer.asking`) add to it; where they do not ask at each step it is a mean.
        """
        top = self.top.level.unroll * (self.top.problem.cost + self.top.optimizer.asking)
        return [_whole(cost) for cost in (*(laid.cost for laid in self.bound_levels[:-1]), top)]

    @cached_property
    def base_steps(self) -> int | Fraction:
        """Task gradients that one step costs after start-up; the last of `costs`."""
        return self.costs[-1]

    def init(self, seed: int, *, params: Tensor | None = None) -> TowerState:
        """State at the start. ``params`` ``[m]``: of the topmost optimizer, if it is not to start with its own.

        Start-up evaluates each level's problem once: 1 + T1 + T1*T2 + ... task gradients.
        """
        for_params, for_carry = keys.split(keys.seed(seed, device=self.top.layout.device), 2)
        if params is None:
            params = self.top.init(for_params)
        elif params.shape != (self.top.layout.size,):
            size = self.top.layout.size
            raise ValueError(
                f"level {self.depth} ({self.levels[-1]}) takes {size} parameters, got shape {list(params.shape)}"
            )
        try:
            with torch.no_grad():
                carry = self.top.start(params, for_carry)
        except NonFiniteError as error:
            self._name(error, 0)
            raise
        return TowerState(params, carry, torch.zeros((), dtype=torch.int64))

    def step(self, state: TowerState) -> tuple[TowerState, Report]:
        """One window of the topmost level. Raises NonFiniteError, naming level and step, unless levels skip."""
        number = int(state.step) + 1
        try:
            with torch.no_grad():
                carry, losses = self._window(state)
        except NonFiniteError as error:
            self._name(error, number)
            raise
        new = TowerState(state.params, carry, state.step + 1)
        return new, self.report(number, losses, lambda: new)

    def report(self, step: int, losses: list[float], state: Callable[[], TowerState]) -> Report:
        """What step number ``step`` tells that led to ``state``, which is asked for only if something is to be read."""
        skipped = [0] * self.depth
        if not self._stops:
            skipped = _sums([carry.skipped for carry in self.carries(state())])
        return Report(step, losses, skipped, self.metrics(state()) if self._notes else {})

    def running(self, state: TowerState) -> Running:
        """The tower at ``state``, to be stepped on without looking at the states between (`recursion.running`)."""
        from recursion.checkpoint import settled
        from recursion.running import Running

        return Running(self, int(state.step), settled(state))

    def _window(self, state: TowerState) -> tuple[Carry, list[float]]:
        """One window of the topmost level, and the losses that the step reports."""
        if captured.serves(state.params) and self.top.endless and self.top.steady:
            carry, told = self._graphs(partial(telling, self.top), state.params, state.carry)
            *losses, total = told.tolist()
            if math.isfinite(total):
                return carry, losses
        if is_compiling() and (fused := self.fused.window(state.params, state.carry)):
            return fused
        carry, window = self._looked_at(state)
        return carry, _means(reported(carry, window))

    def _looked_at(self, state: TowerState) -> tuple[Carry, Window]:
        """A window in plain operations. Where all levels stop, it is looked at once, and run again to hear where."""
        if self._stops:
            with put_off() as noted:
                answer = self.top.window(state.params, state.carry, record=False, judged=False)
            if noted.finite():
                return answer
        return self.top.window(state.params, state.carry, record=False, judged=False)

    @cached_property
    def _graphs(self) -> captured.Graphs:
        return captured.Graphs()

    @cached_property
    def fused(self) -> Fused:
        """The step compiled whole, where that is possible, for `step`."""
        from recursion.fused import Fused

        return Fused(self)

    @cached_property
    def packed(self) -> Fused:
        """The step compiled whole, where that is possible, for `running`."""
        from recursion.fused import SMALL, Fused

        return Fused(self, small=SMALL)

    def run(self, state: TowerState, steps: int) -> Iterator[tuple[TowerState, Report]]:
        """``steps`` steps, one at a time: yields what `step` returns."""
        for _ in range(steps):
            state, report = self.step(state)
            yield state, report

    def result(self, state: TowerState) -> Tensor:
        """What the tower has trained, ``[copies, n]``: ``state.carry.x``, unless the topmost rule knows better."""
        return self.top.optimizer.result(state.carry.state, state.carry.x)

    def carries(self, state: TowerState) -> list[Carry]:
        """What each level carries, level 1 first; leading dimensions are the copies, the topmost level's first."""
        return stacked(state.carry)

    def metrics(self, state: TowerState) -> dict[str, float]:
        """What optimizers and estimators have to say of their states, by level and name; means over copies."""
        found: dict[str, Tensor] = {}
        carries = self.carries(state)
        for number, (laid, carry) in enumerate(zip(self.bound_levels, carries), 1):
            said = laid.optimizer.metrics(carry.state)
            if number < self.depth:
                said = said | laid.level.gradient.metrics(carries[number].below)
            found |= {f"level {number} {name}": value for name, value in said.items()}
        return dict(zip(found, _means([value.double() for value in found.values()]))) if found else {}

    def under(self) -> Tower:
        """The tower without its topmost level; the level that becomes topmost goes on for ever, never restarting."""
        *rest, top = self.levels[:-1]
        gradient = FirstOrder() if top.gradient.chooses_ahead else top.gradient
        return Tower(self.task, *rest, dataclasses.replace(top, horizon=None, lookahead=None, gradient=gradient))

    def __repr__(self) -> str:
        written = [repr(level) for level in self.levels]
        top = self.levels[-1]
        if top.unroll == 1:
            written[-1] = written[-1].replace(f"{top.optimizer}@1", repr(top.optimizer), 1)
        return f"{self.task}: " + " / ".join(written)

    def _name(self, error: NonFiniteError, step: int) -> None:
        """Add level and step to what the error says; levels do not know where they stand, the tower does."""
        if error.source in self.bound_levels:
            number = self.bound_levels.index(error.source) + 1
            level = self.levels[number - 1]
            error.args = (f"level {number} ({level}): {error.what} at top step {step}; {error.fix}",)


def stacked(carry: Carry) -> list[Carry]:
    """What is carried by each level, level 1 first, by what the topmost one carries."""
    carries, below = [carry], carry.below
    while isinstance(below, LevelState):
        carries.append(below.carry)
        below = below.carry.below
    return carries[::-1]


def reported(carry: Carry, window: Window) -> list[Tensor]:
    """The losses below each level, level 1 first, when the topmost one has run a window."""
    return [*(below.f for below in stacked(carry)[:-1]), window.losses]


def telling(top: Level, params: Tensor, carry: Carry) -> tuple[Carry, Tensor]:
    """A window, and in one tensor what is to be told of it: the mean losses below each level, and a number that is
    finite if all that was answered anywhere is."""
    with put_off() as noted:
        end, window = top.window(params, carry, record=False, judged=False)
    assert noted.total is not None
    return end, torch.stack([*(loss.mean() for loss in reported(end, window)), noted.total])


def _whole(cost: int | Fraction) -> int | Fraction:
    """The cost as a plain number if it is whole."""
    return int(cost) if cost == int(cost) else cost


def _means(tensors: list[Tensor]) -> list[float]:
    """The mean of each tensor as a plain number, waiting once for all."""
    return [total / tensor.numel() for total, tensor in zip(_sums(tensors), tensors)]


def _sums(tensors: list[Tensor]) -> list[Any]:
    """The sum of each tensor as a plain number, waiting once for all."""
    if len(tensors) == 1:
        return [tensors[0].sum().item()]
    sums = [tensor.sum() if tensor.numel() > 1 else tensor for tensor in tensors]
    return torch.cat([one.reshape(1) for one in sums]).tolist()
