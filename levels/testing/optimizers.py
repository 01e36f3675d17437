"""The suite for optimizers: where updates lead, what they may read, and whether autograd's derivatives are right."""

import dataclasses
import math
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from levels import keys
from levels.base import Optimizer, Problem
from levels.config import require
from levels.layout import Layout
from levels.testing import shared
from levels.testing.shared import check_same, check_state, check_tensor, close, expect, untouched
from levels.tree import State, leaves, map_leaves, named_leaves, with_leaves

LAYOUTS = (
    Layout.of({"scalar": ()}),
    Layout.of({"weight": (3, 2), "bias": (2,), "scale": ()}),
    Layout.of({"many": (60,)}),
)


def check_optimizer(
    optimizer: Optimizer, *, below: Layout | None = None, seed: int = 0, steps: int = 4, order: Literal[1, 2] = 2
) -> None:
    """Whether ``optimizer`` keeps the contract of `Optimizer`, in float32 and float64.

    ``below``: the layout of a problem to bind it to; None tries one scalar, several tensors, and many coordinates.
    ``steps``: updates in a row that are tried, at least 2; every parameter must matter within them. ``order``: of the
    derivatives of `update` that are compared with central differences, where `traits` says differentiable: exact levels
    need 2. Raises `ConformanceError`; ValueError for too few steps.
    """
    require(steps >= 2, f"steps must be at least 2, got {steps}")
    for layout in LAYOUTS if below is None else (below,):
        for dtype in (torch.float32, torch.float64):
            rule = optimizer.bind(Bowl(dataclasses.replace(layout, dtype=dtype)))
            shared.check_part(rule, rule.layout, least=0)
            for batch, copies in zip(shared.BATCHES, (1, 1, 4), strict=True):
                _run(rule, _trial(rule, seed, batch, copies, steps))
            trial = _trial(rule, seed, (2,), 3, steps)
            _check_zero_gradient(rule, trial)
        shared.check_repeats(rule, partial(lambda rule: _run(rule, _trial(rule, seed, (2,), 3, steps)), rule))
        _check_mixing(rule, trial)
        _check_reads(rule, trial)
        _check_locality(rule, trial)
        if rule.traits.differentiable:
            _check_derivatives(rule, trial, order)


@dataclass(frozen=True)
class Bowl(Problem):
    """``f(x) = |x|^2 / 2`` over any layout, from a standard normal start: the problem that rules are bound to here."""

    layout: Layout = LAYOUTS[0]

    def init(self, key: Tensor) -> Tensor:
        return keys.normal(key, (self.layout.size,), self.layout.dtype)

    def init_state(self, params: Tensor, key: Tensor) -> State:
        return None

    def value_and_grad(self, params: Tensor, state: State) -> tuple[Tensor, Tensor, State]:
        return params.square().sum(-1) / 2, params.clone(), None


class Trial(NamedTuple):
    """Inputs of some updates in a row."""

    theta: Tensor  # [*batch, m]
    x: Tensor  # [*batch, copies, n]
    f: Tensor  # [*batch, copies, steps]
    g: Tensor  # [*batch, copies, n, steps]
    key: Tensor  # int64 [*batch, copies]


class End(NamedTuple):
    """Where some updates lead."""

    x: Tensor
    state: State


def _trial(rule: Optimizer, seed: int, batch: tuple[int, ...], copies: int, steps: int) -> Trial:
    """Fresh parameters, each somewhat off its start so that none is 0, and random values and gradients."""
    n, dtype, key = rule.param_layout.size, rule.param_layout.dtype, shared.some_keys(rule.layout, seed, batch)
    with untouched(rule, "init", key=key):
        theta = rule.init(key)
    check_tensor(rule, "init", theta, (*key.shape, rule.layout.size), dtype)
    noise = 0.1 * keys.normal(keys.fold_in(key, 1), theta.shape[-1:], dtype)
    theta = torch.where(theta == 0, noise, theta * (1 + noise))
    f = 0.1 + keys.normal(keys.fold_in(key, 2), (copies, steps), dtype).square()
    g, each = keys.normal(keys.fold_in(key, 3), (copies, n, steps), dtype), keys.split(keys.fold_in(key, 4), copies)
    return Trial(theta, _begun(rule, theta, each), f, g, each)


def _begun(rule: Optimizer, theta: Tensor, key: Tensor) -> Tensor:
    with untouched(rule, "init_x", theta=theta, key=key):
        x = rule.init_x(theta, key)
    check_tensor(rule, "init_x", x, (*key.shape, rule.param_layout.size), theta.dtype)
    return x


