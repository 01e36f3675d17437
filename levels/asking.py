"""Asking: update rules that ask the problem itself, beside what they are told of it.

A line search, a guard that compares two sets of parameters, a population of which one member is told about: they need
losses at parameters of their own choice. So they hold the problem that they are laid over (`Optimizer.bound`) and give
parameters of any batch a trial (`Problem.trial`): on common keys, hence common problems and data, so that losses
compare. What they ask is counted (`Optimizer.asking`).
"""

from __future__ import annotations

import copy
from typing import Self

from torch import Tensor

from levels import keys
from levels.layout import Layout
from levels.base import Optimizer
from levels.config import require
from levels.base import Problem
from levels.tree import State


class Asking(Optimizer):
    """Abstract. Laid over a problem, by a level, it has `problem`; over a layout alone it is refused.

    Nobody differentiates through a trial: a level above trains such a rule by evolution.
    """

    differentiable = False

    _problem: Problem | None = None

    def bound(self, problem: Problem) -> Self:
        bound = copy.copy(self)
        object.__setattr__(bound, "_problem", problem.beside)
        return bound

    def over(self, below: Layout) -> Self:
        what = f"{self} asks the problem that it works on, and it was laid over a layout alone"
        require(self._problem is not None, f"{what}; give it a level of its own")
        return super().over(below)

    @property
    def problem(self) -> Problem:
        """The problem that is asked."""
        assert self._problem is not None
        return self._problem

    def init_state(self, params: Tensor, x: Tensor) -> State:
        return self.begin_state(params, x, keys.seed(0, device=x.device).expand(x.shape[:-1]))
