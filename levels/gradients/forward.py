"""Forward mode: sensitivities run along with the trajectory, so that no window cuts anything off.

Real-time recurrent learning (Williams and Zipser 1989), as a hypergradient (Franceschi et al. 2017, arXiv 1703.01785,
section 3.2), with hyperparameters shared over time (Micaelli and Storkey 2021, arXiv 2007.07869). Beside ``x`` and the
optimizer's state stand their derivatives in the m parameters, one tangent each, all pushed at once:

    dx, dstate  <-  update pushed forward along (params, df, dg, dstate, dx)
    dg          <-  J(x_t) dx,    df <- <g_t, dx>          J: Jacobian of the gradient, forward over reverse
    dparams     <-  dparams + w_t <g_t, dx>

They are kept from window to window and begin anew where a trajectory does, with what the parameters say of its start.
So a window's gradient is that of its meta-loss through the whole trajectory behind it, not only through the window.
Nothing is swept backward: beside the carries of one window, memory is m + 1 times what a copy carries, however many
steps have run. Over unroll T a window costs 2T evaluations below, T of them with m tangents.

Where the level above moves the parameters between windows, no single parameter vector made the trajectory. What comes
out then is the derivative along a shift of all the parameters that were used, by the same amount each.

What the problem below carries for itself is a constant here, as everywhere. For a task that loses nothing; over a
level, it is that level's own trajectory. Its answer is taken at its word as the derivative of its value, and J is only
ever multiplied from the right; so that level need not be symmetric: first order and clipped gradients may be below.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from levels import keys
from levels.autodiff import push
from levels.gradients.backward import weighted
from levels.base import Estimator, LevelState
from levels.gradients.exact import Exact
from levels.bound_levels import Level
from levels.level import Level
from levels.restart import Skip
from levels.config import format_value, require
from levels.base import Problem
from levels.tree import State, choose, leaves, map_leaves, with_leaves
from levels.base import DUE, Step


class Sensitivities(NamedTuple):
    """Derivatives in each of the level's m parameters of what an update reads."""

    f: Tensor  # [*batch, copies, m]
    g: Tensor  # [*batch, copies, m, n]
    x: Tensor  # [*batch, copies, m, n]
    state: tuple[Tensor, ...]  # [*batch, copies, m, ...] one for each tensor of the state that has derivatives


@dataclass(frozen=True, repr=False)
class Forward(Estimator):
    """The gradient through the whole trajectory, for optimizers with few parameters, as ``sgd@10[gradient=forward]``.

    ``limit``: the most parameters, at least 1; ValueError when the tower is built if the optimizer has more. Copies
    whose sensitivities overflow restart before the next window, if the level's policy lets the run go on.
    """

    name = "forward"

    limit: int = 64

    def __post_init__(self) -> None:
        good = isinstance(self.limit, int) and not isinstance(self.limit, bool) and self.limit >= 1
        require(good, f"forward: limit must be a whole number of at least 1, got {notate(self.limit)}")

    def evaluations(self, level: Level, judging: int = 0) -> int:
        return level.reach * (2 + judging)

    def check(self, level: Level) -> None:
        size, optimizer = level.layout.size, level.optimizer
        fix = "use gradient=first-order or gradient=pes"
        more = f"{self} pushes one tangent for each parameter, at most {self.limit}"
        require(size <= self.limit, f"{more}, and {optimizer} has {size}; {fix}")
        fix = "let it be the topmost level, use an optimizer that can be differentiated, or estimate by gradient=pes"
        require(optimizer.differentiable, f"{optimizer} cannot be differentiated by {self}; {fix}")
        problem: Problem = level
        while isinstance(problem, Level):
            problem = problem.problem
            what = f"the level below, {problem.level}," if isinstance(problem, Level) else f"{problem}"
            fix = "use gradient=first-order or gradient=pes on this level"
            require(problem.differentiable, f"{what} has a gradient that cannot be differentiated by {self}; {fix}")
        Exact().check(level)  # differentiates every update and the task's gradient once
        _check_tangents(level)

    def init_state(self, level: Level, params: Tensor, key: Tensor) -> LevelState:
        carry = level.start(params, key)
        step = Step(carry.f, carry.g, carry.state, carry.x)
        return LevelState(
            carry, _at_start(level, params, carry.key, step, torch.ones_like(carry.key, dtype=torch.bool))
        )

    def value_and_grad(self, level: Level, params: Tensor, state: LevelState) -> tuple[Tensor, Tensor, LevelState]:
        carry, window = level.window(params, state.carry, asked=True)
        value, weights = level.meta_loss(window.losses)
        slopes: Sensitivities = state.memory
        if window.begun.any():
            fresh = _at_start(level, params, carry.key, window.steps[0], window.begun)
            slopes = choose(window.begun, fresh, slopes)
        dparams, carried = torch.zeros_like(params), slopes
        answers = [*(step.g for step in window.steps[1:]), carry.g]  # the last one counts only where the window ends
        for t, (step, asked, g) in enumerate(zip(window.steps, window.asked, answers)):
            slopes = _advance(level, params, step, asked, g, slopes)
            if window.stood is not None:  # there the problem may answer anything
                slopes = choose(window.stood, map_leaves(torch.zeros_like, slopes), slopes)
            counted = weighted(weights[t], window.grads[t])
            if counted is not None:
                dparams = dparams + (counted[..., None, :] * slopes.x).sum((-3, -1))
            if t + 1 == level.level.unroll:
                carried = slopes
        age = torch.where(_finite(carried, params.dim()), carry.age, DUE)
        return value, dparams, LevelState(carry._replace(age=age), carried)


