"""The suite for problems: what they answer, to whom, and whether the gradient is the derivative of the value."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor

from levels import keys
from levels.base import Problem
from levels.tasks.task import SPLITS, Split, Task
from levels.testing.shared import (
    BATCHES,
    check_advanced,
    check_layout,
    check_repeats,
    check_state,
    check_tensor,
    close,
    expect,
    some_keys,
    untouched,
)
from levels.tree import State, named_leaves


def check_problem(
    problem: Problem,
    *,
    seed: int = 0,
    exact_gradient: bool = True,
    varied: bool = True,
    splits: Sequence[Split] = SPLITS,
) -> None:
    """Whether ``problem`` keeps the contract of `Problem`; of a `Task`, also whether its splits are apart.

    ``exact_gradient``: compare the gradient with central differences; False for what is no true derivative, such as
    a level with first-order gradients and an unroll above 1. A problem in float64 is compared more sharply.
    What a problem judges by (`Problem.judge`) is held to the same, if that is anything of its own.
    ``varied``: False if every key is meant to name the same problem. ``splits``: those that the task has data for.
    Raises `ConformanceError`.
    """
    check_layout(problem, problem.layout, least=1)
    parts = [problem.on(split) for split in splits] if isinstance(problem, Task) else [problem]
    for part in parts:
        for asked, batch in product(_questions(part), BATCHES):
            _answers(part, some_keys(part.layout, seed, batch), asked)
    key = some_keys(problem.layout, seed, BATCHES[-1])
    for asked in _questions(problem):
        check_repeats(problem, partial(_answers, problem, key, asked), asked.said)
        _check_alone(problem, key, asked)
    if varied:
        _check_varied(problem, key, parts)
    if exact_gradient:
        for asked, direction in product(_questions(problem), range(4)):
            _check_gradient(problem, key, asked, direction)


class _Question(NamedTuple):
    """A way to ask a problem at parameters ``[*batch, n]``: for a value, its gradient, and the state advanced."""

    ask: Callable[[Problem, Tensor, State], tuple[Tensor, Tensor, State]]
    said: str  # before what it answers, in sentences


class _Answers(NamedTuple):
    """What a problem answers to keys ``[*batch]``, the last three of two evaluations in a row."""

    params: Tensor
    start: State
    value: Tensor
    grad: Tensor
    state: State
    later: tuple[Tensor, Tensor, State]


def _questions(problem: Problem) -> list[_Question]:
    """What the problem answers, and what it judges by if that is something else."""
    judges = type(problem).outer_value_and_grad is not Problem.outer_value_and_grad
    return [PLAIN, JUDGED] if judges else [PLAIN]


def _answers(problem: Problem, key: Tensor, asked: _Question) -> _Answers:
    layout, for_params, for_state = problem.layout, *keys.split(key, 2).unbind(-1)
    with torch.enable_grad(), untouched(problem, "init_params", key=for_params):
        params = problem.init(for_params)
    check_tensor(problem, "init_params", params, (*key.shape, layout.size), layout.dtype)
    with torch.enable_grad(), untouched(problem, "init_state", params=params, key=for_state):
        start = problem.init_state(params, for_state)
    check_state(problem, "init_state", start, key.shape)
    first = asked.ask(problem, params, start)
    return _Answers(params, start, *first, asked.ask(problem, params, first[2]))


def _evaluated(problem: Problem, params: Tensor, state: State) -> tuple[Tensor, Tensor, State]:
    with torch.enable_grad(), untouched(problem, "value_and_grad", params=params, state=state):
        value, grad, new = problem.value_and_grad(params, state)
    _check_answer(problem, "", params, state, (value, grad, new))
    return value, grad, new


def _judged(problem: Problem, params: Tensor, state: State) -> tuple[Tensor, Tensor, State]:
    """What counts where the problem was just evaluated."""
    f, g, state = _evaluated(problem, params, state)
    with torch.enable_grad(), untouched(problem, "judge", params=params, f=f, g=g, state=state):
        value, grad, new = problem.outer_value_and_grad(params, f, g, state)
    _check_answer(problem, "judged ", params, state, (value, grad, new))
    return value, grad, new


PLAIN, JUDGED = _Question(_evaluated, ""), _Question(_judged, "judged ")


def _check_answer(
    problem: Problem, said: str, params: Tensor, old: State, answer: tuple[Tensor, Tensor, State]
) -> None:
    value, grad, new = answer
    check_tensor(problem, f"{said}value", value, params.shape[:-1], params.dtype)
    check_tensor(problem, f"{said}gradient", grad, params.shape, params.dtype)
    check_advanced(problem, old, new)
    check_state(problem, f"{said}state", new, params.shape[:-1])


def _check_alone(problem: Problem, key: Tensor, asked: _Question) -> None:
    together = named_leaves(_answers(problem, key, asked))
    for index in ((0, 1), (1, 2)):
        alone = named_leaves(_answers(problem, key[index], asked))
        for (path, itself), leaf in zip(alone.items(), together.values()):
            got, expected = f"another {asked.said}{path} for a copy in a batch", "what the copy answers alone"
            fix = "never mix copies, and draw by each copy's key"
            expect(close(leaf[index], itself), problem, got, expected, fix)


def _check_varied(problem: Problem, key: Tensor, parts: list[Any]) -> None:
    """Other keys and other splits, other problems."""
    answers = _answers(problem, key, PLAIN)
    rows = torch.cat((answers.value[..., None], answers.grad), dim=-1).flatten(0, -2)
    got, fix = "one value and gradient for different keys", "draw what varies from the key, or pass varied=False"
    expect(not torch.equal(rows[0], rows[1]), problem, got, "another problem for another key", fix)
    values = [_answers(part, key, PLAIN).value for part in parts]
    for i, part in enumerate(parts):
        expect(part.layout == problem.layout, part, "another layout on another split", "the same", "mend its layout")
        shared = any(torch.equal(values[i], values[j]) for j in range(i))
        got, fix = "the problems of another split for the same key", "draw them from self.own(key)"
        expect(not shared, part, got, "other problems", fix)


def _check_gradient(problem: Problem, key: Tensor, asked: _Question, direction: int) -> None:
    """Central differences along a random direction that leans towards the gradient, from one state."""
    params, start, value, grad, *_ = _answers(problem, key, asked)
    eps = torch.finfo(params.dtype).eps
    random = keys.normal(keys.fold_in(key, direction), params.shape[-1:], params.dtype)
    along = _unit(_unit(random) + _unit(grad))
    width = eps ** (1 / 3) * params.square().mean(-1, keepdim=True).sqrt().clamp_min(1)
    up, down = (asked.ask(problem, params + sign * width * along, start)[0] for sign in (1, -1))
    measured, claimed = (up - down) / (2 * width[..., 0]), (grad * along).sum(-1)
    allowed = 4 * eps ** (1 / 3) * torch.linalg.vector_norm(grad, dim=-1) + 8 * eps * value.abs() / width[..., 0]
    worst = ((measured - claimed).abs() - allowed).flatten().nan_to_num(nan=math.inf).argmax()
    got = f"a {asked.said}gradient with slope {float(claimed.flatten()[worst]):.6g} along a direction"
    expected = f"{float(measured.flatten()[worst]):.6g} as central differences of the value say"
    fix = "mend the gradient, or pass exact_gradient=False if it is not meant to be the derivative"
    expect(((measured - claimed).abs() <= allowed).all(), problem, got, expected, fix)


def _unit(vectors: Tensor) -> Tensor:
    length = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    unit: Tensor = vectors / length.clamp_min(torch.finfo(vectors.dtype).tiny)
    return unit
