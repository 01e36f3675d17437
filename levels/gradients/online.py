"""Online: how far a level looks ahead, chosen while it trains.

    lstm@20[gradient=online([20, 80, 320], every=20)] / adam

A long look-ahead costs many updates for one gradient; a short one is cheap, and its gradient points elsewhere: it does
not see what comes after (Wu et al. 2018, "Understanding short-horizon bias", arXiv 1803.02021). No gradient says
which of the two matters more, not even the longest one, for it sees beyond the horizon and counts early losses less
often. So candidates are compared by what they do to the parameters. Training is cut into blocks, each with one
look-ahead; at its end, the parameters at its beginning and at its end are compared on common keys:

    gain = (before - after) / (|before| + |after|),      between -1 and 1

- Where trajectories have a horizon, ``before`` and ``after`` are `Problem.evaluate_from_scratch` on the validation
  split: whole episodes from a fresh start on fresh problems, one for each copy of the level.
- Where they never restart, a fresh start will not come again. There both continue from where the copies are, for the
  longest look-ahead, on the data that comes next.

The next one is chosen by its discounted upper confidence bound (Garivier and Moulines 2011, arXiv 0805.3415) on what
it gains for a task gradient,

    (gain_a + r sqrt(log(1 + N) / n_a)) / price_a,

all sums forgetting by ``decay`` a block, for what is best changes as the parameters move: ``gain_a`` is the mean and
``n_a`` the number of a's blocks, ``N`` that of all, ``r`` the root mean square of what gains were off the mean before
them, ``price_a`` the cost of a block and of its comparison. Only the candidate with the highest mean and its neighbours
in the list are considered, as if the mean had one peak over it (Combes and Proutiere 2014, arXiv 1405.5096, section 4):
what is far from the best is not tried again and again. All blocks have as many windows, so one candidate moves the
parameters as often as another. The first block has the longest look-ahead.

Deviation: the papers need bounded rewards and put the bound for ``r``; gains shrink as training settles, so here it is
their own spread, as in UCB-tuned (Auer, Cesa-Bianchi and Fischer 2002).
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from levels import keys
from levels.autodiff import as_data
from levels.base import Carry, Estimator, EstimatorTraits, LevelState
from levels.episode import tolerant
from levels.faults import NonFiniteError
from levels.fields import Count, Probability, format_value, require
from levels.gradients.first_order import Backpropagation, FirstOrder
from levels.restart import is_due, run
from levels.tree import State, map_leaves

TRIAL = -2  # folded into the level's key for its comparisons; its copies are folded from 1 up


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

    A block must outlast the memory of the optimizer above, or one candidate pays for another: ten windows for Adam's
    ``beta1=0.9``. Each level of a batch chooses for itself. Meta-losses and gradients are in the units of the longest
    candidate: they are multiplied by what the objective makes of a constant loss there, over what it makes of it in
    the window. Those of a long look-ahead can still be the larger by far, so let the optimizer above forget their size
    soon, as ``adam(beta2=0.95)`` does. With one candidate this is that look-ahead, and nothing is compared.

    The level's own ``lookahead`` must not be set as well; ValueError when the tower is built.
    """

    name = "online"

    candidates: tuple[Count, ...]
    every: Count = 20
    through: Backpropagation = FirstOrder()
    decay: Probability = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        good = self.candidates and tuple(sorted(set(self.candidates))) == self.candidates
        what = "online: candidates must be one or more whole numbers of at least 1, in rising order"
        require(bool(good), f"{what}, got {format_value(self.candidates)}; write [1, 4, 16]")

    traits = EstimatorTraits(chooses_lookahead=True)

    def evals(self, level: Any) -> int | Fraction:
        """At most: a window of the longest candidate, and its share of what the comparison of a block costs."""
        longest = self.through.evals(self._with(level, -1))
        return longest if len(self.candidates) == 1 else longest + Fraction(2 * self._trial_evals(level), self.every)

    def check(self, level: Any) -> None:
        unroll, lookahead, least = level.unroll, format_value(level.lookahead), self.candidates[0]
        what = f"{self} chooses how far to look ahead, and the level says ahead={lookahead}; leave ahead out"
        require(level.lookahead is None, what)
        fix = f"begin the candidates with {unroll}, or lower the unroll"
        require(least >= unroll, f"{self} cannot look {least} updates ahead in a window of {unroll}; {fix}")
        self.through.check(self._with(level, -1))

    def metrics(self, state: LevelState) -> dict[str, Tensor]:
        memory: Choice = state.memory
        lookahead = memory.arm.new_tensor(self.candidates)[memory.arm]
        return {"look-ahead": lookahead, "task gradients": memory.spent / state.carry.age.shape[-1]}

    def init(self, level: Any, theta: Tensor, key: Tensor) -> LevelState:
        carry = self.through.init(level, theta, key).carry
        arm = torch.full_like(key, len(self.candidates) - 1)
        left = torch.full_like(key, self.every)
        sums = torch.zeros(*key.shape, len(self.candidates), dtype=torch.float64, device=key.device)
        zero = sums.sum(-1)
        spent = zero + level.copies * float(self._with(level, -1).traits.init_evals)
        return LevelState(carry, Choice(arm, left, theta, sums, sums, zero, keys.fold_in(key, TRIAL), spent))

    @torch.no_grad()
    def value_and_grad(self, level: Any, theta: Tensor, state: LevelState) -> tuple[Tensor, Tensor, LevelState]:
        memory: Choice = state.memory
        if len(self.candidates) > 1 and not bool(memory.left.all()):
            compare = lambda over, part: self._compared(level, *part) if over else part[2]  # noqa: E731
            memory = _by_group((memory.left == 0).long(), compare, (theta, state.carry, memory))
        look = lambda arm, part: self._window(level, arm, *part)  # noqa: E731
        value, grad, carry, cost = _by_group(memory.arm, look, (theta, state.carry))
        return value, grad, LevelState(carry, memory._replace(left=memory.left - 1, spent=memory.spent + cost))

    def _window(self, level: Any, arm: int, theta: Tensor, carry: Carry) -> tuple[Tensor, Tensor, Carry, Tensor]:
        """One window with a candidate: meta-loss, gradient, carry, and task gradients ``[*batch]`` that it cost."""
        chosen = self._with(level, arm)
        traits, restarts = chosen.traits, is_due(level, carry.age).sum(-1)
        cost = restarts * float(traits.init_evals) + level.copies * float(traits.evals)
        try:
            value, grad, state = self.through.value_and_grad(chosen, theta, LevelState(carry, None))
        except NonFiniteError as error:
            if error.level is not chosen:
                raise
            raise NonFiniteError(level, error.what, error.fix) from error  # the level that the user wrote
        unit = self._unit(level, arm)
        return unit * value, unit * grad, state.carry, cost

    def _compared(self, level: Any, theta: Tensor, carry: Carry, memory: Choice) -> Choice:
        """The block is over: its gain is added to its candidate's, and the next one is chosen."""
        key = keys.fold_in(memory.key, 1)
        gain = _gain(*(self._simulated(level, each, carry, key) for each in (memory.began, theta)))
        played = torch.nn.functional.one_hot(memory.arm, len(self.candidates)).double()
        mean = (played * memory.gains / memory.blocks.where(memory.blocks > 0, 1.0)).sum(-1)
        blocks = self.decay * memory.blocks + played
        gains = self.decay * memory.gains + played * gain[..., None]
        squares = self.decay * memory.squares + (gain - mean).square()
        comparison = 2 * float(self._trial_evals(level))
        windows = [float(self._with(level, each).traits.evals) for each in range(len(self.candidates))]
        arm = choose(blocks, gains, squares, self.every * blocks.new_tensor(windows) + comparison)
        left = torch.full_like(memory.left, self.every)
        return Choice(arm, left, theta, blocks, gains, squares, key, memory.spent + level.copies * comparison)

    def _simulated(self, level: Any, theta: Tensor, carry: Carry, key: Tensor) -> Tensor:
        """What parameters are compared by, ``[*batch]``: the lower the better, inf if a copy fails."""
        if level.episode_length is not None:
            return level.on("validation").evaluate_from_scratch(theta, key)  # type: ignore[no-any-return]
        longest = tolerant(self._with(level, -1))
        evaluate = partial(as_data, grad=level.optimizer.traits.reads_grad)
        after, window = run(longest, theta, carry, evaluate, keep=False)
        value, penalty = level.objective.value(window.losses).mean(-1), level.optimizer.penalty(theta)
        value = value if penalty is None else value + penalty
        sound = torch.isfinite(value) & (after.skipped == carry.skipped).all(-1)
        return torch.where(sound, value, torch.inf)

    def _trial_evals(self, level: Any) -> Any:
        """Task gradients that `_trial` costs, for each copy."""
        if level.episode_length is None:
            given = level.problem.traits
            return self.candidates[-1] * (given.evals + given.outer_evals + level.optimizer.traits.evals)
        return dataclasses.replace(level, gradient=self.through).on("validation").traits.scratch_evals

    def _with(self, level: Any, arm: int) -> Any:
        """The level with a candidate for its look-ahead."""
        return dataclasses.replace(level, lookahead=self.candidates[arm], gradient=self.through)

    def _unit(self, level: Any, arm: int) -> float:
        """What the objective makes of a constant loss in the longest window, over what it makes of it in this one."""
        longest, own = (torch.full((count,), 2.0) for count in (self.candidates[-1], self.candidates[arm]))
        value = level.objective.value
        return float(value(longest) / value(own)) if arm < len(self.candidates) - 1 else 1.0


