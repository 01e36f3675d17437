"""Objectives: values by hand, weights by autograd."""

import math

import pytest
import torch

from levels import SGD, Discounted, Exact, FirstOrder, Last, Level, MeanLog, Objective, Quadratic, Sum, TimeTo, keys
from levels.autodiff import hvp
from recursion.notation import parse

LOSSES = torch.rand(5, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.1
BY_HAND = {
    Sum(): lambda column: sum(column),
    Last(): lambda column: column[-1],
    MeanLog(): lambda column: sum(map(math.log, column)) / len(column),
    Discounted(): lambda column: sum(0.9**t * loss for t, loss in enumerate(column)),
    Discounted(1.0): lambda column: sum(column),
    Discounted(0.3): lambda column: sum(0.3**t * loss for t, loss in enumerate(column)),
    TimeTo(0.5): lambda column: sum(loss / (loss + 0.5) for loss in column),
    TimeTo(0.2, width=0.5): lambda column: sum(loss**2 / (loss**2 + 0.04) for loss in column),
    TimeTo(3.0, width=2): lambda column: sum((1 + math.sqrt(3.0 / loss)) ** -1 for loss in column),
}


@pytest.mark.parametrize("objective", BY_HAND, ids=str)
@pytest.mark.parametrize("shape", [(5, 2, 3), (1, 2, 3), (5,)])
def test_values_by_hand_and_weights_that_are_their_derivatives(objective, shape):
    losses = LOSSES.flatten()[: math.prod(shape)].reshape(shape).requires_grad_()
    value = objective.value(losses)
    expected = [BY_HAND[objective](column) for column in losses.reshape(shape[0], -1).T.tolist()]
    assert value.shape == shape[1:]
    assert value.flatten().tolist() == pytest.approx(expected, rel=1e-14)
    (slopes,) = torch.autograd.grad(value.sum(), losses)
    torch.testing.assert_close(objective.weights(losses.detach()), slopes, rtol=1e-14, atol=0)


@pytest.mark.parametrize("target", [0.11, 0.5, 0.9, 2.0])
def test_time_to_counts_the_losses_above_its_target_as_its_width_goes_to_0(target):
    """Off by at most one over 1 + the ratio to the target to the power 1/width, for each loss."""
    above = (target < LOSSES).sum(0)
    for width in (1e-1, 1e-2, 1e-3, 1e-4):
        off = (TimeTo(target, width).value(LOSSES) - above).abs()
        most = torch.sigmoid(-(LOSSES / target).log().abs() / width).sum(0)
        assert (off <= most + 1e-12).all()
    assert off.max() < 1e-12


def test_time_to_adds_up_over_windows_to_when_the_target_is_reached():
    losses = 0.8 ** torch.arange(30.0, dtype=torch.float64)  # at or below 0.1 from the 12th on, of index 11
    sharp = TimeTo(0.1, width=1e-4)
    assert float(sum(sharp.value(window) for window in losses.split(5))) == pytest.approx(11, abs=1e-9)


@pytest.mark.parametrize("width", [0.03, 1.0, 20.0])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_time_to_weighs_by_the_derivative_at_any_scale(width, scale):
    losses = (scale * LOSSES).requires_grad_()
    objective = TimeTo(0.4 * scale, width)
    (expected,) = torch.autograd.grad(objective.value(losses).sum(), losses)
    torch.testing.assert_close(objective.weights(losses.detach()), expected, rtol=1e-9, atol=0.0)
    assert (expected >= 0).all()
    assert (expected > 0).any()


def test_time_to_in_a_level_is_half_the_window_at_the_target():
    """A level that stands still: each update counts by one half where the loss is the target."""
    tower = parse("quadratic(dims=2, dtype=float64): sgd(lr=linear(0.0))@4[batch=1, objective=time-to(0.7)] / sgd")
    assert repr(parse(repr(tower))) == repr(tower)
    params = tower.bound[0].init(keys.seed(0))
    carry = tower.bound[0].init_state(params, keys.seed(0)).carry
    level = Level(optimizer=tower.levels[0].optimizer, unroll=4, batch=1, objective=TimeTo(float(carry.f)))
    bound = level.over(Quadratic(dims=2, dtype="float64"))
    value, grad, _ = bound.value_and_grad(params, bound.init_state(params, keys.seed(0)))
    assert float(value) == pytest.approx(2.0, rel=1e-14)
    expected = -(1 + 2 + 3 + 4) * float(carry.g.square().sum()) / (4 * float(carry.f))
    assert float(grad) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [(lambda bad: Discounted(bad), "discounted: discount must be a number above 0 and at most 1"),
     (lambda bad: TimeTo(bad), "time-to: target must be a number above 0"),
     (lambda bad: TimeTo(0.5, width=bad), "time-to: width must be a number above 0")],
)  # fmt: skip
@pytest.mark.parametrize(
    ("bad", "shown"), [(x, str(x)) for x in (0.0, -0.5, math.inf, math.nan, "half")] + [(True, "true")]
)
def test_settings_outside_are_refused(make, sentence, bad, shown):
    with pytest.raises(ValueError, match=f"^{sentence}, got {shown}$"):
        make(bad)


class Soft(Objective):
    """One that writes its value alone, so that its weights are autograd's."""

    name = "soft"

    def value(self, losses):
        return -(-losses).logsumexp(0)


@pytest.mark.parametrize("gradient", [FirstOrder(), Exact()], ids=str)
@pytest.mark.parametrize("objective", [Soft(), MeanLog(), TimeTo(3.0)], ids=str)
def test_an_exact_level_above_follows_the_weights(objective, gradient):
    """The Jacobian of a level's gradient by central differences; weights taken as data would be 13% off for the first."""
    level = Level(optimizer=SGD(lr=0.01, momentum=0.5), unroll=4, horizon=4, batch=2, objective=objective,
                  gradient=gradient).over(Quadratic(dims=3, dtype="float64"))  # fmt: skip
    theta = level.init(keys.seed(0))
    state, v = level.init_state(theta, keys.seed(1)), torch.tensor([0.3, -0.7], dtype=torch.float64)
    ends = [[level.value_and_grad(theta + sign * 1e-5 * e, state)[1] @ v for sign in (1, -1)] for e in torch.eye(2)]
    expected = torch.stack([(up - down) / 2e-5 for up, down in ends])
    torch.testing.assert_close(hvp(level, theta, state, v), expected, rtol=1e-6, atol=1e-9)
