"""One level: its settings, its window, restarts, what is not finite, clipping."""

import math
from typing import NamedTuple

import pytest
import torch

from levels import (
    LSTM,
    SGD,
    Adam,
    Discounted,
    Fixed,
    Last,
    Layout,
    Level,
    LevelState,
    Linear,
    Log,
    NonFiniteError,
    Problem,
    Quadratic,
    Skip,
    Sum,
    keys,
)
from levels.base import RESET, ProblemTraits
from levels.restart import run
from levels.tree import leaves, map_leaves


def quadratic(dims=3):
    return Quadratic(dims=dims, dtype="float64")


def bound(optimizer, problem=None, **settings):
    """A level over a problem, its parameters and its state."""
    level = Level(optimizer=optimizer, **settings).over(problem or quadratic())
    params = level.init(keys.seed(0))
    return level, params, level.init_state(params, keys.seed(1))


COUNT, HORIZON = "a whole number of at least 1", "a whole number of at least 1, or auto, or none"


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"unroll": 0}, f"unroll must be {COUNT}, got 0"),
        ({"unroll": True}, f"unroll must be {COUNT}, got true"),
        ({"unroll": "auto"}, f"unroll must be {COUNT}, got auto"),
        ({"batch": -1}, f"batch must be {COUNT}, or auto, got -1"),
        ({"batch": None}, f"batch must be {COUNT}, or auto, got none"),
        ({"unroll": 4, "horizon": 10}, "horizon must be a multiple of the unroll 4, got 10; use 8"),
        ({"unroll": 4, "horizon": 1}, "horizon must be a multiple of the unroll 4, got 1; use 4"),
        ({"unroll": 4, "horizon": 0}, f"horizon must be {HORIZON}, got 0"),
        ({"unroll": 4, "horizon": 8.0}, f"horizon must be {HORIZON}, got 8.0"),
        ({"unroll": 4, "horizon": "never"}, f"horizon must be {HORIZON}, got never"),
        ({"clip": 0}, "clip must be a number above 0, or none, got 0"),
        ({"clip": math.inf}, "clip must be a number above 0, or none, got inf"),
        ({"clip": "big"}, "clip must be a number above 0, or none, got big"),
        ({"stagger": 1}, "stagger must be true or false, got 1"),
        ({"optimizer": 3}, "optimizer must be an Optimizer, got 3"),
        ({"objective": 3}, "objective must be an Objective, got 3"),
        ({"gradient": None}, "gradient must be an Estimator, got none"),
        ({"nonfinite": Sum()}, "nonfinite must be a NonFinite, got sum"),
    ],
)
def test_every_bad_setting(settings, sentence):
    with pytest.raises(ValueError) as caught:
        Level(**{"optimizer": SGD(), **settings})
    assert str(caught.value) == sentence


@pytest.mark.parametrize(
    ("settings", "length", "copies", "written"),
    [
        ({"unroll": 20}, 100, 64, "sgd@20"),
        ({}, None, 1, "sgd@1"),
        ({"unroll": 20, "horizon": None}, None, 64, "sgd@20[horizon=none]"),
        ({"horizon": 7}, 7, 1, "sgd@1[horizon=7]"),
        ({"unroll": 3, "horizon": 6, "batch": 3}, 6, 3, "sgd@3[horizon=6, batch=3]"),
        ({"optimizer": LSTM(), "unroll": 4, "objective": Last(), "stagger": False, "clip": 1.0}, 20, 64,
         "lstm@4[stagger=false, objective=last, clip=1.0]"),
    ],
)  # fmt: skip
def test_what_settings_come_to(settings, length, copies, written):
    level = Level(**{"optimizer": SGD(), **settings})
    assert level.episode_length == length
    assert level.over(quadratic()).copies == copies
    assert repr(level) == written
    assert Level(optimizer=SGD(), unroll=2).over(level.over(quadratic())).copies == 1


def test_nothing_to_optimize_is_refused():
    lower = Level(optimizer=SGD(lr=Fixed(0.1))).over(quadratic())
    with pytest.raises(ValueError, match=r"^adam@1 has nothing to optimize; the problem below has no parameters$"):
        Level(optimizer=Adam()).over(lower)


