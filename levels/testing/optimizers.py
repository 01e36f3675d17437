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
from levels.fields import require
from levels.layout import Layout, Shapes
from levels.testing import shared
from levels.testing.shared import check_same, check_state, check_tensor, close, expect, untouched
from levels.tree import State, leaves, map_leaves, named_leaves, with_leaves

SHAPES: tuple[Shapes, ...] = ({"scalar": ()}, {"weight": (3, 2), "bias": (2,), "scale": ()}, {"many": (60,)})


def check_optimizer(
    optimizer: Optimizer, *, param_layout: Layout | None = None, seed: int = 0, steps: int = 4, order: Literal[1, 2] = 2
) -> None:
    """Whether ``optimizer`` keeps the contract of `Optimizer`, in float32 and float64.

    ``param_layout``: the layout of a problem to bind it to; None tries a scalar, several tensors, and many coordinates.
    ``steps``: updates in a row that are tried, at least 2; every parameter must matter within them. ``order``: of the
    derivatives of `update` that are compared with central differences, where `traits` says differentiable: exact levels
    need 2. Raises `ConformanceError`; ValueError for too few steps.
    """
    require(steps >= 2, f"steps must be at least 2, got {steps}")
    for layout in map(Layout.of, SHAPES) if param_layout is None else (param_layout,):
        for dtype in (torch.float32, torch.float64):
            bound = optimizer.bind(Bowl(dataclasses.replace(layout, dtype=dtype)))
            shared.check_part(bound, bound.layout, least=0)
            for batch, copies in zip(shared.BATCHES, (1, 1, 4), strict=True):
                _run(bound, _case(bound, seed, batch, copies, steps))
            case = _case(bound, seed, (2,), 3, steps)
            usual = _run(bound, case)
            _check_zero_gradient(bound, case)
        shared.check_repeats(bound, partial(lambda bound: _run(bound, _case(bound, seed, (2,), 3, steps)), bound))
        _check_mixing(bound, case, usual)
        _check_reads(bound, case, usual.x)
        _check_locality(bound, case, usual.x)
        if bound.traits.differentiable:
            _check_derivatives(bound, case, order)


@dataclass(frozen=True)
class Bowl(Problem):
    """``f(x) = |x|^2 / 2`` over any layout, from a standard normal start: the problem that rules are bound to here."""

    layout: Layout = Layout(())

    def init(self, key: Tensor) -> Tensor:
        return keys.normal(key, (self.layout.size,), self.layout.dtype)

    def init_state(self, params: Tensor, key: Tensor) -> State:
        return None

    def value_and_grad(self, params: Tensor, state: State) -> tuple[Tensor, Tensor, State]:
        return params.square().sum(-1) / 2, params.clone(), None


class Case(NamedTuple):
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


def _case(optimizer: Optimizer, seed: int, batch: tuple[int, ...], copies: int, steps: int) -> Case:
    """Fresh parameters, each somewhat off its start so that none is 0, and random values and gradients."""
    m, n, dtype = optimizer.layout.size, optimizer.param_layout.size, optimizer.param_layout.dtype
    key = shared.some_keys(optimizer.layout, seed, batch)
    with untouched(optimizer, "init", key=key):
        theta = optimizer.init(key)
    check_tensor(optimizer, "init", theta, (*key.shape, m), dtype)
    shapes = ((m,), (copies, steps), (copies, n, steps))
    noise, f, g = (keys.normal(keys.fold_in(key, i), shape, dtype) for i, shape in enumerate(shapes, 1))
    theta = torch.where(theta == 0, 0.1 * noise, theta * (1 + 0.1 * noise))
    each = keys.split(keys.fold_in(key, 4), copies)
    return Case(theta, _start(optimizer, theta, each), 0.1 + f.square(), g, each)


def _start(optimizer: Optimizer, theta: Tensor, key: Tensor) -> Tensor:
    with untouched(optimizer, "init_x", theta=theta, key=key):
        x = optimizer.init_x(theta, key)
    check_tensor(optimizer, "init_x", x, (*key.shape, optimizer.param_layout.size), theta.dtype)
    return x


