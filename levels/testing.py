"""Conformance suites for problems and optimizers that somebody else wrote, as Gymnasium's check_env is for games.

    check_problem(MyTask())
    check_optimizer(MyRule())

Each returns None, or raises `ConformanceError` with one sentence: what was got, what was expected, how to mend it.
A part that passes fits into a tower at any height.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import optree
import torch
from torch import Tensor

from levels import keys
from levels.layout import Layout
from levels.optimizer import Optimizer
from levels.part import require
from levels.problem import Problem
from levels.task import SPLITS, Split, Task
from levels.tree import State, leaves, map_leaves, named_leaves, with_leaves

BATCHES = ((), (3,), (2, 3))
LAYOUTS = (
    Layout.of({"scalar": ()}),
    Layout.of({"weight": (3, 2), "bias": (2,), "scale": ()}),
    Layout.of({"many": (300,)}),
)


class ConformanceError(AssertionError):
    """A part breaks its contract; the message says what was got, what was expected, and how to mend it."""


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
    ``varied``: False if every key is meant to name the same problem. ``splits``: those that the task has data for.
    Raises `ConformanceError`.
    """
    _check_layout(problem, problem.layout, least=1)
    parts = [problem.on(split) for split in splits] if isinstance(problem, Task) else [problem]
    for part in parts:
        for batch in BATCHES:
            _answers(part, _keys(part.layout, seed, batch))
    key = _keys(problem.layout, seed, BATCHES[-1])
    _check_repeats(problem, lambda: _answers(problem, key))
    _check_problem_alone(problem, key)
    if varied:
        _check_varied(problem, key, parts)
    if exact_gradient:
        for direction in range(4):
            _check_gradient(problem, key, direction)


def check_optimizer(
    optimizer: Optimizer, *, below: Layout | None = None, seed: int = 0, steps: int = 4, differentiable: bool = True
) -> None:
    """Whether ``optimizer`` keeps the contract of `Optimizer`, in float32 and float64.

    ``below``: the layout to lay it over; None tries one scalar, several tensors, and many coordinates.
    ``steps``: updates in a row that are tried, at least 2; every parameter must matter within them.
    ``differentiable``: False for a black box that no level above can train by backpropagation: its `pullback` is
    not asked for. Raises `ConformanceError`; ValueError for too few steps.
    """
    require(steps >= 2, f"steps must be at least 2, got {steps}")
    for layout in LAYOUTS if below is None else (below,):
        for dtype in (torch.float32, torch.float64):
            rule = _lay(optimizer, dataclasses.replace(layout, dtype=dtype))
            for batch, copies in zip(BATCHES, (1, 1, 4), strict=True):
                _run(rule, _trial(rule, _keys(rule.layout, seed, batch), copies, steps))
            trial = _trial(rule, _keys(rule.layout, seed, (2,)), 3, steps)
            _check_zero_gradient(rule, trial, differentiable)
        _check_repeats(rule, partial(_fresh_run, rule, seed, steps))
        _check_mixing(rule, trial)
        _check_reads(rule, trial)
        _check_scope(rule, trial)
        _check_loss(rule, trial)
        if differentiable:
            _check_pullback(rule, trial)
            _check_linear(rule, trial)
            _check_start(rule, trial)


# What both suites ask.


def _require(condition: Any, part: object, got: str, expected: str, fix: str) -> None:
    if not condition:
        raise ConformanceError(f"{part}: got {got}, expected {expected}; {fix}")


def _keys(layout: Layout, seed: int, batch: tuple[int, ...]) -> Tensor:
    return keys.split(keys.seed(seed, device=layout.device), math.prod(batch)).reshape(batch)


def _check_layout(part: object, layout: Any, least: int) -> None:
    _require(isinstance(layout, Layout), part, f"a layout of type {type(layout).__name__}", "a Layout", "use Layout.of")
    fix = "mend its layout"
    _require(layout.size >= least, part, f"a layout of {layout.size} entries", f"at least {least}", fix)
    _require(layout.dtype.is_floating_point, part, f"a layout in {layout.dtype}", "a floating dtype", fix)