def _run(rule: Optimizer, trial: Trial, steps: int | None = None) -> End:
    """``x`` and ``state`` after all updates of a trial or its first ``steps``, each checked."""
    theta, x, lead = trial.theta, trial.x, trial.key.shape
    with untouched(rule, "init_state", theta=theta, x=x, key=trial.key):
        state = rule.init_state(theta, x, trial.key)
    check_state(rule, "init_state", state, lead)
    for f, g in list(zip(trial.f.unbind(-1), trial.g.unbind(-1), strict=True))[:steps]:
        with untouched(rule, "update", theta=theta, x=x, state=state, f=f, g=g):
            new_x, new_state = rule.update(theta, x, state, f, g)
        check_tensor(rule, "the updated x", new_x, x.shape, x.dtype)
        check_state(rule, "state", new_state, lead, state)
        x, state = new_x, new_state
    check_tensor(rule, "result", rule.result(state, x), x.shape, x.dtype)
    check_state(rule, "penalty", rule.penalty(theta), theta.shape[:-1])
    check_state(rule, "metrics", rule.metrics(state), lead)
    return End(x, state)


def _check_mixing(rule: Optimizer, trial: Trial) -> None:
    """Trials of 2 optimizers with 3 copies each: none depends on another one."""
    usual = _run(rule, trial)
    other = _run(rule, trial._replace(x=_first(trial.x, 2), f=_first(trial.f, 2), g=_first(trial.g, 2)))
    others, same = (map_leaves(lambda leaf: leaf.flatten(0, 1)[1:], end) for end in (other, usual))
    what, fix = "when f, g and x of another copy changed", "reduce over the coordinates of a copy, never over copies"
    check_same(rule, others, same, what, "copies that never mix", fix)
    other = _run(rule, trial._replace(theta=_first(trial.theta, 1)))
    others, same = (map_leaves(lambda leaf: leaf[1:], end) for end in (other, usual))
    what, fix = "when another optimizer's theta changed", "keep the batch dimensions apart"
    check_same(rule, others, same, what, "optimizers in a batch that never mix", fix)
    alone = _run(rule, Trial(trial.theta[1], *(tensor[1, 1:2] for tensor in trial[1:])))
    itself, fix = map_leaves(lambda leaf: leaf[1, 1:2], usual), "let nothing depend on the number of copies"
    check_same(rule, alone, itself, "for a copy alone than among others", "the same", fix)


def _first(tensor: Tensor, dims: int) -> Tensor:
    """Another first entry along the ``dims`` leading dimensions taken as one."""
    flat = tensor.flatten(0, dims - 1)
    return torch.cat((1.5 * flat[:1] + 0.1, flat[1:])).reshape(tensor.shape)


def _check_reads(rule: Optimizer, trial: Trial) -> None:
    """Updates and starts read all parameters, and nothing that `traits` says they do not read."""
    traits, usual, views = rule.traits, _run(rule, trial).x, rule.layout.unravel(trial.theta)
    for name, view in views.items():
        theta = rule.layout.ravel({**views, name: 1.1 * view + 0.1})
        changed = _run(rule, trial._replace(theta=theta, x=_begun(rule, theta, trial.key))).x
        got = f"a parameter {name} that changes nothing in {trial.f.shape[-1]} updates"
        read, fix = view.numel() == 0 or not torch.equal(changed, usual), "leave it out, or pass more steps"
        expect(read, rule, got, "a step that depends on every parameter", fix)
    for trait, name, other in (("reads_loss", "f", 2 * trial.f + 1), ("reads_grad", "g", 1.5 * trial.g + 0.1)):
        same = getattr(traits, trait) or torch.equal(_run(rule, trial._replace(**{name: other})).x, usual)
        fix = f"let traits say {trait}=True, or do not read {name}"
        expect(same, rule, f"another x for another {name}", f"none, as its {trait} is false", fix)
    starts = [leaves((_begun(rule, theta, trial.key), rule.init_state(theta, trial.x, trial.key)))
              for theta in (trial.theta, 1.1 * trial.theta + 0.1)]  # fmt: skip
    said, fix = traits.learns_init or not traits.differentiable, "let traits say learns_init=True"
    same = said or all(map(torch.equal, *starts))
    expect(same, rule, "another start for another theta", "none, as its learns_init is false", fix)


