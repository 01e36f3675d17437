"""Observed: a problem around a problem that reports each evaluation. Its answers are those of the problem, bit for bit.

tally = Tally()
tower = Tower(Observed(task, tally), *levels)
state = tower.init(seed=0)
print(tally.gradients)          # task gradients asked so far, one for each copy
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext

from torch import Tensor

from levels.base import Problem, ProblemTraits, Split
from levels.layout import Layout
from levels.tree import State


class Tally:
    """What an observed problem reports to: it counts ``gradients``, those of a start too."""

    def __init__(self) -> None:
        self.gradients = 0.0

    def asked(self, gradients: float) -> AbstractContextManager[object]:
        """The problem is about to compute that many gradients, each copy counted, inside the context returned."""
        self.gradients += gradients
        return nullcontext()

    def began(self, params: Tensor, state: State) -> None:
        """Copies have begun at ``params`` ``[*batch, n]`` with these fresh states."""


class Observed(Problem):
    """``problem``, with an observer. Its other splits have the same observer."""

    def __init__(self, problem: Problem, observer: Tally) -> None:
        self.problem, self.observer = problem, observer

    @property
    def layout(self) -> Layout:
        return self.problem.layout

    @property
    def traits(self) -> ProblemTraits:
        return self.problem.traits

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

    def outer_value_and_grad(self, params: Tensor, state: State, f: Tensor, g: Tensor) -> tuple[Tensor, Tensor, State]:
        with self._asked(params, float(self.traits.outer_evals)):
            return self.problem.outer_value_and_grad(params, state, f, g)

    def evaluate_from_scratch(self, params: Tensor, key: Tensor) -> Tensor:
        with self._asked(params, float(self.traits.scratch_evals)):
            return self.problem.evaluate_from_scratch(params, key)

    def on(self, split: Split) -> Observed:
        return Observed(self.problem.on(split), self.observer)

    def __repr__(self) -> str:
        return repr(self.problem)

    def _asked(self, params: Tensor, each: float = 1.0) -> AbstractContextManager[object]:
        return self.observer.asked(each * math.prod(params.shape[:-1]))