def _check_tensor(part: object, what: str, tensor: Any, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """A tensor of the right shape and dtype, finite, without a graph."""
    _require(isinstance(tensor, Tensor), part, f"{type(tensor).__name__} as {what}", "a tensor", "return a tensor")
    fix = "keep the leading batch dimensions, whatever their number, and the dtype of the layout"
    got = f"{list(tensor.shape)} in {tensor.dtype} as {what}"
    _require(tensor.shape == shape and tensor.dtype == dtype, part, got, f"{list(shape)} in {dtype}", fix)
    _check_plain(part, what, tensor)


def _check_state(part: object, what: str, state: State, lead: tuple[int, ...]) -> None:
    for path, leaf in named_leaves(state).items():
        name = f"{what}.{path}".rstrip(".")
        _require(isinstance(leaf, Tensor), part, f"{type(leaf).__name__} as {name}", "a tensor", "make it a tensor")
        fix = "every copy must own its part of the state"
        _require(leaf.shape[: len(lead)] == lead, part, f"{list(leaf.shape)} as {name}", f"{list(lead)} first", fix)
        _check_plain(part, name, leaf)


def _check_plain(part: object, what: str, tensor: Tensor) -> None:
    fix = "start smaller, or guard the division, root or logarithm that it comes from"
    _require(torch.isfinite(tensor).all(), part, f"{what} that is not finite", "finite numbers", fix)
    fix = "detach it, or compute it under torch.no_grad"
    _require(not tensor.requires_grad, part, f"{what} with an autograd graph", "none", fix)


def _check_advanced(part: object, before: State, after: State) -> None:
    """An advanced state looks as it did: structure, shapes, dtypes."""
    fix = "return the state with the structure, shapes and dtypes that it came with"
    old, new = _structure(before), _structure(after)
    _require(old == new, part, f"an advanced state {new}", f"its structure {old}", fix)
    for (path, was), leaf in zip(named_leaves(before).items(), leaves(after), strict=True):
        got = f"{list(leaf.shape)} in {leaf.dtype} as advanced state {path}"
        same = leaf.shape == was.shape and leaf.dtype == was.dtype
        _require(same, part, got, f"{list(was.shape)} in {was.dtype}", fix)


@contextmanager
def _untouched(part: object, what: str, **inputs: State) -> Iterator[None]:
    """Inside, neither the inputs nor torch's global generator may change."""
    frozen, structure = map_leaves(torch.clone, inputs), _structure(inputs)
    generator = torch.get_rng_state()
    yield
    same = _structure(inputs) == structure
    _require(same, part, f"a state that {what} rebuilt in place", "an unchanged one", "build a new state")
    for (path, was), leaf in zip(named_leaves(frozen).items(), leaves(inputs), strict=True):
        fix = "write x = x + step, never x += step"
        _require(torch.equal(was, leaf), part, f"{path} changed in place by {what}", "unchanged inputs", fix)
    moved = not torch.equal(generator, torch.get_rng_state())
    fix = "draw with levels.keys from the key that it is given"
    _require(not moved, part, f"a draw from torch's global generator in {what}", "none", fix)


def _structure(state: State) -> optree.PyTreeSpec:
    return optree.tree_structure(state)


def _check_repeats(part: object, answer: Callable[[], State]) -> None:
    """The same answer twice, whatever the global generator's state."""
    runs = []
    for number in (1, 2):
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(number)
            runs.append(answer())
    fix = "let it depend on its inputs and levels.keys alone"
    for (path, first), second in zip(named_leaves(runs[0]).items(), leaves(runs[1]), strict=True):
        same = torch.equal(first, second) if first.device.type == "cpu" else _close(first, second)
        _require(same, part, f"another {path} for the same key and inputs", "the same answer twice", fix)


def _close(got: Tensor, expected: Tensor) -> bool:
    if not got.is_floating_point():
        return torch.equal(got, expected)
    eps = torch.finfo(got.dtype).eps
    return bool(torch.linalg.vector_norm(got - expected) <= eps**0.5 * torch.linalg.vector_norm(expected) + eps)


# Problems.


class _Answers(NamedTuple):
    """What a problem answers to keys ``[*batch]``, the last three of two evaluations in a row."""

    params: Tensor
    start: State
    value: Tensor
    grad: Tensor
    state: State
    later: tuple[Tensor, Tensor, State]


def _answers(problem: Problem, key: Tensor) -> _Answers:
    layout, for_params, for_state = problem.layout, *keys.split(key, 2).unbind(-1)
    with torch.enable_grad(), _untouched(problem, "init_params", key=for_params):
        params = problem.init_params(for_params)
    _check_tensor(problem, "init_params", params, (*key.shape, layout.size), layout.dtype)
    with torch.enable_grad(), _untouched(problem, "init_state", params=params, key=for_state):
        start = problem.init_state(params, for_state)
    _check_state(problem, "init_state", start, key.shape)
    first = _evaluate(problem, params, start)
    return _Answers(params, start, *first, _evaluate(problem, params, first[2]))


def _evaluate(problem: Problem, params: Tensor, state: State) -> tuple[Tensor, Tensor, State]:
    with torch.enable_grad(), _untouched(problem, "value_and_grad", params=params, state=state):
        value, grad, new = problem.value_and_grad(params, state)
    _check_tensor(problem, "value", value, params.shape[:-1], params.dtype)
    _check_tensor(problem, "gradient", grad, params.shape, params.dtype)
    _check_advanced(problem, state, new)
    _check_state(problem, "state", new, params.shape[:-1])
    return value, grad, new


def _check_problem_alone(problem: Problem, key: Tensor) -> None:
    together = named_leaves(_answers(problem, key))
    for index in ((0, 1), (1, 2)):
        for (path, alone), leaf in zip(named_leaves(_answers(problem, key[index])).items(), together.values()):
            got, expected = f"another {path} for a copy in a batch", "what the copy answers alone"
            _require(
                _close(leaf[index], alone), problem, got, expected, "never mix copies, and draw by each copy's key"
            )


def _check_varied(problem: Problem, key: Tensor, parts: list[Any]) -> None:
    """Other keys and other splits, other problems."""
    answers = _answers(problem, key)
    rows = torch.cat((answers.value[..., None], answers.grad), dim=-1).flatten(0, -2)
    got, fix = "one value and gradient for different keys", "draw what varies from the key, or pass varied=False"
    _require(not torch.equal(rows[0], rows[1]), problem, got, "another problem for another key", fix)
    values = [_answers(part, key).value for part in parts]
    for i, part in enumerate(parts):
        _require(part.layout == problem.layout, part, "another layout on another split", "the same", "mend its layout")
        shared = any(torch.equal(values[i], values[j]) for j in range(i))
        got, fix = "the problems of another split for the same key", "draw them from self.own(key)"
        _require(not shared, part, got, "other problems", fix)


def _check_gradient(problem: Problem, key: Tensor, direction: int) -> None:
    """Central differences along a random direction that leans towards the gradient, from one state."""
    params, start, value, grad, *_ = _answers(problem, key)
    eps = torch.finfo(params.dtype).eps
    random = keys.normal(keys.fold(key, direction), params.shape[-1:], params.dtype)
    along = _unit(_unit(random) + _unit(grad))
    width = eps ** (1 / 3) * params.square().mean(-1, keepdim=True).sqrt().clamp_min(1)
    up, down = (problem.value_and_grad(params + sign * width * along, start)[0] for sign in (1, -1))
    measured, claimed = (up - down) / (2 * width[..., 0]), (grad * along).sum(-1)
    allowed = 4 * eps ** (1 / 3) * torch.linalg.vector_norm(grad, dim=-1) + 8 * eps * value.abs() / width[..., 0]
    worst = ((measured - claimed).abs() - allowed).flatten().nan_to_num(nan=math.inf).argmax()
    got = f"a gradient with slope {float(claimed.flatten()[worst]):.6g} along a direction"
    expected = f"{float(measured.flatten()[worst]):.6g} as central differences of the value say"
    fix = "mend the gradient, or pass exact_gradient=False if it is not meant to be the derivative"
    _require(((measured - claimed).abs() <= allowed).all(), problem, got, expected, fix)


def _unit(vectors: Tensor) -> Tensor:
    length = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    unit: Tensor = vectors / length.clamp_min(torch.finfo(vectors.dtype).tiny)
    return unit


# Optimizers.


class _Trial(NamedTuple):
    """Inputs of some updates in a row."""

    params: Tensor  # [*batch, m]
    x: Tensor  # [*batch, copies, n]
    f: Tensor  # [*batch, copies, steps]
    g: Tensor  # [*batch, copies, n, steps]


class _End(NamedTuple):
    """Where some updates lead."""

    x: Tensor
    state: State


class _Point(NamedTuple):
    """What an update is differentiated in."""

    params: dict[str, Tensor]
    x: Tensor
    state: State


def _lay(optimizer: Optimizer, below: Layout) -> Optimizer:
    rule = optimizer.over(below)
    _check_layout(rule, rule.layout, least=0)
    got, fix = f"parameters in {rule.layout.dtype}", "leave over and layout to Optimizer, and implement shapes"
    _require(rule.layout.dtype == below.dtype, rule, got, f"{below.dtype} as below", fix)
    return rule


def _trial(rule: Optimizer, key: Tensor, copies: int, steps: int) -> _Trial:
    """Fresh parameters, each somewhat off its start so that none is 0, and random values and gradients."""
    n, dtype = rule.below.size, rule.below.dtype
    with torch.enable_grad(), _untouched(rule, "init_params", key=key):
        params = rule.init_params(key)
    _check_tensor(rule, "init_params", params, (*key.shape, rule.layout.size), dtype)
    noise = 0.1 * keys.normal(keys.fold(key, 1), params.shape[-1:], dtype)
    params = torch.where(params == 0, noise, params * (1 + noise))
    f = 0.1 + keys.normal(keys.fold(key, 2), (copies, steps), dtype).square()
    g = keys.normal(keys.fold(key, 3), (copies, n, steps), dtype)
    return _Trial(params, keys.normal(keys.fold(key, 4), (copies, n), dtype), f, g)


def _run(rule: Optimizer, trial: _Trial, steps: int | None = None) -> _End:
    """``x`` and ``state`` after all updates of a trial or its first ``steps``, each checked."""
    params, x = trial.params, trial.x
    with torch.enable_grad(), _untouched(rule, "init_state", params=params, x=x):
        state = rule.init_state(params, x)
    _check_state(rule, "init_state", state, x.shape[:-1])
    for f, g in list(zip(trial.f.unbind(-1), trial.g.unbind(-1), strict=True))[:steps]:
        with torch.enable_grad(), _untouched(rule, "update", params=params, f=f, g=g, state=state, x=x):
            new_x, new_state = rule.update(params, f, g, state, x)
        _check_tensor(rule, "the updated x", new_x, x.shape, x.dtype)
        _check_advanced(rule, state, new_state)
        _check_state(rule, "state", new_state, x.shape[:-1])
        x, state = new_x, new_state
    return _End(x, state)


def _fresh_run(rule: Optimizer, seed: int, steps: int) -> tuple[_Trial, State]:
    trial = _trial(rule, _keys(rule.layout, seed, (2,)), 3, steps)
    return trial, _run(rule, trial)


def _check_mixing(rule: Optimizer, trial: _Trial) -> None:
    """Trials of 2 optimizers with 3 copies each: nobody notices what happens to somebody else."""
    usual = named_leaves(_run(rule, trial))
    other = trial._replace(x=_first(trial.x, 2), f=_first(trial.f, 2), g=_first(trial.g, 2))
    other_params = trial._replace(params=_first(trial.params, 1))
    for path, leaf in named_leaves(_run(rule, other)).items():
        same = _close(leaf.flatten(0, 1)[1:], usual[path].flatten(0, 1)[1:])
        fix = "reduce over the coordinates of a copy at most, never over copies"
        _require(same, rule, f"another {path} when f, g and x of another copy changed", "copies that never mix", fix)
    for path, leaf in named_leaves(_run(rule, other_params)).items():
        got, fix = f"another {path} when another optimizer's params changed", "keep the batch dimensions apart"
        _require(_close(leaf[1:], usual[path][1:]), rule, got, "optimizers in a batch that never mix", fix)
    alone = _Trial(trial.params[1], trial.x[1, 1:2], trial.f[1, 1:2], trial.g[1, 1:2])
    for path, leaf in named_leaves(_run(rule, alone)).items():
        got, fix = f"another {path} for a copy alone than among others", "let nothing depend on the number of copies"
        _require(_close(usual[path][1, 1:2], leaf), rule, got, "the same", fix)


def _first(tensor: Tensor, dims: int) -> Tensor:
    """Another first entry along the ``dims`` leading dimensions taken as one."""
    flat = tensor.flatten(0, dims - 1)
    return torch.cat((1.5 * flat[:1] + 0.1, flat[1:])).reshape(tensor.shape)


def _check_reads(rule: Optimizer, trial: _Trial) -> None:
    usual = _run(rule, _started(rule, trial)).x
    views = rule.layout.views(trial.params)
    steps = trial.f.shape[-1]
    for name, view in views.items():
        changed = trial._replace(params=rule.layout.flat({**views, name: 1.1 * view + 0.1}))
        got, fix = f"a parameter {name} that changes nothing in {steps} updates", "leave it out, or pass more steps"
        read = view.numel() == 0 or not torch.equal(_run(rule, _started(rule, changed)).x, usual)
        _require(read, rule, got, "a step that depends on every parameter", fix)


def _check_scope(rule: Optimizer, trial: _Trial) -> None:
    """What happens in one coordinate (tensor) is not noticed in others, and one that is alone gets the same steps."""
    if rule.scope == "problem":
        return
    name, shape = ("one", ()) if rule.scope == "coordinate" else rule.below.entries[-1]
    usual, start = _run(rule, trial).x, rule.below.size - math.prod(shape)  # the last one begins there
    fix = 'do not mix them, or declare another scope, "problem" to be safe'
    wanted = f"a step that reads its own {rule.scope} alone, as scope declares"
    x, g = (torch.cat((t[:, :, :start], 1.5 * t[:, :, start:] + 0.1), dim=2) for t in (trial.x, trial.g))
    others = _run(rule, trial._replace(x=x, g=g)).x[..., :start]
    got = f"another x when g and x of another {rule.scope} changed"
    _require(_close(others, usual[..., :start]), rule, got, wanted, fix)
    lone = rule.over(Layout.of({name: shape}, rule.below.dtype, rule.below.device))
    if lone.layout.entries == rule.layout.entries:
        itself = _run(lone, trial._replace(x=trial.x[:, :, start:], g=trial.g[:, :, start:])).x
        _require(_close(itself, usual[..., start:]), rule, f"another x for a {rule.scope} alone", wanted, fix)


def _check_loss(rule: Optimizer, trial: _Trial) -> None:
    if not rule.reads_loss:
        same = torch.equal(_run(rule, trial._replace(f=2 * trial.f + 1)).x, _run(rule, trial).x)
        fix = "declare reads_loss = True, or do not read f"
        _require(same, rule, "another x for another f", "none, as its reads_loss is false", fix)


def _started(rule: Optimizer, trial: _Trial) -> _Trial:
    """The trial from where the rule would start it, were ``trial.x`` what the problem offers."""
    key = torch.zeros(trial.x.shape[:-1], dtype=torch.int64, device=trial.x.device)
    return trial._replace(x=rule.start(trial.params, lambda _key: trial.x, key))


def _check_start(rule: Optimizer, trial: _Trial) -> None:
    """The pullback of `start` against central differences, for copies that began and for one that did not."""
    key = keys.seed(7, device=trial.x.device)
    way = keys.normal(key, tuple(trial.params.shape), trial.params.dtype)
    dx = keys.normal(keys.fold(key, 1), tuple(trial.x.shape), trial.x.dtype)
    begun = torch.ones(trial.x.shape[:-1], dtype=torch.bool, device=trial.x.device)
    begun[..., 0] = False
    ends = [_started(rule, trial._replace(params=trial.params + h * way)).x for h in (1e-5, -1e-5)]
    slope = ((ends[0] - ends[1]) / 2e-5 * dx * begun[..., None]).sum((-2, -1))
    answer = rule.start_pullback(trial.params, dx, begun)
    pulled = torch.zeros_like(slope) if answer is None else (answer * way).sum(-1)
    fix = "return the cotangent of params, summed over the copies that began"
    got = f"start_pullback {pulled.tolist()} along a random direction"
    near = torch.allclose(pulled, slope, rtol=1e-6, atol=1e-6)
    _require(near, rule, got, f"{slope.tolist()} by central differences", fix)


def _check_zero_gradient(rule: Optimizer, trial: _Trial, differentiable: bool) -> None:
    """A weight behind a pixel that is always black has a gradient of exactly 0, from the first step on."""
    trial = trial._replace(g=torch.zeros_like(trial.g))
    for steps in range(trial.f.shape[-1] if differentiable else 0):
        point, dx, dstate = _before(rule, trial, steps)
        slopes = _pull(rule, trial, steps, point, dx, dstate)
        for path, leaf in named_leaves(slopes).items():
            fix = "add torch.finfo(x.dtype).tiny under the square root, or keep the division away from 0"
            got = f"a pullback in {path} that is not finite where the gradient is exactly 0"
            _require(torch.isfinite(leaf).all(), rule, got, "finite numbers", fix)
    _run(rule, trial)


def _before(rule: Optimizer, trial: _Trial, step: int) -> tuple[_Point, Tensor, list[Tensor | None]]:
    """Where update ``step`` of a trial begins, and random cotangents of what it returns."""
    end = _run(rule, trial, step)
    key = keys.seed(step, device=rule.layout.device)
    tensors = [end.x, *leaves(end.state)]
    cotangents = [
        keys.normal(keys.fold(key, i), tuple(leaf.shape), leaf.dtype) if leaf.is_floating_point() else None
        for i, leaf in enumerate(tensors)
    ]
    assert cotangents[0] is not None
    return _Point(rule.layout.views(trial.params), end.x, end.state), cotangents[0], cotangents[1:]


def _pull(
    rule: Optimizer, trial: _Trial, step: int, point: _Point, dx: Tensor, dstate: list[Tensor | None] | None
) -> _Point:
    """The pullback of update ``step``, None read as zero."""
    state, params, f, g = point.state, trial.params, trial.f[..., step], trial.g[..., step]
    with torch.enable_grad(), _untouched(rule, "pullback", params=params, f=f, g=g, state=state, x=point.x, dx=dx):
        try:
            dparams, dold, dx_old = rule.pullback(params, f, g, state, point.x, dx, dstate)
        except RuntimeError as error:
            got, fix = f"a pullback that fails ({error})", "keep update differentiable, or pass differentiable=False"
            raise ConformanceError(f"{rule}: got {got}, expected cotangents of params, state and x; {fix}") from error
    fix = "return one cotangent for each input, shaped as the input"
    count = len(leaves(state))
    _require(len(dold) == count, rule, f"{len(dold)} cotangents of the state", f"{count}", fix)
    slopes = [torch.zeros_like(leaf) if d is None else d for d, leaf in zip(dold, leaves(state))]
    for what, slope, leaf in zip(("params", "x"), (dparams, dx_old), (params, point.x)):
        got = f"{list(slope.shape)} as the cotangent of {what}"
        _require(slope.shape == leaf.shape, rule, got, f"{list(leaf.shape)}", fix)
    return _Point(rule.layout.views(dparams), dx_old, with_leaves(state, slopes))


def _check_pullback(rule: Optimizer, trial: _Trial) -> None:
    """Central differences of <cotangents, update> in one parameter tensor, x, or tensor of the state after another."""
    step = trial.f.shape[-1] - 1
    point, dx, dstate = _before(rule, trial, step)
    f, g, eps = trial.f[..., step], trial.g[..., step], torch.finfo(dx.dtype).eps
    names, tensors = list(named_leaves(point)), leaves(point)
    slopes = leaves(_pull(rule, trial, step, point, dx, dstate))

    def measure(moved: _Point) -> Tensor:
        new_x, new_state = rule.update(rule.layout.flat(moved.params), f, g, moved.state, moved.x)
        pairs = zip([dx, *dstate], [new_x, *leaves(new_state)])
        return torch.cat([(cotangent * leaf).flatten() for cotangent, leaf in pairs if cotangent is not None])

    for i, (name, leaf, slope) in enumerate(zip(names, tensors, slopes, strict=True)):
        if not leaf.is_floating_point():
            continue
        width = eps ** (1 / 3)
        along = leaf.abs() * keys.normal(keys.seed(i, device=leaf.device), tuple(leaf.shape), leaf.dtype)
        up, down = (
            measure(with_leaves(point, [*tensors[:i], leaf + sign * width * along, *tensors[i + 1 :]]))
            for sign in (1, -1)
        )
        measured, claimed = float((up - down).sum() / (2 * width)), float((slope * along).sum())
        allowed = 4 * width * float(torch.linalg.vector_norm(slope * along)) + 8 * eps * float(up.abs().sum()) / width
        got, expected = f"a pullback with slope {claimed:.6g} in {name}", f"{measured:.6g} as central differences say"
        fix = "mend pullback, keep update differentiable, or pass differentiable=False for a black box"
        _require(abs(measured - claimed) <= allowed, rule, got, expected, fix)


def _check_linear(rule: Optimizer, trial: _Trial) -> None:
    """A sum of cotangents pulls back to the sum of what each pulls back to; None is zero."""
    step = trial.f.shape[-1] - 1
    point, dx, dstate = _before(rule, trial, step)
    zero = [None if d is None else torch.zeros_like(d) for d in dstate]
    both = _pull(rule, trial, step, point, dx, dstate)
    state_only = _pull(rule, trial, step, point, torch.zeros_like(dx), [None if d is None else 3 * d for d in dstate])
    fix = "pull back what arrives, without offsets, products of cotangents or clipping"
    for nothing in (None, zero):
        x_only = _pull(rule, trial, step, point, -2 * dx, nothing)
        parts = map_leaves(lambda a, b: a / -2 + b / 3, x_only, state_only)
        for (path, leaf), part in zip(named_leaves(both).items(), leaves(parts), strict=True):
            got = f"a pullback in {path} that is not linear in its cotangents"
            _require(not leaf.is_floating_point() or _close(part, leaf), rule, got, "a linear one", fix)
