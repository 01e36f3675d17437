"""Short-horizon bias on the noisy quadratic: estimators against the moments' recursion, in the mean over many runs.

What is said of slopes is the derivative in log lr of expected losses, from standard normal starts. Measured means are
to lie within four standard errors of it; keys are fixed, so they do or do not for ever.
"""

import gc
import math
from contextlib import nullcontext
from typing import NamedTuple

import pytest
import torch
from live import LiveBytes
from torch import Tensor

from levels import SGD, Estimator, Exact, FirstOrder, Forward, Last, Level, NoisyQuadratic, Objective, Sum, keys
from levels.tasks.noisy_quadratic import Moments

TASK = NoisyQuadratic(dims=4, low=0.01, noise=0.3, dtype="float64")
RATE = 0.1
SUM, LAST = Sum(), Last()


def start() -> Moments:
    return Moments(torch.zeros(TASK.dims, dtype=torch.float64), torch.ones(TASK.dims, dtype=torch.float64))


def expected_slope(rate: float, steps: int, *, cut: int | None = None, objective: Objective = SUM) -> float:
    """Of a run's losses, what stands at the edge of every window of ``cut`` steps being a constant (None: nothing)."""
    log = torch.tensor(rate, dtype=torch.float64).log().requires_grad_()
    moments, losses = start(), []
    for step in range(steps):
        if cut is not None and step % cut == 0:
            moments = Moments(moments.mean.detach(), moments.variance.detach())
        moments = TASK.expected_sgd(moments, log.exp())
        losses.append(TASK.expected_loss(moments))
    return float(torch.autograd.grad(objective.value(torch.stack(losses)), log)[0])


def first_order_slope(rate: float, steps: int) -> float:
    """The same of what first order keeps: with gradients as data, dx_t / dlr = -S_t, the sum of gradients so far.

    The expected slope of f_t in lr is then -sum_i h_i E x_t S_t, and as c_t is independent of x_t and S_t,

        E x_(t+1) S_(t+1) = E (r x_t + lr h c_t) (S_t + h x_t - h c_t) = r E x_t S_t + r h E x_t^2 - lr h^2 sigma^2.
    """
    h, moments = TASK.curvature, start()
    product, total = torch.zeros_like(h), 0.0
    for _ in range(steps):
        square = moments.mean.square() + moments.variance
        product = (1 - rate * h) * (product + h * square) - rate * (h * TASK.noise) ** 2
        moments = TASK.expected_sgd(moments, rate)
        total -= rate * float(h @ product)
    return total


class Mean(NamedTuple):
    """A mean and its standard error."""

    value: float
    error: float


def measured(
    gradient: Estimator, rate: float, unroll: int, steps: int, *, runs: int = 1000, objective: Objective = SUM
) -> Mean:
    """The estimates of all windows of a run of ``steps``, added up."""
    level = Level(optimizer=SGD(lr=rate), unroll=unroll, horizon=None, batch=1, gradient=gradient, objective=objective)
    laid, key = level.over(TASK), keys.split(keys.seed(5), runs)
    params = laid.init(key)
    state, total = laid.init_state(params, key), torch.zeros(runs, dtype=torch.float64)
    for _ in range(steps // unroll):
        _, grad, state = laid.value_and_grad(params, state)
        total = total + grad[:, 0]
    return Mean(float(total.mean()), float(total.std()) / math.sqrt(runs))


@pytest.mark.parametrize("lookahead", [1, 10, 50])
@pytest.mark.parametrize("objective", [SUM, LAST], ids=repr)
@pytest.mark.parametrize("gradient", [Exact(), Forward()], ids=repr)
def test_one_windows_slope_is_the_closed_form(gradient, objective, lookahead):
    expected = expected_slope(RATE, lookahead, objective=objective)
    found = measured(gradient, RATE, lookahead, lookahead, objective=objective)
    assert found.error < abs(expected) / 8
    assert abs(found.value - expected) < 4 * found.error


@pytest.mark.parametrize("lookahead", [1, 10, 50])
def test_first_order_leaves_out_what_the_closed_form_says(lookahead):
    expected, kept = expected_slope(RATE, lookahead), first_order_slope(RATE, lookahead)
    found = measured(FirstOrder(), RATE, lookahead, lookahead, runs=2000)
    assert abs(found.value - kept) < 4 * found.error
    if lookahead == 1:  # no gradient in the window depends on the step size
        assert kept == pytest.approx(expected, rel=1e-12)
    else:
        assert kept < expected - 5 * found.error  # the fall that is left looks steeper than it is
        assert found.value < expected


def fixed_point(steps: int, cut: int) -> float:
    """The step size, to a thousandth, at which the slope of windows cut out of runs turns positive; by bisection."""
    low, high = 0.01, 1.5
    assert expected_slope(low, steps, cut=cut) < 0 < expected_slope(high, steps, cut=cut)
    while high / low > 1.001:
        middle = math.sqrt(low * high)
        if expected_slope(middle, steps, cut=cut) < 0:
            low = middle
        else:
            high = middle
    return math.sqrt(low * high)


def test_windows_that_are_cut_out_settle_below_the_best_step_size():
    steps = 100
    one, ten, best = (fixed_point(steps, cut) for cut in (1, 10, steps))
    assert one < ten / 1.1 < best / 1.3
    between = math.sqrt(ten * best)
    for gradient, unroll, sign in ((Exact(), 10, 1), (Forward(), 10, -1)):
        expected = expected_slope(between, steps, cut=10 if sign > 0 else None)
        found = measured(gradient, between, unroll, steps, runs=2000)
        assert abs(found.value - expected) < 4 * found.error
        assert sign * found.value > 4 * found.error  # one moves it further down, the other back up


@pytest.mark.slow
def test_forward_is_right_after_ten_thousand_steps_in_the_memory_of_a_thousand():
    rate, runs, unroll, held = 0.3, 256, 20, []
    laid = Level(optimizer=SGD(lr=rate), unroll=unroll, horizon=None, batch=1, gradient=Forward()).over(TASK)
    key = keys.split(keys.seed(5), runs)
    params = laid.init(key)
    state, total = laid.init_state(params, key), torch.zeros(runs, dtype=torch.float64)
    for step in range(unroll, 10_001, unroll):
        looked = step in (1000, 10_000)
        before = alive() if looked else 0
        with LiveBytes() if looked else nullcontext() as live:
            _, grad, state = laid.value_and_grad(params, state)
        total = total + grad[:, 0]
        if live is not None:
            held.append((before, live.peak))
            expected, error = expected_slope(rate, step), float(total.std()) / math.sqrt(runs)
            assert abs(float(total.mean()) - expected) < 4 * error < abs(expected) / 2
    assert held[0] == held[1]


def alive() -> int:
    """Bytes of all tensors that Python holds."""
    return sum(thing.untyped_storage().nbytes() for thing in gc.get_objects() if type(thing) is Tensor)