def _check_locality(rule: Optimizer, trial: Trial) -> None:
    """Other coordinates (tensors) do not change an update, and one that is alone gets the same update."""
    layout, locality, usual = rule.param_layout, rule.traits.locality, _run(rule, trial).x
    if locality == "global":
        return
    what = "coordinate" if locality == "elementwise" else "tensor"
    name, shape = ("one", ()) if locality == "elementwise" else layout.entries[-1]
    start = layout.size - math.prod(shape)  # the last one begins there
    wanted, fix = f"a step that reads its own {what} alone, as its locality says", 'let traits say locality="global"'
    x, g = (torch.cat((t[:, :, :start], 1.5 * t[:, :, start:] + 0.1), dim=2) for t in (trial.x, trial.g))
    others = _run(rule, trial._replace(x=x, g=g)).x[..., :start]
    got = f"another x when g and x of another {what} changed"
    expect(close(others, usual[..., :start]), rule, got, wanted, fix)
    lone = rule.bind(Bowl(Layout.of({name: shape}, layout.dtype, layout.device)))
    if lone.layout.entries == rule.layout.entries:
        itself = _run(lone, trial._replace(x=trial.x[:, :, start:], g=trial.g[:, :, start:])).x
        expect(close(itself, usual[..., start:]), rule, f"another x for a {what} alone", wanted, fix)


def _inputs(trial: Trial, step: int, end: End) -> dict[str, Tensor]:
    """The floating tensors that update ``step`` of a trial reads."""
    named = {"theta": trial.theta, "x": end.x, "f": trial.f[..., step], "g": trial.g[..., step]}
    named |= {f"state.{name}".rstrip("."): leaf for name, leaf in named_leaves(end.state).items()}
    return {name: leaf for name, leaf in named.items() if leaf.is_floating_point()}


@torch.enable_grad()
def _slopes(rule: Optimizer, state: State, order: int, inputs: list[Tensor]) -> list[Tensor]:
    """Order 0: what the update returns. Else the derivatives, in all inputs, of a random sum over order - 1."""
    if order == 0:
        theta, x, f, g, *floats = inputs
        old = with_leaves(state, [floats.pop(0) if leaf.is_floating_point() else leaf for leaf in leaves(state)])
        return [leaf for leaf in leaves(rule.update(theta, x, old, f, g)) if leaf.is_floating_point()]
    at = [tensor.view_as(tensor) if tensor.requires_grad else tensor.detach().requires_grad_() for tensor in inputs]
    total = _terms(_slopes(rule, state, order - 1, at)).sum()
    if not total.requires_grad:
        return [torch.zeros_like(tensor) for tensor in at]
    return list(torch.autograd.grad(total, at, create_graph=True, allow_unused=True, materialize_grads=True))


def _terms(outputs: list[Tensor]) -> Tensor:
    """Terms ``[k]`` of a random sum over all outputs."""
    flat = torch.cat([leaf.flatten() for leaf in outputs])
    return flat * keys.normal(keys.seed(len(flat), device=flat.device), tuple(flat.shape), flat.dtype)


def _check_derivatives(rule: Optimizer, trial: Trial, order: int) -> None:
    """Autograd's derivatives of the last update in all that it reads, against central differences."""
    step = trial.f.shape[-1] - 1
    end = _run(rule, trial, step)
    names, inputs = list(_inputs(trial, step, end)), list(_inputs(trial, step, end).values())
    fix = "keep update differentiable, or let traits say differentiable=False"
    for k, what in enumerate(("derivative of update", "second derivative of update")[:order], 1):
        fix = fix if k == 1 else f"{fix}, or pass order=1"
        slopes = shared.attempt(rule, what, partial(_slopes, rule, end.state, k, inputs), fix)
        for i, (name, leaf, slope) in enumerate(zip(names, inputs, slopes)):

            def terms(flat: Tensor, i: int = i, k: int = k) -> Tensor:
                moved = [*inputs[:i], flat.reshape(inputs[i].shape), *inputs[i + 1 :]]
                return _terms(_slopes(rule, end.state, k - 1, moved)).detach()

            flat, scale = leaf.flatten(), leaf.abs().flatten()
            shared.check_slope(rule, f"{what} in {name}", terms, flat, slope.detach().flatten(), scale, fix)


def _check_zero_gradient(rule: Optimizer, trial: Trial) -> None:
    """A weight behind a pixel that is always black has a gradient of exactly 0, from the first step on."""
    trial = trial._replace(g=torch.zeros_like(trial.g))
    for step in range(trial.f.shape[-1]):
        end = _run(rule, trial, step)
        inputs = _inputs(trial, step, end)
        slopes = _slopes(rule, end.state, 1, list(inputs.values())) if rule.traits.differentiable else []
        for name, slope in zip(inputs, slopes):
            fix = "add torch.finfo(x.dtype).tiny under the square root, or keep the division away from 0"
            got = f"a derivative in {name} that is not finite where the gradient is exactly 0"
            expect(torch.isfinite(slope).all(), rule, got, "finite numbers", fix)