@pytest.mark.parametrize(
    ("objective", "weights"),
    [(Sum(), [1, 1, 1, 1]), (Last(), [0, 0, 0, 1]), (Discounted(0.5), [1, 0.5, 0.25, 0.125])],
    ids=str,
)
def test_windows_by_naive_autograd(objective, weights):
    """Everything in one graph, but for the gradients that the optimizer reads; two windows with carried state."""
    sgd = SGD(lr=0.02, momentum=0.8)
    level, params, state = bound(sgd, unroll=4, batch=3, objective=objective, horizon=None)
    for window in (1, 2):
        w, y = state.carry.problem_state
        raw = params.clone().requires_grad_()
        x, b, g, loss = state.carry.x, state.carry.state, state.carry.g, 0.0
        for weight in weights:
            b = torch.sigmoid(raw[1]) * b + g
            x = x - raw[0].exp() * b
            f = ((w @ x[..., None]).squeeze(-1) - y).square().sum(-1)
            g = torch.autograd.grad(f.sum(), x, retain_graph=True)[0].detach()
            loss = loss + weight * f.mean()
        (expected,) = torch.autograd.grad(loss, raw)
        value, grad, state = level.value_and_grad(params, state)
        assert float(value) == pytest.approx(loss.item(), rel=1e-13)
        assert torch.allclose(grad, expected, rtol=1e-11)
        for ours, theirs in zip(state.carry[:4], (x, b, f, g)):
            assert torch.allclose(ours, theirs, rtol=1e-12)
        assert state.carry.age.tolist() == [4 * window] * 3


def test_the_hypergradient_of_one_step_in_closed_form():
    """d f(x - lr g) / d log lr = -lr <g_new, g_old> (Baydin et al. 2018), a mean over copies."""
    level, params, state = bound(SGD(lr=0.01), batch=4)
    for _ in range(3):
        old = state.carry.g
        _, grad, state = level.value_and_grad(params, state)
        expected = (-0.01 * (state.carry.g * old).sum(-1)).mean()
        assert float(grad[0]) == pytest.approx(float(expected), rel=1e-12)


