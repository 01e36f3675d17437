"""A tower run as an optimizer: all levels move at every step, none restarts, and each problem gets fresh levels.

afresh = run_afresh(tower, task, problems=64, steps=100, seed=0, theta=None)
afresh.losses       # [steps + 1, 1, 64]
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import torch
from torch import Tensor

from levels import keys
from levels.base import Problem
from levels.config import require
from levels.faults import Skip
from levels.tree import State
from recursion.evaluate.observed import Observed, Tally
from recursion.tower import Tower, TowerState


class Afresh(NamedTuple):
    """A tower run as an optimizer, once for each of P problems."""

    losses: Tensor  # [steps + 1, 1, P]
    key: Tensor  # int64 [P]; `recursion.evaluate.deploy.run` with these keys uses the same problems
    base_steps: int


def is_optimizer(tower: Tower) -> bool:
    """Whether the tower itself is the optimizer: it has one level, or no level looks beyond 1 update or restarts."""
    endless = ((level.lookahead or level.unroll) == 1 and level.episode_length is None for level in tower.levels)
    return len(tower.levels) == 1 or all(endless)


@torch.no_grad()
def run_afresh(
    tower: Tower, task: Problem, problems: int, steps: int, *, seed: int, theta: Tensor | None,
    key: Tensor | None = None,
) -> Afresh:  # fmt: skip
    """Run the whole tower on each of ``problems`` problems of ``task`` separately, for ``steps`` base steps.

    One batch does it: the topmost level holds one copy for each problem, every level below holds one copy.
    ``theta`` ``[m]``: of the topmost optimizer, None for its own. ``key`` ``[problems]``: the problems, as `run` names
    them; None draws them from ``seed``. A copy with a loss or gradient that is not finite has diverged: its losses are
    inf from there on. Raises ValueError if the tower is no optimizer (see `is_optimizer`).
    """
    require(is_optimizer(tower), f"{tower}: it has windows or restarts, so it is to be evaluated by what it learned")
    require(steps >= 1, f"steps must be at least 1, got {steps}")
    fits = key is None or key.shape == (problems,)
    require(fits, f"key must name {problems} problems, got shape {[] if key is None else list(key.shape)}")
    tally = Tally()
    recorded = Recorded(task, tally, problems)
    *lower, top = alone(tower).levels
    whole = Tower(recorded, *lower, dataclasses.replace(top, batch=problems))
    state = _started(whole, seed, theta, key)  # start-up makes depth - 1 steps
    key = whole.carries(state)[0].key.flatten()
    for _ in range(steps + 1 - len(recorded.losses)):
        state, _report = whole.step(state)
    losses = torch.stack(recorded.losses[: steps + 1])
    return Afresh(losses[:, None], key, int(tally.gradients))


def alone(tower: Tower) -> Tower:
    """The tower as an optimizer of one problem: one copy a level, no restarts, copies that diverge are skipped."""
    levels = (dataclasses.replace(level, batch=1, unroll=1, horizon=None, nonfinite=Skip()) for level in tower.levels)
    return Tower(tower.task, *levels)


def _started(whole: Tower, seed: int, theta: Tensor | None, key: Tensor | None) -> TowerState:
    """The state at the start, in which the copies of the task have the keys ``key`` ``[copies of the topmost level]``.

    A copy gives the second half of its key to the one copy below it, so the keys are traced back up the tower.
    """
    if key is None:
        return whole.init(seed, theta=theta)
    for _ in whole.levels[1:]:
        key = keys.unfold_in(keys.unfold_in(key, 1), 2)
    own = whole.top.init(keys.split(keys.seed(seed, device=key.device), 2)[0])
    theta = own if theta is None else theta
    return TowerState(theta, whole.top.begin(theta, key), torch.zeros((), dtype=torch.int64))


class Recorded(Observed):
    """A problem that keeps the losses of ``copies`` copies, asked one update after another.

    A copy that diverges answers value 1 and gradient 0 from then on, so it neither spoils its neighbours nor asks for a
    restart. Answers for another number of copies, as a search asks for its members, are not kept.
    """

    def __init__(self, problem: Problem, observer: Tally, copies: int) -> None:
        super().__init__(problem, observer)
        self.copies = copies
        self.losses: list[Tensor] = []  # [copies] each

    def init_state(self, params: Tensor, key: Tensor) -> State:
        if self.losses:
            raise ArithmeticError("a level above level 1 met a meta-loss that is not finite; is its objective a log?")
        return super().init_state(params, key)

    def value(self, params: Tensor, state: State) -> tuple[Tensor, State]:
        return Problem.value(self, params, state)

    def value_and_grad(self, params: Tensor, state: State) -> tuple[Tensor, Tensor, State]:
        value, grad, state = super().value_and_grad(params, state)
        if value.numel() != self.copies:
            return value, grad, state
        over = ~torch.isfinite(value) | ~torch.isfinite(grad.square().sum(-1))
        if self.losses:
            over |= torch.isinf(self.losses[-1]).reshape(over.shape)
        self.losses.append(value.detach().masked_fill(over, torch.inf).flatten())
        return value.masked_fill(over, 1.0), grad.masked_fill(over[..., None], 0.0), state
