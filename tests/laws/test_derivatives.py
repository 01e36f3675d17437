"""Central differences, in float64, where the first-order gradient is the true one: one update, and windows below
which the gradient does not depend on where it is taken. Beyond, see test_exactness."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

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
from levels.replay import update_vjp
from levels.tree import leaves, map_leaves, with_leaves

BELOW = Layout.of({"w": (2, 2), "b": (1,)}, torch.float64)
OPTIMIZERS = {
    "sgd": SGD(lr=0.1),
    "decay": SGD(lr=0.1, weight_decay=0.2),
    "momentum": SGD(lr=Log(0.1, shared_over="tensor"), momentum=Logit(0.7, shared_over="coordinate")),
    "nesterov": SGD(lr=0.1, momentum=0.9, weight_decay=Log(0.1, shared_over="tensor"), nesterov=True),
    "adam": Adam(lr=0.1, beta2=0.9, eps=0.1),
    "adam-coordinate": Adam(
        lr=Log(0.1, shared_over="coordinate"), beta1=Logit(0.8, shared_over="tensor"), beta2=0.8, eps=0.1
    ),
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


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_one_update(name):
    """Its vector-Jacobian product in parameters, ``x`` and state, at a state with some history."""
    rule = OPTIMIZERS[name].bind(BELOW)
    theta = rule.init(keys.split(keys.seed(0), 2))  # [2, m]
    x, g, dx = (keys.normal(keys.split(keys.split(keys.seed(k), 2), 3), (5,), torch.float64) for k in (1, 2, 3))
    f, state, at = x.square().sum(-1), rule.init_state(theta, x, keys.seed(0)), x
    for _ in range(3):  # second moments of 0 have no slope at their square root
        at, state = rule.update(theta, at, state, f, at + at.sign())
    old, after = leaves(state), leaves(rule.update(theta, x, state, f, g)[1])
    dstate = [keys.normal(keys.seed(i), tuple(leaf.shape), leaf.dtype)
              for i, leaf in enumerate(after) if leaf.is_floating_point()]  # fmt: skip

    def product(theta: Tensor, x: Tensor, tensors: list[Tensor]) -> Tensor:
        """The product with the cotangents, for each of k perturbed arguments; the others are as they were."""
        given = (theta, theta.dim() - 2), (x, x.dim() - 3), *((t, t.dim() - o.dim()) for t, o in zip(tensors, old))
        count = max(len(tensor) for tensor, extra in given if extra)
        theta, x, *tensors = (tensor if extra else repeated(tensor, count) for tensor, extra in given)
        new_x, new_state = rule.update(theta, x, with_leaves(state, tensors), *repeated((f, g), count))
        floats = [leaf for leaf in leaves(new_state) if leaf.is_floating_point()]
        return sum(
            (leaf * slope).flatten(1).sum(1) for leaf, slope in zip([new_x, *floats], [dx, *dstate], strict=True)
        )

    dtheta, dx_old, dold = update_vjp(rule, theta, x, state, f, g, dx, dstate)
    close = partial(torch.testing.assert_close, rtol=1e-8, atol=1e-9)
    close(dtheta.detach(), slopes(lambda p: product(p, x, old), theta))
    close(dx_old.detach(), slopes(lambda y: product(theta, y, old), x))
    floats = [i for i, leaf in enumerate(old) if leaf.is_floating_point()]
    for i, found in zip(floats, dold, strict=True):
        close(found.detach(), slopes(lambda s, i=i: product(theta, x, [*old[:i], s, *old[i + 1 :]]), old[i]))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_one_step_of_depth_1(name):
    level = Level(optimizer=OPTIMIZERS[name], unroll=1, horizon=None, batch=3)
    check_level(level, Quadratic(dims=4, dtype="float64"), tolerance=1e-8)


@dataclass(frozen=True, kw_only=True, repr=False)
class Slope(LossTask):
    """f(x) = a + c . x with c drawn from the key: the gradient is the same everywhere."""

    name = "slope"
    dtype: Literal["float32", "float64"] = "float64"
    layout: ClassVar[Layout] = BELOW

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
