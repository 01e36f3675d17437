"""A guard at use: a hand-made optimizer runs beside a learned one on the same problem, and the better one is shown.

    digits-mlp: safe(lstm, fallback=adam(lr=0.03))

Inner optimizer and fallback each run a trajectory of their own, from the same start, on the same minibatches. One of
the two is *shown*: the run goes on from its parameters. For the *hidden* one the guard asks the problem itself, one
gradient an update. The fallback is shown first; the inner optimizer is shown while its losses are the lower ones:

    lag  <- lag + 1/5 * (d - lag),       d = (f_inner - f_fallback) / (|f_inner| + |f_fallback|)

It is shown where ``lag < 0``, ``d < 1/3`` (its last loss is not twice the fallback's) and its step is at most four
times as long as its last ones were. So a bad step is tried out of sight first, and the run is about as good as the
better of both. A copy falls back for good, which is counted, when the inner optimizer's loss, gradient or step is not
finite, or after ``patience`` updates in a row with a lag above 1/40 (a loss 5% above the fallback's). After ``watch``
updates copies that lag fall back, and the others go on alone. The inner optimizer alone is judged by the losses of the
run: if they are not finite, or if smoothed losses stay above ``factor`` times their best for ``patience`` updates, the
run goes back to its best point and the fallback begins there. ``watch=0`` is that alone. Then nothing is asked, so the
guard can leave the tower for ordinary training loops (`recursion.exported`), whose steps then take a closure.

Heaton, Chen, Wang and Yin 2020 ("Safeguarded learned convex optimization", arXiv 2003.01880) take a learned step only
if a residual of a convex problem shrinks enough, else a hand-made step from there. In Premont-Schwarz et al. 2022
("A simple guard for learned optimizers", arXiv 2201.12426) both go on together, every few steps, from whichever came
lower. Here the two never meet before the inner optimizer is dropped: the fallback is the very run that a user would
have had without the guard, and is never restarted. The price is a second gradient an update while copies are watched.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, NamedTuple, Self

import torch
from torch import Tensor

from levels.base import Optimizer, OptimizerTraits, Problem
from levels.episode import tolerant
from levels.fields import Above, Count, Whole
from levels.layout import Layout
from levels.optimizers.adam import Adam
from levels.optimizers.guarded import Guard
from levels.optimizers.partition import asked, problem_key
from levels.optimizers.wrap import Wrapper
from levels.tree import State, choose, map_leaves, scatter

RATE = 0.2  # of the running means: a memory of about five losses
BEHIND = 0.025  # the lag of a loss 5% above the fallback's
SOON = 1 / 3  # the lag of a single loss twice the fallback's
LEAP = 4.0  # times the running mean of its lengths: a longer step is tried out of sight


class Point(NamedTuple):
    """Where a trajectory stands, and what the problem answers; leading dimensions ``[*batch, copies]``."""

    f: Tensor
    g: Tensor  # [..., n]
    x: Tensor  # [..., n]


class Watch(NamedTuple):
    """What the guard remembers; leading dimensions ``[*batch, copies]``."""

    hidden: Tensor  # [..., n] where the hidden trajectory stands; where the run stands, if there is one trajectory only
    problem_state: State  # the problem's, for the hidden one; None if nothing is asked
    shown: Tensor  # bool, whether the inner optimizer is shown
    lag: Tensor  # of the inner optimizer behind the fallback, from -1 to 1
    stride: Tensor  # running mean of the lengths of the inner optimizer's steps
    strikes: Tensor  # int64, updates in a row that count against the inner optimizer
    smooth: Tensor  # running mean of the losses shown
    best: Tensor  # the lowest of these so far
    best_x: Tensor  # [..., n] where it was lowest
    updates: Tensor  # int64, since the trajectory began
    fell: Tensor  # int64, 1 once the inner optimizer was dropped
    asked: Tensor  # int64, evaluations of the problem that were asked
    key: Tensor  # int64


Both = tuple[Watch, State, State]


@dataclass(frozen=True, repr=False)
class Safeguarded(Guard):
    """``inner``: what is guarded. ``fallback``: what takes over. ``watch``: updates for which both run; None for all.
    ``patience``: updates in a row for which the inner optimizer may lag. ``factor``: what the inner optimizer alone may
    reach of its best loss, above 1.

    Its state must begin with the key that a level hands down, so that both trajectories have the same problem. Evals
    are an upper bound (the metric ``asked`` counts): copies that fell back, or go on alone, ask no more. The one
    evaluation with which each trajectory begins is neglected.
    """

    name = "safe"

    inner: Optimizer
    fallback: Optimizer = Adam()
    watch: Whole | None = None
    patience: Count = 20
    factor: Annotated[float, Above(1)] = 2.0

    @property
    def traits(self) -> OptimizerTraits:
        traits = super().traits
        asks = self.watch != 0 and isinstance(self.site, Problem)
        return traits._replace(reads_loss=True, evals=traits.evals + (self._problem.traits.evals if asks else 0))

    def bind(self, site: Problem | Layout) -> Self:
        bound = Wrapper.bind(self, site)
        if self.watch != 0:
            asked(bound, "asks the problem for its fallback's gradients, unless watch=0 guards by the losses alone")
        return bound

    def joined(self, learned: Tensor) -> Tensor:
        """Trained parameters ``[*batch, k]`` of the inner optimizer, with fresh ones of the fallback behind them."""
        key = torch.zeros(learned.shape[:-1], dtype=torch.int64, device=learned.device)
        return torch.cat((learned, self.fallback.init(key)), dim=-1)

    def own_state(self, own_theta: Tensor, x: Tensor, key: Tensor) -> Watch:
        none, zero, asks, problem_state = torch.zeros_like(key), x.new_zeros(key.shape), self.watch != 0, None
        if asks:  # the answer that the run reads in its first update
            problem_state = self._problem.init_state(x, problem_key(key))
            *_, problem_state = self._problem.value_and_grad(x, problem_state)
        shown = torch.full(key.shape, not asks, device=key.device)
        return Watch(x, problem_state, shown, zero, zero, none, zero, zero, x, none, none, none + asks, key)

    def own_metrics(self, own: Watch) -> dict[str, Tensor]:
        return {"fell back": own.fell} | ({"asked": own.asked} if self.watch != 0 else {})

    def update(self, theta: Tensor, x: Tensor, state: Both, f: Tensor, g: Tensor) -> tuple[Tensor, Both]:
        (_, ours, theirs), (own, inner, fallback) = self.split_theta(theta), state
        run, dropped = Point(f, g, x), own.fell > 0
        watched = ~dropped & self._is_watching(own.updates)
        alone = ~dropped & ~watched
        beside, own = self._at_hidden(own, run, watched)
        at, back_at = choose(own.shown, run, beside), choose(own.shown, beside, run)
        moved, new_inner = _advanced(self.inner, ours, at, inner, ~dropped)
        backup, new_fallback = _advanced(self.fallback, theirs, back_at, fallback, ~alone)
        own = self._recorded(own, run, at.f, back_at.f, watched, alone)
        drop = ~dropped & self._is_wrong(own, at, moved, watched)
        back = drop & (alone | ~torch.isfinite(backup).all(-1))  # there is no sound trajectory to go on from
        if back.any():
            backup = torch.where(back[..., None], own.best_x, backup)
            new_fallback = choose(back, self.fallback.init_state(theirs, backup, own.key), new_fallback)
        length, usual = torch.linalg.vector_norm(moved - at.x, dim=-1), own.stride
        leads = (own.lag < 0) & (_relative(at.f, back_at.f) < SOON) & (length <= LEAP * usual)
        shown = ~dropped & ~drop & (alone | leads)
        x, other = torch.where(shown[..., None], moved, backup), torch.where(shown[..., None], backup, moved)
        hidden = torch.where((watched & ~drop & self._is_watching(own.updates))[..., None], other, x)
        stride = torch.where(dropped | drop, usual, usual + RATE * (length - usual))
        own = own._replace(hidden=hidden, shown=shown, stride=stride, fell=own.fell + drop)
        return x, (own, choose(drop | dropped, inner, new_inner), choose(alone & ~drop, fallback, new_fallback))

    def result(self, state: Both, x: Tensor) -> Tensor:
        own, inner, fallback = state
        return torch.where(own.shown[..., None], self.inner.result(inner, x), self.fallback.result(fallback, x))

    @cached_property
    def _problem(self) -> Problem:
        """What the hidden trajectory asks; copies of a level that fail there raise no error."""
        problem: Problem = tolerant(self.site)
        return problem

    def _is_watching(self, updates: Tensor) -> Tensor:
        """Whether copies that did not fall back are watched in their next update."""
        return torch.ones_like(updates, dtype=torch.bool) if self.watch is None else updates < self.watch

    def _at_hidden(self, own: Watch, run: Point, watched: Tensor) -> tuple[Point, Watch]:
        """Where the hidden trajectory stands, asked for copies that have one; the run's point for the others."""
        sound = torch.isfinite(own.hidden).all(-1)
        ask = watched & (own.updates > 0) & sound  # before the first update both stand at the start
        lost = Point(torch.full_like(run.f, torch.inf), torch.zeros_like(run.g), own.hidden)
        known = choose(watched & ~sound, lost, run)
        if not ask.any():
            return known, own
        rows, dims = ask.flatten().nonzero().squeeze(-1), ask.dim()
        hidden = own.hidden, own.problem_state
        x, problem_state = map_leaves(lambda leaf: leaf.flatten(0, dims - 1)[rows][:, None], hidden)
        f, g, problem_state = self._problem.value_and_grad(x, problem_state)
        own = own._replace(problem_state=scatter(rows, problem_state, own.problem_state, dims), asked=own.asked + ask)
        return scatter(rows, Point(f, g, x), known, dims), own

    def _recorded(self, own: Watch, run: Point, ours: Tensor, theirs: Tensor, watched: Tensor, alone: Tensor) -> Watch:
        """The records after one more loss of the inner optimizer and of the fallback, one of which is the run's."""
        lag = torch.where(watched, own.lag + RATE * (_relative(ours, theirs) - own.lag), own.lag)
        sound, is_first = torch.isfinite(run.f), own.updates == 0
        mean = torch.where(is_first, run.f, own.smooth + RATE * (run.f - own.smooth))
        smooth = torch.where(sound, mean, own.smooth)
        better = sound & (is_first | (smooth < own.best))
        best = torch.where(better, smooth, own.best)
        risen = smooth - best > (self.factor - 1) * best.abs()
        strikes = torch.where((watched & (lag > BEHIND)) | (alone & risen), own.strikes + 1, 0)
        own = own._replace(lag=lag, strikes=strikes, smooth=smooth, best=best, updates=own.updates + 1)
        return own._replace(best_x=torch.where(better[..., None], run.x, own.best_x))

    def _is_wrong(self, own: Watch, at: Point, moved: Tensor, watched: Tensor) -> Tensor:
        """Whether the inner optimizer is dropped: by the records, or because its last update is not finite."""
        lost = ~torch.isfinite(at.f) | ~torch.isfinite(at.g).all(-1) | ~torch.isfinite(moved).all(-1)
        late = watched & ~self._is_watching(own.updates) & (own.lag >= 0)  # the last update that is watched
        return lost | (own.strikes >= self.patience) | late


def _advanced(optimizer: Optimizer, theta: Tensor, at: Point, state: State, needed: Tensor) -> tuple[Tensor, State]:
    """An update of an optimizer, if any copy needs it."""
    return optimizer.update(theta, at.x, state, at.f, at.g) if needed.any() else (at.x, state)


def _relative(ours: Tensor, theirs: Tensor) -> Tensor:
    """By how much one loss is above the other, of both together: from -1 to 1, also if one is not finite."""
    apart = (ours - theirs) / (ours.abs() + theirs.abs()).clamp_min(torch.finfo(ours.dtype).tiny)
    apart = torch.where(torch.isfinite(theirs), apart, -1.0)
    return torch.where(torch.isfinite(ours), apart, 1.0)