def _advance(level: Level, params: Tensor, step: Step, asked: State, g: Tensor, slopes: Sensitivities) -> Sensitivities:
    """Sensitivities behind one update and the answer ``g`` that followed, all m pushed at once.

    ``step`` is what the update read, ``asked`` the state with which the problem was asked then.
    """

    def along(v: Tensor, f: Tensor, g: Tensor, x: Tensor, *floats: Tensor) -> tuple[Tensor, ...]:
        read = (params, step.f, step.g, step.x, *_floats(step.state))
        pushed: tuple[Tensor, ...] = push(follow, read, (v.expand_as(params), f, g, x, *floats))[1]
        return pushed

    def follow(read: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        params, f, g, x, *floats = read
        x, state = level.optimizer.update(params, f, g, _with_floats(step.state, floats), x)
        return x, level.problem.value_and_grad(x, asked)[1], *_floats(state)

    given = slopes.f, slopes.g, slopes.x, *slopes.state
    place = params.dim()  # of the tangents' dimension
    fan = torch.vmap(along, in_dims=(0, *[place] * len(given)))
    dx, dg, *dstate = (leaf.movedim(0, place) for leaf in fan(_directions(params), *given))
    return Sensitivities((g[..., None, :] * dx).sum(-1), dg, dx, tuple(dstate))


def _at_start(level: Level, params: Tensor, key: Tensor, start: Step, begun: Tensor) -> Sensitivities:
    """Sensitivities of trajectories of keys ``[*batch, copies]`` that begin with ``start``; any where not ``begun``."""
    optimizer, place = level.optimizer, params.dim()

    def first(params: Tensor) -> tuple[Tensor, ...]:
        x = optimizer.start(params, level.problem.init, keys.split(key, 2)[..., 0])
        return x, *_floats(optimizer.init_state(params, x))

    fan = torch.vmap(lambda v: push(first, params, v.expand_as(params))[1])
    dx, *dstate = (leaf.movedim(0, place) for leaf in fan(_directions(params)))
    dg = _bent_at_start(level, key, start.x, dx, begun) if dx.any() else torch.zeros_like(dx)
    return Sensitivities((start.g[..., None, :] * dx).sum(-1), dg, dx, tuple(dstate))


def _bent_at_start(level: Level, key: Tensor, x: Tensor, dx: Tensor, begun: Tensor) -> Tensor:
    """Sensitivities of the gradient where trajectories begin, ``[*batch, copies, m, n]``; 0 where not ``begun``."""
    rows = begun.flatten().nonzero().squeeze(-1)
    at, flat = x.flatten(0, -2)[rows], dx.flatten(0, -3)  # [k, n], [*, m, n]
    asked = level.asked_first(at, key.flatten()[rows])
    gradient = lambda x: level.problem.value_and_grad(x, asked)[1]  # noqa: E731
    bent = torch.vmap(lambda v: push(gradient, at, v)[1], in_dims=1)(flat[rows]).movedim(0, 1)
    return torch.zeros_like(flat).index_copy(0, rows, bent).reshape(dx.shape)


def _check_tangents(level: Level) -> None:
    """ValueError unless all tangents can be pushed at once, tried on one update of one copy."""
    tried = replace(level.level, unroll=1, lookahead=None, horizon=None, batch=1, nonfinite=Skip()).over(level.problem)
    key = keys.seed(0, device=level.layout.device)
    params = tried.init(key)
    state = tried.init_state(params, key)
    try:
        tried.value_and_grad(params, state)
    except Exception as error:  # whatever a stranger's code raises
        fix = "use gradient=first-order or gradient=pes"
        first = str(error).strip().partition("\n")[0]
        raise ValueError(f"{level.level.gradient} cannot push tangents through {level} ({first}); {fix}") from error


def _directions(params: Tensor) -> Tensor:
    """One direction for each parameter: ``[m, m]``."""
    return torch.eye(params.shape[-1], dtype=params.dtype, device=params.device)


def _finite(slopes: Sensitivities, batch_dims: int) -> Tensor:
    """Whether all sensitivities of a copy are finite: ``[*batch, copies]``."""
    return torch.stack([torch.isfinite(leaf).flatten(batch_dims).all(-1) for leaf in leaves(slopes)]).all(0)


def _floats(state: State) -> list[Tensor]:
    """The tensors of a state that have derivatives."""
    return [leaf for leaf in leaves(state) if leaf.is_floating_point()]


def _with_floats(state: State, floats: list[Tensor]) -> State:
    """``state`` with other tensors where they have derivatives."""
    left = iter(floats)
    return with_leaves(state, [next(left) if leaf.is_floating_point() else leaf for leaf in leaves(state)])
