"""Evolution strategies: unbiased, with the variance that theory says; test_oracle holds them against loops by hand."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from parts import QUADRATIC, answers, built
from systems import push, settled
from torch import Tensor

from levels import Exact, FirstOrder, Level, NonFiniteError, Stop, keys
from levels.tree import map_leaves
from recursion.notation import parse

DRIFTS = f"{QUADRATIC}systems.Drift"
PLANE = "systems.Plane: "


def drawn(laid: Level, draws: int) -> tuple[Tensor, Any]:
    """The same parameters for all of ``draws`` draws, and states with problems and noise of their own."""
    params = laid.init(keys.seed(0)).expand(draws, -1)
    return params, laid.init_state(params, keys.split(keys.seed(1), draws))


def window_gradients(laid: Level, params: Tensor, state: Any) -> tuple[Tensor, Tensor]:
    """Gradients of the window behind ``state``, through the whole trajectory and through the window alone.

    x_t = x_0 + t theta, so a loss f(x_t) has the gradient t f'(x_t). The members of a pair stray as much to the one
    side as to the other, so their mean is the trajectory without noise.
    """
    pairs, unroll = laid.gradient.pairs, laid.unroll
    carry = map_leaves(lambda leaf: leaf[:, :: 2 * pairs], state.carry)  # one particle for each copy
    end = state.carry.x.unflatten(1, (-1, 2 * pairs)).mean(2)
    whole, alone = torch.zeros_like(params), torch.zeros_like(params)
    for t in range(1, unroll + 1):
        x = end - (unroll - t) * params[:, None]
        residual = (carry.problem_state.w @ x[..., None])[..., 0] - carry.problem_state.y
        slope = 2 * (carry.problem_state.w.mT @ residual[..., None])[..., 0]
        whole += ((carry.age - unroll + t)[..., None] * slope).mean(1)
        alone += (t * slope).mean(1)
    return whole, alone


def z_scores(gradient: str, unroll: int, stagger: str = "true", draws: int = 3000) -> tuple[float, float, float]:
    """Largest z score of the estimates' mean over one horizon: against both gradients, and of the whole one itself."""
    horizon = 16
    laid = built(f"{DRIFTS}@{unroll}[horizon={horizon}, batch=2, stagger={stagger}, gradient={gradient}]")
    params, state = drawn(laid, draws)
    for _ in range(horizon // unroll):  # staggered copies begin in the midst of a first trajectory
        _, _, state = laid.value_and_grad(params, state)
    estimate, whole, alone = (torch.zeros_like(params) for _ in range(3))
    for _ in range(horizon // unroll):
        _, grad, state = laid.value_and_grad(params, state)
        of_all, of_window = window_gradients(laid, params, state)
        estimate, whole, alone = estimate + grad, whole + of_all, alone + of_window

    def z(off: Tensor) -> float:
        return float((off.mean(0) / (off.std(0) / math.sqrt(draws))).abs().max())

    return z(estimate - whole), z(estimate - alone), z(whole)


@pytest.mark.parametrize(("gradient", "unroll", "stagger"), [
    ("full-es(sigma=0.5)", 16, "true"), ("full-es(sigma=0.5, pairs=3)", 16, "true"),
    ("evolution(sigma=0.5, noise=window)", 16, "true"), ("evolution(sigma=0.5, noise=8)", 4, "true"),
    ("evolution(sigma=0.5, noise=12)", 4, "true"), ("evolution(sigma=0.5, noise=4, pairs=2)", 2, "true"),
    ("evolution(sigma=0.5, accumulate=false)", 2, "true"), ("nres(sigma=0.5, pairs=2)", 4, "true"),
    ("pes(sigma=0.5)", 4, "true"), ("pes(sigma=0.5)", 4, "false"), ("pes(sigma=2.0, pairs=2)", 2, "true"),
    ("es-single(sigma=0.5)", 4, "true"), ("es-single(sigma=0.5, pairs=2)", 4, "false"),
])  # fmt: skip
def test_unbiased_for_the_whole_trajectory(gradient, unroll, stagger):
    off, off_alone, power = z_scores(gradient, unroll, stagger)
    assert off < 4
    assert power > 10
    assert unroll == 16 or off_alone > 10


@pytest.mark.parametrize("unroll", [2, 8])
def test_truncated_es_is_biased_by_the_truncation(unroll):
    off, off_alone, _ = z_scores("truncated-es(sigma=0.5)", unroll)
    assert off > 10
    assert off_alone < 4


D, WINDOWS = 4, torch.arange(1, 17, dtype=torch.float64)
VARIANCES = {
    "evolution(noise=window)": WINDOWS * D + 1,
    "evolution(noise=episode)": 0 * WINDOWS + D + 1,
    "evolution(noise=4)": ((WINDOWS + 3) // 4) * D + 1,
    "truncated-es": 0 * WINDOWS + D + 1,
}


@pytest.mark.parametrize(("gradient", "expected"), VARIANCES.items(), ids=list(VARIANCES))
def test_the_variance_of_es_single_does_not_grow_with_the_windows_and_that_of_pes_does(gradient, expected):
    """In d dimensions, by the moments of the normal distribution: k d + 1 in window k for PES, d + 1 for ES-Single.

    The estimate of PES in window k is (u_1 + ... + u_k) (c . u_k), that of ES-Single u (c . u). Here is the trace of
    the covariance in units of the squared slope, where nothing of the past matters.
    """
    laid = built(f"{PLANE}systems.Forget@1[horizon=16, gradient={gradient}]")
    params, state = drawn(laid, 20000)
    variances = []
    for _ in range(16):
        _, grad, state = laid.value_and_grad(params, state)
        variances.append(grad.var(0).sum() / laid.problem.slope.square().sum())
    torch.testing.assert_close(torch.stack(variances), expected, rtol=0.1, atol=0.0)


def true_slope(theta: float, horizon: int) -> float:
    """Derivative of the summed loss in theta, by carrying the sensitivity of x along."""
    x, dx, total, b = settled(0.5, torch.float64), torch.zeros(23, dtype=torch.float64), 0.0, push(torch.float64)
    for _ in range(horizon):
        x = (x + torch.nn.functional.pad(x[1:], (0, 1))) / 2 + theta * b
        dx = (dx + torch.nn.functional.pad(dx[1:], (0, 1))) / 2 + b
        total += float((x[0] - 1) * dx[0])
    return total


@pytest.mark.parametrize("unroll", [10, 100])
def test_influence_balancing_truncated_backpropagation_points_the_wrong_way(unroll):
    laid = built(f"systems.Target: systems.Balance@{unroll}[horizon=1000]")
    assert true_slope(0.5, 1000) > 0
    assert max(float(answer.grad) for answer in answers(laid, 1000 // unroll)) < 0


@pytest.mark.parametrize(("gradient", "windows", "low", "high"), [
    ("first-order", 100, 0.6, math.inf),
    ("es-single(sigma=0.1, pairs=2)", 300, -0.4, 0.3),
    ("pes(sigma=0.1, pairs=500)", 200, -0.4, 0.3),
])  # fmt: skip
def test_influence_balancing_in_a_tower(gradient, windows, low, high):
    """Where theta goes from 0.5, in trajectories of a hundred windows; -1/6 is where the loss settles at 0."""
    balance = f"systems.Balance@10[horizon=1000, batch=1, gradient={gradient}]"
    tower = parse(f"systems.Target: {balance} / sgd(linear(1e-5))[batch=1]")
    *_, (state, _) = tower.run(tower.init(seed=0), windows)
    assert low < float(state.carry.x) < high


@pytest.mark.parametrize("rule", ["sgd(0.02, momentum=0.5)", "adam(0.1)", "lstm(hidden=3)", "start(sgd(0.02))"])
def test_small_noise_from_a_fresh_start_gives_the_true_directional_derivative(rule):
    """Not the first-order one: along u, the derivative through the gradients too; and after a restart."""
    laid = built(f"{QUADRATIC}{rule}@5[horizon=5, gradient=full-es(sigma=1e-5)]")
    levels = (laid, replace(laid, gradient=Exact()), replace(laid, gradient=FirstOrder()))
    for ours, exact, first_order in zip(*(answers(level, 2, 9) for level in levels)):
        u, true = ours.before.memory.noise[0], exact.grad
        torch.testing.assert_close(ours.grad, u * (u @ true), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(ours.value, exact.value, rtol=1e-6, atol=0.0)
        assert abs(float(u @ (true - first_order.grad))) > 1e-3 * abs(float(u @ true))


def test_a_black_box_is_trained():
    """The step size of a torch optimizer that nothing can differentiate, far too small at first."""
    tower = parse(
        "quadratic(dims=4): torch(Adafactor, lr=log(1e-3))@5[horizon=20, batch=3, gradient=es-single(sigma=0.1)]"
        " / adam(lr=0.1)[batch=1]"
    )
    state = tower.init(seed=0)
    start = float(state.carry.x[0, 0])
    *_, (state, _) = tower.run(state, 40)
    assert float(state.carry.x[0, 0]) > start + 1.5


def test_pairs_of_which_a_member_is_skipped_weigh_nothing_and_restart_together():
    settings = "horizon=4, batch=20, stagger=false, gradient=es-single(sigma=0.7)"
    laid = built(f"systems.Cliff: systems.Drift@1[{settings}, nonfinite=skip]")
    params = torch.zeros(4, dtype=torch.float64)
    state = laid.init_state(params, keys.seed(0))
    u = state.memory.noise
    fell = 0.7 * u[:, 0].abs() > 1
    assert 0 < fell.sum() < 10
    slope = u @ laid.problem.slope
    _, grad, state = laid.value_and_grad(params, state)
    torch.testing.assert_close(grad, torch.where(fell[:, None], 0.0, slope[:, None] * u).mean(0))
    assert torch.equal(state.carry.skipped.reshape(20, 2).sum(1), fell.long())
    assert torch.equal((state.memory.noise != u).any(-1), fell)
    assert torch.equal(state.memory.noise, state.memory.seen)
    _, _, state = laid.value_and_grad(params, state)
    assert torch.equal(state.carry.key[::2], state.carry.key[1::2])
    alive = state.carry.age > 0
    assert torch.equal(alive[::2], alive[1::2])
    again = fell & alive[::2]
    assert again.any()
    assert (state.carry.age[::2][again] == 1).all()
    strict = replace(laid, nonfinite=Stop())
    state = strict.init_state(params, keys.seed(0))
    with pytest.raises(NonFiniteError, match="loss is not finite"):
        strict.value_and_grad(params, state)
