"""Central differences, in float64, where the first-order gradient is the true one: one update, and windows below
which the gradient does not depend on where it is taken. Beyond, see test_exactness."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from levels import (
    LSTM,
    SGD,
    Adam,
    Discounted,
    Last,
    Layout,
    Level,
    Log,
    Logit,
    LossTask,
    MeanLog,
    Quadratic,
    RMSprop,
    Sum,
    keys,
)
from levels.base import Optimizer
from levels.tree import leaves, map_leaves, with_leaves

BELOW = Layout.of({"w": (2, 2), "b": (1,)}, torch.float64)
OPTIMIZERS = {
    "sgd": SGD(lr=0.1),
    "decay": SGD(lr=0.1, weight_decay=0.2),
    "momentum": SGD(lr=Log(0.1, per="tensor"), momentum=Logit(0.7, per="coordinate")),
    "nesterov": SGD(lr=0.1, momentum=0.9, weight_decay=Log(0.1, per="tensor"), nesterov=True),
    "adam": Adam(lr=0.1, beta2=0.9, eps=0.1),
    "adam-coordinate": Adam(lr=Log(0.1, per="coordinate"), beta1=Logit(0.8, per="tensor"), beta2=0.8, eps=0.1),
    "rmsprop": RMSprop(lr=0.1, decay=0.8, eps=0.1),
    "lstm": LSTM(hidden=2, layers=2),
    "lstm-one-layer": LSTM(hidden=3, layers=1),
}


def slopes(function: Callable[[Tensor], Tensor], at: Tensor, h: float = 1e-4) -> Tensor:
    """Gradient by the five-point rule, error of order h^4, of a function that takes ``[k, *at.shape]`` to ``[k]``."""
    steps = h * torch.eye(at.numel(), dtype=at.dtype).reshape(-1, *at.shape)
    near = function(at + steps) - function(at - steps)
    far = function(at + 2 * steps) - function(at - 2 * steps)
    return ((8 * near - far) / (12 * h)).reshape(at.shape)


def repeated(state: Any, count: int) -> Any:
    """A state with ``count`` copies of itself along a new leading dimension."""
    return map_leaves(lambda leaf: leaf.expand(count, *leaf.shape), state)


def warmed(rule: Optimizer, params: Tensor, x: Tensor) -> object:
    """A state with some history in it, away from second moments of 0, where a square root has no slope."""
    state = rule.init_state(params, x)
    for _ in range(3):
        x, state = rule.update(params, x.square().sum(-1), x + x.sign(), state, x)
    return state


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_pullback(name):
    rule = OPTIMIZERS[name].over(BELOW)
    params = rule.init(keys.split(keys.seed(0), 2))  # [2, m]
    x, g, dx = (keys.normal(keys.split(keys.split(keys.seed(k), 2), 3), (5,), torch.float64) for k in (1, 2, 3))
    f, state = x.square().sum(-1), warmed(rule, params, x)
    old, after = leaves(state), leaves(rule.update(params, f, g, state, x)[1])
    dstate = [keys.normal(keys.seed(i), tuple(leaf.shape), leaf.dtype) if leaf.is_floating_point() else None
              for i, leaf in enumerate(after)]  # fmt: skip

    def product(params: Tensor, x: Tensor, tensors: list[Tensor]) -> Tensor:
        """The product with the cotangents, for each of k perturbed arguments; the others are as they were."""
        given = (params, params.dim() - 2), (x, x.dim() - 3), *((t, t.dim() - o.dim()) for t, o in zip(tensors, old))
        count = max(len(tensor) for tensor, extra in given if extra)
        params, x, *tensors = (tensor if extra else repeated(tensor, count) for tensor, extra in given)
        fixed = repeated((f, g), count)
        new_x, new_state = rule.update(params, *fixed, with_leaves(state, tensors), x)
        pairs = [(new_x, dx), *zip(leaves(new_state), dstate, strict=True)]
        return sum((leaf * cotangent).flatten(1).sum(1) for leaf, cotangent in pairs if cotangent is not None)

    dparams, dold, dx_old = rule.pullback(params, f, g, state, x, dx, dstate)
    close = partial(torch.testing.assert_close, rtol=1e-8, atol=1e-9)
    close(dparams, slopes(lambda p: product(p, x, old), params))
    close(dx_old, slopes(lambda y: product(params, y, old), x))
    for i, leaf in enumerate(old):
        if leaf.is_floating_point():
            close(dold[i], slopes(lambda s, i=i: product(params, x, [*old[:i], s, *old[i + 1 :]]), leaf))
        else:
            assert dold[i] is None


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_one_step_of_depth_1(name):
    level = Level(optimizer=OPTIMIZERS[name], unroll=1, horizon=None, batch=3)
    check_level(level, Quadratic(dims=4, dtype="float64"), tolerance=1e-8)


@dataclass(frozen=True, kw_only=True, repr=False)
class Slope(LossTask):
    """f(x) = a + c . x with c drawn from the key: the gradient is the same everywhere."""

    name = "slope"
    dtype: str = "float64"
    layout: Layout = field(default=BELOW)

    def init(self, key: Tensor) -> Tensor:
        return keys.normal(self.own(key), (5,), torch.float64)

    def init_state(self, params: Tensor, key: Tensor) -> Tensor:
        return keys.normal(self.own(key), (5,), torch.float64)

    def loss(self, params: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        return 50.0 + (params * state).sum(-1), state


@pytest.mark.parametrize("objective", [Sum(), Last(), MeanLog(), Discounted(0.8)], ids=repr)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_whole_window_over_a_constant_gradient(name, objective):
    level = Level(optimizer=OPTIMIZERS[name], unroll=5, horizon=10, batch=2, objective=objective)
    check_level(level, Slope(), tolerance=1e-8)


def check_level(level: Level, task: LossTask | Quadratic, tolerance: float) -> None:
    """The gradient of the second window, from a fixed carry, against differences of its value."""
    laid = level.over(task)
    key = keys.split(keys.seed(5), 1)
    params = laid.init(key)
    _, _, state = laid.value_and_grad(params, laid.init_state(params, key))
    _, grad, _ = laid.value_and_grad(params, state)
    expected = slopes(lambda p: laid.value_and_grad(p, repeated(state, len(p)))[0].sum(-1), params)
    assert float(grad.abs().max()) > 1e-6
    assert float((grad - expected).abs().max()) < tolerance * float(expected.abs().max())
