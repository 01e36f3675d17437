"""Derivatives of what a level asks: vector-Jacobian products of an update and of a gradient, in `torch.func`.

Exact gradients are differentiated again, forward and backward, at any depth. So whatever they run must compose with
`torch.func`: no detached leaf, no ``requires_grad_``. What has a quicker way for plain values asks `differentiated`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.func import jvp, vjp

from levels.tree import State, choose, leaves, map_leaves, with_leaves

if TYPE_CHECKING:
    from levels.base import Optimizer
    from levels.base import Problem


class Cotangents(NamedTuple):
    """What `pull_update` returns, one for each thing that an update read."""

    params: Tensor  # [*batch, m]
    f: Tensor  # [*batch, copies]
    g: Tensor  # [*batch, copies, n]
    state: list[Tensor | None]  # one for each tensor of the state, None for zero
    x: Tensor  # [*batch, copies, n]


def differentiated() -> bool:
    """Whether a transform of `torch.func` is at work on what runs now. Torch has no public name for this question."""
    return bool(torch._C._are_functorch_transforms_active())


def constant(state: State) -> State:
    """The state as a constant for every derivative, forward and backward, at every depth."""
    return map_leaves(torch.detach, state)


def push(function: Callable[[Any], Any], x: State, v: State) -> tuple[Any, Any]:
    """``function(x)`` and its derivative along ``v``, by forward mode; ``x`` and ``v`` are tensors or trees of them."""
    _load_rules()
    pushed = jvp(function, (x,), (v,))
    return pushed[0], pushed[1]


def pull_update(
    optimizer: Optimizer,
    params: Tensor,
    f: Tensor,
    g: Tensor,
    state: State,
    x: Tensor,
    dx: Tensor,
    dstate: list[Tensor | None] | None,
) -> Cotangents:
    """The vector-Jacobian product of one update, in ``f`` and ``g`` too; else as `Optimizer.pullback`."""
    tensors, smooth = leaves(state), _smooth(state)
    pulled = _vjp if differentiated() else plain_vjp

    def update(params: Tensor, f: Tensor, g: Tensor, x: Tensor, *floats: Tensor) -> tuple[Tensor, ...]:
        inputs = list(tensors)
        for i, leaf in zip(smooth, floats):
            inputs[i] = leaf
        new_x, new_state = optimizer.update(params, f, g, with_leaves(state, inputs), x)
        outputs = leaves(new_state)
        return new_x, *(outputs[i] for i in smooth)

    outputs, pull = pulled(update, params, f, g, x, *(tensors[i] for i in smooth))
    given = [dstate[i] if dstate else None for i in smooth]
    zeroed = (torch.zeros_like(out) if slope is None else slope for out, slope in zip(outputs[1:], given))
    dparams, df, dg, dx_old, *rest = pull((dx, *zeroed))
    dold: list[Tensor | None] = [None] * len(tensors)
    for i, slope in zip(smooth, rest):
        dold[i] = slope
    return Cotangents(dparams, df, dg, dold, dx_old)


def pull_init_state(
    optimizer: Optimizer, params: Tensor, x: Tensor, dstate: list[Tensor | None], begun: Tensor
) -> tuple[Tensor, Tensor]:
    """The vector-Jacobian product of `Optimizer.init_state`, for the copies that ``begun`` ``[*batch, copies]`` tells.

    Returns the cotangents of ``params`` ``[*batch, m]`` and ``x`` ``[*batch, copies, n]``.
    """

    def first(params: Tensor, x: Tensor) -> list[Tensor]:
        return [leaf for leaf in leaves(optimizer.init_state(params, x)) if leaf.is_floating_point()]

    slopes = [slope for slope in dstate if slope is not None]
    if not slopes:
        return torch.zeros_like(params), torch.zeros_like(x)
    state, pull = _vjp(first, params, x)
    dparams, dx = pull(choose(begun, slopes, [torch.zeros_like(leaf) for leaf in state]))
    return dparams, dx


def pull_gradient(problem: Problem, x: Tensor, state: State, dg: Tensor) -> Tensor:
    """The vector-Jacobian product of a problem's gradient at ``x``: ``[*batch, n]`` for ``dg`` ``[*batch, n]``.

    Where the gradient is the value's own derivative, its Jacobian is a Hessian: symmetric, so its product serves
    (`Problem.bend`). Elsewhere this is reverse mode through the problem's answer.
    """
    if problem.symmetric:
        return problem.bend(x, state, dg)

    def gradient(x: Tensor) -> Tensor:
        grad: Tensor = problem.value_and_grad(x, state)[1]
        return grad

    (dx,) = _vjp(gradient, x)[1](dg)
    return dx


def plus(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """The sum, None being zero."""
    return b if a is None else a if b is None else a + b


@cache
def _load_rules() -> None:
    """Torch compiles some forward derivatives when they are first needed, with a warning about itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        jvp(torch.sin, (torch.zeros(()),), (torch.zeros(()),))


def _vjp(function: Callable[..., Any], *inputs: Tensor) -> tuple[Any, Callable[[Any], tuple[Tensor, ...]]]:
    """`torch.func.vjp`, for a function that returns nothing beside."""
    pulled = vjp(function, *inputs)
    return pulled[0], pulled[1]


def plain_vjp(
    function: Callable[..., tuple[Tensor, ...]], *inputs: Tensor
) -> tuple[tuple[Tensor, ...], Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]]]:
    """As `torch.func.vjp`, by autograd itself, which is quicker; where nothing is to be differentiated again."""
    with torch.enable_grad():
        leaves_in = [tensor.detach().requires_grad_() for tensor in inputs]
        outputs = function(*leaves_in)

    def pull(cotangents: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        pairs = [(out, slope) for out, slope in zip(outputs, cotangents) if out.requires_grad]
        outs, slopes = [out for out, _ in pairs], [slope for _, slope in pairs]
        return torch.autograd.grad(outs, leaves_in, slopes, allow_unused=True, materialize_grads=True)

    return tuple(out.detach() for out in outputs), pull


def _smooth(state: State) -> list[int]:
    """Which tensors of a state have derivatives."""
    return [i for i, leaf in enumerate(leaves(state)) if leaf.is_floating_point()]
