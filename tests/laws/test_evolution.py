"""Evolution strategies: unbiased, with the variance that theory says, and equal to loops over particles by hand."""

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
from live import LiveBytes
from systems import Balance, Drift, Forget, Plane, Target, push, settled
from torch import Tensor

from levels import (
    LSTM,
    NRES,
    PES,
    SGD,
    Adam,
    DigitsMLP,
    ESSingle,
    Estimator,
    Evolution,
    FirstOrder,
    FullES,
    LearnedInit,
    Level,
    Linear,
    Log,
    Mix,
    NonFiniteError,
    Quadratic,
    Skip,
    Stop,
    TorchOptim,
    TruncatedES,
    keys,
)
from levels.restart import run
from levels.tree import leaves, map_leaves
from recursion import Tower
from recursion.notation import parse

QUADRATIC = Quadratic(dims=3, dtype="float64")


def drifts(gradient: Estimator, unroll: int, horizon: int, stagger: bool) -> Level:
    return Level(optimizer=Drift(), unroll=unroll, horizon=horizon, batch=2, stagger=stagger, gradient=gradient).over(
        QUADRATIC
    )


def drawn(laid: Level, draws: int, seed: int = 0) -> tuple[Tensor, Any]:
    """The same parameters for all of ``draws`` draws, and states with problems and noise of their own."""
    params = laid.init(keys.seed(seed)).expand(draws, -1)
    return params, laid.init_state(params, keys.split(keys.seed(seed + 1), draws))


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


def z_scores(gradient: Estimator, unroll: int, stagger: bool = True, draws: int = 3000) -> tuple[float, float, float]:
    """Largest z score of the estimates' mean over one horizon: against both gradients, and of the whole one itself."""
    horizon = 16
    laid = drifts(gradient, unroll, horizon, stagger)
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
    (FullES(sigma=0.5), 16),
    (FullES(sigma=0.5, pairs=3), 16),
    (Evolution(sigma=0.5, noise="window"), 16),
    (PES(sigma=0.5), 4),
    (PES(sigma=2.0, pairs=2), 2),
    (Evolution(sigma=0.5, noise=8), 4),
    (Evolution(sigma=0.5, noise=12), 4),
    (Evolution(sigma=0.5, noise=4, pairs=2), 2),
    (ESSingle(sigma=0.5), 4),
    (Evolution(sigma=0.5, accumulate=False), 2),
]


@pytest.mark.parametrize(("gradient", "unroll"), UNBIASED, ids=str)
def test_unbiased_for_the_whole_trajectory(gradient, unroll):
    off, off_alone, power = z_scores(gradient, unroll)
    assert off < 4
    assert power > 10
    assert unroll == 16 or off_alone > 10


def test_unbiased_with_and_without_staggered_restarts():
    assert z_scores(NRES(sigma=0.5, pairs=2), 4)[0] < 4
    assert z_scores(ESSingle(sigma=0.5, pairs=2), 4, stagger=False)[0] < 4
    assert z_scores(PES(sigma=0.5), 4, stagger=False)[0] < 4


@pytest.mark.parametrize("unroll", [2, 8])
def test_truncated_es_is_biased_by_the_truncation(unroll):
    off, off_alone, _ = z_scores(TruncatedES(sigma=0.5), unroll)
    assert off > 10
    assert off_alone < 4


def window_variances(gradient: Estimator, windows: int, draws: int) -> Tensor:
    """Trace of the covariance of each window's estimate, in units of the squared slope, where nothing is remembered."""
    task = Plane()
    laid = Level(optimizer=Forget(), horizon=windows, batch=1, gradient=gradient).over(task)
    params, state = drawn(laid, draws)
    variances = []
    for _ in range(windows):
        _, grad, state = laid.value_and_grad(params, state)
        variances.append(grad.var(0).sum())
    return torch.stack(variances) / torch.tensor(task.slopes, dtype=torch.float64).square().sum()


