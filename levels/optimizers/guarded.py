"""A guard: null steps, and a fallback. A block of updates is kept only if it lowers the held-out loss.

    task: lstm@20 / guarded(own, fallback=adam)

Every ``every`` updates the guard compares the parameters reached with those last kept: a whole episode of the level
below for both, from fresh starts, on the same held-out problems (`Problem.evaluate_from_scratch`). If the new ones are
no better, the guard drops them: a null step, back to those last kept. The inner optimizer then begins anew with steps
of half the size. Each block that is kept doubles the size again, up to the full one. A fallback, if there is one, moves
the block after a null step instead, under the same judgement. So a run ends no worse than it began, up to the noise of
an evaluation.

Null steps are those of bundle methods (Kiwiel 1985), the size that of a trust region. Heaton et al. 2020 (Safeguarded
learned convex optimization, arXiv 2003.01880) guard a learned optimizer by a hand-made one.
"""

import typing
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from levels import keys
from levels.base import Optimizer, OptimizerTraits, Problem, Split, is_level
from levels.fields import Count
from levels.layout import Layout
from levels.optimizers.partition import asked
from levels.optimizers.self_update import SelfUpdate
from levels.optimizers.wrap import Wrapper, towards
from levels.tree import State, choose

LEAST = 2.0**-10  # of the full step size, after ten null steps in a row


class Guard(Wrapper):
    """An optimizer around one or two others that asks the problem itself; abstract.

    No level above can differentiate what is asked, so one trains such an optimizer by evolution. Raises ValueError,
    when bound to a layout alone.
    """

    @property
    def traits(self) -> OptimizerTraits:
        return super().traits._replace(differentiable=False, locality="global")

    def bind(self, site: Problem | Layout) -> typing.Self:
        bound = super().bind(site)
        asked(bound)
        return bound


class GuardState(NamedTuple):
    """What a guard remembers; leading dimensions ``[*batch, copies]``."""

    best: Tensor  # [..., n] parameters that were last judged good
    key: Tensor  # int64
    updates: Tensor  # int64, since the trajectory began
    scale: Tensor  # of the inner optimizer's steps
    falling: Tensor  # bool, whether the fallback moves this block
    refused: Tensor  # int64, blocks of the inner optimizer that were dropped
    fell: Tensor  # int64, blocks that the fallback moved


@dataclass(frozen=True, repr=False)
class Guarded(Guard):
    """``inner``: what is guarded. ``every``: updates in a block. ``fallback``: an optimizer, or none. ``split``: of the
    task, for the comparisons. A block costs two evaluations from scratch.
    """

    name = "guarded"

    inner: Optimizer
    every: Count = 20
    fallback: Optimizer | None = None
    split: Split = "validation"

    @property
    def traits(self) -> OptimizerTraits:
        traits = super().traits
        each = self.site.traits.scratch_evals if isinstance(self.site, Problem) else 0
        return traits._replace(evals=traits.evals + Fraction(2 * each, self.every))

    def own_state(self, own_theta: Tensor, x: Tensor, key: Tensor) -> GuardState:
        count = torch.zeros_like(key)
        return GuardState(x, key, count, x.new_ones(key.shape), count > 0, count, count)

    def own_metrics(self, own: GuardState) -> dict[str, Tensor]:
        fell = {} if self.fallback is None else {"fell back": own.fell}
        return {"refused": own.refused, **fell, "step scale": own.scale}

    def update(self, theta: Tensor, x: Tensor, state: State, f: Tensor, g: Tensor) -> tuple[Tensor, State]:
        (_, ours, *theirs), (own, inner, *other) = self.split_theta(theta), state
        moved, inner = self.inner.update(ours, x, inner, f, g)
        moved = towards(x, moved, own.scale[..., None])
        if self.fallback is not None and own.falling.any():
            instead, other[0] = self.fallback.update(theirs[0], x, other[0], f, g)
            moved = torch.where(own.falling[..., None], instead, moved)
        own = own._replace(updates=own.updates + 1)
        now = own.updates % self.every == 0
        return self._judged(theta, moved, (own, inner, *other), now) if now.any() else (moved, (own, inner, *other))

    def result(self, state: tuple[GuardState, *tuple[State, ...]], x: Tensor) -> Tensor:
        return state[0].best

    def _judged(self, theta: Tensor, x: Tensor, state: State, now: Tensor) -> tuple[Tensor, State]:
        """Keep where a block led, or drop it, for the copies in the mask ``now``."""
        own, *inner = state
        key = keys.fold_in(own.key, own.updates)
        before, after = self._held_out.evaluate_from_scratch(torch.stack((own.best, x)), torch.stack((key, key)))
        better = after < before
        drop = now & ~better
        falls = drop & ~own.falling & (self.fallback is not None)
        x = torch.where(drop[..., None], own.best, x)
        scale = torch.where(better, 2 * own.scale, own.scale / 2).clamp(LEAST, 1.0)
        again = key if is_level(self.site) else own.key  # over a task, the key names the copy's problem
        _, *fresh = self.init_state(theta, x, again)
        anew = drop | (now & own.falling)  # the inner optimizer does not know what the fallback did
        begins = [anew, falls][: len(inner)]
        new = own._replace(
            best=torch.where(now[..., None], x, own.best),
            scale=torch.where(now & ~own.falling, scale, own.scale),
            falling=torch.where(now, falls, own.falling),
            refused=own.refused + (drop & ~own.falling),
            fell=own.fell + falls,
        )
        return x, (new, *(choose(mask, first, old) for mask, first, old in zip(begins, fresh, inner)))

    @cached_property
    def _held_out(self) -> Problem:
        return asked(self).on(self.split)


@dataclass(frozen=True, repr=False)
class Self(Guarded):
    """The optimizer below, moving its own parameters, guarded: ``lstm@20 / self`` is ``lstm@20 / guarded(own)``."""

    name = "self"

    inner: Optimizer = SelfUpdate()
