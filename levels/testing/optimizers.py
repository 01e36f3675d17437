"""The suite for optimizers: where updates lead, and what they may read on their way."""

import dataclasses
import math
from functools import partial

import torch
from torch import Tensor

from levels.layout import Layout
from levels.base import Optimizer
from levels.config import require
from levels.testing.pullbacks import (
    check_linear,
    check_linearized,
    check_pullback,
    check_start,
    check_sweep,
    check_zero_gradient,
)
from levels.testing.shared import BATCHES, check_layout, check_repeats, close, expect, some_keys
from levels.testing.trials import Trial, run, started, trial_of
from levels.tree import State, named_leaves

LAYOUTS = (
    Layout.of({"scalar": ()}),
    Layout.of({"weight": (3, 2), "bias": (2,), "scale": ()}),
    Layout.of({"many": (300,)}),
)


def check_optimizer(
    optimizer: Optimizer, *, below: Layout | None = None, seed: int = 0, steps: int = 4, differentiable: bool = True
) -> None:
    """Whether ``optimizer`` keeps the contract of `Optimizer`, in float32 and float64.

    ``below``: the layout to lay it over; None tries one scalar, several tensors, and many coordinates.
    ``steps``: updates in a row that are tried, at least 2; every parameter must matter within them.
    ``differentiable``: False for a black box that no level above can train by backpropagation: its `pullback`,
    `linearized` and `sweep` are not asked for. Raises `ConformanceError`; ValueError for too few steps.
    """
    require(steps >= 2, f"steps must be at least 2, got {steps}")
    for layout in LAYOUTS if below is None else (below,):
        for dtype in (torch.float32, torch.float64):
            rule = _lay(optimizer, dataclasses.replace(layout, dtype=dtype))
            for batch, copies in zip(BATCHES, (1, 1, 4), strict=True):
                trial = trial_of(rule, some_keys(rule.layout, seed, batch), copies, steps)
                run(rule, trial)
                if differentiable:
                    check_linearized(rule, trial)
            trial = trial_of(rule, some_keys(rule.layout, seed, (2,)), 3, steps)
            check_zero_gradient(rule, trial, differentiable)
        check_repeats(rule, partial(_fresh_run, rule, seed, steps))
        _check_mixing(rule, trial)
        _check_reads(rule, trial)
        _check_scope(rule, trial)
        _check_loss(rule, trial)
        if differentiable:
            check_pullback(rule, trial)
            check_linear(rule, trial)
            check_sweep(rule, trial)
            check_start(rule, trial)


def _lay(optimizer: Optimizer, below: Layout) -> Optimizer:
    rule = optimizer.over(below)
    check_layout(rule, rule.layout, least=0)
    got, fix = f"parameters in {rule.layout.dtype}", "leave over and layout to Optimizer, and implement shapes"
    expect(rule.layout.dtype == below.dtype, rule, got, f"{below.dtype} as below", fix)
    return rule


def _fresh_run(rule: Optimizer, seed: int, steps: int) -> tuple[Trial, State]:
    trial = trial_of(rule, some_keys(rule.layout, seed, (2,)), 3, steps)
    return trial, run(rule, trial)


def _check_mixing(rule: Optimizer, trial: Trial) -> None:
    """Trials of 2 optimizers with 3 copies each: nobody notices what happens to somebody else."""
    usual = named_leaves(run(rule, trial))
    other = trial._replace(x=_first(trial.x, 2), f=_first(trial.f, 2), g=_first(trial.g, 2))
    other_params = trial._replace(params=_first(trial.params, 1))
    for path, leaf in named_leaves(run(rule, other)).items():
        same = close(leaf.flatten(0, 1)[1:], usual[path].flatten(0, 1)[1:])
        fix = "reduce over the coordinates of a copy at most, never over copies"
        expect(same, rule, f"another {path} when f, g and x of another copy changed", "copies that never mix", fix)
    for path, leaf in named_leaves(run(rule, other_params)).items():
        got, fix = f"another {path} when another optimizer's params changed", "keep the batch dimensions apart"
        expect(close(leaf[1:], usual[path][1:]), rule, got, "optimizers in a batch that never mix", fix)
    alone = Trial(trial.params[1], trial.x[1, 1:2], trial.f[1, 1:2], trial.g[1, 1:2])
    for path, leaf in named_leaves(run(rule, alone)).items():
        got, fix = f"another {path} for a copy alone than among others", "let nothing depend on the number of copies"
        expect(close(usual[path][1, 1:2], leaf), rule, got, "the same", fix)


def _first(tensor: Tensor, dims: int) -> Tensor:
    """Another first entry along the ``dims`` leading dimensions taken as one."""
    flat = tensor.flatten(0, dims - 1)
    return torch.cat((1.5 * flat[:1] + 0.1, flat[1:])).reshape(tensor.shape)


def _check_reads(rule: Optimizer, trial: Trial) -> None:
    usual = run(rule, started(rule, trial)).x
    views = rule.layout.unravel(trial.params)
    steps = trial.f.shape[-1]
    for name, view in views.items():
        changed = trial._replace(params=rule.layout.ravel({**views, name: 1.1 * view + 0.1}))
        got, fix = f"a parameter {name} that changes nothing in {steps} updates", "leave it out, or pass more steps"
        read = view.numel() == 0 or not torch.equal(run(rule, started(rule, changed)).x, usual)
        expect(read, rule, got, "a step that depends on every parameter", fix)


def _check_scope(rule: Optimizer, trial: Trial) -> None:
    """What happens in one coordinate (tensor) is not noticed in others, and one that is alone gets the same steps."""
    if rule.scope == "problem":
        return
    name, shape = ("one", ()) if rule.scope == "coordinate" else rule.below.entries[-1]
    usual, start = run(rule, trial).x, rule.below.size - math.prod(shape)  # the last one begins there
    fix = 'do not mix them, or declare another scope, "problem" to be safe'
    wanted = f"a step that reads its own {rule.scope} alone, as scope declares"
    x, g = (torch.cat((t[:, :, :start], 1.5 * t[:, :, start:] + 0.1), dim=2) for t in (trial.x, trial.g))
    others = run(rule, trial._replace(x=x, g=g)).x[..., :start]
    got = f"another x when g and x of another {rule.scope} changed"
    expect(close(others, usual[..., :start]), rule, got, wanted, fix)
    lone = rule.over(Layout.of({name: shape}, rule.below.dtype, rule.below.device))
    if lone.layout.entries == rule.layout.entries:
        itself = run(lone, trial._replace(x=trial.x[:, :, start:], g=trial.g[:, :, start:])).x
        expect(close(itself, usual[..., start:]), rule, f"another x for a {rule.scope} alone", wanted, fix)


def _check_loss(rule: Optimizer, trial: Trial) -> None:
    if not rule.reads_loss:
        same = torch.equal(run(rule, trial._replace(f=2 * trial.f + 1)).x, run(rule, trial).x)
        fix = "declare reads_loss = True, or do not read f"
        expect(same, rule, "another x for another f", "none, as its reads_loss is false", fix)
