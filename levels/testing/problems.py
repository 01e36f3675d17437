"""The suite for problems: the kind of answers, copies that do not mix, and whether gradients are derivatives."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from levels import keys
from levels.autodiff import vjp
from levels.base import Problem, Split
from levels.tasks.task import SPLITS, Task
from levels.testing import shared
from levels.testing.shared import check_same, check_slope, check_state, check_tensor, expect, some_keys, untouched
from levels.tree import State, map_leaves

Ask = Callable[[Problem, Tensor, State], tuple[Tensor, Tensor, State]]


def check_problem(
    problem: Problem,
    *,
    seed: int = 0,
    exact_gradient: bool = True,
    order: Literal[1, 2] = 2,
    varied: bool = True,
    splits: Sequence[Split] = SPLITS,
) -> None:
    """Whether ``problem`` keeps the contract of `Problem`; of a `Task`, also whether its splits are apart.

    ``exact_gradient``: compare the gradient with central differences of the value; False for an estimate, as of a level
    with first-order gradients and an unroll above 1. ``order``: 2 compares, where `traits` says differentiable, the
    derivative of the gradient, which exact levels above need; 1 is for a level with an unroll above 1 over a level.
    ``varied``: False if every key is meant to name the same problem. ``splits``: those that the task has data for.
    Derivatives of a task are compared in float64. What `outer_value_and_grad` counts is held to the same. Raises
    `ConformanceError`.
    """
    shared.check_part(problem, problem.layout, least=1)
    outer = type(problem).outer_value_and_grad is not Problem.outer_value_and_grad
    fix = "say in traits what it costs, as ProblemTraits(outer_evals=1)"
    expect(not outer or problem.traits.outer_evals, problem, "outer_evals of 0", "more, as it counts other data", fix)
    for batch in shared.BATCHES:
        _answers(problem, some_keys(problem.layout, seed, batch), _evaluated)
    key = some_keys(problem.layout, seed, shared.BATCHES[-1])
    for ask in (_evaluated, _outer) if outer else (_evaluated,):
        shared.check_repeats(problem, partial(_answers, problem, key, ask))
        together = _answers(problem, key, ask)
        for at in ((0, 1), (1, 2)):
            fix = "never mix copies, and draw by each copy's key"
            alone, itself = _answers(problem, key[at], ask), map_leaves(lambda leaf, at=at: leaf[at], together)
            check_same(problem, alone, itself, "for a copy in a batch", "what the copy answers alone", fix)
        _check_derivatives(problem, key, ask, exact_gradient, order)
    parts: list[Problem] = [problem.on(split) for split in splits] if isinstance(problem, Task) else [problem]
    values = [_answers(part, key, _evaluated).value for part in parts]
    if varied:
        _check_varied(problem, key, parts, values)


class _Answers(NamedTuple):
    """What a problem answers to keys ``[*batch]``, in two evaluations in a row."""

    params: Tensor
    start: State
    value: Tensor
    gradient: Tensor
    state: State
    later: tuple[Tensor, Tensor, State]
    scratch: Tensor


def _answers(problem: Problem, key: Tensor, ask: Ask) -> _Answers:
    layout, for_params, for_state = problem.layout, *keys.split(key, 2).unbind(-1)
    with untouched(problem, "init", key=for_params):
        params = problem.init(for_params)
    check_tensor(problem, "init", params, (*key.shape, layout.size), layout.dtype)
    with untouched(problem, "init_state", params=params, key=for_state):
        start = problem.init_state(params, for_state)
    check_state(problem, "init_state", start, key.shape)
    first = ask(problem, params, start)
    later = ask(problem, params, first[2])
    with untouched(problem, "evaluate_from_scratch", params=params, key=for_state):
        scratch = problem.evaluate_from_scratch(params, for_state)
    check_tensor(problem, "evaluate_from_scratch", scratch, key.shape, layout.dtype)
    return _Answers(params, start, *first, later, scratch)


def _evaluated(problem: Problem, params: Tensor, state: State) -> tuple[Tensor, Tensor, State]:
    answer = _checked(problem, "", "value_and_grad", params, state)
    if isinstance(problem, Task):
        with untouched(problem, "value", params=params, state=state):
            alone, fix = problem.value(params, state), "mend value, or leave it out"
        check_same(problem, alone, answer[::2], "from value", "that of value_and_grad", fix)
    return answer


def _outer(problem: Problem, params: Tensor, state: State) -> tuple[Tensor, Tensor, State]:
    f, g, state = _evaluated(problem, params, state)
    return _checked(problem, "counted ", "outer_value_and_grad", params, state, f=f, g=g)


def _checked(
    problem: Problem, said: str, method: str, params: Tensor, state: State, **read: Tensor
) -> tuple[Tensor, Tensor, State]:
    with untouched(problem, method, params=params, state=state, **read):
        value, grad, new = getattr(problem, method)(params, state, **read)
    check_tensor(problem, f"{said}value", value, params.shape[:-1], params.dtype)
    check_tensor(problem, f"{said}gradient", grad, params.shape, params.dtype)
    check_state(problem, f"{said}state", new, params.shape[:-1], state)
    return value, grad, new


def _check_varied(problem: Problem, key: Tensor, parts: list[Problem], values: list[Tensor]) -> None:
    """Other keys and other splits draw other problems."""
    answers = _answers(problem, key, _evaluated)
    rows = torch.cat((answers.value[..., None], answers.gradient), dim=-1).flatten(0, -2)
    got, fix = "one value and gradient for different keys", "draw what varies from the key, or pass varied=False"
    expect(not torch.equal(rows[0], rows[1]), problem, got, "another problem for another key", fix)
    for i, part in enumerate(parts):
        expect(part.layout == problem.layout, part, "another layout on another split", "the same", "mend its layout")
        again = any(torch.equal(values[i], values[j]) for j in range(i))
        got, fix = "the problems of another split for the same key", "draw them from self.own(key)"
        expect(not again, part, got, "other problems", fix)


def _check_derivatives(problem: Problem, key: Tensor, ask: Ask, exact: bool, order: int) -> None:
    """From one state: the gradient against the value, and ``J^T v`` of the gradient's Jacobian against the gradient."""
    sharp = dataclasses.replace(problem, dtype="float64") if isinstance(problem, Task) else problem
    said, (x, start, _, grad, *_) = "counted " if ask is _outer else "", _answers(sharp, key, ask)
    scale = x.square().mean(-1, keepdim=True).sqrt().clamp_min(1)
    if exact:
        fix = "mend the gradient, or pass exact_gradient=False if it is not meant to be the derivative"
        check_slope(problem, f"{said}gradient", lambda at: ask(sharp, at, start)[0][..., None], x, grad, scale, fix)
    if order == 1 or not problem.traits.differentiable:
        return

    def followed(at: Tensor) -> tuple[Tensor, Tensor]:
        value, slope, state = sharp.value_and_grad(at, start)
        if ask is _outer:
            value, slope, state = sharp.outer_value_and_grad(at, state, value, slope)
        check_state(problem, f"{said}state at parameters that require grad", state, x.shape[:-1], start)
        return value, slope

    v, what = keys.normal(keys.fold_in(key, 1), x.shape[-1:], x.dtype), f"derivative of the {said}gradient"
    fix = "return what autograd can differentiate twice, or let traits say differentiable=False, or pass order=1"
    with torch.no_grad():
        product = shared.attempt(problem, what, lambda: vjp(lambda at: followed(at)[1], x, v), fix)
        slope = vjp(lambda at: followed(at)[0], x, torch.ones_like(x[..., 0]))
    check_slope(problem, what, lambda at: v * ask(sharp, at, start)[1], x, product, scale, fix)
    same = not exact or shared.close(slope, grad)
    expect(same, problem, f"another derivative of the {said}value by autograd", f"the {said}gradient", fix)
