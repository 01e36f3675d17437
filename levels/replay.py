"""Replays: the updates of a window made again, from the answers that the problem gave; nothing is evaluated.

A copy that fails poisons every derivative that passes through its graph, also at a zero cotangent (0 times NaN). So the
window is made again, with the failed copies standing still where it began (`skipped`). Backwards, an update at a time,
the same answers give the first-order gradient as a function of the g_t (`swept`), for an exact level above.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from levels import keys
from levels.autodiff import is_followed, stop_gradient
from levels.base import STATE, Answer, Carry, Evaluate, LevelLike, Optimizer, Problem, Step, Window
from levels.tree import State, choose, keep_named, leaves, with_leaves


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
        answer: Answer = evaluate(problem, at, problem_state, next(left))
        return answer

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


def _alias(tensor: Tensor) -> Tensor:
    """The same tensor as a node of its own, at which a derivative ends that is taken at it."""
    alias = tensor.view_as(tensor)
    return alias if alias.requires_grad or not alias.is_floating_point() else alias.requires_grad_()


def update_vjp(
    optimizer: Optimizer, theta: Tensor, x: Tensor, state: State, f: Tensor, g: Tensor, dx: Tensor, dstate: list[Any]
) -> tuple[Tensor, Tensor, list[Any]]:
    """The vector-Jacobian product of one update in theta, ``x`` and the state, ``f`` and ``g`` being data.

    ``dx`` ``[*batch, copies, n]`` and ``dstate`` (one for each floating tensor of the state, None for zero) are the
    cotangents of what `update` returns. The result can be differentiated again, in ``f`` and ``g`` too.
    """
    with torch.enable_grad():
        theta, x, *tensors = (_alias(tensor) for tensor in (theta, x, *leaves(state)))
        floats = [leaf for leaf in tensors if leaf.is_floating_point()]
        new_x, new_state = optimizer.update(theta, x, with_leaves(state, tensors), f, g)
        outputs = [new_x, *(leaf for leaf in leaves(new_state) if leaf.is_floating_point())]
        pairs = [(out, slope) for out, slope in zip(outputs, [dx, *(dstate or [None] * len(floats))])
                 if slope is not None and out.requires_grad]  # fmt: skip
        outs, slopes = [out for out, _ in pairs], [slope for _, slope in pairs]
        grads = torch.autograd.grad(outs, [theta, x, *floats], slopes, create_graph=True, allow_unused=True)
    dtheta, dx = (torch.zeros_like(a) if grad is None else grad for a, grad in zip((theta, x), grads))
    return dtheta, dx, list(grads[2:])


def follow_init(level: LevelLike, theta: Tensor, carry: Carry, evaluate: Evaluate) -> Carry:
    """The carry with learned starts as functions of theta, for copies that make their first update; f and g are kept.

    Otherwise a learned start would have slope 0 in the only window that sees it.
    """
    if not (level.optimizer.traits.learns_init and is_followed(theta)):
        return carry
    is_first = carry.age == 0
    if not is_first.any():
        return carry
    for_x, for_problem = keys.split(carry.key, 2).unbind(-1)
    x = level.optimizer.init_x(theta, for_x)
    state = level.optimizer.init_state(theta, x, keys.fold_in(carry.key, STATE))
    x, state = choose(is_first, (x, state), (carry.x, carry.state))
    known = Answer(carry.f, carry.g, carry.problem_state, carry.f, carry.g)
    answer = evaluate(level.problem, x, partial(level.problem.init_state, x.detach(), for_problem), known)
    f, g = choose(is_first, (answer.f, answer.g), (carry.f, carry.g))
    return carry._replace(x=x, state=state, f=f, g=g)
