"""Forward mode: sensitivities run along with the trajectory, so that no window cuts anything off.

Real-time recurrent learning (Williams and Zipser 1989), as a hypergradient (Franceschi et al. 2017, arXiv 1703.01785,
section 3.2), with hyperparameters shared over time (Micaelli and Storkey 2021, arXiv 2007.07869). Beside ``x`` and the
optimizer's state stand their derivatives in the m parameters, one tangent each:

    dx, dstate  <-  Jacobian of the update times (dtheta, dx, dstate, df, dg)
    dg          <-  J(x_t) dx,    df <- <g_t, dx>,        J = Jacobian of the gradient at x_t
    gradient    <-  gradient + w_t <g_t, dx>

They are kept from window to window and begin anew where a trajectory does, with the derivatives of its start. So a
window's gradient is that of its meta-loss through the whole trajectory behind it, not only through the window. Beside
the carries of one window, memory is m + 1 times what a copy carries, however many steps have run. Over unroll T a
window costs 2T evaluations below, T of them differentiated.

A product with a Jacobian is the derivative of the vector-Jacobian product in its vector: ``u -> J^T u`` is linear, so
its derivative in u, transposed, is ``v -> J v``. Autograd alone does both, over tasks, modules and levels alike. J need
not be symmetric: first order and clipped gradients may be below. The level below answers with its gradient, and that is
taken as the derivative of its value.

Where the level above moves the parameters between windows, no single parameter vector made the trajectory. The gradient
is then the derivative along a shift of all the parameters that were used, by the same amount each. The state of the
problem below is a constant here, as everywhere. For a task nothing is lost by this; for a level, its own trajectory.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

import torch
from torch import Tensor

from levels import keys
from levels.base import RESET, STATE, Carry, Estimator, LevelLike, LevelState, Problem
from levels.episode import require_differentiable
from levels.faults import Skip
from levels.fields import Count, require
from levels.gradients.exact import require_followed
from levels.restart import run, started
from levels.tree import State, choose, leaves, map_leaves, scatter, with_leaves


class Sensitivities(NamedTuple):
    """Derivatives in each of the level's m parameters of what an update reads."""

    f: Tensor  # [*batch, copies, m]
    g: Tensor  # [*batch, copies, m, n]
    x: Tensor  # [*batch, copies, m, n]
    state: tuple[Tensor, ...]  # [*batch, copies, m, ...] one for each floating tensor of the state


@dataclass(frozen=True, repr=False)
class Forward(Estimator):
    """The gradient through the whole trajectory, for optimizers with few parameters, as ``sgd@10[gradient=forward]``.

    ``limit``: the most parameters, at least 1; ValueError when the tower is built if the optimizer has more. Copies
    whose sensitivities overflow restart before the next window, if the level's policy lets the run go on.
    """

    name = "forward"

    limit: Count = 64

    def evals(self, level: LevelLike) -> int | Fraction:
        again: int | Fraction = level.problem.traits.product_evals  # with the gradient's Jacobian
        return super().evals(level) + (level.lookahead or level.unroll) * again

    def check(self, level: LevelLike) -> None:
        size, optimizer = level.optimizer.layout.size, level.optimizer
        more = f"{self} pushes one tangent for each parameter, at most {self.limit}"
        require(size <= self.limit, f"{more}, and {optimizer} has {size}; use gradient=first-order or gradient=pes")
        require_differentiable(self, level)
        require_followed(self, level)
        _check_tangents(level)

    def init(self, level: LevelLike, theta: Tensor, key: Tensor) -> LevelState:
        carry = started(level, theta, key)
        return LevelState(carry, _at_start(level, theta, carry))

    @torch.no_grad()
    def value_and_grad(self, level: LevelLike, theta: Tensor, state: LevelState) -> tuple[Tensor, Tensor, LevelState]:
        carry, window = run(level, theta, state.carry)
        slopes: Sensitivities = state.memory
        if (window.start.age == 0).any():
            slopes = _restarted(level, theta, window.start, slopes)
        weights = level.objective.weights(window.losses) / window.losses.shape[-1]
        grad, carried, read, problem_state = (
            torch.zeros_like(theta),
            slopes,
            window.start[:4],
            window.start.problem_state,
        )
        for t, (step, weight) in enumerate(zip(window.steps, weights), 1):
            slopes = _advance(level, theta, read, step.x, problem_state, step.answer.g, slopes)
            if window.was_skipped is not None:  # the problem may answer anything there
                slopes = choose(window.was_skipped, map_leaves(torch.zeros_like, slopes), slopes)
            grad = grad + ((weight[..., None] * step.answer.slope)[..., None, :] * slopes.x).sum((-3, -1))
            if t == level.unroll:
                carried = slopes
            read, problem_state = (step.x, step.state, *step.answer[:2]), step.answer.problem_state
            if window.was_skipped is not None:
                read = choose(window.was_skipped, window.start[:4], read)
        sound = torch.stack([torch.isfinite(leaf).flatten(theta.dim()).all(-1) for leaf in leaves(carried)]).all(0)
        carry = carry._replace(age=torch.where(sound, carry.age, RESET))
        return level.objective.value(window.losses).mean(-1), grad, LevelState(carry, carried)


def _advance(
    level: LevelLike,
    theta: Tensor,
    read: Any,
    new_x: Tensor,
    problem_state: State,
    new_g: Tensor,
    slopes: Sensitivities,
) -> Sensitivities:
    """Sensitivities behind one update, which ``read`` ``(x, state, f, g)``, and the answer ``new_g`` at ``new_x``.

    ``problem_state``: the state with which the problem was asked.
    """
    x, state, f, g = read

    def update(theta: Tensor, f: Tensor, g: Tensor, x: Tensor, *floats: Tensor) -> tuple[Tensor, ...]:
        x, new = level.optimizer.update(theta, x, _with_floats(state, floats), f, g)
        return x, *_floats(new)

    given = [_tangents_first(leaf, theta) for leaf in (*slopes[:3], *slopes.state)]
    dx, *dstate = jvp(update, (theta, f, g, x, *_floats(state)), [_directions(theta), *given])
    return _sensitivities(level.problem, theta, new_x, problem_state, new_g, dx, dstate)


