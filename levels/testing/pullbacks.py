"""What backpropagation asks of an optimizer: the pullbacks of `update`, `start` and a window, the update linearized."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from levels import keys
from levels.base import Optimizer, Pulled
from levels.testing.shared import (
    ConformanceError,
    check_advanced,
    check_state,
    check_tensor,
    close,
    expect,
    untouched,
)
from levels.testing.trials import End, Trial, run, started
from levels.tree import State, leaves, map_leaves, named_leaves, with_leaves
from levels.base import Step

Pull = Callable[[Tensor, list[Tensor | None] | None], Pulled]


class _Point(NamedTuple):
    """What an update is differentiated in."""

    params: dict[str, Tensor]
    x: Tensor
    state: State


class _Inputs(NamedTuple):
    """What an update is called with."""

    params: Tensor
    f: Tensor
    g: Tensor
    state: State
    x: Tensor


def check_zero_gradient(rule: Optimizer, trial: Trial, differentiable: bool) -> None:
    """A weight behind a pixel that is always black has a gradient of exactly 0, from the first step on."""
    trial = trial._replace(g=torch.zeros_like(trial.g))
    for steps in range(trial.f.shape[-1] if differentiable else 0):
        point, dx, dstate = _before(rule, trial, steps)
        slopes = _pull(rule, trial, steps, point, dx, dstate)
        for path, leaf in named_leaves(slopes).items():
            fix = "add torch.finfo(x.dtype).tiny under the square root, or keep the division away from 0"
            got = f"a pullback in {path} that is not finite where the gradient is exactly 0"
            expect(torch.isfinite(leaf).all(), rule, got, "finite numbers", fix)
    run(rule, trial)
    if differentiable:
        check_linearized(rule, trial)


def check_pullback(rule: Optimizer, trial: Trial) -> None:
    """Central differences of <cotangents, update> in one parameter tensor, x, or tensor of the state after another."""
    step = trial.f.shape[-1] - 1
    point, dx, dstate = _before(rule, trial, step)
    f, g, eps = trial.f[..., step], trial.g[..., step], torch.finfo(dx.dtype).eps
    names, tensors = list(named_leaves(point)), leaves(point)
    slopes = leaves(_pull(rule, trial, step, point, dx, dstate))

    def measure(moved: _Point) -> Tensor:
        new_x, new_state = rule.update(rule.layout.ravel(moved.params), f, g, moved.state, moved.x)
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
        expect(abs(measured - claimed) <= allowed, rule, got, expected, fix)


def check_linear(rule: Optimizer, trial: Trial) -> None:
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
            expect(not leaf.is_floating_point() or close(part, leaf), rule, got, "a linear one", fix)


def check_linearized(rule: Optimizer, trial: Trial) -> None:
    """The last update and its pullback from `Optimizer.linearized`, as windows ask for them, against those alone."""
    step = trial.f.shape[-1] - 1
    point, dx, dstate = _before(rule, trial, step)
    inputs, end = _inputs(trial, step, point), run(rule, trial)
    for given in (dstate, None):
        slopes = _pull(rule, trial, step, point, dx, given)
        there, pull = _linearized(rule, inputs)
        _check_same(rule, "", there, end, "what update returns")
        pulled = _pulled(rule, "pull of linearized", pull, inputs, dx, given)
        _check_same(rule, "cotangent of ", pulled, slopes, "what pullback returns")


def _linearized(rule: Optimizer, inputs: _Inputs) -> tuple[End, Pull]:
    with torch.enable_grad(), untouched(rule, "linearized", **inputs._asdict()):
        x, state, pull = rule.linearized(*inputs)
    check_tensor(rule, "linearized x", x, inputs.x.shape, inputs.x.dtype)
    check_advanced(rule, inputs.state, state)
    check_state(rule, "linearized state", state, inputs.x.shape[:-1])
    return End(x, state), pull


def _check_same(rule: Optimizer, what: str, got: State, expected: State, wanted: str) -> None:
    fix = "let linearized say what update and pullback say, or leave it out"
    for (path, leaf), other in zip(named_leaves(got).items(), leaves(expected), strict=True):
        same = leaf.shape == other.shape and close(leaf, other)
        expect(same, rule, f"another {what}{path} from linearized", wanted, fix)


def check_sweep(rule: Optimizer, trial: Trial) -> None:
    """The pullback of a whole window, where it is not made of those of its updates, against them.

    Nothing counts after the last update, so that a sweep has to begin before it.
    """
    steps, key = [], keys.seed(11, device=trial.x.device)
    for t, (f, g) in enumerate(zip(trial.f.unbind(-1), trial.g.unbind(-1), strict=True)):
        end = run(rule, trial, t)
        steps.append(Step(f, g, end.state, end.x))
    slopes = [keys.normal(keys.fold_in(key, t), tuple(trial.x.shape), trial.x.dtype) for t in range(len(steps))]
    for counting in (slopes[:-1], []):
        given = dict(enumerate(counting))
        expected = Optimizer.sweep(rule, trial.params, steps, given.get)
        with torch.enable_grad(), untouched(rule, "sweep", params=trial.params, steps=steps, slopes=slopes):
            got = rule.sweep(trial.params, steps, given.get)
        for name, slope, other in zip(("params", "x"), got, expected, strict=True):
            same = slope is other if slope is None or other is None else close(slope, other)
            fix = "let sweep say what the pullbacks say together, or leave it out"
            expect(same, rule, f"another cotangent of {name} from sweep", "what the pullbacks say", fix)


def check_start(rule: Optimizer, trial: Trial) -> None:
    """The pullback of `start` against central differences, for copies that began and for one that did not."""
    key = keys.seed(7, device=trial.x.device)
    way = keys.normal(key, tuple(trial.params.shape), trial.params.dtype)
    dx = keys.normal(keys.fold_in(key, 1), tuple(trial.x.shape), trial.x.dtype)
    begun = torch.ones(trial.x.shape[:-1], dtype=torch.bool, device=trial.x.device)
    begun[..., 0] = False
    ends = [started(rule, trial._replace(params=trial.params + h * way)).x for h in (1e-5, -1e-5)]
    slope = ((ends[0] - ends[1]) / 2e-5 * dx * begun[..., None]).sum((-2, -1))
    answer = rule.start_pullback(trial.params, dx, begun)
    pulled = torch.zeros_like(slope) if answer is None else (answer * way).sum(-1)
    fix = "return the cotangent of params, summed over the copies that began"
    got = f"start_pullback {pulled.tolist()} along a random direction"
    near = torch.allclose(pulled, slope, rtol=1e-6, atol=1e-6)
    expect(near, rule, got, f"{slope.tolist()} by central differences", fix)


def _before(rule: Optimizer, trial: Trial, step: int) -> tuple[_Point, Tensor, list[Tensor | None]]:
    """Where update ``step`` of a trial begins, and random cotangents of what it returns."""
    end = run(rule, trial, step)
    key = keys.seed(step, device=rule.layout.device)
    tensors = [end.x, *leaves(end.state)]
    cotangents = [
        keys.normal(keys.fold_in(key, i), tuple(leaf.shape), leaf.dtype) if leaf.is_floating_point() else None
        for i, leaf in enumerate(tensors)
    ]
    assert cotangents[0] is not None
    return _Point(rule.layout.unravel(trial.params), end.x, end.state), cotangents[0], cotangents[1:]


def _inputs(trial: Trial, step: int, point: _Point) -> _Inputs:
    return _Inputs(trial.params, trial.f[..., step], trial.g[..., step], point.state, point.x)


def _pull(
    rule: Optimizer, trial: Trial, step: int, point: _Point, dx: Tensor, dstate: list[Tensor | None] | None
) -> _Point:
    """The pullback of update ``step``, None read as zero."""
    inputs = _inputs(trial, step, point)
    return _pulled(rule, "pullback", partial(rule.pullback, *inputs), inputs, dx, dstate)


def _pulled(
    rule: Optimizer, what: str, pull: Pull, inputs: _Inputs, dx: Tensor, dstate: list[Tensor | None] | None
) -> _Point:
    """The cotangents that ``pull`` returns, in the places of what they belong to."""
    with torch.enable_grad(), untouched(rule, what, **inputs._asdict(), dx=dx):
        try:
            dparams, dold, dx_old = pull(dx, dstate)
        except RuntimeError as error:
            got, fix = f"a {what} that fails ({error})", "keep update differentiable, or pass differentiable=False"
            raise ConformanceError(f"{rule}: got {got}, expected cotangents of params, state and x; {fix}") from error
    fix, old = "return one cotangent for each input, shaped as the input", leaves(inputs.state)
    expect(len(dold) == len(old), rule, f"{len(dold)} cotangents of the state", f"{len(old)}", fix)
    slopes = [torch.zeros_like(leaf) if d is None else d for d, leaf in zip(dold, old)]
    for name, slope, leaf in zip(("params", "x"), (dparams, dx_old), (inputs.params, inputs.x)):
        got = f"{list(slope.shape)} as the cotangent of {name}"
        expect(slope.shape == leaf.shape, rule, got, f"{list(leaf.shape)}", fix)
    return _Point(rule.layout.unravel(dparams), dx_old, with_leaves(inputs.state, slopes))