def _run(optimizer: Optimizer, case: Case, steps: int | None = None) -> End:
    """``x`` and ``state`` after all updates of a case or its first ``steps``, each checked."""
    theta, x, lead = case.theta, case.x, case.key.shape
    with untouched(optimizer, "init_state", theta=theta, x=x, key=case.key):
        state = optimizer.init_state(theta, x, case.key)
    check_state(optimizer, "init_state", state, lead)
    for f, g in list(zip(case.f.unbind(-1), case.g.unbind(-1), strict=True))[:steps]:
        with untouched(optimizer, "update", theta=theta, x=x, state=state, f=f, g=g):
            new_x, new_state = optimizer.update(theta, x, state, f, g)
        check_tensor(optimizer, "the updated x", new_x, x.shape, x.dtype)
        check_state(optimizer, "state", new_state, lead, state)
        x, state = new_x, new_state
    check_tensor(optimizer, "result", optimizer.result(state, x), x.shape, x.dtype)
    check_state(optimizer, "penalty", optimizer.penalty(theta), theta.shape[:-1])
    check_state(optimizer, "metrics", optimizer.metrics(state), lead)
    return End(x, state)


def _check_mixing(optimizer: Optimizer, case: Case, usual: End) -> None:
    """Cases of 2 optimizers with 3 copies each: none depends on another one."""
    other = _run(optimizer, case._replace(**{name: _first(getattr(case, name), 2) for name in ("x", "f", "g")}))
    others, same = (map_leaves(lambda leaf: leaf.flatten(0, 1)[1:], end) for end in (other, usual))
    what, fix = "when f, g and x of another copy changed", "reduce over the coordinates of a copy, never over copies"
    check_same(optimizer, others, same, what, "copies that never mix", fix)
    other = _run(optimizer, case._replace(theta=_first(case.theta, 1)))
    others, same = (map_leaves(lambda leaf: leaf[1:], end) for end in (other, usual))
    what, fix = "when another optimizer's theta changed", "keep the batch dimensions apart"
    check_same(optimizer, others, same, what, "optimizers in a batch that never mix", fix)
    alone = _run(optimizer, Case(case.theta[1], *(tensor[1, 1:2] for tensor in case[1:])))
    itself, fix = map_leaves(lambda leaf: leaf[1, 1:2], usual), "let nothing depend on the number of copies"
    check_same(optimizer, alone, itself, "for a copy alone than among others", "the same", fix)


def _first(tensor: Tensor, dims: int) -> Tensor:
    """Another first entry along the ``dims`` leading dimensions taken as one."""
    flat = tensor.flatten(0, dims - 1)
    return torch.cat((1.5 * flat[:1] + 0.1, flat[1:])).reshape(tensor.shape)


def _check_reads(optimizer: Optimizer, case: Case, usual: Tensor) -> None:
    """Updates and starts read all parameters, and nothing that `traits` says they do not read."""
    traits, tensors = optimizer.traits, optimizer.layout.unravel(case.theta)
    for name, tensor in tensors.items():
        theta = optimizer.layout.ravel({**tensors, name: 1.1 * tensor + 0.1})
        changed = _run(optimizer, case._replace(theta=theta, x=_start(optimizer, theta, case.key))).x
        got = f"a parameter {name} that changes nothing in {case.f.shape[-1]} updates"
        read, fix = tensor.numel() == 0 or not torch.equal(changed, usual), "leave it out, or pass more steps"
        expect(read, optimizer, got, "a step that depends on every parameter", fix)
    for trait, name, other in (("reads_loss", "f", 2 * case.f + 1), ("reads_grad", "g", 1.5 * case.g + 0.1)):
        same = getattr(traits, trait) or torch.equal(_run(optimizer, case._replace(**{name: other})).x, usual)
        fix = f"let traits say {trait}=True, or do not read {name}"
        expect(same, optimizer, f"another x for another {name}", f"none, as its {trait} is false", fix)
    starts = [leaves((_start(optimizer, theta, case.key), optimizer.init_state(theta, case.x, case.key)))
              for theta in (case.theta, 1.1 * case.theta + 0.1)]  # fmt: skip
    said, fix = traits.learns_init or not traits.differentiable, "let traits say learns_init=True"
    same = said or all(map(torch.equal, *starts))
    expect(same, optimizer, "another start for another theta", "none, as its learns_init is false", fix)


