"""Observed: a problem that somebody listens to, and that answers what it always did, to the last bit.

    tally = Tally()
    tower = Tower(Observed(task, tally), *levels)
    state = tower.init(seed=0)
    print(tally.gradients)          # task gradients asked so far, one for each copy

Every question goes on to the problem itself, in the words in which it was asked, so nothing is rounded differently.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from torch import Tensor

from levels.layout import Layout
from levels.base import Problem
from levels.tasks.task import Split
from levels.tree import State


class Observer(Protocol):
    """Who listens."""

    def asked(self, gradients: float) -> AbstractContextManager[object]:
        """The problem is about to be asked for that many gradients, each copy counted; it answers within."""

    def began(self, params: Tensor, state: State) -> None:
        """Copies have begun at ``params`` ``[*batch, n]`` with these fresh states."""


class Tally:
    """An observer that counts gradients."""

    def __init__(self) -> None:
        self.gradients = 0.0

    def asked(self, gradients: float) -> AbstractContextManager[object]:
        """Count them."""
        self.gradients += gradients
        return nullcontext()

    def began(self, params: Tensor, state: State) -> None:
        """Nothing is counted of a start; the gradients asked there are."""


class Observed(Problem):
    """``problem``, with an observer. Its other splits have the same one."""

    def __init__(self, problem: Problem, observer: Observer) -> None:
        self.problem, self.observer = problem, observer
        for name in ("copies", "differentiable", "judging", "cost", "starting", "symmetric"):
            setattr(self, name, getattr(problem, name))

    @property
    def layout(self) -> Layout:
        return self.problem.layout

    def init(self, key: Tensor) -> Tensor:
        return self.problem.init(key)

    def init_state(self, params: Tensor, key: Tensor) -> State:
        state = self.problem.init_state(params, key)
        self.observer.began(params, state)
        return state

    def value_and_grad(self, params: Tensor, state: State) -> tuple[Tensor, Tensor, State]:
        with self._asked(params):
            return self.problem.value_and_grad(params, state)

    def value(self, params: Tensor, state: State) -> tuple[Tensor, State]:
        with self._asked(params):
            return self.problem.value(params, state)

    def bend(self, params: Tensor, state: State, v: Tensor) -> Tensor:
        with self._asked(params):
            return self.problem.bend(params, state, v)

    def outer_value_and_grad(self, params: Tensor, f: Tensor, g: Tensor, state: State) -> tuple[Tensor, Tensor, State]:
        with self._asked(params, self.judging):
            return self.problem.outer_value_and_grad(params, f, g, state)

    def on(self, split: Split) -> Observed:
        return Observed(self.problem.on(split), self.observer)

    @property
    def beside(self) -> Observed:
        return Observed(self.problem.beside, self.observer)

    def evaluate_from_scratch(self, params: Tensor, key: Tensor) -> Tensor:
        with self._asked(params, float(self.problem.trying)):
            return self.problem.evaluate_from_scratch(params, key)

    def __repr__(self) -> str:
        return repr(self.problem)

    def _asked(self, params: Tensor, each: float = 1) -> AbstractContextManager[object]:
        return self.observer.asked(float(each * math.prod(params.shape[:-1])))
