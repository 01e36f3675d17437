"""Central differences, in float64, where the first-order gradient is the true one: one update, and windows below
which the gradient does not depend on where it is taken. Beyond, see test_exactness."""

from functools import partial

import pytest
import torch
from parts import LSTM, OBJECTIVES, Slope, built, repeated, rule_of, second_window, slopes
from torch import Tensor

from levels import keys
from levels.replay import update_vjp
from levels.tree import leaves, with_leaves

OPTIMIZERS = [
    "sgd(0.1)",
    "sgd(0.1, weight_decay=0.2)",
    "sgd(log(0.1, per=tensor), momentum=logit(0.7, per=coordinate))",
    "sgd(0.1, momentum=0.9, weight_decay=log(0.1, per=tensor), nesterov=true)",
    "adam(0.1, beta2=0.9, eps=0.1)",
    "adam(log(0.1, per=coordinate), beta1=logit(0.8, per=tensor), beta2=0.8, eps=0.1)",
    "rmsprop(0.1, decay=0.8, eps=0.1)",
    "lstm(hidden=2)",
    LSTM,
]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_one_update(optimizer):
    """Its vector-Jacobian product in parameters, ``x`` and state, at a state with some history."""
    rule = rule_of(optimizer).bind(Slope.layout)
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
        floats = [new_x, *(leaf for leaf in leaves(new_state) if leaf.is_floating_point())]
        return sum((leaf * slope).flatten(1).sum(1) for leaf, slope in zip(floats, [dx, *dstate], strict=True))

    dtheta, dx_old, dold = update_vjp(rule, theta, x, state, f, g, dx, dstate)
    close = partial(torch.testing.assert_close, rtol=1e-8, atol=1e-9)
    close(dtheta.detach(), slopes(lambda p: product(p, x, old), theta))
    close(dx_old.detach(), slopes(lambda y: product(theta, y, old), x))
    floats = [i for i, leaf in enumerate(old) if leaf.is_floating_point()]
    for i, slope in zip(floats, dold, strict=True):
        close(slope.detach(), slopes(lambda s, i=i: product(theta, x, [*old[:i], s, *old[i + 1 :]]), old[i]))


SECOND_WINDOWS = [
    *[f"quadratic(4, dtype=float64): {rule}@1[batch=3]" for rule in OPTIMIZERS],
    *[
        f"parts.Slope: {rule}@5[horizon=10, batch=2, objective={objective}]"
        for rule in OPTIMIZERS
        for objective in OBJECTIVES
    ],
]


@pytest.mark.parametrize("text", SECOND_WINDOWS)
def test_a_second_window_over_a_constant_gradient(text):
    """From a fixed carry, against differences of its value: one update, and whole windows over a slope."""
    level = built(text)
    params, state = second_window(level)
    _, grad, _ = level.value_and_grad(params, state)
    expected = slopes(lambda p: level.value_and_grad(p, repeated(state, len(p)))[0].sum(-1), params)
    assert float(grad.abs().max()) > 1e-6
    assert float((grad - expected).abs().max()) < 1e-8 * float(expected.abs().max())
