"""Laid: a level over a problem, and itself a problem.

This file is the recursion. A laid level answers "value and gradient at given parameters" by running one window:

    for t in 1..T:
        x, s        = optimizer.update(params, f, g, s, x)
        f, g, below = problem.value_and_grad(x, below)

The ``g`` that ends a window starts the next one, and it is also the cotangent of the meta-loss at that ``x``; so
nothing is evaluated twice, at any height. No level knows its height.
"""

from __future__ import annotations

import dataclasses
from fractions import Fraction
from functools import cached_property, partial
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from levels import captured, keys, trials
from levels.captured import capturing
from levels.compiled import compiling
from levels.autodiff import constant, differentiated
from levels.base import LevelState
from levels.layout import Layout
from levels.restart import NonFinite, Skip, Stop, finite, looking_is_put_off, put_off
from levels.base import Optimizer
from levels.config import require
from levels.base import Problem
from levels.tasks.task import Split
from levels.tree import State, choose, keep_named, scatter
from levels.base import DUE, Carry, Step, Window

if TYPE_CHECKING:
    from levels.level import Level

STATE = 3  # folded into a copy's key for what its rule draws; 1 and 2 are its halves, for the start and the problem
RESTART = -1  # folded into a copy's key for its next trajectory; no part draws from that