def _check_locality(optimizer: Optimizer, case: Case, usual: Tensor) -> None:
    """Other coordinates (tensors) do not change an update, and one that is alone gets the same update."""
    layout, locality = optimizer.param_layout, optimizer.traits.locality
    if locality == "global":
        return
    what = "coordinate" if locality == "elementwise" else "tensor"
    name, shape = ("one", ()) if locality == "elementwise" else layout.entries[-1]
    start = layout.size - math.prod(shape)  # the last one begins there
    wanted, fix = f"a step that reads its own {what} alone, as its locality says", 'let traits say locality="global"'
    x, g = (torch.cat((t[:, :, :start], 1.5 * t[:, :, start:] + 0.1), dim=2) for t in (case.x, case.g))
    others = _run(optimizer, case._replace(x=x, g=g)).x[..., :start]
    got = f"another x when g and x of another {what} changed"
    expect(close(others, usual[..., :start]), optimizer, got, wanted, fix)
    lone = optimizer.bind(Bowl(Layout.of({name: shape}, layout.dtype, layout.device)))
    if lone.layout.entries == optimizer.layout.entries:
        itself = _run(lone, case._replace(x=case.x[:, :, start:], g=case.g[:, :, start:])).x
        expect(close(itself, usual[..., start:]), optimizer, f"another x for a {what} alone", wanted, fix)


class Read(NamedTuple):
    """What an update reads."""

    theta: Tensor
    x: Tensor
    state: State
    f: Tensor
    g: Tensor


def _read(optimizer: Optimizer, case: Case, step: int) -> tuple[Read, dict[str, Tensor]]:
    """What update ``step`` of a case reads, and the floating tensors in it."""
    read = Read(case.theta, *_run(optimizer, case, step), case.f[..., step], case.g[..., step])
    return read, {name: leaf for name, leaf in named_leaves(read).items() if leaf.is_floating_point()}


@torch.enable_grad()
def _slopes(optimizer: Optimizer, read: Read, order: int, inputs: list[Tensor]) -> list[Tensor]:
    """Order 0: what the update returns. Else the derivatives, in all inputs, of a random sum over order - 1."""
    if order == 0:
        new = iter(inputs)
        read = with_leaves(read, [next(new) if leaf.is_floating_point() else leaf for leaf in leaves(read)])
        return [leaf for leaf in leaves(optimizer.update(*read)) if leaf.is_floating_point()]
    at = [tensor.view_as(tensor) if tensor.requires_grad else tensor.detach().requires_grad_() for tensor in inputs]
    total = _terms(_slopes(optimizer, read, order - 1, at)).sum()
    if not total.requires_grad:
        return [torch.zeros_like(tensor) for tensor in at]
    return list(torch.autograd.grad(total, at, create_graph=True, allow_unused=True, materialize_grads=True))


def _terms(outputs: list[Tensor]) -> Tensor:
    """Terms ``[k]`` of a random sum over all outputs."""
    flat = torch.cat([leaf.flatten() for leaf in outputs])
    return flat * keys.normal(keys.seed(len(flat), device=flat.device), tuple(flat.shape), flat.dtype)


def _check_derivatives(optimizer: Optimizer, case: Case, order: int) -> None:
    """Autograd's derivatives of the last update in all that it reads, against central differences."""
    read, named = _read(optimizer, case, case.f.shape[-1] - 1)
    inputs, fix = list(named.values()), "keep update differentiable, or let traits say differentiable=False"
    for k, what in enumerate(("derivative of update", "second derivative of update")[:order], 1):
        fix = fix if k == 1 else f"{fix}, or pass order=1"
        slopes = shared.attempt(optimizer, what, partial(_slopes, optimizer, read, k, inputs), fix)
        for i, (name, leaf, slope) in enumerate(zip(named, inputs, slopes)):

            def terms(flat: Tensor, i: int = i, k: int = k) -> Tensor:
                moved = [*inputs[:i], flat.reshape(inputs[i].shape), *inputs[i + 1 :]]
                return _terms(_slopes(optimizer, read, k - 1, moved)).detach()

            flat, scale = leaf.flatten(), leaf.abs().flatten()
            shared.check_slope(optimizer, f"{what} in {name}", terms, flat, slope.detach().flatten(), scale, fix)


def _check_zero_gradient(optimizer: Optimizer, case: Case) -> None:
    """A weight behind a pixel that is always black has a gradient of exactly 0, from the first step on."""
    for step in range(case.f.shape[-1]):
        read, named = _read(optimizer, case._replace(g=torch.zeros_like(case.g)), step)
        slopes = _slopes(optimizer, read, 1, list(named.values())) if optimizer.traits.differentiable else []
        for name, slope in zip(named, slopes):
            fix = "add torch.finfo(x.dtype).tiny under the square root, or keep the division away from 0"
            got = f"a derivative in {name} that is not finite where the gradient is exactly 0"
            expect(torch.isfinite(slope).all(), optimizer, got, "finite numbers", fix)