@pytest.mark.parametrize("batch", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("windows", [1, 2, 5])
def test_stagger_spreads_first_restarts(batch, windows):
    _, _, state = bound(SGD(), unroll=2, horizon=2 * windows, batch=batch)
    ages = state.carry.age.tolist()
    assert ages == [copy * windows // batch * 2 for copy in range(batch)]
    counts = [ages.count(2 * window) for window in range(windows)]
    assert max(counts) - min(counts) <= 1
    _, _, together = bound(SGD(), unroll=2, horizon=2 * windows, batch=batch, stagger=False)
    _, _, for_ever = bound(SGD(), unroll=2, horizon=None, batch=batch)
    assert together.carry.age.tolist() == for_ever.carry.age.tolist() == [0] * batch


@pytest.mark.parametrize("optimizer", [SGD(lr=0.01, momentum=0.9), LSTM(hidden=3)], ids=str)
def test_restarts_come_at_the_horizon_and_to_the_copies_due_only(optimizer):
    unroll, horizon = 2, 6
    level, params, state = bound(optimizer, unroll=unroll, horizon=horizon, batch=4)
    ages, problems = state.carry.age.tolist(), set()
    for _ in range(9):
        before = state.carry
        undisturbed = Level(optimizer=optimizer, unroll=unroll, horizon=None, batch=4).over(level.problem)
        expected, _ = run(undisturbed, params, before)
        _, _, state = level.value_and_grad(params, state)
        after = state.carry
        for copy in range(4):
            due = ages[copy] == horizon
            assert due != torch.equal(after.problem_state.w[copy], before.problem_state.w[copy])
            assert due != torch.equal(after.key[copy], before.key[copy])
            assert due != torch.equal(after.x[copy], expected.x[copy])
            for mine, theirs in zip(leaves(after), leaves(expected), strict=True):
                assert due or torch.equal(mine[copy], theirs[copy])
            ages[copy] = unroll + (0 if due else ages[copy])
            problems.add(tuple(after.problem_state.y[copy].tolist()))
        assert after.age.tolist() == ages
    assert len(problems) == 4 + 2 + 2 + 3 + 3  # first problems; restarts of copies that began at ages 0, 0, 2, 4


def test_a_restarted_copy_starts_like_any_other():
    """Alone or among copies that go on: its start and state depend on its own key only."""
    level, params, state = bound(Adam(lr=0.1), unroll=2, horizon=4, batch=2)
    carry = state.carry._replace(age=torch.tensor([4, 0]))
    end, window = run(level, params, carry)
    all_end, all_window = run(level, params, state.carry._replace(age=torch.tensor([4, 4])))
    for some, every in zip(leaves((end, window.steps)), leaves((all_end, all_window.steps)), strict=True):
        assert torch.equal(some[0], every[0])
    first = window.start
    assert torch.equal(first.x[1], carry.x[1])
    assert not torch.equal(first.x[1], all_window.start.x[1])
    assert not torch.equal(first.x[0], carry.x[0])
    assert torch.equal(first.state.m[0], torch.zeros(3, dtype=torch.float64))
    assert first.state.t.tolist() == [0, 0]
    residual = all_end.problem_state.w @ first.x[..., None] - all_end.problem_state.y[..., None]
    assert float(first.f[0]) == pytest.approx(float(residual[0].square().sum()), rel=1e-12)


def test_an_optimizer_without_parameters_restarts():
    level, params, state = bound(SGD(lr=Fixed(0.01)), unroll=2, horizon=4, batch=2)
    assert params.shape == (0,)
    for _ in range(4):
        value, grad, state = level.value_and_grad(params, state)
        assert math.isfinite(float(value))
        assert grad.shape == (0,)


@pytest.mark.parametrize("clip", [1e-3, 0.5, 1e9])
def test_clipping_is_exact(clip):
    settings = {"optimizer": SGD(lr=Log(0.05, "coordinate")), "unroll": 3, "batch": 2, "horizon": None}
    free, clipping = (Level(**settings, clip=most).over(quadratic()) for most in (None, clip))
    params = free.init(keys.seed(0)).expand(2, -1)
    state = free.init_state(params, keys.split(keys.seed(1), 2))
    value, grad, after = free.value_and_grad(params, state)
    same, clipped, then = clipping.value_and_grad(params, state)
    torch.testing.assert_close(then.norm, grad.norm(dim=-1), rtol=1e-12, atol=0)
    for ours, theirs in zip(leaves((value, after)), leaves((same, then._replace(norm=None))), strict=True):
        assert torch.equal(ours, theirs)
    for before, shorter in zip(grad.tolist(), clipped.tolist()):
        factor = min(1.0, clip / math.hypot(*before))
        assert shorter == pytest.approx([entry * factor for entry in before], rel=1e-12)
    assert clip < 1e9 or torch.equal(grad, clipped)


def test_a_gradient_whose_square_overflows_is_clipped_not_lost():
    free, clipping = (
        Level(optimizer=SGD(lr=0.1, momentum=0.9), clip=clip).over(Quadratic(dims=3)) for clip in (None, 1.0)
    )
    params = free.init(keys.seed(0))
    state = free.init_state(params, keys.seed(1))
    huge = 1e12 * state.carry.g
    state = state._replace(carry=state.carry._replace(g=huge, state=huge))
    grad = free.value_and_grad(params, state)[1]
    assert 1e20 < float(grad.abs().max()) < math.inf
    exact = grad.double() / torch.linalg.vector_norm(grad.double())
    assert torch.allclose(clipping.value_and_grad(params, state)[1].double(), exact, rtol=1e-5)


class FragileState(NamedTuple):
    odd: torch.Tensor
    step: torch.Tensor


class Fragile(Problem):
    """|x|^2, but copies with an odd number answer nan at their second evaluation (``what``: loss or gradient)."""

    layout = Layout.of({"x": (2,)}, torch.float64)
    traits = ProblemTraits()

    def __init__(self, what="loss", at=1):
        self.what, self.at = what, at

    def init(self, key):
        return 1 + keys.uniform(key, (2,), torch.float64)

    def init_state(self, params, key):
        return FragileState(params[..., 0] > 1.5, torch.zeros_like(key))

    def value_and_grad(self, params, state):
        value, grad = params.square().sum(-1), 2 * params
        bad = state.odd & (state.step == self.at)
        if self.what == "loss":
            value = torch.where(bad, math.nan, value)
        else:
            grad = torch.where(bad[..., None], math.inf, grad)
        return value, grad, state._replace(step=state.step + 1)


class Hopeless(Fragile):
    """Every start is nan."""

    def init_state(self, params, key):
        return FragileState(params[..., 0] > 0, torch.zeros_like(key))


LOWER = "lower its learning rate, or skip such copies with nonfinite=skip"


@pytest.mark.parametrize(
    ("problem", "settings", "sentence"),
    [
        (Fragile(), {"unroll": 2}, f"level 1 (sgd(lr=0.1)@2[batch=8]): the problem's loss is not finite; {LOWER}"),
        (Fragile("gradient"), {}, f"level 1 (sgd(lr=0.1)@1[batch=8]): the problem's gradient is not finite; {LOWER}"),
        (Fragile(at=0), {}, "level 1 (sgd(lr=0.1)@1[batch=8]): a freshly started problem's loss is not finite; "
         "start its parameters smaller"),
        (Hopeless(at=0), {"nonfinite": Skip()}, "level 1 (sgd(lr=0.1)@1[batch=8, nonfinite=skip]): "
         "8 starts in a row are not finite; start its parameters smaller"),
    ],
)  # fmt: skip
def test_stopping_says_what_and_where(problem, settings, sentence):
    def window():
        level, params, state = bound(SGD(lr=0.1), problem, batch=8, **settings)
        return level.value_and_grad(params, state)

    with pytest.raises(NonFiniteError) as caught:
        window()
    assert str(caught.value) == sentence
    assert caught.value.level.problem is problem
    assert isinstance(caught.value, ArithmeticError)


def test_a_start_that_is_not_finite_is_drawn_again():
    level, params, state = bound(SGD(lr=0.1), Fragile(at=0), unroll=2, horizon=2, batch=8, nonfinite=Skip())
    assert int(state.carry.skipped.sum()) > 0
    for _ in range(4):
        before = state.carry.skipped
        _, _, state = level.value_and_grad(params, state)
        assert torch.isfinite(state.carry.f).all()
        assert (state.carry.skipped >= before).all()
    assert int(state.carry.skipped.sum()) > 8


@pytest.mark.parametrize("what", ["loss", "gradient"])
@pytest.mark.parametrize("optimizer", [SGD(lr=0.1, momentum=0.9), Adam(lr=0.1)], ids=str)
def test_skipped_copies_stand_still_count_and_restart(what, optimizer):
    unroll = 1 if what == "gradient" else 2
    level, params, state = bound(optimizer, Fragile(what), unroll=unroll, batch=8, horizon=None, nonfinite=Skip())
    bad, before = state.carry.problem_state.odd, state.carry
    assert 0 < int(bad.sum()) < 8
    value, grad, state = level.value_and_grad(params, state)
    after = state.carry
    assert torch.equal(after.skipped, bad.long())
    assert torch.equal(after.age, torch.where(bad, RESET, unroll))
    for mine, was in zip(leaves((after.x, after.state, after.f, after.g, after.problem_state)), leaves(before[:5])):
        assert torch.equal(mine[bad], was[bad])
    whole = Level(optimizer=optimizer, unroll=unroll, batch=8, horizon=None).over(Fragile(at=99))
    _, window = run(whole, params, before)
    losses = torch.where(bad, before.f, window.losses)
    assert torch.allclose(value, losses.sum(0).mean(), rtol=1e-13)
    good = map_leaves(lambda leaf: leaf[~bad], before)
    _, alone, _ = whole.value_and_grad(params, state._replace(carry=good))
    assert torch.allclose(grad, alone * len(good.f) / 8, rtol=1e-11)
    _, _, state = level.value_and_grad(params, state)  # the skipped start afresh; some of them fail again
    again = state.carry
    assert (again.key[bad] != before.key[bad]).all()
    assert torch.equal(again.key[~bad], before.key[~bad])
    assert (again.skipped[bad] >= 1).all()
    assert (again.skipped[~bad] == 0).all()


def test_counts_survive_restarts_at_both_levels():
    """The level above restarts its trajectory at every window; what the level below has skipped stays counted."""
    lower = Level(optimizer=SGD(lr=0.1), unroll=2, batch=4, horizon=2, nonfinite=Skip()).over(Fragile(at=2))
    above = Level(optimizer=SGD(lr=0.1), unroll=2, horizon=2, batch=1).over(lower)
    params = above.init(keys.seed(0))
    state = above.init_state(params, keys.seed(1))
    counts, seen = [state.carry.problem_state.carry.skipped.sum()], {int(state.carry.key)}
    for _ in range(6):
        _, _, state = above.value_and_grad(params, state)
        counts.append(state.carry.problem_state.carry.skipped.sum())
        seen.add(int(state.carry.key))
    assert len(seen) == 6  # the window at start-up is followed by five restarts
    assert counts == sorted(counts)
    assert counts[-1] > max(counts[0], 8)


class SpoiledState(NamedTuple):
    inner: LevelState
    step: torch.Tensor


class Spoiled(Problem):
    """Another problem whose value is nan at the second evaluation."""

    def __init__(self, inner):
        self.inner = inner

    @property
    def layout(self):
        return self.inner.layout

    def init(self, key):
        return self.inner.init(key)

    def init_state(self, params, key):
        return SpoiledState(self.inner.init_state(params, key), torch.zeros_like(key))

    def value_and_grad(self, params, state):
        value, grad, inner = self.inner.value_and_grad(params, state.inner)
        return torch.where(state.step == 1, math.nan, value), grad, SpoiledState(inner, state.step + 1)


def test_what_the_level_below_skipped_counts_even_where_the_level_above_skips_the_window():
    lower = Level(optimizer=SGD(lr=0.1), batch=8, nonfinite=Skip()).over(Fragile())
    above = Level(optimizer=SGD(lr=0.1), batch=2, nonfinite=Skip()).over(Spoiled(lower))
    params = above.init(keys.seed(0))
    state = above.init_state(params, keys.seed(1))
    _, _, after = above.value_and_grad(params, state)
    assert after.carry.skipped.tolist() == [1, 1]
    assert torch.equal(after.carry.x, state.carry.x)
    before, now = state.carry.problem_state.inner.carry, after.carry.problem_state.inner.carry
    assert torch.equal(now.x, before.x)
    assert (now.skipped >= before.skipped).all()
    assert int(now.skipped.sum()) > int(before.skipped.sum())


class Root(SGD):
    """x - sqrt(lr) g: at lr = 0 it stands still, and its derivative in lr is infinite."""

    name = "root"

    def update(self, theta, x, state, f, g):
        return x - self.read(theta)["lr"].sqrt() * g, None


def test_a_gradient_that_is_not_finite_stops_or_is_skipped():
    root = Root(lr=Linear(0.0))
    level, params, state = bound(root, batch=3)
    with pytest.raises(NonFiniteError) as caught:
        level.value_and_grad(params, state)
    assert str(caught.value).endswith(
        ": gradient of the meta-loss is not finite; "
        "shorten its unroll or lower its learning rate, or skip such windows with nonfinite=skip"
    )
    assert caught.value.level is level
    skipping = Level(optimizer=root, batch=3, nonfinite=Skip()).over(quadratic())
    params = torch.tensor([[0.0], [1e-4]], dtype=torch.float64)
    state = skipping.init_state(params, keys.split(keys.seed(1), 2))
    _, grad, after = skipping.value_and_grad(params, state)
    assert grad[0] == 0
    assert grad[1] != 0
    assert torch.isfinite(grad).all()
    assert after.carry.skipped.tolist() == [[1, 1, 1], [0, 0, 0]]


def test_inputs_are_left_alone():
    level, params, state = bound(LSTM(hidden=3), Fragile(), unroll=2, horizon=4, batch=6, nonfinite=Skip())
    for _ in range(3):
        frozen = [leaf.clone() for leaf in leaves((params, state))]
        _, _, new = level.value_and_grad(params, state)
        for leaf, was in zip(leaves((params, state)), frozen, strict=True):
            assert torch.equal(leaf, was)
        state = new
