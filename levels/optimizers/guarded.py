"""A guard: null steps, and a fallback. What a rule made of its parameters is kept only if held-out losses agree.

    task: lstm@20 / guarded(own, fallback=adam)

Every ``every`` updates the parameters reached are given a trial beside those last kept: a whole life of the level
below, from fresh starts, on the same held-out problems (`Problem.trial`). Are they no better, they are dropped: a null
step back to those last kept. The rule then begins anew with steps of half the size, which double again with each
block that is kept, up to their full size; and a fallback, if there is one, moves the next block instead, under the
same judgement. So a run ends no worse than it began, but for the noise of a trial.

The scheme is that of null steps in bundle methods (Kiwiel 1985) and of a trust region's radius; the idea to guard a
learned rule by a hand-made one is in Heaton et al. 2020 (Safeguarded learned convex optimization, arXiv 2003.01880).
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from levels import keys
from levels.asking import Asking
from levels.layout import Layout
from levels.base import Optimizer
from levels.optimizers.self_update import SelfUpdate
from levels.config import require
from levels.base import Problem
from levels.tasks.task import SPLITS, Split
from levels.tree import State, choose

LEAST = 2.0**-10  # of the full step size; a rule that is refused ten times in a row moves hardly at all


class Guard(NamedTuple):
    """What the guard remembers; leading dimensions ``[*batch, copies]``."""

    rule: State
    fallback: State
    kept: Tensor  # [..., n] parameters that were last judged good
    key: Tensor  # int64
    updates: Tensor  # int64, since the trajectory began
    scale: Tensor  # of the rule's steps
    falling: Tensor  # bool, whether the fallback moves this block
    refused: Tensor  # int64, blocks of the rule that were dropped
    fell: Tensor  # int64, blocks that the fallback moved


@dataclass(frozen=True, repr=False)
class Guarded(Asking):
    """``rule``: what is guarded. ``every``: updates in a block, at least 1. ``fallback``: an optimizer, or none.
    ``split``: of the task, on which trials are held.

    Its parameters are the rule's and then the fallback's. A block costs two trials.
    """

    name = "guarded"

    rule: Optimizer
    every: int = 20
    fallback: Optimizer | None = None
    split: Split = "validation"

    def __post_init__(self) -> None:
        good = isinstance(self.every, int) and not isinstance(self.every, bool) and self.every >= 1
        require(good, f"{self.name}: every must be a whole number of at least 1, got {self.every}")
        require(self.split in SPLITS, f"{self.name}: split must be one of {', '.join(SPLITS)}, got {self.split!r}")
        for field in ("rule", "fallback"):
            given = getattr(self, field)
            good = isinstance(given, Optimizer) or (given is None and field == "fallback")
            require(good, f"{self.name}: {field} must be an optimizer, got {given!r}")

    def bound(self, problem: Problem) -> Guarded:
        bound = super().bound(problem)
        for name in ("rule", "fallback"):
            if getattr(self, name) is not None:
                object.__setattr__(bound, name, getattr(self, name).bound(problem))
        return bound

    @cached_property
    def outer_value_and_grad(self) -> Problem:
        """The problem on which trials are held."""
        return self.problem.on(self.split)

    @cached_property
    def rules(self) -> list[Optimizer]:
        """The rule and the fallback, laid."""
        return [rule.over(self.below) for rule in (self.rule, self.fallback) if rule is not None]

    @property
    def asking(self) -> Fraction:  # type: ignore[override]
        """Two trials a block."""
        own = Fraction(self.rule.asking) + (0 if self.fallback is None else self.fallback.asking)
        return own + Fraction(2 * self.problem.trying, self.every)

    @property
    def reads_loss(self) -> bool:  # type: ignore[override]
        """If the rule or the fallback does."""
        return any(rule.reads_loss for rule in (self.rule, self.fallback) if rule is not None)

    @property
    def reads_grad(self) -> bool:  # type: ignore[override]
        """If the rule or the fallback does."""
        return any(rule.reads_grad for rule in (self.rule, self.fallback) if rule is not None)

    @property
    def compiles(self) -> bool:  # type: ignore[override]
        """As the rule does."""
        return self.rule.compiles

    def shapes(self, below: Layout) -> dict[str, tuple[int, ...]]:
        parts = {"rule": self.rule, "fallback": self.fallback}
        return {
            f"{part}.{name}": shape
            for part, rule in parts.items()
            if rule is not None
            for name, shape in rule.shapes(below).items()
        }

    def init(self, key: Tensor) -> Tensor:
        return torch.cat([rule.init(key) for rule in self.rules], dim=-1)

    def begin_state(self, params: Tensor, x: Tensor, key: Tensor) -> Guard:
        states = self._fresh(params, x, key)
        count = torch.zeros_like(key)
        return Guard(*states, x, key, count, x.new_ones(key.shape), count > 0, count, count)

    def update(self, params: Tensor, f: Tensor, g: Tensor, state: Guard, x: Tensor) -> tuple[Tensor, Guard]:
        own, *other = self._split(params)
        moved, rule = self.rules[0].update(own, f, g, state.rule, x)
        scale, fallback = state.scale[..., None], state.fallback
        moved = torch.where(scale == 1, moved, x + scale * (moved - x))
        if other and bool(state.falling.any()):
            theirs, fallback = self.rules[1].update(other[0], f, g, state.fallback, x)
            moved = torch.where(state.falling[..., None], theirs, moved)
        state = state._replace(rule=rule, fallback=fallback, updates=state.updates + 1)
        due = state.updates % self.every == 0
        return self._judged(params, moved, state, due) if bool(due.any()) else (moved, state)

    def _judged(self, params: Tensor, x: Tensor, state: Guard, due: Tensor) -> tuple[Tensor, Guard]:
        """Keep what a block came to, or drop it, for the copies that are ``due``."""
        key = keys.fold_in(state.key, state.updates)
        losses = self.outer_value_and_grad.evaluate_from_scratch(torch.stack((state.kept, x), -2), torch.stack((key, key), -1))
        better = losses[..., 1] < losses[..., 0]
        drop = due & ~better
        kept = torch.where((due & better)[..., None], x, state.kept)
        x = torch.where(drop[..., None], state.kept, x)
        falls = due & ~better & ~state.falling & (self.fallback is not None)
        scale = torch.where(better, 2 * state.scale, state.scale / 2).clamp(LEAST, 1.0)
        again = state.key if self.problem.rule is None else key  # over a task, the key names the copy's problem
        fresh = self._fresh(params, x, again)
        anew = drop | (due & state.falling)  # the rule does not know what the fallback did
        return x, state._replace(
            rule=choose(anew, fresh[0], state.rule),
            fallback=choose(falls, fresh[1], state.fallback),
            kept=kept,
            scale=torch.where(due & ~state.falling, scale, state.scale),
            falling=torch.where(due, falls, state.falling),
            refused=state.refused + (drop & ~state.falling),
            fell=state.fell + falls,
        )

    def result(self, state: Guard, x: Tensor) -> Tensor:
        return state.kept

    def metrics(self, state: Guard) -> dict[str, Tensor]:
        said = {"refused": state.refused, "fell back": state.fell, "step scale": state.scale}
        return self.rules[0].metrics(state.rule) | {name: value for name, value in said.items() if self._says(name)}

    def _says(self, name: str) -> bool:
        return name != "fell back" or self.fallback is not None

    def _split(self, params: Tensor) -> list[Tensor]:
        """The parameters of the rule, and of the fallback."""
        return list(torch.split_with_sizes(params, [rule.layout.size for rule in self.rules], -1))

    def _fresh(self, params: Tensor, x: Tensor, key: Tensor) -> tuple[State, State]:
        states = [rule.begin_state(own, x, key) for rule, own in zip(self.rules, self._split(params))]
        return states[0], states[1] if len(states) > 1 else None


@dataclass(frozen=True, repr=False)
class Self(Guarded):
    """The rule below, moving its own parameters, guarded: ``lstm@20 / self`` is ``lstm@20 / guarded(own)``."""

    name = "self"

    rule: Optimizer = SelfUpdate()
