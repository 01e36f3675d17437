"""A guard at use: a hand-made optimizer runs beside the rule on the same problem, and what is behind is not shown.

    digits-mlp: safe(lstm, fallback=adam(lr=0.03))

Rule and fallback each run a trajectory of their own, from the same start, on the same minibatches. One of the two is
*shown*: its parameters are what the run goes on from, and what the run is told there is what that one learns. The other
one, hidden, asks the problem itself (`levels.asking`), one gradient a step. The fallback is shown first; the rule is
shown as soon as, and as long as, its losses are the lower ones:

    lag  <- lag + 1/5 * (d - lag),       d = (f_rule - f_fallback) / (|f_rule| + |f_fallback|)

The rule is shown where ``lag < 0``, ``d < 1/3`` (its last loss is not twice the fallback's) and its step is not above
four times as long as its last ones were: so a bad step is taken out of sight first, and what is shown is about the
better of both. A copy falls back for good, which is counted, when the rule's loss, gradient or step is not finite, or
after ``patience`` updates in a row with a lag above 1/40 (a loss 5% above the fallback's). After ``watch`` updates
those behind fall back and the others go on alone. A rule alone is judged by what it is told: not finite, or smoothed
losses above ``factor`` times their best for ``patience`` updates, and the run goes back to the best point kept, from
which the fallback begins. ``watch=0`` is that alone; nothing is asked, so that it can leave the tower for ordinary
loops (`recursion.export`), where steps then take a closure.

Guarding a learned rule by a hand-made one is in Heaton, Chen, Wang and Yin 2020 ("Safeguarded learned convex
optimization", arXiv 2003.01880), which takes a learned step only if a residual of a convex problem shrinks enough, else
the hand-made step from there; and in Premont-Schwarz et al. 2022 ("A simple guard for learned optimizers", LGL2O, arXiv
2201.12426), which, every few steps, goes on from whichever of both came lower, the two starting together again from
there. Here the two never meet before the rule is dropped: so the fallback is the very run that a user would have had,
nothing is asked of the problem but gradients on its own data, and a fallback with momentum is never restarted. The
price is a second gradient a step, for as long as it is watched.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import NamedTuple, Self

import torch
from torch import Tensor
from torch.nn.functional import pad

from levels import keys
from levels.asking import Asking
from levels.bound_levels import STATE, Level
from levels.layout import Layout
from levels.base import Optimizer
from levels.optimizers.adam import Adam
from levels.config import format_value, require
from levels.base import Problem
from levels.tree import State, choose, map_leaves, scatter

RATE = 0.2  # of the running means: a memory of about five losses
BEHIND = 0.025  # the lag of a loss 5% above the fallback's
SOON = 1 / 3  # the lag of a single loss twice the fallback's
LEAP = 4.0  # times the running mean of its lengths, a step is tried out of sight


class Told(NamedTuple):
    """What is known where a trajectory stands; leading dimensions ``[*batch, copies]``."""

    f: Tensor
    g: Tensor  # [..., n]
    x: Tensor  # [..., n]


class SafeState(NamedTuple):
    """What the guard remembers; leading dimensions ``[*batch, copies]``."""

    rule: State
    fallback: State
    hidden: Tensor  # [..., n] where the trajectory that is not shown stands; where the other does, if there is one only
    below: State  # the problem's, for the hidden one; None if nothing is asked
    shown: Tensor  # bool, whether it is the rule's that is shown
    lag: Tensor  # of the rule behind the fallback, from -1 to 1
    stride: Tensor  # running mean of the lengths of the rule's steps
    strikes: Tensor  # int64, updates in a row with something to blame on the rule
    smooth: Tensor  # running mean of the losses shown
    best: Tensor  # the lowest of these so far
    kept: Tensor  # [..., n] where it was lowest
    updates: Tensor  # int64, since the trajectory began
    fell: Tensor  # int64, 1 once the rule was dropped
    asked: Tensor  # int64, evaluations of the problem that were asked
    key: Tensor  # int64


@dataclass(frozen=True, repr=False)
class Safeguarded(Asking):
    """``rule``: what is guarded. ``fallback``: what takes over. ``watch``: updates for which both run, at least 0; None
    for all of them. ``patience``: updates in a row for which a rule may be wrong, at least 1. ``factor``: above 1; what
    a rule alone may reach of its best loss.

    Its parameters are the rule's and then the fallback's, see `joined`. The key with which it begins must be the one
    that a level hands down, for both to have the same problem.
    """

    name = "safe"
    reads_loss = True

    rule: Optimizer
    fallback: Optimizer = Adam()
    watch: int | None = None
    patience: int = 20
    factor: float = 2.0

    def __post_init__(self) -> None:
        for field in ("rule", "fallback"):
            given = getattr(self, field)
            require(isinstance(given, Optimizer), f"{self.name}: {field} must be an optimizer, got {given!r}")
        watch = self.watch is None or (_whole(self.watch) and self.watch >= 0)
        require(watch, f"{self.name}: watch must be a whole number of at least 0 or none, got {notate(self.watch)}")
        patience = _whole(self.patience) and self.patience >= 1
        require(patience, f"{self.name}: patience must be a whole number of at least 1, got {notate(self.patience)}")
        factor = isinstance(self.factor, (int, float)) and not isinstance(self.factor, bool) and self.factor > 1
        require(factor, f"{self.name}: factor must be a number above 1, got {notate(self.factor)}")

    def bound(self, problem: Problem) -> Safeguarded:
        bound = super().bound(problem)
        object.__setattr__(bound, "rule", self.rule.bound(problem))
        object.__setattr__(bound, "fallback", self.fallback.bound(problem))
        return bound

    def over(self, below: Layout) -> Self:
        """As any; a ValueError if it is to watch and knows no problem that it could ask."""
        if self.watch == 0:
            return Optimizer.over(self, below)
        what = f"{self} asks the problem that it works on for its fallback's gradients, and there is only a layout"
        require(self._problem is not None, f"{what}; set watch=0 to guard by the losses that it is told")
        return super().over(below)

    @cached_property
    def rules(self) -> tuple[Optimizer, Optimizer]:
        """The rule and the fallback, laid."""
        return self.rule.over(self.below), self.fallback.over(self.below)

    @property
    def asking(self) -> int | Fraction:  # type: ignore[override]
        """At most, for a rule that falls back or goes on alone asks no more: see the note ``asked``. The one
        evaluation more with which each trajectory begins is neglected.
        """
        own = self.rule.asking + self.fallback.asking
        return own if self.watch == 0 or self._problem is None else own + self._problem.cost

    @property
    def reads_grad(self) -> bool:  # type: ignore[override]
        """If the rule or the fallback does."""
        return self.rule.reads_grad or self.fallback.reads_grad

    @property
    def compiles(self) -> bool:  # type: ignore[override]
        """As the rule does."""
        return self.rule.compiles

    @property
    def learns_start(self) -> bool:
        """As the rule does."""
        return self.rule.learns_start

    def shapes(self, below: Layout) -> dict[str, tuple[int, ...]]:
        named = (("rule", self.rule), ("fallback", self.fallback))
        return {f"{part}.{name}": shape for part, rule in named for name, shape in rule.shapes(below).items()}

    def init(self, key: Tensor) -> Tensor:
        return torch.cat([rule.init(key) for rule in self.rules], dim=-1)

    def joined(self, learned: Tensor) -> Tensor:
        """The parameters ``[*batch, m]`` of a rule that was trained, with those of the fallback behind them."""
        key = torch.zeros(learned.shape[:-1], dtype=torch.int64, device=learned.device)
        return torch.cat((learned, self.rules[1].init(key)), dim=-1)

    def start(self, params: Tensor, fresh: Callable[[Tensor], Tensor], key: Tensor) -> Tensor:
        return self.rules[0].start(self._split(params)[0], fresh, key)

    def start_pullback(self, params: Tensor, dx: Tensor, begun: Tensor) -> Tensor | None:
        own, theirs = self._split(params)
        dparams = self.rules[0].start_pullback(own, dx, begun)
        return None if dparams is None else pad(dparams, (0, theirs.shape[-1]))

    def penalty(self, params: Tensor) -> tuple[Tensor, Tensor] | None:
        own, theirs = self._split(params)
        penalty = self.rules[0].penalty(own)
        return None if penalty is None else (penalty[0], pad(penalty[1], (0, theirs.shape[-1])))

    def begin_state(self, params: Tensor, x: Tensor, key: Tensor) -> SafeState:
        rule, fallback = (each.begin_state(own, x, key) for each, own in zip(self.rules, self._split(params)))
        none, zero, below = torch.zeros_like(key), x.new_zeros(key.shape), None
        if self.watch != 0:
            _, for_state = keys.split(keys.unfold_in(key, STATE), 2).unbind(-1)  # as a level and `deploy.walk` have it
            below = self.asked_problem.init_state(x, for_state)
            below = self.asked_problem.value_and_grad(x, below)[2]  # what the run is told at x before its first update
        shown = torch.full(key.shape, self.watch == 0, device=key.device)
        asked = none + (self.watch != 0)
        return SafeState(rule, fallback, x, below, shown, zero, zero, none, zero, zero, x, none, none, asked, key)

    def update(self, params: Tensor, f: Tensor, g: Tensor, state: SafeState, x: Tensor) -> tuple[Tensor, SafeState]:
        told = Told(f, g, x)
        dropped = state.fell > 0
        watched = ~dropped & self._watching(state.updates)
        hidden, state = self._hidden(state, told, watched)
        rules, falls = choose(state.shown, told, hidden), choose(state.shown, hidden, told)
        (rule, fallback), (own, theirs) = self.rules, self._split(params)
        alone = ~dropped & ~watched
        moved, following = _advanced(rule, own, rules, state.rule, ~dropped)
        backup, instead = _advanced(fallback, theirs, falls, state.fallback, ~alone)
        state = self._judged(state, told, rules.f, falls.f, watched, alone)
        drop = ~dropped & self._wrong(state, rules, moved, watched)
        back = drop & (alone | ~torch.isfinite(backup).all(-1))  # there is no sound trajectory to go on from
        if bool(back.any()):
            backup = torch.where(back[..., None], state.kept, backup)
            instead = choose(back, fallback.begin_state(theirs, backup, state.key), instead)
        length, usual = torch.linalg.vector_norm(moved - rules.x, dim=-1), state.stride
        shown = ~dropped & ~drop & (alone | (_leads(state, rules.f, falls.f) & (length <= LEAP * usual)))
        x, other = torch.where(shown[..., None], moved, backup), torch.where(shown[..., None], backup, moved)
        both = watched & ~drop & self._watching(state.updates)
        return x, state._replace(
            rule=choose(drop | dropped, state.rule, following),
            fallback=choose(alone & ~drop, state.fallback, instead),
            hidden=torch.where(both[..., None], other, x),
            shown=shown,
            stride=torch.where(dropped | drop, usual, usual + RATE * (length - usual)),
            fell=state.fell + drop,
        )

    def result(self, state: SafeState, x: Tensor) -> Tensor:
        (rule, fallback), shown = self.rules, state.shown[..., None]
        return torch.where(shown, rule.result(state.rule, x), fallback.result(state.fallback, x))

    def metrics(self, state: SafeState) -> dict[str, Tensor]:
        said = {"fell back": state.fell} | ({"asked": state.asked} if self.watch != 0 else {})
        return self.rules[0].metrics(state.rule) | said

    @cached_property
    def asked_problem(self) -> Problem:
        """What the hidden trajectory asks; copies of a level that go wrong there stop nobody."""
        return self.problem.patient if isinstance(self.problem, Level) else self.problem

    def _watching(self, updates: Tensor) -> Tensor:
        """Whether copies are watched in their next update, but for those that fell back."""
        return torch.ones_like(updates, dtype=torch.bool) if self.watch is None else updates < self.watch

    def _hidden(self, state: SafeState, told: Told, watched: Tensor) -> tuple[Told, SafeState]:
        """What is known where the hidden trajectory stands, asked where there is one; as told elsewhere."""
        first = state.updates == 0  # both stand at the start
        sound = torch.isfinite(state.hidden).all(-1)
        ask = watched & ~first & sound
        lost = Told(torch.full_like(told.f, torch.inf), torch.zeros_like(told.g), state.hidden)
        known = choose(watched & ~sound, lost, told)
        if not bool(ask.any()):
            return known, state
        rows, dims = ask.flatten().nonzero().squeeze(-1), ask.dim()
        x, below = map_leaves(lambda leaf: leaf.flatten(0, dims - 1)[rows][:, None], (state.hidden, state.below))
        f, g, below = self.asked_problem.value_and_grad(x, below)
        state = state._replace(below=scatter(rows, below, state.below, dims), asked=state.asked + ask)
        return scatter(rows, Told(f, g, x), known, dims), state

    def _judged(
        self, state: SafeState, told: Told, rules: Tensor, falls: Tensor, watched: Tensor, alone: Tensor
    ) -> SafeState:
        """The records after one more loss of each trajectory: ``rules`` and ``falls``, one of which is ``told``."""
        lag = state.lag + RATE * (_relative(rules, falls) - state.lag)
        lag = torch.where(watched, lag, state.lag)
        sound = torch.isfinite(told.f)
        first = state.updates == 0
        smooth = torch.where(first, told.f, state.smooth + RATE * (told.f - state.smooth))
        smooth = torch.where(sound, smooth, state.smooth)
        better = sound & (first | (smooth < state.best))
        best = torch.where(better, smooth, state.best)
        risen = smooth - best > (self.factor - 1) * best.abs()
        strike = (watched & (lag > BEHIND)) | (alone & risen)
        return state._replace(
            lag=lag,
            strikes=torch.where(strike, state.strikes + 1, 0),
            smooth=smooth,
            best=best,
            kept=torch.where(better[..., None], told.x, state.kept),
            updates=state.updates + 1,
        )

    def _wrong(self, state: SafeState, rules: Told, moved: Tensor, watched: Tensor) -> Tensor:
        """Whether the rule is to be dropped, by the records after this update and what it made of it."""
        lost = ~torch.isfinite(rules.f) | ~torch.isfinite(rules.g).all(-1) | ~torch.isfinite(moved).all(-1)
        late = watched & ~self._watching(state.updates) & (state.lag >= 0)  # the last of those watched
        return lost | (state.strikes >= self.patience) | late

    def _split(self, params: Tensor) -> tuple[Tensor, Tensor]:
        """The parameters of the rule, and of the fallback."""
        own, theirs = torch.split_with_sizes(params, [rule.layout.size for rule in self.rules], -1)
        return own, theirs


def _advanced(rule: Optimizer, params: Tensor, at: Told, state: State, needed: Tensor) -> tuple[Tensor, State]:
    """An update of a rule, if any copy needs it."""
    return rule.update(params, at.f, at.g, state, at.x) if bool(needed.any()) else (at.x, state)


def _leads(state: SafeState, rules: Tensor, falls: Tensor) -> Tensor:
    """Whether the rule's losses are the lower ones, the last one not far from it."""
    return (state.lag < 0) & (_relative(rules, falls) < SOON)


def _relative(rules: Tensor, falls: Tensor) -> Tensor:
    """By how much one loss is above the other, of both together: from -1 to 1, and so if it is not finite."""
    apart = (rules - falls) / (rules.abs() + falls.abs()).clamp_min(torch.finfo(rules.dtype).tiny)
    apart = torch.where(torch.isfinite(falls), apart, -1.0)
    return torch.where(torch.isfinite(rules), apart, 1.0)


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
