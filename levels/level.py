"""Level: an optimizer over a problem, and itself a problem. This file is the recursion.

A level answers "value and gradient at given parameters" by running one window of its optimizer on the problem below:

    for t in 1..T:
        x, s        = optimizer.update(theta, x, s, f, g)
        f, g, state = problem.value_and_grad(x, state)

Its parameters are the optimizer's, theta; its value is the window's meta-loss; its estimator gives the gradient. A g
is read by the next update, and is the derivative of the meta-loss at its x: so nothing is evaluated twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from levels import base, episode, keys
from levels.autodiff import as_data, vjp
from levels.base import Carry, Estimator, Evaluate, LevelState, Objective, Optimizer, Problem, Step
from levels.config import Config
from levels.faults import NonFinite, Stop, vetted
from levels.fields import Count, Positive, changed, listed, setting, unwritten
from levels.gradients.first_order import FirstOrder
from levels.layout import Layout
from levels.objectives import Sum
from levels.tree import choose


@dataclass(frozen=True, kw_only=True, repr=False)
class Level(Config, Problem):
    """One level. Without a ``problem`` it is a specification; `over` puts it on one.

    ``auto`` is, where ``unroll`` is above 1, a horizon of 5 windows (the 2016 paper's 100 steps of 20) and the
    problem's default number of copies; else no horizon and one copy.
    """

    optimizer: Optimizer  # the update rule
    unroll: Count = 1  # updates in a window, T
    horizon: Count | Literal["auto"] | None = "auto"  # updates from fresh parameters to the next; None: no restarts
    batch: Count | Literal["auto"] = "auto"  # copies of the problem
    stagger: bool = True  # whether first restarts are spread over the copies
    lookahead: Count | None = setting(None, word="ahead")  # updates under the meta-loss; the next window starts at T
    objective: Objective = Sum()  # how losses become a meta-loss
    gradient: Estimator = FirstOrder()  # how it is differentiated
    clip: Positive | None = None  # largest norm of that gradient; levels above see the clipped one
    nonfinite: NonFinite = Stop()  # what happens to copies that fail
    problem: Problem = unwritten(None)
    copies: int = field(init=False, compare=False)
    episode_length: int | None = field(init=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value in zip(("copies", "episode_length"), episode.resolved(self)):
            object.__setattr__(self, name, value)

    def over(self, problem: Problem) -> Level:
        """This level on ``problem``. Raises ValueError if a part does not fit."""
        episode.check_problem(self, problem)
        return replace(self, problem=problem, optimizer=self.optimizer.bind(problem))

    @property
    def layout(self) -> Layout:
        return self.optimizer.layout

    traits = cached_property(episode.level_traits)

    def init(self, key: Tensor) -> Tensor:
        return self.optimizer.init(key)

    @torch.no_grad()
    def init_state(self, params: Tensor, key: Tensor) -> LevelState:
        state = self.gradient.init(self, params, key)
        return state if self.clip is None else state._replace(norm=torch.zeros_like(key, dtype=torch.float64))

    def window(self, theta: Tensor, carry: Carry, evaluate: Evaluate, skip: Tensor | None = None) -> Iterator[Step]:
        """THE LOOP: one window from ``carry``, for theta ``[*batch, m]`` and any number of copies, an update at a time.

        ``evaluate`` is how the problem is asked. Copies in the mask ``skip`` stand still at the carry.
        """
        x, state, f, g, problem_state, *_ = carry
        for _ in range(self.lookahead or self.unroll):
            if skip is not None:
                x, state, f, g = choose(skip, carry[:4], (x, state, f, g))
            x, state = self.optimizer.update(theta, x, state, f, g)
            answer = evaluate(self.problem, x, problem_state)
            f, g, problem_state = answer.f, answer.g, answer.problem_state
            yield Step(x, state, answer)

    def begin(self, theta: Tensor, key: Tensor) -> Carry:
        """Fresh trajectories of age 0 for keys ``[*batch, copies]``: one evaluation of the problem."""
        for_x, for_problem = keys.split(key, 2).unbind(-1)
        x = self.optimizer.init_x(theta, for_x)
        state = self.optimizer.init_state(theta, x, keys.fold_in(key, base.STATE))
        reads_grad = self.optimizer.traits.reads_grad
        answer = as_data(self.problem, x, self.problem.init_state(x, for_problem), outer=False, grad=reads_grad)
        return Carry(x, state, *answer[:3], torch.zeros_like(key), key, torch.zeros_like(key))

    def value_and_grad(self, params: Tensor, state: LevelState) -> tuple[Tensor, Tensor, LevelState]:
        value, grad, state = self.gradient.value_and_grad(self, params, state)
        penalty = self.optimizer.penalty(params)
        if penalty is not None:
            value, grad = value + penalty, grad + vjp(self.optimizer.penalty, params, torch.ones_like(penalty))
        return value, *vetted(self, value, grad, state)

    @torch.no_grad()
    def value(self, params: Tensor, state: LevelState) -> tuple[Tensor, LevelState]:
        value, state = self.gradient.value(self, params, state)
        penalty = self.optimizer.penalty(params)
        return value if penalty is None else value + penalty, state

    def evaluate_from_scratch(self, params: Tensor, key: Tensor) -> Tensor:
        return episode.whole_episode(self, params, key)

    def on(self, split: base.Split) -> Level:
        return self.over(self.problem.on(split))

    def __repr__(self) -> str:
        brackets = listed({word: value for word, value in changed(self).items() if word not in ("optimizer", "unroll")})
        return f"{self.optimizer}@{self.unroll}" + (f"[{brackets}]" if brackets else "")
