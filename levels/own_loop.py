"""Own loop: a level inside a training loop that you write yourself.

    level = Level(optimizer=SGD(lr=0.1), unroll=20, gradient=Exact()).over(task)
    theta = level.init(keys.seed(0)).requires_grad_()
    state, outer = level.init_state(theta, keys.seed(1)), torch.optim.Adam([theta], 0.01)
    for _ in range(100):
        loss, state = meta_loss(level, theta, state)
        (loss + theta.square().sum()).backward()
        outer.step()
        outer.zero_grad()

The batch dimensions of ``theta`` ``[*batch, m]`` stay in front, as everywhere.
"""

from functools import lru_cache

import torch
from torch import Tensor

from levels import keys
from levels.autodiff import as_data, followed
from levels.base import STATE, Carry, LevelState, Problem
from levels.fields import require
from levels.level import Level
from levels.restart import run


def meta_loss(level: Level, theta: Tensor, state: LevelState) -> tuple[Tensor, LevelState]:
    """The meta-loss ``[*batch]`` of one window as an autograd node, and the next state.

    Its backward pass gives ``theta`` the gradient of the level's estimator, which is computed here, in the forward
    pass. Higher derivatives are right where that estimator can be differentiated.
    """
    _check(level, theta)
    answer = followed(level, theta, state)
    return answer.f, answer.problem_state


def unrolled(level: Level, theta: Tensor, state: LevelState) -> tuple[Tensor, LevelState]:
    """The parameters ``[*batch, copies, n]`` after one window as a function of ``theta``, and the next state.

    For a loss of your own of the final parameters. The level's estimator must be backpropagation: first-order, through
    which the problem's gradients are constants, or exact. ValueError for another one.
    """
    _check(level, theta)
    evaluate = getattr(level.gradient, "evaluate", None)
    require(evaluate is not None, f"{level.gradient} does not follow the parameters; use first-order or exact")
    with torch.enable_grad():
        carry, window = run(level, theta, state.carry, evaluate)  # type: ignore[arg-type]
    return window.steps[level.unroll - 1].x, state._replace(carry=carry)


@torch.no_grad()
def started_at(level: Level, theta: Tensor, state: LevelState, x: Tensor) -> LevelState:
    """The state in which every copy begins a trajectory at your own parameters ``x`` ``[*batch, copies, n]``.

    The problems of the copies stay; one evaluation of each. For backpropagation, whose state is its carry alone.
    """
    _check(level, theta)
    old = state.carry
    what, good = f"{level} works on parameters {list(old.x.shape)}", x.shape == old.x.shape and x.dtype == old.x.dtype
    require(good, f"{what} in {old.x.dtype}, got {list(x.shape)} in {x.dtype}")
    own = level.optimizer.init_state(theta.detach(), x, keys.fold_in(old.key, STATE))
    f, g, problem_state, *_ = as_data(level.problem, x, old.problem_state, outer=False)
    carry = Carry(x, own, f, g, problem_state, torch.zeros_like(old.age), old.key, old.skipped)
    return state._replace(carry=carry, memory=None)


def _check(level: Level, theta: Tensor) -> None:
    """ValueError for a level without a problem or one that its estimator refuses, or theta of another size or dtype."""
    require(level.problem is not None, f"{level} stands on no problem; write level.over(task)")
    size, dtype = level.layout.size, level.layout.dtype
    good = theta.shape[-1:] == (size,) and theta.dtype == dtype
    require(good, f"{level} takes parameters [..., {size}] in {dtype}, got {list(theta.shape)} in {theta.dtype}")
    _check_estimator(level, level.problem)


@lru_cache(maxsize=64)
def _check_estimator(level: Level, problem: Problem) -> None:
    """What a tower checks when it is built; here once for a level on a problem."""
    level.gradient.check(level.over(problem))
