"""A tower run as an optimizer: all levels move at every step, none restarts, and each problem gets fresh levels."""

import dataclasses
from typing import Any, NamedTuple

import torch
from torch import Tensor

from levels import keys
from levels.base import Problem
from levels.faults import Skip
from levels.fields import require
from levels.tree import State
from recursion.evaluation.observed import Observed, Tally
from recursion.tower import Tower, TowerState


class Afresh(NamedTuple):
    """A tower run as an optimizer, once for each of P problems."""

    losses: Tensor  # [steps + 1, 1, P]
    key: Tensor  # int64 [P]; `recursion.evaluation.deploy.run` with these keys uses the same problems
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

    In one batch: the topmost level holds a copy for each problem, every level below one copy. ``theta`` ``[m]``: of the
    topmost optimizer, None for its own. ``key`` ``[problems]``: the problems, as `deploy.run` names them; None draws
    them from ``seed``. A copy diverges with its first loss or gradient that is not finite: its losses are inf from
    there on. Raises ValueError if the tower is no optimizer (see `is_optimizer`).
    """
    require(is_optimizer(tower), f"{tower}: it has windows or restarts, so it is to be evaluated by what it learned")
    require(steps >= 1, f"steps must be at least 1, got {steps}")
    fits = key is None or key.shape == (problems,)
    require(fits, f"key must name {problems} problems, got shape {[] if key is None else list(key.shape)}")
    tally, span = Tally(), len(tower.levels)
    own, carried = keys.split(keys.seed(seed, device=tower.top.layout.device), 2)
    key = _down(keys.split(carried, problems), span - 1) if key is None else key
    recorded = Recorded(task, tally, keys.split(key, 2)[..., 1])
    *lower, top = alone(tower).levels
    whole = Tower(recorded, *lower, dataclasses.replace(top, batch=problems))
    theta = whole.top.init(own) if theta is None else theta
    state = TowerState(theta, whole.top.begin(theta, _up(key, span - 1)), torch.zeros((), dtype=torch.int64))
    for _ in range(steps + 1 - len(recorded.losses)):  # start-up makes depth - 1 steps
        state, _report = whole.step(state)
    if bool((whole.carries(state)[0].problem_state.run != recorded.runs).any()):  # a copy restarted
        raise ArithmeticError("a level above level 1 met a meta-loss that is not finite; is its objective a log?")
    losses = torch.stack(recorded.losses[: steps + 1])
    return Afresh(losses[:, None], key, int(tally.gradients))


def alone(tower: Tower) -> Tower:
    """The tower as an optimizer of one problem: one copy a level, no restarts, copies that diverge are skipped."""
    levels = (dataclasses.replace(level, batch=1, unroll=1, horizon=None, nonfinite=Skip()) for level in tower.levels)
    return Tower(tower.task, *levels)


def _down(key: Tensor, levels: int) -> Tensor:
    """The keys of the one copy below, so many levels down: a copy gives the second half of its key to it."""
    for _ in range(levels):
        key = keys.fold_in(keys.fold_in(key, 2), 1)
    return key


def _up(key: Tensor, levels: int) -> Tensor:
    """The inverse of `_down`."""
    for _ in range(levels):
        key = keys.unfold_in(keys.unfold_in(key, 1), 2)
    return key


class Recording(NamedTuple):
    """The problem's state, and to which run it belongs; leading dimensions ``[*batch]``."""

    inner: State
    run: Tensor  # int64; -1 for what parts of the tower ask on their own account


class Recorded(Observed):
    """A problem that keeps the losses of one run, whose copies begin with ``key`` ``[copies]``, in ``losses``.

    A copy that diverges answers value 1 and gradient 0 from then on, so it neither spoils its neighbours nor restarts.
    Guards and searches ask the problem too, some with the same keys; the run is the last one to begin with these.
    """

    def __init__(self, problem: Problem, observer: Tally, key: Tensor) -> None:
        super().__init__(problem, observer)
        self.key, self.runs = key, 0
        self.losses: list[Tensor] = []  # [copies] each

    def init_state(self, params: Tensor, key: Tensor) -> Recording:
        begins = key.numel() == self.key.numel() and torch.equal(key.flatten(), self.key)
        if begins:
            self.runs, self.losses = self.runs + 1, []
        return Recording(super().init_state(params, key), torch.full_like(key, self.runs if begins else -1))

    def value(self, params: Tensor, state: Recording) -> tuple[Tensor, Recording]:
        return Problem.value(self, params, state)

    def value_and_grad(self, params: Tensor, state: Recording) -> tuple[Tensor, Tensor, Recording]:
        value, grad, inner = super().value_and_grad(params, state.inner)
        state = state._replace(inner=inner)
        if value.numel() != self.key.numel() or bool((state.run != self.runs).any()):
            return value, grad, state
        over = ~torch.isfinite(value) | ~torch.isfinite(grad.square().sum(-1))
        if self.losses:
            over |= torch.isinf(self.losses[-1]).reshape(over.shape)
        self.losses.append(value.detach().masked_fill(over, torch.inf).flatten())
        return value.masked_fill(over, 1.0), grad.masked_fill(over[..., None], 0.0), state

    def outer_value_and_grad(self, params: Tensor, state: Any, f: Tensor, g: Tensor) -> tuple[Tensor, Tensor, State]:
        f, g, inner = super().outer_value_and_grad(params, state.inner, f, g)
        return f, g, state._replace(inner=inner)