def test_the_variance_of_es_single_does_not_grow_with_the_windows_and_that_of_pes_does():
    """In d dimensions, by the moments of the normal distribution: k d + 1 in window k for PES, d + 1 for ES-Single.

    The estimate of PES in window k is (u_1 + ... + u_k) (c . u_k), that of ES-Single u (c . u).
    """
    k, d = torch.arange(1, 17, dtype=torch.float64), 4
    for noise, expected in (("window", k * d + 1), ("episode", 0 * k + d + 1), (4, ((k + 3) // 4) * d + 1)):
        measured = window_variances(Evolution(noise=noise), 16, 20000)
        torch.testing.assert_close(measured, expected, rtol=0.1, atol=0.0)
    truncated = window_variances(TruncatedES(), 16, 20000)
    torch.testing.assert_close(truncated, torch.full_like(k, d + 1), rtol=0.1, atol=0.0)


def balancing(gradient: Estimator, unroll: int) -> Level:
    return Level(optimizer=Balance(), unroll=unroll, horizon=1000, batch=1, gradient=gradient)


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
    laid = balancing(FirstOrder(), unroll).over(Target())
    params = laid.init(keys.seed(0))
    state, slopes = laid.init_state(params, keys.seed(0)), []
    for _ in range(1000 // unroll):
        _, grad, state = laid.value_and_grad(params, state)
        slopes.append(float(grad))
    assert true_slope(0.5, 1000) > 0
    assert max(slopes) < 0


@pytest.mark.parametrize(
    ("gradient", "windows", "low", "high"),
    [
        (FirstOrder(), 100, 0.6, math.inf),
        (ESSingle(sigma=0.1, pairs=2), 300, -0.4, 0.3),
        (PES(sigma=0.1, pairs=500), 200, -0.4, 0.3),
    ],
    ids=str,
)
def test_influence_balancing_in_a_tower(gradient, windows, low, high):
    """Where theta goes from 0.5, in trajectories of a hundred windows; -1/6 is where the loss settles at 0."""
    tower = Tower(Target(), balancing(gradient, 10), Level(optimizer=SGD(lr=Linear(1e-5)), batch=1))
    state = tower.init(seed=0)
    for _ in range(windows):
        state, _ = tower.step(state)
    assert low < float(state.carry.x) < high


@pytest.mark.parametrize("pairs", [1, 3])
def test_pairs_give_exact_directional_derivatives_of_what_is_linear(pairs):
    task = Plane()
    laid = Level(optimizer=Drift(), unroll=3, horizon=3, batch=2, gradient=FullES(sigma=5.0, pairs=pairs)).over(task)
    params = laid.init(keys.split(keys.seed(0), 4))
    state = laid.init_state(params, keys.split(keys.seed(1), 4))
    u = state.memory.noise
    assert u.shape == (4, 2 * pairs, 4)
    slope = (1 + 2 + 3) * torch.tensor(task.slopes, dtype=torch.float64)
    value, grad, _ = laid.value_and_grad(params, state)
    torch.testing.assert_close(grad, ((u @ slope)[..., None] * u).mean(1), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(value, params @ slope)


RULES = [SGD(lr=0.02, momentum=0.5), Adam(lr=0.1), LSTM(hidden=3), LearnedInit(SGD(lr=0.02))]


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_small_noise_from_a_fresh_start_gives_the_true_directional_derivative(rule):
    """Not the first-order one: along u, the derivative through the gradients too, by autograd; and after a restart."""
    level = Level(optimizer=rule, unroll=5, horizon=5, batch=1, gradient=FullES(sigma=1e-5))
    laid = level.over(QUADRATIC)
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
    first_order = replace(level, gradient=FirstOrder()).over(QUADRATIC)
    _, other, _ = first_order.value_and_grad(params, first_order.init_state(params, keys.seed(6)))
    assert abs(float(u @ (true - other))) > 1e-3 * abs(float(u @ true))


LOOPS = [
    (LSTM(hidden=2), PES(sigma=0.1, pairs=2), 2),
    (LSTM(hidden=2), TruncatedES(sigma=0.1), 2),
    (LearnedInit(SGD(lr=0.1)), Evolution(sigma=0.1, pairs=2, noise=4), 4),
    (LearnedInit(SGD(lr=0.1)), NRES(sigma=0.1, pairs=2), 6),
    (TorchOptim("Adafactor", lr=Log(0.1)), Evolution(sigma=0.1, noise=4), 4),
]


@pytest.mark.parametrize(("rule", "gradient", "period"), LOOPS, ids=str)
def test_all_particles_at_once_are_a_loop_over_particles(rule, gradient, period):
    """Minibatches, three staggered copies, trajectories of three windows; noise and sums kept by hand."""
    task = DigitsMLP(hidden=(2,), minibatch=3, dtype="float64")
    level = Level(optimizer=rule, unroll=2, horizon=6, batch=3, gradient=gradient)
    laid, one = level.over(task), replace(level, batch=1, stagger=False).over(task)
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
            keep = age < 6 and not isinstance(gradient, TruncatedES)
            sums[copy, pair] = (sums[copy, pair] if keep else 0.0) + (new if fresh else 0.0)
            noise[copy, pair] = new


def test_the_same_key_is_the_same_estimate_and_copies_stand_alone():
    laid = Level(optimizer=LSTM(hidden=2), unroll=2, horizon=4, batch=2, gradient=PES(pairs=2)).over(QUADRATIC)
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


@dataclass(frozen=True, kw_only=True, repr=False)
class Cliff(Plane):
    """A plane that ends where the first entry of x exceeds 1."""

    name: ClassVar[str] = "cliff"

    def value_and_grad(self, params: Tensor, state: None) -> tuple[Tensor, Tensor, None]:
        f, g, state = super().value_and_grad(params, state)
        return f.where(params[..., 0] <= 1, torch.inf), g, state


def test_pairs_of_which_a_member_is_skipped_weigh_nothing_and_restart_together():
    task = Cliff()
    level = Level(
        optimizer=Drift(), unroll=1, horizon=4, batch=20, stagger=False, gradient=ESSingle(sigma=0.7), nonfinite=Skip()
    )
    laid, params = level.over(task), torch.zeros(4, dtype=torch.float64)
    state = laid.init_state(params, keys.seed(0))
    u = state.memory.noise
    fell = 0.7 * u[:, 0].abs() > 1
    assert 0 < fell.sum() < 10
    slope = u @ torch.tensor(task.slopes, dtype=torch.float64)
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
    strict = replace(level, nonfinite=Stop()).over(task)
    state = strict.init_state(params, keys.seed(0))
    with pytest.raises(NonFiniteError, match="loss is not finite"):
        strict.value_and_grad(params, state)


def test_memory_does_not_grow_with_the_unroll():
    def peak(unroll: int) -> int:
        level = Level(optimizer=Adam(), unroll=unroll, horizon=unroll, batch=2, gradient=ESSingle(pairs=2))
        laid = level.over(Quadratic(dims=200))
        params = laid.init(keys.seed(0))
        with LiveBytes() as live:
            state = laid.init_state(params, keys.seed(0))
            before = live.reset_peak().bytes
            laid.value_and_grad(params, state)
            return live.peak - before

    assert peak(64) < 1.1 * peak(4)


REFUSED = [
    (
        "lstm@20[gradient=pes, horizon=none]",
        "pes sums noise over a trajectory, .* set horizon=100, or use truncated-es",
    ),
    ("lstm[gradient=es-single]", "this one never restarts; set horizon=5"),
    ("lstm@20[gradient=full-es]", "full-es needs windows as long as the horizon 100, got 20; set horizon=20"),
    ("lstm@20[gradient=evolution(noise=30)]", "multiple of the unroll 20 and at most the horizon 100, got 30"),
    ("lstm@20[gradient=evolution(noise=120)]", "multiple of the unroll 20 and at most the horizon 100, got 120"),
    ("lstm@20[gradient=nres, stagger=false]", "set stagger=true, or use es-single"),
    ("lstm@20[gradient=pes(sigma=0)]", "pes: sigma must be a number above 0, got 0"),
    ("lstm@20[gradient=pes(pairs=0)]", "pes: pairs must be a whole number of at least 1, got 0"),
    (
        "lstm@20[gradient=evolution(noise=0)]",
        "noise must be one of window, episode, or a whole number of at least 1, got 0",
    ),
    ("lstm@20[gradient=mix(first-order, full-es)]", "full-es needs windows as long"),
    ("torch(Adafactor, lr=log(0.1))@20[gradient=mix(first-order, pes)]", "cannot be differentiated"),
    ("lstm@20[gradient=mix(first-order, pes, decay=1)]", "mix: decay must be a number between 0 and 1, got 1"),
]


@pytest.mark.parametrize(("level", "message"), REFUSED)
def test_what_cannot_work_is_refused_when_the_tower_is_built(level, message):
    with pytest.raises(ValueError, match=message):
        parse(f"quadratic: {level} / adam")


@pytest.mark.parametrize("gradient", [Evolution(), PES(sigma=0.1, pairs=4), Mix(FirstOrder(), NRES(pairs=2))], ids=str)
def test_notation_round_trip(gradient):
    tower = Tower(QUADRATIC, Level(optimizer=LSTM(), unroll=20, gradient=gradient), Level(optimizer=Adam()))
    assert parse(str(tower)).levels[0].gradient == gradient
