"""Backpropagation with little memory: the updates of a window are made again, some copies at a time.

A graph of a whole window holds all that the updates compute, for all copies at once. For an LSTM over a network that is
nearly all of a run's memory. Here the window runs without a graph, and only the problem's answers ``(f_t, g_t)`` and
the first carry are kept. With the answers known, the updates need no evaluation of the problem. So they alone are made
again, with a graph, for ``copies`` copies, then for the next ones:

    dL/dtheta  =  sum over parts of the copies  sum_t  (dx_t / dtheta)^T  w_t g_t

The sum is the gradient of `through`, to rounding. The problem is not evaluated again; every update is made twice.
Memory is the answers of the window and the graph of one part (Chen et al. 2016, arXiv 1604.06174, recompute layers of a
network in the same way; copies are independent, so here the cut is across them and no state in between is needed).
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from levels.autodiff import as_data, is_followed
from levels.base import Answer, Carry, LevelLike, LevelState, Problem, Window
from levels.config import Count
from levels.gradients.first_order import Backpropagation, FirstOrder, window_vjp
from levels.replay import follow_init, replayed
from levels.restart import run
from levels.tree import State, map_leaves


@dataclass(frozen=True, repr=False)
class Recomputed(Backpropagation):
    """As ``lstm@20[gradient=recomputed]``, or ``recomputed(exact, copies=4)``.

    ``through``: ``first-order`` or ``exact``, whose gradient this is. ``copies``: how many copies have a graph at a
    time, at least 1. An exact level above differentiates ``through`` itself, with its memory.
    """

    name = "recomputed"

    through: Backpropagation = FirstOrder()
    copies: Count = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "evaluate", self.through.evaluate)

    def evals(self, level: LevelLike) -> int | Fraction:
        return self.through.evals(level) + (level.lookahead or level.unroll) * level.optimizer.traits.evals

    def check(self, level: LevelLike) -> None:
        self.through.check(level)

    def value_and_grad(self, level: LevelLike, theta: Tensor, state: LevelState) -> tuple[Tensor, Tensor, LevelState]:
        if is_followed(theta):
            return self.through.value_and_grad(level, theta, state)
        answers: list[Answer] = []
        reads_state = self.evaluate is not as_data  # whether the problem is asked again, at the states that it had

        def recorded(problem: Problem, x: Tensor, problem_state: Any, answer: Answer | None = None) -> Answer:
            answer = as_data(problem, x, problem_state, answer)
            answers.append(answer if reads_state else answer._replace(problem_state=None))
            return answer

        with torch.no_grad():
            carry, window = run(level, theta, state.carry, recorded, keep=False)
        grad, copies = torch.zeros_like(theta), window.losses.shape[-1]
        for first in range(0, copies, self.copies):
            count = min(self.copies, copies - first)
            part = _part((window.start, window.was_skipped, answers), theta.dim() - 1, first, count)
            grad = grad + count / copies * self._part_vjp(level, theta, *part)
        return level.objective.value(window.losses).mean(-1), grad, LevelState(carry, None)

    def _part_vjp(
        self, level: LevelLike, theta: Tensor, start: Carry, failed: Tensor | None, answers: list[Answer]
    ) -> Tensor:
        """The gradient ``[*batch, m]`` of the mean meta-loss of some copies; the answers of the window are known."""
        with torch.enable_grad():
            leaf = theta.detach().requires_grad_()
            first = follow_init(level, leaf, start, self.evaluate)
            steps = replayed(level, leaf, first, answers, self.evaluate, failed)
        losses = torch.stack([step.answer.loss for step in steps])
        return window_vjp(level, leaf, Window(first, steps, losses, failed))


def _part(state: State, dim: int, first: int, count: int) -> Any:
    """The copies from ``first`` on of a state, ``count`` of them; they lie along ``dim``."""
    return map_leaves(lambda leaf: leaf.narrow(dim, first, count), state)