def choose(blocks: Tensor, gains: Tensor, squares: Tensor, prices: Tensor) -> Tensor:
    """The next candidate ``[*batch]``, given discounted sums as in `Choice` and ``prices`` ``[candidates]``.

    Of the best and its neighbours, the one with the highest bound. A candidate without a block has no mean, and an
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
    """The gain of parameters, relative to their losses, ``[*batch]`` float64: 1 or -1 if one of them is inf."""
    before, after = before.double(), after.double()
    size = before.abs() + after.abs()
    ends = torch.isinf(before).double() - torch.isinf(after).double()
    usual = (before - after) / size.where(size > 0, 1.0)
    return torch.where(torch.isinf(size), ends, usual)


def _by_group(group: Tensor, function: Callable[[int, Any], State], parts: State) -> Any:
    """``function(number, part)`` of the entries of each group, put together.

    ``group``: numbers ``[*batch]``; ``parts`` and what is returned are trees of tensors ``[*batch, ...]``.
    """
    numbers = sorted(set(group.flatten().tolist()))
    if len(numbers) == 1:
        return function(numbers[0], parts)
    rows = [(group.flatten() == number).nonzero().squeeze(-1) for number in numbers]
    shared = [
        function(number, map_leaves(lambda leaf, at=at: leaf.flatten(0, group.dim() - 1)[at], parts))
        for number, at in zip(numbers, rows)
    ]
    order = torch.cat(rows).argsort()
    return map_leaves(lambda *leaves: torch.cat(leaves)[order].reshape(*group.shape, *leaves[0].shape[1:]), *shared)
