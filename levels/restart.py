"""Restarts: when trajectories begin again, and what happens to copies that fail.

A copy restarts at the horizon, and after a failure: a loss, or the square of a gradient, that is not finite. Then
the level's policy raises, or skips the copy: it goes back to where its window began, counts its first loss, contributes
nothing to the meta-gradient, and restarts before its next window.
"""

import torch
from torch import Tensor

from levels import keys
from levels.autodiff import as_data, stop_gradient
from levels.base import RESET, Carry, Evaluate, LevelLike, Window
from levels.faults import NonFiniteError, Stop, is_finite, is_sound
from levels.replay import follow_init, skipped
from levels.tree import choose, keep_named, scatter

RESTART = -1  # folded into a copy's key for its next trajectory
DRAWS = 8  # failed starts in a row after which a copy is given up
SMALLER = "start its parameters smaller"


def run(
    level: LevelLike, theta: Tensor, carry: Carry, evaluate: Evaluate = as_data, *, keep: bool = True
) -> tuple[Carry, Window]:
    """The carry after one window's ``unroll`` updates, as constants, and the window; copies that are due restart first.

    Without ``keep``, `Window.steps` is empty and memory does not grow with the unroll.
    """
    start = restarted(level, theta, carry)
    first = follow_init(level, theta, start, evaluate)
    steps, losses, end = [], [], None
    for t, step in enumerate(level.window(theta, first, evaluate), 1):
        losses.append(step.answer.loss)
        if keep:
            steps.append(step)
        if t == level.unroll:
            end = step
    assert end is not None
    window = Window(first, steps, torch.stack(losses))
    if not is_finite(window.losses, step.answer.g, end.answer.f):
        answers = [one.answer for one in (*steps, end, step)]
        failed = ~torch.stack([is_sound(window.losses), *(is_sound(each.f[None], each.g) for each in answers)]).all(0)
        if failed.any():
            window, end = skipped(level, theta, window, failed, end, evaluate)
    x, state, f, g = stop_gradient((end.x, end.state, end.answer.f, end.answer.g))
    moved = Carry(x, state, f, g, end.answer.problem_state, start.age + level.unroll, start.key, start.skipped)
    if window.was_skipped is not None:
        failed = window.was_skipped
        moved = keep_named("skipped", choose(failed, start, moved), moved)
        moved = moved._replace(age=torch.where(failed, RESET, moved.age), skipped=start.skipped + failed)
    return moved, window


def restarted(level: LevelLike, theta: Tensor, carry: Carry) -> Carry:
    """The carry with fresh trajectories for the copies that are due; one evaluation of the problem for each."""
    if level.episode_length is None and isinstance(level.nonfinite, Stop):
        return carry  # no copy ever restarts
    should_reset = is_due(level, carry.age)
    if not should_reset.any():
        return carry
    key = torch.where(carry.age == 0, carry.key, keys.fold_in(carry.key, RESTART))
    rows = should_reset.flatten().nonzero().squeeze(-1)
    owners = theta.detach()[..., None, :].expand(*should_reset.shape, -1).flatten(0, -2)[rows]  # [k, m]
    begin = fresh(level, owners, key.flatten()[rows][:, None])
    merged: Carry = keep_named("skipped", scatter(rows, begin, carry, should_reset.dim()), carry)
    more = torch.zeros_like(carry.skipped.flatten()).index_copy(0, rows, begin.skipped.flatten())
    return merged._replace(skipped=carry.skipped + more.reshape(carry.skipped.shape))


@torch.no_grad()
def fresh(level: LevelLike, theta: Tensor, key: Tensor) -> Carry:
    """Fresh trajectories of age 0 for keys ``[*batch, copies]``; a start that fails is skipped and drawn again."""
    carry = level.begin(theta, key)
    failed = ~is_sound(carry.f[None], carry.g)
    for _ in range(DRAWS):
        if not failed.any():
            return carry
        what = "gradient" if torch.isfinite(carry.f).all() else "loss"
        level.nonfinite.handle(level, f"a freshly started problem's {what} is not finite", SMALLER)
        key = torch.where(failed, keys.fold_in(key, RESTART), key)
        drawn = level.begin(theta, key)
        carry = choose(failed, drawn, carry)._replace(skipped=carry.skipped + failed)
        failed = ~is_sound(carry.f[None], carry.g)
    raise NonFiniteError(level, f"{DRAWS} starts in a row are not finite", SMALLER)


def started(level: LevelLike, theta: Tensor, key: Tensor) -> Carry:
    """The first carry of a level, for keys ``[*batch]``: fresh trajectories with staggered ages."""
    carry = fresh(level, theta, keys.split(key, level.copies))
    return carry._replace(age=carry.age + first_ages(level, carry.age.device))


def first_ages(level: LevelLike, device: torch.device) -> Tensor:
    """Ages ``[copies]`` of the first trajectories: spread over the windows of an episode, if staggered."""
    windows = level.episode_length // level.unroll if level.stagger and level.episode_length else 0
    return torch.arange(level.copies, device=device) * windows // level.copies * level.unroll


def is_due(level: LevelLike, age: Tensor) -> Tensor:
    """Whether a copy of this age restarts before its next window."""
    return age < 0 if level.episode_length is None else (age < 0) | (age >= level.episode_length)
