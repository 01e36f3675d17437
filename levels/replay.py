"""Replays: the updates of a window made again, from the answers that the problem gave; nothing is evaluated.

A copy that fails poisons every derivative that passes through its graph, also at a zero cotangent (0 times NaN). So the
window is made again, with the failed copies standing still where it began. An estimator that keeps no graph uses the
same way back (`levels.gradients.recomputed`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from levels.autodiff import stop_gradient
from levels.base import Answer, Carry, Evaluate, LevelLike, Problem, Step
from levels.tree import choose, keep_named


def replayed(
    level: LevelLike,
    theta: Tensor,
    first: Carry,
    answers: list[Answer],
    evaluate: Evaluate,
    failed: Tensor | None = None,
) -> list[Step]:
    """The steps of a window from ``first`` whose ``answers`` are known: updates are made again, nothing is evaluated.

    Copies in ``failed`` stand still at ``first``. The states in ``answers`` may be None if ``evaluate`` reads none.
    """
    x, _, f, g, problem_state = stop_gradient(first[:5])
    known = [stop_gradient(answer) for answer in answers]
    if failed is not None:
        still = Answer(f, g, None if known[0].problem_state is None else problem_state, f, torch.zeros_like(g))
        known = [keep_named("skipped", choose(failed, still, answer), answer) for answer in known]
    left = iter(known)

    def replay(problem: Problem, at: Tensor, problem_state: Any) -> Answer:
        at = at if failed is None else torch.where(failed[..., None], x, at)
        return evaluate(problem, at, problem_state, next(left))

    return list(level.window(theta, first, replay, failed))
