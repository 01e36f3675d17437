"""Objectives: values by hand, weights by autograd."""

import math

import pytest
import torch

from levels import Discounted, Last, MeanLog, Sum

LOSSES = torch.rand(5, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.1
BY_HAND = {
    Sum(): lambda column: sum(column),
    Last(): lambda column: column[-1],
    MeanLog(): lambda column: sum(map(math.log, column)) / len(column),
    Discounted(): lambda column: sum(0.9**t * loss for t, loss in enumerate(column)),
    Discounted(1.0): lambda column: sum(column),
    Discounted(0.3): lambda column: sum(0.3**t * loss for t, loss in enumerate(column)),
}


@pytest.mark.parametrize("objective", BY_HAND, ids=str)
@pytest.mark.parametrize("steps", [1, 5])
def test_values_by_hand(objective, steps):
    value = objective.value(LOSSES[:steps])
    assert value.shape == (2, 3)
    for i in range(2):
        for j in range(3):
            expected = BY_HAND[objective](LOSSES[:steps, i, j].tolist())
            assert float(value[i, j]) == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("objective", BY_HAND, ids=str)
@pytest.mark.parametrize("shape", [(5, 2, 3), (1, 2, 3), (5,)])
def test_weights_are_derivatives(objective, shape):
    losses = LOSSES.flatten()[: math.prod(shape)].reshape(shape).requires_grad_()
    (expected,) = torch.autograd.grad(objective.value(losses).sum(), losses)
    weights = objective.weights(losses.detach())
    assert weights.shape == losses.shape
    assert weights.dtype == losses.dtype
    assert torch.allclose(weights, expected, rtol=1e-14, atol=0)


@pytest.mark.parametrize("discount", [0.0, -0.5, 1.1, math.nan, "half"])
def test_discounts_outside_are_refused(discount):
    with pytest.raises(ValueError, match=f"^discounted: discount must be above 0 and at most 1, got {discount}$"):
        Discounted(discount)