def _restarted(level: LevelLike, theta: Tensor, carry: Carry, slopes: Sensitivities) -> Any:
    """Sensitivities with those of the start for copies of age 0."""
    is_first, dims = carry.age == 0, theta.dim()
    rows = is_first.flatten().nonzero().squeeze(-1)
    owners = theta[..., None, :].expand(*is_first.shape, -1).flatten(0, -2)[rows]  # [k, m]
    part = map_leaves(lambda leaf: leaf.flatten(0, dims - 1)[rows][:, None], carry)
    return scatter(rows, _at_start(level, owners, part), slopes, dims)


def _at_start(level: LevelLike, theta: Tensor, carry: Carry) -> Sensitivities:
    """Sensitivities of trajectories that begin with ``carry``; zeros unless the optimizer learns the start."""
    optimizer, problem, directions = level.optimizer, level.problem, _directions(theta)
    for_x, for_problem = keys.split(carry.key, 2).unbind(-1)

    def first(theta: Tensor) -> tuple[Tensor, ...]:
        x = optimizer.init_x(theta, for_x)
        return x, *_floats(optimizer.init_state(theta, x, keys.fold_in(carry.key, STATE)))

    dx, *dstate = jvp(first, [theta], [directions])
    if not optimizer.traits.learns_init:
        dg = _tangents_last(dx, theta)
        return Sensitivities(dg[..., 0], dg, dg, tuple(_tangents_last(leaf, theta) for leaf in dstate))
    problem_state = problem.init_state(carry.x, for_problem)
    return _sensitivities(problem, theta, carry.x, problem_state, carry.g, dx, dstate)


def _sensitivities(
    problem: Problem, theta: Tensor, x: Tensor, problem_state: State, g: Tensor, dx: Tensor, dstate: list[Tensor]
) -> Sensitivities:
    """Sensitivities at ``x``, where the problem answers ``g``; tangents come first in ``dx``."""
    (dg,) = jvp(lambda x: problem.value_and_grad(x, problem_state)[1:2], [x], [dx])
    df = (g * dx).sum(-1)
    f, g, x, *rest = (_tangents_last(leaf, theta) for leaf in (df, dg, dx, *dstate))
    return Sensitivities(f, g, x, tuple(rest))


def jvp(
    function: Callable[..., Sequence[Tensor]], inputs: Sequence[Tensor], tangents: Sequence[Tensor]
) -> list[Tensor]:
    """Products of the Jacobian of ``function(*inputs)`` with ``tangents``, k of each: ``[k, *output]``, one an output.

    Twice reverse mode: J^T u is linear in u, and its vector-Jacobian product at v, in u, is J v.
    """
    with torch.enable_grad():
        inputs = [one.detach().requires_grad_() for one in inputs]
        outputs = [out if out.requires_grad else out + 0 * inputs[0].sum() for out in function(*inputs)]
        dummies = [torch.zeros_like(out).requires_grad_() for out in outputs]
        back = torch.autograd.grad(outputs, inputs, dummies, create_graph=True, materialize_grads=True)
    used = [(slope, all_v) for slope, all_v in zip(back, tangents) if slope.requires_grad]
    slopes, vectors = [slope for slope, _ in used], [all_v for _, all_v in used]
    each = [torch.autograd.grad(slopes, dummies, v, retain_graph=True, materialize_grads=True) for v in zip(*vectors)]
    return [torch.stack(one) for one in zip(*each)]


def _check_tangents(level: Any) -> None:
    """ValueError unless tangents can be pushed, tried on one update of one copy."""
    settings: dict[str, Any] = {"unroll": 1, "lookahead": None, "horizon": None, "batch": 1, "nonfinite": Skip()}
    tried, key = dataclasses.replace(level, **settings), keys.seed(0, device=level.optimizer.layout.device)
    theta = tried.init(key)
    try:
        tried.value_and_grad(theta, tried.init_state(theta, key))
    except Exception as error:  # whatever a user's code raises
        fix = "use gradient=first-order or gradient=pes"
        first = str(error).strip().partition("\n")[0]
        raise ValueError(f"{level.gradient} cannot push tangents through {level} ({first}); {fix}") from error


def _directions(theta: Tensor) -> Tensor:
    """One direction for each parameter: ``[m, *batch, m]``."""
    m = theta.shape[-1]
    eye = torch.eye(m, dtype=theta.dtype, device=theta.device)
    return eye.reshape(m, *[1] * (theta.dim() - 1), m).expand(m, *theta.shape)


def _tangents_first(leaf: Tensor, theta: Tensor) -> Tensor:
    """``[*batch, copies, m, ...]`` as ``[m, *batch, copies, ...]``."""
    return leaf.movedim(theta.dim(), 0)


def _tangents_last(leaf: Tensor, theta: Tensor) -> Tensor:
    """The inverse of `_tangents_first`."""
    return leaf.movedim(0, theta.dim())


def _floats(state: State) -> list[Tensor]:
    """The tensors of a state that have derivatives."""
    return [leaf for leaf in leaves(state) if leaf.is_floating_point()]


def _with_floats(state: State, floats: Sequence[Tensor]) -> State:
    """``state`` with other tensors where they have derivatives."""
    left = iter(floats)
    return with_leaves(state, [next(left) if leaf.is_floating_point() else leaf for leaf in leaves(state)])