class Level(Problem):
    """A level laid over a problem. Its parameters ``[*batch, m]`` are those of the level's optimizer."""

    def __init__(self, level: Level, problem: Problem) -> None:
        require(problem.layout.size > 0, f"{level} lies over something without parameters; nothing there to optimize")
        self.level = level
        self.problem = problem
        self.optimizer = level.optimizer.bound(problem).over(problem.layout)
        self.batch = level.batch if level.batch != "auto" else problem.copies if level.unroll > 1 else 1
        if isinstance(problem, Level) and self.optimizer.reads_grad:
            problem.level.gradient.check(problem)
        self.starting = problem.starting + problem.cost
        asked = level.gradient.updates(level) * self.optimizer.asking
        self.cost = level.gradient.evaluations(level, problem.judging) * problem.cost + asked
        self.differentiable = level.gradient.differentiable
        self.endless = level.episode_length is None and type(level.nonfinite) is Stop  # no copy ever restarts
        starts = self.optimizer.learns_start
        self.plain = self.endless and level.reach == 1 and problem.judging == 0 and not starts  # one update, no more
        self.symmetric = level.clip is None and level.gradient.symmetric(self)

    @property
    def layout(self) -> Layout:
        return self.optimizer.layout

    def __repr__(self) -> str:
        return f"{self.level} over {self.problem}"

    @property
    def rule(self) -> Optimizer:
        return self.optimizer

    def init(self, key: Tensor) -> Tensor:
        return self.optimizer.init(key)

    @torch.no_grad()
    def init_state(self, params: Tensor, key: Tensor) -> LevelState:
        return self.level.gradient.init_state(self, params, key)

    def value_and_grad(self, params: Tensor, state: LevelState) -> tuple[Tensor, Tensor, LevelState]:
        if torch.is_grad_enabled() and not differentiated():
            with torch.no_grad():
                return self.value_and_grad(params, state)
        replayed = captured.serves(params) and self.steady and self.level.gradient.steady
        ask = self._replayed if replayed else partial(self.level.gradient.value_and_grad, self)
        value, grad, state = ask(params, state)
        penalty = self.optimizer.penalty(params)
        if penalty is not None:
            value, grad = value + penalty[0], grad + penalty[1]
        if not (looking_is_put_off() or finite(value, grad)):  # whoever asked looks at both, and puts it off again
            grad, state = self._vet_gradient(value, grad, state)
        if self.level.clip is not None:
            norm = torch.linalg.vector_norm(grad, dim=-1, keepdim=True, dtype=torch.float64)  # no overflow
            grad = grad * (self.level.clip / norm.clamp_min(self.level.clip)).to(grad.dtype)
        return value, grad, state

    @torch.no_grad()
    def value(self, params: Tensor, state: LevelState) -> tuple[Tensor, LevelState]:
        value, state = self.level.gradient.value(self, params, state)
        penalty = self.optimizer.penalty(params)
        return value if penalty is None else value + penalty[0], state

    def on(self, split: Split) -> Level:
        return Level(self.level, self.problem.on(split))

    @property
    def beside(self) -> Level:
        below = self.problem.beside
        return self if below is self.problem else Level(self.level, below)

    @torch.no_grad()
    def evaluate_from_scratch(self, params: Tensor, key: Tensor) -> Tensor:
        return trials.run(self, params, key)

    @property
    def trying(self) -> int | Fraction:
        return trials.cost(self)

    @cached_property
    def patient(self) -> Level:
        """The same, but copies that go wrong are skipped and counted, at every level."""
        problem = self.problem.patient if isinstance(self.problem, Level) else self.problem
        return Level(dataclasses.replace(self.level, nonfinite=Skip()), problem)

    @property
    def steady(self) -> bool:
        """Whether a window does the same whatever the numbers are, once the copies that were due have restarted."""
        below = self.problem
        return not isinstance(below, Level) or (below.endless and below.level.gradient.steady and below.steady)

    def _replayed(self, params: Tensor, state: LevelState) -> tuple[Tensor, Tensor, LevelState]:
        """The estimator's answer, by a graph that holds the window: restarts come before it, looking behind it."""
        state = state._replace(carry=self._restart(params, state.carry))
        *answer, total = self._graphs(self._straight, params, state)
        return answer if finite(total) else self.level.gradient.value_and_grad(self, params, state)  # which says so

    def _straight(self, params: Tensor, state: LevelState) -> tuple[Tensor, Tensor, LevelState, Tensor]:
        """The estimator's answer where nothing restarts, and a number that is finite if all in it was."""
        endless = self.like(horizon=None, nonfinite=Stop())
        with put_off() as noted:
            answer = self.level.gradient.value_and_grad(endless, params, state)
        assert noted.total is not None
        return *answer, noted.total

    @cached_property
    def _graphs(self) -> captured.Graphs:
        return captured.Graphs()

    # What follows is for estimators.

    def like(self, **settings: Any) -> Level:
        """This level with other settings, laid over the same problem, once."""
        chosen = tuple(sorted(settings.items(), key=itemgetter(0)))
        if chosen not in self._likes:
            self._likes[chosen] = Level(dataclasses.replace(self.level, **settings), self.problem)
        return self._likes[chosen]

    @cached_property
    def _likes(self) -> dict[tuple[tuple[str, Any], ...], Level]:
        return {}

    def meta_loss(self, losses: Tensor) -> tuple[Tensor, list[Tensor | float]]:
        """Meta-loss ``[*batch]``, the mean over copies, of losses ``[T, *batch, copies]``, and its slope in each."""
        objective, copies = self.level.objective, losses.shape[-1]
        value, slopes = objective.value(losses), objective.slopes(losses)
        if copies == 1:
            return value.squeeze(-1), list(slopes)
        return value.mean(-1), [slope / copies for slope in slopes]

    def start(self, params: Tensor, key: Tensor) -> Carry:
        """A carry at the start of trajectories, for keys ``[*batch]``, with staggered ages."""
        carry = self.begin(params, keys.split(key, self.batch))
        return carry._replace(age=carry.age + self.first_ages())

    def begin(self, params: Tensor, key: Tensor, *, policy: NonFinite = Stop()) -> Carry:  # noqa: B008, it is frozen
        """Fresh trajectories for keys ``[*batch, copies]``, all of age 0: one evaluation of the problem below.

        ``policy``: what to do about one whose start is not finite; one that is let pass counts as skipped.
        """
        x = self.optimizer.start(params, self.problem.init, keys.split(key, 2)[..., 0])
        state = self.optimizer.begin_state(params, x, keys.fold_in(key, STATE))
        f, g, _, _, below = self._ask(x, self.asked_first(x, key), judged=False)
        count = torch.zeros_like(key)
        carry = Carry(x, state, f, g, below, count, key, count)
        if finite(f, g):
            return carry
        policy.handle(self, *_complaint("a freshly started problem's", f, "start its parameters smaller"))
        return carry._replace(skipped=count + ~(torch.isfinite(f) & torch.isfinite(g).all(-1)))

    def asked_first(self, x: Tensor, key: Tensor) -> State:
        """The state with which the problem is asked at ``x`` ``[*batch, n]`` where trajectories of these keys begin."""
        return self.problem.init_state(x.detach(), keys.split(key, 2)[..., 1])

    def first_ages(self) -> Tensor:
        """Ages ``[copies]`` that the first trajectories are given: spread over the windows of a life, if staggered."""
        ages = torch.arange(self.batch, device=self.layout.device)
        if not self.level.stagger or self.level.episode_length is None:
            return torch.zeros_like(ages)
        return ages * (self.level.episode_length // self.level.unroll) // self.batch * self.level.unroll

    def due(self, age: Tensor) -> Tensor:
        """Whether a copy of this age restarts before its next window."""
        episode_length = self.level.episode_length
        return age < 0 if episode_length is None else (age < 0) | (age >= episode_length)

    def window(
        self,
        params: Tensor,
        carry: Carry,
        *,
        record: bool = True,
        pulls: bool = False,
        asked: bool = False,
        judged: bool = True,
    ) -> tuple[Carry, Window]:
        """Run one window from ``carry``; copies whose trajectory is over start afresh first.

        T is the level's `reach`; the carry returned is the one after ``unroll`` updates. Without ``record``, only the
        losses are kept of the window: `Window.steps` and `Window.grads` are empty. With ``pulls``, steps have what
        `Optimizer.sweep` reads: their `Step.pull`, unless copies were skipped or the optimizer replays the window.
        With ``asked``, the states with which the problem was asked are kept too, for those who ask it again. Without
        ``judged``, losses are what the problem answers, whatever it counts.
        """
        carry = self._restart(params, carry)
        x, state, f, g, below = carry[:5]
        steps, losses, grads, states = [], [], [], []
        replayed = pulls and self.optimizer.replays(g)
        advance = self.optimizer.linearizing(params) if pulls and not replayed else self.optimizer.updating(params)
        for t in range(self.level.reach):
            read = f, g, state, x
            if asked:
                states.append(below)
            x, state, *pull = advance(*read)
            if record:
                step = Step(*read, *pull)
                steps.append(step._replace(state=None) if replayed and t else step)
            f, g, value, slope, below = self._ask(x, below, judged)
            losses.append(value)
            if record:
                grads.append(slope)
            if t + 1 == self.level.unroll:
                end = Carry(x, state, f, g, below, carry.age + self.level.unroll, carry.key, carry.skipped)
        together = torch.stack(losses) if len(losses) > 1 else losses[0][None]
        window = Window(steps, together, grads, x, carry.age, states)
        if finite(together, g) and (value is f or finite(f, slope)):
            return end, window
        return self._vet_window(carry, end, window, [f[..., None], g, slope])

    def _ask(self, x: Tensor, below: State, judged: bool) -> tuple[Tensor, Tensor, Tensor, Tensor, State]:
        """The problem's answer, and what of it counts; what it carries on is a constant for every derivative."""
        if self.optimizer.reads_grad:
            f, g, below = self.problem.value_and_grad(x, below)
        else:
            (f, below), g = self.problem.value(x, below), torch.zeros_like(x)
        value, slope, below = self.problem.outer_value_and_grad(x, f, g, below) if judged else (f, g, below)
        return f, g, value, slope, constant(below) if differentiated() else below

    def _restart(self, params: Tensor, carry: Carry) -> Carry:
        if self.endless and not differentiated():
            return carry
        due = self.due(carry.age)
        if differentiated():  # what began outside of what is differentiated begins again, within
            due = due | (carry.age == 0)
        if not due.any():
            return carry
        key = torch.where(carry.age == 0, carry.key, keys.fold_in(carry.key, RESTART))
        rows = due.flatten().nonzero().squeeze(-1)
        owners = params[..., None, :].expand(*due.shape, -1).reshape(due.numel(), -1)[rows]  # [k, m]
        with compiling(False), capturing(False):  # any number of copies may restart, and each would be made by itself
            fresh = self.begin(owners, key.flatten()[rows][:, None])
        restarted: Carry = keep_named("skipped", scatter(rows, fresh, carry, due.dim()), carry)
        return restarted

    def _vet_window(self, start: Carry, end: Carry, window: Window, last: list[Tensor]) -> tuple[Carry, Window]:
        """Some loss or gradient may not be finite: refuse it, or let the copies concerned stand still.

        ``last``: what was answered at the end of the window.
        """
        sound = [torch.isfinite(answer).all(-1) for answer in (end.f[..., None], end.g, *last)]
        bad = ~torch.stack([torch.isfinite(window.losses).all(0), *sound]).all(0)
        if not bad.any():
            return end, window
        fix = "lower its learning rate, or skip such copies with nonfinite=skip"
        self.level.nonfinite.handle(self, *_complaint("the problem's", window.losses, fix))
        steps = [choose(bad, _still(start, step), step._replace(pull=None)) for step in window.steps]
        losses = torch.where(bad, start.f, window.losses)
        grads = [torch.where(bad[..., None], 0.0, g) for g in window.grads]
        end = keep_named("skipped", choose(bad, start, end), end)
        end = end._replace(age=torch.where(bad, DUE, end.age), skipped=end.skipped + bad)
        asked = [choose(bad, start.below, state) for state in window.asked]
        x = torch.where(bad[..., None], start.x, window.x)
        return end, Window(steps, losses, grads, x, torch.where(bad, DUE, window.age), asked, bad)

    def _vet_gradient(self, value: Tensor, grad: Tensor, state: LevelState) -> tuple[Tensor, LevelState]:
        if not torch.isfinite(value).all():
            fix = f"{self.level.objective} does not fit such losses (a log needs losses above 0)"
            Stop().handle(self, "the losses are finite but the meta-loss is not", fix)
        bad = ~torch.isfinite(grad).all(-1)
        if bad.any():
            fix = "shorten its unroll or lower its learning rate, or skip such windows with nonfinite=skip"
            self.level.nonfinite.handle(self, "gradient of the meta-loss is not finite", fix)
            grad = torch.where(bad[..., None], 0.0, grad)
            carry = state.carry
            state = state._replace(carry=carry._replace(skipped=carry.skipped + bad[..., None]))
        return grad, state


def _still(start: Carry, step: Step) -> Step:
    """What a copy that stands still reads in place of ``step``."""
    return Step(start.f, start.g, None if step.state is None else start.state, start.x)


def _complaint(whose: str, losses: Tensor, fix: str) -> tuple[str, str]:
    what = "gradient" if bool(torch.isfinite(losses).all()) else "loss"
    return f"{whose} {what} is not finite", fix
