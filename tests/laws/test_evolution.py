"""Evolution strategies: unbiased, with the variance that theory says, and equal to loops over particles by hand."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from live import LiveBytes
from parts import QUADRATIC, begun, built
from systems import push, settled
from torch import Tensor

from levels import FirstOrder, Level, NonFiniteError, Stop, keys
from levels.restart import run
from levels.tree import leaves, map_leaves
from recursion import Tower
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
        gradients = window_gradients(laid, params, state)
        estimate, whole, alone = estimate + grad, whole + gradients[0], alone + gradients[1]

    def z(off: Tensor) -> float:
        return float((off.mean(0) / (off.std(0) / math.sqrt(draws))).abs().max())

    return z(estimate - whole), z(estimate - alone), z(whole)


UNBIASED = [
    ("full-es(sigma=0.5)", 16),
    ("full-es(sigma=0.5, pairs=3)", 16),
    ("evolution(sigma=0.5, noise=window)", 16),
    ("pes(sigma=0.5)", 4),
    ("pes(sigma=2.0, pairs=2)", 2),
    ("evolution(sigma=0.5, noise=8)", 4),
    ("evolution(sigma=0.5, noise=12)", 4),
    ("evolution(sigma=0.5, noise=4, pairs=2)", 2),
    ("es-single(sigma=0.5)", 4),
    ("evolution(sigma=0.5, accumulate=false)", 2),
    ("nres(sigma=0.5, pairs=2)", 4),
]


@pytest.mark.parametrize(("gradient", "unroll"), UNBIASED)
def test_unbiased_for_the_whole_trajectory(gradient, unroll):
    off, off_alone, power = z_scores(gradient, unroll)
    assert off < 4
    assert power > 10
    assert unroll == 16 or off_alone > 10


@pytest.mark.parametrize("gradient", ["es-single(sigma=0.5, pairs=2)", "pes(sigma=0.5)"])
def test_unbiased_without_staggered_restarts(gradient):
    assert z_scores(gradient, 4, stagger="false")[0] < 4


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
    (params, state), slopes = begun(laid), []
    for _ in range(1000 // unroll):
        _, grad, state = laid.value_and_grad(params, state)
        slopes.append(float(grad))
    assert true_slope(0.5, 1000) > 0
    assert max(slopes) < 0


@pytest.mark.parametrize(("gradient", "windows", "low", "high"), [
    ("first-order", 100, 0.6, math.inf),
    ("es-single(sigma=0.1, pairs=2)", 300, -0.4, 0.3),
    ("pes(sigma=0.1, pairs=500)", 200, -0.4, 0.3),
])  # fmt: skip
def test_influence_balancing_in_a_tower(gradient, windows, low, high):
    """Where theta goes from 0.5, in trajectories of a hundred windows; -1/6 is where the loss settles at 0."""
    balance = f"systems.Balance@10[horizon=1000, batch=1, gradient={gradient}]"
    tower = parse(f"systems.Target: {balance} / sgd(linear(1e-5))[batch=1]")
    for state, _ in tower.run(tower.init(seed=0), windows):  # noqa: B007
        pass
    assert low < float(state.carry.x) < high


@pytest.mark.parametrize("pairs", [1, 3])
def test_pairs_give_exact_directional_derivatives_of_what_is_linear(pairs):
    laid = built(f"{PLANE}systems.Drift@3[horizon=3, batch=2, gradient=full-es(sigma=5.0, pairs={pairs})]")
    params = laid.init(keys.split(keys.seed(0), 4))
    state = laid.init_state(params, keys.split(keys.seed(1), 4))
    u = state.memory.noise
    assert u.shape == (4, 2 * pairs, 4)
    slope = (1 + 2 + 3) * laid.problem.slope
    value, grad, _ = laid.value_and_grad(params, state)
    torch.testing.assert_close(grad, ((u @ slope)[..., None] * u).mean(1), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(value, params @ slope)


@pytest.mark.parametrize("rule", ["sgd(0.02, momentum=0.5)", "adam(0.1)", "lstm(hidden=3)", "start(sgd(0.02))"])
def test_small_noise_from_a_fresh_start_gives_the_true_directional_derivative(rule):
    """Not the first-order one: along u, the derivative through the gradients too, by autograd; and after a restart."""
    laid = built(f"{QUADRATIC}{rule}@5[horizon=5, gradient=full-es(sigma=1e-5)]")
    params = laid.init(keys.seed(5))
    state = laid.init_state(params, keys.seed(6))
    for _ in range(2):
        u = state.memory.noise[0]
        value, grad, state = laid.value_and_grad(params, state)
        carry = state.carry
        theta = params.clone().requires_grad_()
        fresh = laid.begin(params, carry.key[:1])
        with torch.enable_grad():
            key = keys.split(carry.key[:1], 2)[..., 0]
            x, s, total = laid.optimizer.init_x(theta, key), fresh.state, 0.0
            for t in range(6):
                residual = fresh.problem_state.w[0] @ x[0] - fresh.problem_state.y[0]
                f, g = residual.square().sum()[None], (2 * residual @ fresh.problem_state.w[0])[None]
                total = total + f if t else total
                x, s = laid.optimizer.update(theta, x, s, f, g)
        (true,) = torch.autograd.grad(total.sum(), theta)
        torch.testing.assert_close(grad, u * (u @ true), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(value, total.sum().detach(), rtol=1e-6, atol=0.0)
    first_order = replace(laid, gradient=FirstOrder())
    _, other, _ = first_order.value_and_grad(params, first_order.init_state(params, keys.seed(6)))
    assert abs(float(u @ (true - other))) > 1e-3 * abs(float(u @ true))


LOOPS = {
    "lstm(hidden=2)@2[gradient=pes(sigma=0.1, pairs=2), ": 2,
    "lstm(hidden=2)@2[gradient=truncated-es(sigma=0.1), ": 2,
    "start(sgd(0.1))@2[gradient=evolution(sigma=0.1, pairs=2, noise=4), ": 4,
    "start(sgd(0.1))@2[gradient=nres(sigma=0.1, pairs=2), ": 6,
    "torch(Adafactor, lr=log(0.1))@2[gradient=evolution(sigma=0.1, noise=4), ": 4,
}


@pytest.mark.parametrize(("level", "period"), LOOPS.items())
def test_all_particles_at_once_are_a_loop_over_particles(level, period):
    """Minibatches, three staggered copies, trajectories of three windows; noise and sums kept by hand."""
    text = f"digits-mlp(hidden=[2], minibatch=3, dtype=float64): {level}horizon=6, batch="
    laid = built(f"{text}3]")
    one, gradient = replace(laid, batch=1, stagger=False, gradient=FirstOrder()), laid.gradient
    params, key = laid.init(keys.seed(0)), keys.seed(1)
    state = laid.init_state(params, key)
    ids = [(copy, pair) for copy in range(3) for pair in range(gradient.pairs)]
    noise, sums, carries = dict(zip(ids, state.memory.noise)), dict(zip(ids, state.memory.noise)), {}
    for copy, pair in ids:
        for sign in (1, -1):
            carry = one.begin(params + sign * 0.1 * noise[copy, pair], keys.split(key, 3)[copy][None])
            carries[copy, pair, sign] = carry._replace(age=carry.age + 2 * copy)
    for _ in range(7):
        values, total = [], torch.zeros_like(params)
        for copy, pair in ids:
            losses = {}
            for sign in (1, -1):
                theta = params + sign * 0.1 * noise[copy, pair]
                carries[copy, pair, sign], window = run(one, theta, carries[copy, pair, sign])
                losses[sign] = window.losses.sum()
            total += sums[copy, pair] * (losses[1] - losses[-1]) / (2 * 0.1)
            values += losses.values()
        value, grad, state = laid.value_and_grad(params, state)
        torch.testing.assert_close(value, sum(values) / len(values), rtol=1e-9, atol=0.0)
        torch.testing.assert_close(grad, total / len(ids), rtol=1e-7, atol=1e-9)
        params = params - 1e-3 * grad / grad.norm()
        for place, (copy, pair) in enumerate(ids):
            age, new = int(carries[copy, pair, 1].age), state.memory.noise[place]
            fresh = age % 6 % period == 0
            assert torch.equal(new, noise[copy, pair]) != fresh
            keep = age < 6 and gradient.name != "truncated-es"
            sums[copy, pair] = (sums[copy, pair] if keep else 0.0) + (new if fresh else 0.0)
            noise[copy, pair] = new


def test_the_same_key_is_the_same_estimate_and_copies_stand_alone():
    laid = built(f"{QUADRATIC}lstm(hidden=2)@2[horizon=4, batch=2, gradient=pes(pairs=2)]")
    key = keys.split(keys.seed(3), 6).reshape(2, 3)
    params = laid.init(key)
    together, again = laid.init_state(params, key), laid.init_state(params, key)
    alone = laid.init_state(params[1, 2], key[1, 2])
    before = map_leaves(Tensor.clone, together)
    for _ in range(4):
        assert all(map(torch.equal, leaves(together), leaves(before)))
        (f, g, together), (value, grad, again) = (laid.value_and_grad(params, s) for s in (together, again))
        assert torch.equal(f, value)
        assert torch.equal(g, grad)
        f_alone, g_alone, alone = laid.value_and_grad(params[1, 2], alone)
        torch.testing.assert_close(f[1, 2], f_alone, rtol=1e-11, atol=0.0)
        torch.testing.assert_close(g[1, 2], g_alone, rtol=1e-6, atol=1e-6)
        before = map_leaves(Tensor.clone, together)
    assert not torch.equal(together.memory.noise[0, 0], together.memory.noise[0, 1])


def test_a_black_box_is_trained():
    """The step size of a torch optimizer that nothing can differentiate, far too small at first."""
    tower = parse(
        "quadratic(dims=4): torch(Adafactor, lr=log(1e-3))@5[horizon=20, batch=3, gradient=es-single(sigma=0.1)]"
        " / adam(lr=0.1)[batch=1]"
    )
    with pytest.raises(ValueError, match="cannot be differentiated"):
        Tower(tower.task, replace(tower.levels[0], gradient=FirstOrder()), tower.levels[1])
    state = tower.init(seed=0)
    start = float(state.carry.x[0, 0])
    for _ in range(40):
        state, _ = tower.step(state)
    assert float(state.carry.x[0, 0]) > start + 1.5


def test_pairs_of_which_a_member_is_skipped_weigh_nothing_and_restart_together():
    settings = "horizon=4, batch=20, stagger=false, gradient=es-single(sigma=0.7)"
    laid, params = (
        built(f"systems.Cliff: systems.Drift@1[{settings}, nonfinite=skip]"),
        torch.zeros(4, dtype=torch.float64),
    )
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


def test_memory_does_not_grow_with_the_unroll():
    def peak(unroll: int) -> int:
        laid = built(f"quadratic(200): adam@{unroll}[horizon={unroll}, batch=2, gradient=es-single(pairs=2)]")
        with LiveBytes() as live:
            params, state = begun(laid)
            before = live.reset_peak().bytes
            laid.value_and_grad(params, state)
            return live.peak - before

    assert peak(64) < 1.1 * peak(4)


FITS = "multiple of the unroll 20 and at most the horizon 100, got"
REFUSED = {
    "lstm@20[gradient=pes, horizon=none]": "pes sums noise over a trajectory, .* set horizon=100, or use truncated-es",
    "lstm[gradient=es-single]": "this one never restarts; set horizon=5",
    "lstm@20[gradient=full-es]": "full-es needs windows as long as the horizon 100, got 20; set horizon=20",
    "lstm@20[gradient=evolution(noise=30)]": f"{FITS} 30",
    "lstm@20[gradient=evolution(noise=120)]": f"{FITS} 120",
    "lstm@20[gradient=nres, stagger=false]": "set stagger=true, or use es-single",
    "lstm@20[gradient=pes(sigma=0)]": "pes: sigma must be a number above 0, got 0",
    "lstm@20[gradient=pes(pairs=0)]": "pes: pairs must be a whole number of at least 1, got 0",
    "lstm@20[gradient=evolution(noise=0)]": "noise must be one of window, episode, or a whole number of at least 1, got 0",
    "lstm@20[gradient=mix(first-order, full-es)]": "full-es needs windows as long",
    "torch(Adafactor, lr=log(0.1))@20[gradient=mix(first-order, pes)]": "cannot be differentiated",
    "lstm@20[gradient=mix(first-order, pes, decay=1)]": "mix: decay must be a number between 0 and 1, got 1",
}


@pytest.mark.parametrize(("level", "message"), REFUSED.items())
def test_what_cannot_work_is_refused_when_the_tower_is_built(level, message):
    with pytest.raises(ValueError, match=message):
        parse(f"quadratic: {level} / adam")
