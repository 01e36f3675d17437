"""Short-horizon bias: estimators against closed forms on the noisy quadratic, in the mean over many runs; and long runs.

What is said of slopes is the derivative in log lr of expected losses, from standard normal starts. Measured means are
to lie within four standard errors of it; keys are fixed, so they do or do not for ever.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import pytest
import torch
from oracle import error
from parts import answers, built
from torch import Tensor

from levels import SGD, Estimator, Exact, FirstOrder, Forward, Last, Layout, Level, NoisyQuadratic, Objective, Sum, Task
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


def measured(
    gradient: Estimator, rate: float, unroll: int, steps: int, *, runs: int = 1000, objective: Objective = SUM
) -> tuple[float, float]:
    """Mean and its standard error of the estimates of all windows of a run of ``steps``, added up."""
    level = Level(optimizer=SGD(lr=rate), unroll=unroll, horizon=None, batch=1, gradient=gradient, objective=objective)
    total = sum(answer.grad[:, 0] for answer in answers(level.over(TASK), steps // unroll, 5, runs))
    return float(total.mean()), float(total.std()) / math.sqrt(runs)


@pytest.mark.parametrize("lookahead", [1, 10, 50])
@pytest.mark.parametrize("objective", [SUM, LAST], ids=repr)
@pytest.mark.parametrize("gradient", [Exact(), Forward()], ids=repr)
def test_one_windows_slope_is_the_closed_form(gradient, objective, lookahead):
    expected = expected_slope(RATE, lookahead, objective=objective)
    mean, deviation = measured(gradient, RATE, lookahead, lookahead, objective=objective)
    assert deviation < abs(expected) / 8
    assert abs(mean - expected) < 4 * deviation


@pytest.mark.parametrize("lookahead", [1, 10, 50])
def test_first_order_leaves_out_what_the_closed_form_says(lookahead):
    expected, kept = expected_slope(RATE, lookahead), first_order_slope(RATE, lookahead)
    mean, deviation = measured(FirstOrder(), RATE, lookahead, lookahead, runs=2000)
    assert abs(mean - kept) < 4 * deviation
    if lookahead == 1:  # no gradient in the window depends on the step size
        assert kept == pytest.approx(expected, rel=1e-12)
    else:
        assert kept < expected - 5 * deviation  # the fall that is left looks steeper than it is
        assert mean < expected


def fixed_point(steps: int, cut: int) -> float:
    """The step size, to a thousandth, at which the slope of windows cut out of runs turns positive; by bisection."""
    low, high = 0.01, 1.5
    assert expected_slope(low, steps, cut=cut) < 0 < expected_slope(high, steps, cut=cut)
    while high / low > 1.001:
        middle = math.sqrt(low * high)
        falls = expected_slope(middle, steps, cut=cut) < 0
        low, high = (middle, high) if falls else (low, middle)
    return math.sqrt(low * high)


def test_windows_that_are_cut_out_settle_below_the_best_step_size():
    steps = 100
    one, ten, best = (fixed_point(steps, cut) for cut in (1, 10, steps))
    assert one < ten / 1.1 < best / 1.3
    between = math.sqrt(ten * best)
    for gradient, cut, sign in ((Exact(), 10, 1), (Forward(), None, -1)):
        mean, deviation = measured(gradient, between, 10, steps, runs=2000)
        assert abs(mean - expected_slope(between, steps, cut=cut)) < 4 * deviation
        assert sign * mean > 4 * deviation  # one moves it further down, the other back up


# Forward mode over long runs; that its memory does not grow is tested in test_memory.


@dataclass(frozen=True, kw_only=True, repr=False)
class Wandering(Task):
    """1/2 sum_i h_i (x_i - c_t)^2 with c_t = 0.3 cos(t), t counting from 0: a noisy quadratic whose noise is known."""

    name: ClassVar[str] = "wandering"
    dtype: Literal["float32", "float64"] = "float64"
    layout: ClassVar[Layout] = Layout.of({"x": (3,)}, torch.float64)
    curvature: ClassVar[Tensor] = torch.tensor([1.0, 0.1, 0.001], dtype=torch.float64)

    def init(self, key):
        return torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64).repeat(*key.shape, 1)

    def init_state(self, params, key):
        return torch.zeros(key.shape, dtype=torch.float64)

    def value_and_grad(self, params, state):
        off = params - 0.3 * torch.cos(state)[..., None]
        grad = self.curvature * off
        return (grad * off).sum(-1) / 2, grad, state + 1


@pytest.mark.parametrize("steps", [1000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_long_runs(steps):
    """The last window's gradient in the step size, by the closed form of x_t.

    x_t = r^t x_0 + lr h sum_(s<t) r^(t-1-s) c_s with r = 1 - lr h, so dx_t / dlr is a sum over all steps.
    """
    rate, unroll = 0.1, 20
    *_, last = answers(built(f"{__name__}.Wandering: sgd(linear({rate}))@{unroll}[gradient=forward]"), steps // unroll)
    h, x0 = Wandering.curvature, torch.tensor([1.0, -2.0, 3.0])
    r, expected = 1 - rate * h, 0.0
    centre = 0.3 * torch.arange(steps + 1.0, dtype=torch.float64).cos()[:, None]
    for t in range(steps - unroll + 1, steps + 1):
        back = torch.arange(t - 1.0, -1, -1)[:, None]  # t - 1 - s
        x = r**t * x0 + rate * h * (r**back * centre[:t]).sum(0)
        dx = -h * t * r ** (t - 1) * x0 + h * ((r**back - rate * h * back * r ** (back - 1)) * centre[:t]).sum(0)
        expected += (h * (x - centre[t]) * dx).sum()
    assert error(last.grad, expected[None]) < 1e-8
