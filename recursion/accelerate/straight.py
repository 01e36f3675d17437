"""Straight: one step of a tower whose unrolls are all 1, as the same operations whatever the numbers are.

In such a tower every level moves at every base step, and a level does little above the task: arithmetic on a few
numbers. Nothing depends on a number's value as long as no level restarts or skips. So the step is written here without
a look at any: a sum of all answers is returned beside, and the caller looks at it once. Where it is not finite, the
caller runs the plain step, which raises. The same operations can be traced and compiled (`recursion.accelerate.fused`).
"""

from typing import Any

import torch
from torch import Tensor

from levels.base import Carry, LevelState, Objective, Problem, is_level
from levels.faults import Stop
from levels.gradients.first_order import FirstOrder
from levels.hyper import HyperparamOptimizer
from levels.level import Level
from levels.objectives import Sum
from levels.tree import State
from recursion.accelerate.sweeps import SWEEPS, Read
from recursion.accelerate.windows import SweptFirstOrder
from recursion.tower import Tower


def is_straight(tower: Tower) -> bool:
    """Whether a step of ``tower``, as it was built, can be run by `advanced`."""
    rules = (type(level.optimizer) in SWEEPS and isinstance(level.optimizer, HyperparamOptimizer)
             for level in tower.bound)  # fmt: skip
    plain = type(tower.task).outer_value_and_grad is Problem.outer_value_and_grad
    return plain and all(rules) and all(map(_never_restarts, tower.bound)) and all(map(_counts, tower.bound[:-1]))


def _never_restarts(level: Level) -> bool:
    return level.unroll == 1 and level.episode_length is None and type(level.nonfinite) is Stop


def _counts(level: Level) -> bool:
    """Whether the meta-gradient of a window is that of its one update."""
    return type(level.gradient) in (FirstOrder, SweptFirstOrder) and level.lookahead in (None, 1) and level.clip is None


def advanced(top: Level, theta: Tensor, carry: Carry) -> tuple[Carry, Tensor, Tensor]:
    """The next carry, the mean losses below each level, level 1 first, and a number that is finite if all answers are.

    ``theta`` ``[m]`` and ``carry`` are those of the topmost level.
    """
    twin = SWEEPS[type(top.optimizer)](top.optimizer, theta)
    x, rest = twin.update(Read(carry.x, carry.state, carry.f, carry.g))
    answers: list[Tensor] = []
    f, g, problem_state = _asked(top.problem, x, carry.problem_state, answers)
    losses = torch.stack([*(loss.mean() for loss in answers[::2])])
    total = torch.stack([one.sum() for one in answers]).sum()
    return carry._replace(x=x, state=rest, f=f, g=g, problem_state=problem_state, age=carry.age + 1), losses, total


def _asked(problem: Any, x: Tensor, problem_state: State, answers: list[Tensor]) -> tuple[Tensor, Tensor, State]:
    """What the problem answers at ``x``; losses and gradients of all levels are added to ``found``, level 1 first."""
    if not is_level(problem):
        f, g, problem_state = problem.value_and_grad(x, problem_state)
    else:
        carry = problem_state.carry
        twin, read = SWEEPS[type(problem.optimizer)](problem.optimizer, x), Read(*carry[:4])
        at, rest = twin.update(read)
        loss, slope, inner = _asked(problem.problem, at, carry.problem_state, answers)
        f, cotangent = _counted(problem.objective, loss, slope)
        g = twin.vjp([read], cotangent[None])
        moved = carry._replace(x=at, state=rest, f=loss, g=slope, problem_state=inner, age=carry.age + 1)
        problem_state = LevelState(moved, None)
    answers += [f, g]
    return f, g, problem_state


def _counted(objective: Objective, loss: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
    """The meta-loss ``[*batch]`` of one update, the mean over copies, and its cotangent ``[*batch, copies, n]``."""
    copies = loss.shape[-1]
    if type(objective) is not Sum:
        weights = objective.weights(loss[None])[0] / copies
        return objective.value(loss[None]).mean(-1), weights[..., None] * slope
    return (loss.squeeze(-1), slope) if copies == 1 else (loss.mean(-1), slope / copies)
