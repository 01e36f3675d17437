"""Replays: the updates of a window made again, from the answers that the problem gave; nothing is evaluated.

A copy that fails poisons every derivative that passes through its graph, also at a zero cotangent (0 times NaN). So the
window is made again, with the failed copies standing still where it began (`skipped`). Backwards, an update at a time,
the same answers give the first-order gradient as a function of the g_t (`swept`), for an exact level above.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from levels.autodiff import stop_gradient, update_vjp
from levels.base import Answer, Carry, Evaluate, LevelLike, Problem, Step, Window
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


def skipped(level: Any, theta: Tensor, window: Window, failed: Tensor, end: Step, evaluate: Evaluate) -> Any:
    """The window and its end with the copies in ``failed`` standing still, if the level's policy lets it."""
    what = "gradient" if torch.isfinite(window.losses).all() else "loss"
    fix = "lower its learning rate, or skip such copies with nonfinite=skip"
    level.nonfinite.handle(level, f"the problem's {what} is not finite", fix)
    if not window.steps:
        losses = torch.where(failed, window.start.f, window.losses)
        return window._replace(losses=losses, was_skipped=failed), end
    steps = replayed(level, theta, window.start, [step.answer for step in window.steps], evaluate, failed)
    losses = torch.stack([step.answer.loss for step in steps])
    return Window(window.start, steps, losses, failed), steps[level.unroll - 1]


def swept(level: LevelLike, theta: Tensor, window: Window, cotangents: Tensor) -> Tensor:
    """The first-order gradient ``[*batch, m]`` from those of the x_t ``[T, *batch, copies, n]``, last update first.

    In each `update_vjp` g is data, as first order wants it; but the sum is a function of every g_t.
    """
    reads = [window.start[:4], *((step.x, step.state, *step.answer[:2]) for step in window.steps[:-1])]
    dtheta, dx = torch.zeros_like(theta), torch.zeros_like(window.start.x)
    dstate: list[Any] = []
    for read, slope in zip(reversed(reads), cotangents.flip(0)):
        if window.was_skipped is not None:
            read = choose(window.was_skipped, window.start[:4], read)
        part, dx, dstate = update_vjp(level.optimizer, theta, *read, dx + slope, dstate)
        dtheta = dtheta + part
    if window.start.x.requires_grad:  # a learned start
        dtheta = dtheta + torch.autograd.grad(window.start.x, theta, dx, create_graph=True)[0]
    return dtheta
