"""Online: how far a level looks ahead, chosen while it trains.

    lstm@20[gradient=online([20, 80, 320], every=20)] / adam

A long look-ahead costs many updates for one gradient; a short one is cheap, and its gradient points elsewhere: it does
not see what comes after (Wu et al. 2018, "Understanding short-horizon bias", arXiv 1803.02021). No gradient says
which of the two matters more, not even the longest one, for that looks beyond the horizon and counts early losses less
often. So candidates are judged by what they do to the parameters. Training is cut into blocks, each with one
look-ahead; at its end the parameters that it began with and those that it led to are compared on common keys:

    gain = (before - after) / (|before| + |after|),      between -1 and 1

- Where trajectories have a horizon, ``before`` and ``after`` are trials (`Problem.trial`) on the validation split:
  whole lives from a fresh start on fresh problems, one for each copy that the level holds.
- Where they never restart, a fresh start is nothing that will come again. There both go on from where the copies stand,
  for the longest look-ahead, on the data that is to come.

The next one is chosen by its discounted upper confidence bound (Garivier and Moulines 2011, arXiv 0805.3415) on what
it gains for a task gradient,

    (gain_a + r sqrt(log(1 + N) / n_a)) / price_a,

all sums forgetting by ``decay`` a block, for what is best changes as the parameters move: ``gain_a`` is the mean and
``n_a`` the number of a's blocks, ``N`` that of all, ``r`` the root mean square of what gains were off the mean before
them, ``price_a`` the cost of a block and of judging it. Asked are the candidate with the highest mean and its
neighbours in the list, as if the mean had one peak over it (Combes and Proutiere 2014, arXiv 1405.5096, section 4):
what is far from the best is not tried again and again. All blocks have as many windows, so trying one candidate moves
the parameters no further than another. The first block looks furthest.

Deviation: the papers need bounded rewards and put the bound for ``r``; gains shrink as training settles, so here it is
their own spread, as in UCB-tuned (Auer, Cesa-Bianchi and Fischer 2002).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from levels import keys
from levels.gradients.backward import Backward
from levels.base import Estimator, LevelState
from levels.gradients.first_order import FirstOrder
from levels.restart import NonFiniteError, looked_at
from levels.config import format_value, require
from levels.tree import State, map_leaves

if TYPE_CHECKING:
    from levels.bound_levels import Level
    from levels.level import Level
    from levels.base import Carry

JUDGING = -2  # folded into the level's key for its trials; its copies are folded from 1 up


class Choice(NamedTuple):
    """What is remembered of the candidates; sums are discounted, in float64."""

    arm: Tensor  # int64 [*batch] which candidate has the present block
    left: Tensor  # int64 [*batch] windows left of it
    began: Tensor  # [*batch, m] the parameters at its first window
    blocks: Tensor  # [*batch, candidates] number of blocks
    gains: Tensor  # [*batch, candidates] sum of their gains
    squares: Tensor  # [*batch] sum of squares of what gains were off the mean of their candidate before
    key: Tensor  # int64 [*batch]
    spent: Tensor  # [*batch] task gradients so far, of all copies


@dataclass(frozen=True, repr=False)
class Online(Estimator):
    """``candidates``: look-aheads to choose from, whole numbers in rising order, none below the level's unroll.
    ``every``: windows of a block, at least 1. ``through``: ``first-order`` or ``exact``, how a
    window is differentiated. ``decay``: what a block's gain still counts one block later, between 0 and 1.

    A block must outlast what the rule above remembers, or one candidate pays for another: ten windows for Adam's
    ``beta1=0.9``. Each level of a batch chooses for itself. Meta-losses and gradients are in the units of the longest
    candidate: they are multiplied by what the objective makes of a constant loss there, over what it makes of it in
    the window. Those of a long look-ahead can still be the larger by far, so let the rule above forget their size soon,
    as ``adam(beta2=0.95)`` does. With one candidate this is that look-ahead: nothing is judged.

    ``ahead`` must not be set on the level as well; ValueError when the tower is built.
    """

    name = "online"
    chooses_ahead = True

    candidates: tuple[int, ...]
    every: int = 20
    through: Estimator = FirstOrder()
    decay: float = 0.9

    def __post_init__(self) -> None:
        object.__setattr__(self, "candidates", tuple(self.candidates))
        lookahead = self.candidates
        good = bool(lookahead) and all(_whole(one) and one >= 1 for one in lookahead) and sorted(set(lookahead)) == list(lookahead)
        what = "online: candidates must be one or more whole numbers of at least 1, in rising order"
        require(good, f"{what}, got {notate(ahead)}; write [1, 4, 16]")
        good = _whole(self.every) and self.every >= 1
        require(good, f"online: every must be a whole number of at least 1, got {notate(self.every)}")
        good = isinstance(self.through, Backward)
        require(good, f"online: through must be first-order or exact, got {notate(self.through)}")
        good = isinstance(self.decay, (int, float)) and not isinstance(self.decay, bool) and 0 < self.decay < 1
        require(good, f"online: decay must be a number between 0 and 1, got {notate(self.decay)}")

    def evaluations(self, level: Level, judging: int = 0) -> int:
        """At most: a window of the longest candidate, and its share of what a block's judging costs."""
        self._fit(level)
        longest = self.through.evaluations(replace(level, lookahead=self.candidates[-1]), judging)
        if len(self.candidates) == 1:
            return longest
        episode_length = self.candidates[-1] if level.episode_length is None else level.episode_length + 1
        return longest - (-2 * episode_length * (1 + judging) // self.every)

    def updates(self, level: Level) -> int:
        """At most, as `evaluations`."""
        longest, episode_length = self.candidates[-1], level.episode_length or self.candidates[-1]
        return longest if len(self.candidates) == 1 else longest - (-2 * episode_length // self.every)

    def check(self, level: Level) -> None:
        self.through.check(self._laid(level, -1))

    def _fit(self, level: Level) -> None:
        """ValueError unless the candidates fit the level's settings."""
        unroll, lookahead, least = level.unroll, level.lookahead, self.candidates[0]
        what = f"{self} chooses how far to look ahead, and the level says ahead={notate(ahead)}"
        require(lookahead is None, f"{what}; leave ahead out")
        fix = f"begin the candidates with {unroll}, or lower the unroll"
        require(least >= unroll, f"{self} cannot look {least} updates ahead in a window of {unroll}; {fix}")

    def metrics(self, state: LevelState) -> dict[str, Tensor]:
        memory: Choice = state.memory
        lookahead = memory.arm.new_tensor(self.candidates)[memory.arm]
        return {"look-ahead": lookahead, "task gradients": memory.spent / state.carry.age.shape[-1]}

    def init_state(self, level: Level, params: Tensor, key: Tensor) -> LevelState:
        carry = self.through.init_state(level, params, key).carry
        arm = torch.full_like(key, len(self.candidates) - 1)
        left = torch.full_like(key, self.every)
        sums = torch.zeros(*key.shape, len(self.candidates), dtype=torch.float64, device=key.device)
        zero = sums.sum(-1)
        spent = zero + level.batch * float(level.starting)
        return LevelState(carry, Choice(arm, left, params, sums, sums, zero, keys.fold_in(key, JUDGING), spent))

    def value_and_grad(self, level: Level, params: Tensor, state: LevelState) -> tuple[Tensor, Tensor, LevelState]:
        memory: Choice = state.memory
        if len(self.candidates) > 1 and not bool(memory.left.all()):
            judge = lambda over, part: self._judged(level, *part) if over else part[2]  # noqa: E731
            memory = _apart((memory.left == 0).long(), judge, (params, state.carry, memory))
        look = lambda arm, part: self._looked(level, arm, *part)  # noqa: E731
        value, grad, carry, cost = _apart(memory.arm, look, (params, state.carry))
        return value, grad, LevelState(carry, memory._replace(left=memory.left - 1, spent=memory.spent + cost))

    def _looked(self, level: Level, arm: int, params: Tensor, carry: Carry) -> tuple[Tensor, Tensor, Carry, Tensor]:
        """One window with a candidate: meta-loss, gradient, carry, and task gradients ``[*batch]`` that it cost."""
        laid = self._laid(level, arm)
        cost = level.due(carry.age).sum(-1) * float(laid.starting) + laid.batch * float(laid.cost)
        with _Named(laid, level):
            value, grad, state = self.through.value_and_grad(laid, params, LevelState(carry, None))
        unit = self._unit(level, arm)
        return (value, grad, state.carry, cost) if unit == 1 else (unit * value, unit * grad, state.carry, cost)

    def _judged(self, level: Level, params: Tensor, carry: Carry, memory: Choice) -> Choice:
        """The block is over: what it gained is added to its candidate's, and the next one chosen."""
        key = keys.fold_in(memory.key, 1)
        gain = _gain(*(self._tried(level, each, carry, key) for each in (memory.began, params)))
        played = torch.nn.functional.one_hot(memory.arm, len(self.candidates)).double()
        mean = (played * memory.gains / memory.blocks.where(memory.blocks > 0, 1.0)).sum(-1)
        blocks = self.decay * memory.blocks + played
        gains = self.decay * memory.gains + played * gain[..., None]
        squares = self.decay * memory.squares + (gain - mean).square()
        judging = 2 * float(self._trying(level))
        windows = [float(self._laid(level, each).cost) for each in range(len(self.candidates))]
        arm = choose(blocks, gains, squares, self.every * blocks.new_tensor(windows) + judging)
        left = torch.full_like(memory.left, self.every)
        return Choice(arm, left, params, blocks, gains, squares, key, memory.spent + level.batch * judging)

    def _tried(self, level: Level, params: Tensor, carry: Carry, key: Tensor) -> Tensor:
        """What parameters are judged by, ``[*batch]``: the lower the better, inf if they go wrong."""
        if level.level.episode_length is None:
            return self._continued(level, params, carry)
        return level.on("validation").evaluate_from_scratch(params, key)

    def _trying(self, level: Level) -> Any:
        """Task gradients that `_tried` costs, for each copy."""
        if level.level.episode_length is None:
            return self.candidates[-1] * (level.problem.cost * (1 + level.problem.judging) + level.optimizer.asking)
        return level.on("validation").trying

    def _continued(self, level: Level, params: Tensor, carry: Carry) -> Tensor:
        """Meta-loss ``[*batch]`` of the longest look-ahead from where the copies stand; inf if it is not finite."""
        laid = self._laid(level, -1).patient
        with looked_at():
            after, window = laid.window(params, carry, record=False)
        value = laid.meta_loss(window.losses)[0]
        penalty = laid.optimizer.penalty(params)
        value = value if penalty is None else value + penalty[0]
        sound = torch.isfinite(value) & (after.skipped == carry.skipped).all(-1)
        return torch.where(sound, value, torch.inf)

    def _laid(self, level: Level, arm: int) -> Level:
        """The level with a candidate for its look-ahead."""
        return level.like(lookahead=self.candidates[arm], gradient=self.through)

    def _unit(self, level: Level, arm: int) -> float:
        """What the objective makes of a constant loss in the longest window, over what it makes of it in this one."""
        longest, own = (torch.full((count,), 2.0) for count in (self.candidates[-1], self.candidates[arm]))
        value = level.level.objective.value
        return float(value(longest) / value(own)) if arm < len(self.candidates) - 1 else 1.0


def choose(blocks: Tensor, gains: Tensor, squares: Tensor, prices: Tensor) -> Tensor:
    """The next candidate ``[*batch]``, given discounted sums as in `Choice` and ``prices`` ``[candidates]``.

    Of the best and its neighbours, the one with the highest bound. One that had no block yet has no mean, and an
    infinite bound.
    """
    tried = blocks > 0
    count, total = blocks.where(tried, 1.0), blocks.sum(-1, keepdim=True)
    width = (squares[..., None] / total * torch.log1p(total) / count).sqrt()
    mean = torch.where(tried, gains / count / prices, -torch.inf)
    bound = torch.where(tried, (gains / count + width) / prices, torch.inf)
    off = torch.arange(blocks.shape[-1], device=blocks.device) - mean.argmax(-1, keepdim=True)
    return torch.where(off.abs() <= 1, bound, -torch.inf).argmax(-1)


def _gain(before: Tensor, after: Tensor) -> Tensor:
    """What parameters gained, relative to their losses, ``[*batch]`` float64: 1 or -1 if one of them is inf."""
    before, after = before.double(), after.double()
    size = before.abs() + after.abs()
    ends = torch.isinf(before).double() - torch.isinf(after).double()
    usual = (before - after) / size.where(size > 0, 1.0)
    return torch.where(torch.isinf(size), ends, usual)


def _apart(group: Tensor, function: Callable[[int, Any], State], parts: State) -> Any:
    """``function(number, part)`` of the entries of each group, put together again.

    ``group``: numbers ``[*batch]``; ``parts`` and what is returned are trees of tensors ``[*batch, ...]``.
    """
    numbers = sorted(set(group.flatten().tolist()))
    if len(numbers) == 1:
        return function(numbers[0], parts)
    rows = [(group.flatten() == number).nonzero().squeeze(-1) for number in numbers]
    found = [
        function(number, map_leaves(lambda leaf, at=at: leaf.flatten(0, group.dim() - 1)[at], parts))
        for number, at in zip(numbers, rows)
    ]
    order = torch.cat(rows).argsort()
    return map_leaves(lambda *leaves: torch.cat(leaves)[order].reshape(*group.shape, *leaves[0].shape[1:]), *found)


class _Named:
    """Lets a `NonFiniteError` of one laid level pass as that of another, which the tower knows."""

    def __init__(self, laid: Level, level: Level) -> None:
        self.bound_levels, self.level = laid, level

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, NonFiniteError) and error.source is self.bound_levels:
            error.source = self.level


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
