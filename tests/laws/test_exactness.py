"""First-order gradients of towers of depth 1-4 equal naive nested autograd, window after window.

Relative, in float64: the largest difference over the largest entry, of value, gradient, and all that is carried.
Each side carries its own state on, so errors would add up.
"""

import pytest
import torch
from oracle import error
from parts import DIGITS, LSTM, OBJECTIVES, QUADRATIC, RULES, SMALL, begun, built, worst

TOLERANCE = 1e-10
OPTIMIZERS = [
    *RULES,
    "sgd(linear(0.01), weight_decay=0.1)",
    "sgd(log(0.01, per=coordinate), momentum=0.9)",
    "sgd(0.01, momentum=logit(0.8, per=tensor), nesterov=true)",
    "adam(log(0.1, per=tensor), beta1=logit(0.8, per=coordinate), eps=1e-3)",
    "adam(0.1)",
    "lstm(hidden=4)",
    LSTM,
]


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_depth_1(optimizer, objective):
    text = f"quadratic(4, dtype=float64): {optimizer}@4[objective={objective}, horizon=8, batch=3]"
    assert worst(text, 5, batch=2) < TOLERANCE


TOWERS = [
    QUADRATIC + "lstm(hidden=3)@3[batch=3, horizon=6] / adam(0.01)@2[batch=2]",
    QUADRATIC + "adam(0.1)@2[batch=2, objective=last] / sgd(0.01, momentum=0.9, nesterov=true)@3[horizon=6]",
    DIGITS + "sgd(log(0.1, per=tensor))@2[batch=2] / rmsprop@2[horizon=4, objective=mean-log]",
    QUADRATIC
    + "sgd(0.01, momentum=0.9)@2[batch=2, horizon=4, objective=mean-log] / lstm(hidden=2)@2[batch=2, horizon=4]"
    " / adam(0.01)@2[objective=last]",
    SMALL + "lstm(hidden=2)@3[batch=2, horizon=6, stagger=false] / lstm(hidden=2, layers=1)@2[horizon=6] / rmsprop@1",
    DIGITS + "lstm(hidden=2)@2[batch=2, horizon=6] / sgd(0.001)@1 / adam@2[batch=2]",
    QUADRATIC
    + "adam(0.1)@2[batch=2, horizon=4] / sgd(log(0.001, per=coordinate))@2[horizon=6, objective=discounted(0.5)]"
    " / lstm(hidden=2)@2[batch=2, horizon=4] / rmsprop(0.001)@2[horizon=4]",
    SMALL + "lstm(hidden=2)@3[batch=2, horizon=9] / adam(0.01)@2[batch=2, objective=last]"
    " / sgd(0.01, momentum=0.5, nesterov=true)@2 / sgd(0.01)@2[horizon=4]",
    QUADRATIC + "sgd(0.01)@1[batch=2] / sgd(0.02)@1[batch=2] / sgd(0.03)@1[batch=2] / sgd(0.04)@1[batch=2]",
]


@pytest.mark.parametrize("text", TOWERS)
def test_depths_2_to_4(text):
    assert worst(text, 4, batch=2) < TOLERANCE


def test_the_rising_gradient_is_clipped_to_its_norm():
    text = QUADRATIC + "lstm(hidden=3)@4[batch=3]"
    whole, clipped, loose = built(text), built(text, clip=0.5), built(text, clip=1e6)
    assert worst(text.replace("]", ", clip=0.5]"), 2, batch=2) < TOLERANCE
    params, state = begun(whole, 1, 2)
    grad = whole.value_and_grad(params, state)[1]
    assert (grad.norm(dim=-1) > 0.5).all()
    assert torch.equal(loose.value_and_grad(params, state)[1], grad)
    assert error(clipped.value_and_grad(params, state)[1], 0.5 * grad / grad.norm(dim=-1, keepdim=True)) < TOLERANCE
