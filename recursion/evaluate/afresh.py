"""A tower run as an optimizer: it moves all levels at every step, never restarts, and starts anew on each problem.

afresh = run_afresh(tower, task, problems=64, steps=100, seed=0, theta=None)
afresh.losses       # [steps + 1, 1, 64]
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import torch
from torch import Tensor

from levels import keys
from levels.base import Problem, ProblemTraits, Split
from levels.config import require
from levels.faults import Skip
from levels.layout import Layout
from levels.tree import State
from recursion.evaluate.observed import Observed, Tally
from recursion.tower import Tower, TowerState


class Afresh(NamedTuple):
    """A tower run as an optimizer, once for each of P problems."""

    losses: Tensor  # [steps + 1, 1, P]
    key: Tensor  # int64 [P]; `run` with these keys sees the same problems
    base_steps: int


def is_optimizer(tower: Tower) -> bool:
    """Whether the tower itself is the optimizer: it has one level, or none looks beyond 1 update or ever restarts."""
    endless = ((level.lookahead or level.unroll) == 1 and level.episode_length is None for level in tower.levels)
    return len(tower.levels) == 1 or all(endless)


@torch.no_grad()
def run_afresh(
    tower: Tower,
    task: Problem,
    problems: int,
    steps: int,
    *,
    seed: int,
    theta: Tensor | None,
    key: Tensor | None = None,
) -> Afresh:
    """The whole tower run on each of ``problems`` problems of ``task`` by itself, for ``steps`` base steps.

    All at once: the topmost level holds one copy for each problem, every level below one copy of what it works on.
    ``theta`` ``[m]``: of the topmost optimizer, if not its own. ``key`` ``[problems]``: the problems, those that `run`
    sees with it; None lets ``seed`` draw them. A copy whose loss or gradient is not finite has diverged: its losses are
    inf from there on. Raises ValueError if the tower is no optimizer (see `is_optimizer`).
    """
    require(is_optimizer(tower), f"{tower}: it has windows or restarts, so it is to be evaluated by what it learned")
    require(steps >= 1, f"steps must be at least 1, got {steps}")
    fits = key is None or key.shape == (problems,)
    require(fits, f"key must name {problems} problems, got shape {[] if key is None else list(key.shape)}")
    tally = Tally()
    recorded = Recorded(Observed(task, tally), problems)
    *lower, top = alone(tower).levels
    whole = Tower(recorded, *lower, dataclasses.replace(top, batch=problems))
    state = _started(whole, seed, theta, key)  # start-up makes depth - 1 steps
    key = whole.carries(state)[0].key.flatten()
    for _ in range(steps + 1 - len(recorded.losses)):
        state, _report = whole.step(state)
    losses = torch.stack(recorded.losses[: steps + 1])
    return Afresh(losses[:, None], key, int(tally.gradients))


def alone(tower: Tower) -> Tower:
    """The tower as an optimizer of one problem: one copy at each level, no restarts, what diverges is skipped."""
    levels = (dataclasses.replace(level, batch=1, unroll=1, horizon=None, nonfinite=Skip()) for level in tower.levels)
    return Tower(tower.task, *levels)


def _started(whole: Tower, seed: int, theta: Tensor | None, key: Tensor | None) -> TowerState:
    """The state at the start, in which the copies of the task have the keys ``key`` ``[copies of the topmost level]``.

    A copy hands the second half of its key to the one copy below it, so the keys are traced back up the tower.
    """
    if key is None:
        return whole.init(seed, theta=theta)
    for _ in whole.levels[1:]:
        key = keys.unfold_in(keys.unfold_in(key, 1), 2)
    own = whole.top.init(keys.split(keys.seed(seed, device=key.device), 2)[0])
    theta = own if theta is None else theta
    return TowerState(theta, whole.top.begin(theta, key), torch.zeros((), dtype=torch.int64))


class Recorded(Problem):
    """A problem that keeps the losses of ``copies`` copies, asked one update after another.

    A copy that diverges answers value 1 and gradient 0 from then on: it is over, and cannot spoil its neighbours nor
    ask for a restart. Answers for another number of copies, as a search asks for its members, are not kept.
    """

    def __init__(self, problem: Problem, copies: int) -> None:
        self.problem, self.copies = problem, copies
        self.losses: list[Tensor] = []  # [copies] each

    @property
    def layout(self) -> Layout:
        return self.problem.layout

    @property
    def traits(self) -> ProblemTraits:
        return self.problem.traits

    def init(self, key: Tensor) -> Tensor:
        return self.problem.init(key)

    def init_state(self, params: Tensor, key: Tensor) -> State:
        if self.losses:
            raise ArithmeticError("a level above level 1 met a meta-loss that is not finite; is its objective a log?")
        return self.problem.init_state(params, key)

    def value_and_grad(self, params: Tensor, state: State) -> tuple[Tensor, Tensor, State]:
        value, grad, state = self.problem.value_and_grad(params, state)
        if value.numel() != self.copies:
            return value, grad, state
        over = ~torch.isfinite(value) | ~torch.isfinite(grad.square().sum(-1))
        if self.losses:
            over |= torch.isinf(self.losses[-1]).reshape(over.shape)
        self.losses.append(value.detach().masked_fill(over, torch.inf).flatten())
        return value.masked_fill(over, 1.0), grad.masked_fill(over[..., None], 0.0), state

    def outer_value_and_grad(self, params: Tensor, state: State, f: Tensor, g: Tensor) -> tuple[Tensor, Tensor, State]:
        return self.problem.outer_value_and_grad(params, state, f, g)

    def evaluate_from_scratch(self, params: Tensor, key: Tensor) -> Tensor:
        return self.problem.evaluate_from_scratch(params, key)

    def on(self, split: Split) -> Problem:  # type: ignore[override]
        return self.problem.on(split)

    def __repr__(self) -> str:
        return repr(self.problem)
