"""A rule that moves its own parameters, the guard around it, and the relay that leads up to it."""

from fractions import Fraction

import pytest
import torch

from levels import LSTM, SGD, Adam, Exact, FirstOrder, Last, Level, Quadratic, LearnedInit, keys
from levels.layout import Layout
from levels.optimizers.guarded import Guarded, Self
from levels.optimizers.self_update import SelfUpdate
from levels.optimizers.switch import Switch
from levels.tree import leaves, map_leaves
from recursion import Tower, checkpoint
from recursion.notation import parse

KEY = keys.seed(5)
TINY = LSTM(hidden=2, layers=1)


def below(optimizer=TINY, **settings):
    settings = {"unroll": 3, "horizon": 6, "batch": 2} | settings
    return Level(optimizer=optimizer, **settings)


def bound_levels(optimizer=TINY, dtype="float64", **settings):
    return below(optimizer, **settings).over(Quadratic(dims=3, dtype=dtype))


# The rule itself.


@pytest.mark.parametrize("norm", [None, 0.5])
@pytest.mark.parametrize("batch", [(), (2,)])
def test_own_applies_the_rule_below_to_its_own_parameters(norm, batch):
    problem = laid()
    own = SelfUpdate(scale=0.2, norm=norm).bound(problem).over(problem.layout)
    key = keys.split(KEY, 2) if batch else KEY
    params, x = own.init(key), problem.init(keys.split(key, 3))
    state, f = own.init_state(params, x), torch.ones(x.shape[:-1], dtype=x.dtype)
    rule = TINY.over(problem.layout)
    expected, theirs = x, [None] * 3
    for t in range(3):
        g = keys.normal(keys.fold_in(keys.split(key, 3), t), x.shape[-1:], x.dtype)
        x, state = own.update(params, f, g, state, x)
        rows = []
        for copy in range(3):  # one copy at a time, its weights as parameters and as what they update
            w, grad = expected[..., copy, :], g[..., copy, :]
            if norm is not None:
                grad = grad * norm / grad.square().mean(-1, keepdim=True).sqrt()
            theirs[copy] = rule.init_state(w, w[..., None, :]) if t == 0 else theirs[copy]
            moved, theirs[copy] = rule.update(w, f[..., copy, None], grad[..., None, :], theirs[copy], w[..., None, :])
            rows.append(w + 0.2 * (moved[..., 0, :] - w))
        expected = torch.stack(rows, -2)
        torch.testing.assert_close(x, expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(own.metrics(state)["self-gradient"], g.square().mean(-1).sqrt())


def test_any_rule_whose_parameters_fit_can_be_its_own():
    tower = parse("quadratic: adam@5 / own(norm=none, scale=1)")
    state = tower.init(0)
    first = state.carry.x
    state, _ = tower.step(state)
    rule, g = tower.bound_levels[0].optimizer, tower.init(0).carry.g
    adam = rule.over(tower.bound_levels[0].layout)
    expected, _ = adam.update(first, g[..., :1], g[:, None], adam.init_state(first, first[:, None]), first[:, None])
    torch.testing.assert_close(state.carry.x, expected[:, 0])


# Through the self-updates.


@pytest.mark.parametrize("h", [1, 3])
def test_the_loss_after_self_updates_is_differentiated_through_them(h):
    settings = {"unroll": h, "horizon": h, "batch": 1, "objective": Last(), "gradient": FirstOrder()}
    problem = laid(horizon=None)
    level = Level(optimizer=LearnedInit(SelfUpdate(scale=0.2, norm=None)), **settings).over(problem)
    params = level.init(KEY)
    state = level.init_state(params, KEY)
    carry = state.carry
    value, grad, _ = level.value_and_grad(params, state)
    # By hand: the same window, the start a leaf of autograd.
    theta = carry.x[0].detach().requires_grad_()
    own = SelfUpdate(scale=0.2, norm=None).bound(problem).over(problem.layout)
    x, mine, f, g, inner = theta[None], carry.state, carry.f, carry.g, carry.below
    scale = own.init(KEY).requires_grad_()
    mine = own.init_state(scale, x)
    with torch.enable_grad():
        for _ in range(h):
            x, mine = own.update(scale, f, g, mine, x)
            f, g, inner = problem.value_and_grad(x.detach(), inner)
        loss = (g * x).sum()
        dtheta, dscale = torch.autograd.grad(loss, (theta, scale))
    torch.testing.assert_close(value, f[0])
    torch.testing.assert_close(grad, torch.cat((dtheta, dscale)), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("h", [1, 2])
def test_exact_self_updates_agree_with_finite_differences(h):
    problem = laid(horizon=None, gradient=Exact())
    settings = {"unroll": h, "horizon": h, "batch": 1, "objective": Last(), "gradient": Exact()}
    level = Level(optimizer=LearnedInit(SelfUpdate(scale=0.2, norm=None)), **settings).over(problem)
    params = level.init(KEY)
    state = level.init_state(params, KEY)
    _, grad, _ = level.value_and_grad(params, state)
    n, key = problem.layout.size, state.carry.key
    own = SelfUpdate(scale=0.2, norm=None).bound(problem).over(problem.layout)
    draw = state.carry.x - params[:n]
    frozen = [level.asked_first(state.carry.x, key)]  # what the level below carries is a constant at each edge

    def loss(moved):
        x, scale = draw + moved[:n], moved[n:]
        f, g, below = problem.value_and_grad(x, frozen[0])
        mine = own.init_state(scale, x)
        for t in range(1, h + 1):
            if len(frozen) == t:
                frozen.append(below)
            x, mine = own.update(scale, f, g, mine, x)
            f, g, below = problem.value_and_grad(x, frozen[t])
        return f.item()

    loss(params)
    direction, step = keys.normal(KEY, params.shape, params.dtype), 1e-5
    slope = (loss(params + step * direction) - loss(params - step * direction)) / (2 * step)
    assert (grad * direction).sum().item() == pytest.approx(slope, rel=1e-6)


# Trials.


def test_a_trial_is_a_whole_life_of_windows_from_a_fresh_start():
    problem = laid(TINY)
    params = problem.init(keys.split(KEY, 3))
    losses = problem.evaluate_from_scratch(params, KEY.expand(3))
    for i in range(3):
        carry = problem.begin(params[i], keys.split(KEY, 2))
        total = 0.0
        for _ in range(2):  # horizon 6, unroll 3
            carry, window = problem.window(params[i], carry)
            total += window.losses.sum(0).mean() / 2
        torch.testing.assert_close(losses[i], total)
    assert losses.unique().numel() == 3
    assert problem.trying == 1 + 6


def test_a_trial_that_goes_wrong_is_infinite_and_stops_nobody():
    problem = laid(SGD(lr=0.01), "float32", unroll=50, horizon=100)
    good = problem.init(KEY)
    losses = problem.evaluate_from_scratch(torch.stack((good, good + 12.0, good)), KEY.expand(3))  # a step size of 1600
    assert torch.isinf(losses[1])
    assert torch.isfinite(losses[::2]).all()
    torch.testing.assert_close(losses[0], losses[2])


def test_trials_hold_on_the_split_that_is_asked():
    problem = laid()
    params = problem.init(KEY)
    train, validation = problem.evaluate_from_scratch(params, KEY), problem.on("validation").evaluate_from_scratch(params, KEY)
    assert train != validation
    assert problem.on("train").evaluate_from_scratch(params, KEY) == train


# The guard.


def test_a_guard_drops_what_raises_the_held_out_loss():
    tower = Tower(Quadratic(), below(SGD(lr=0.001), unroll=5, horizon=20), Level(optimizer=Guarded(Climb(), 2)))
    start = tower.init(0)
    for state, report in tower.run(start, 8):  # noqa: B007
        pass
    assert report.metrics["level 2 refused"] == 4
    assert report.metrics["level 2 step scale"] == 2.0**-4
    assert torch.equal(tower.result(state), start.carry.x)
    assert torch.equal(state.carry.x, start.carry.x)


class Climb(SGD):
    """The wrong way."""

    name = "climb"

    def step(self, h, g, state, x):
        moved, state = super().step(h, -g.sign(), state, x)
        return moved, state


def test_a_guard_lets_a_sound_rule_go_its_way():
    level = below(SGD(lr=0.001), unroll=5, horizon=20, batch=8)
    plain = Tower(Quadratic(), level, Level(optimizer=Adam(lr=0.05)))
    guarded = Tower(Quadratic(), level, Level(optimizer=Guarded(Adam(lr=0.05), 3)))
    a, b = plain.init(0), guarded.init(0)
    for _ in range(9):
        a, b = plain.step(a)[0], guarded.step(b)[0]
    assert b.carry.state.refused.item() == 0
    assert torch.equal(a.carry.x, b.carry.x)
    assert torch.equal(guarded.result(b), b.carry.x)


def test_the_fallback_takes_over_after_a_null_step_and_gives_back():
    level = below(SGD(lr=0.001), unroll=5, horizon=20, batch=8)
    tower = Tower(Quadratic(), level, Level(optimizer=Guarded(Climb(lr=0.3), 2, fallback=Adam(lr=0.1))))
    state, fell = tower.init(0), []
    trial = tower.bound_levels[0].on("validation").evaluate_from_scratch
    before = trial(state.carry.x, KEY[None])
    for _ in range(12):
        state, report = tower.step(state)
        fell.append(bool(state.carry.state.falling))
    assert fell == [False, True, True, False, False, True, True, False, False, True, True, False]
    assert report.metrics["level 2 fell back"] == report.metrics["level 2 refused"] == 3
    assert trial(tower.result(state), KEY[None]) < before, "the fallback moved it down"


def test_what_the_guard_keeps_never_gets_worse_on_its_own_trials():
    tower = parse("quadratic: lstm(hidden=4)@5[batch=16] / self(every=4)")
    state = tower.init(3)
    judge = tower.bound_levels[0].on("validation")
    for number in range(1, 41):
        before = state.carry.state
        state, _ = tower.step(state)
        after = state.carry.state
        if number % 4 == 0:
            key = keys.fold_in(before.key, after.updates)
            assert judge.evaluate_from_scratch(after.kept, key) <= judge.evaluate_from_scratch(before.kept, key)
        else:
            assert torch.equal(before.kept, after.kept)


def test_copies_are_judged_each_by_itself():
    problem = below(SGD(lr=0.001), unroll=5, horizon=20, batch=8).over(Quadratic())
    level = Level(optimizer=Guarded(SGD(lr=1e-7), 1), unroll=1, batch=3).over(problem)
    params = level.init(KEY)
    carry = level.init_state(params, KEY).carry
    g = carry.g * torch.tensor([1.0, -1.0, 1.0])[:, None]
    _, state = level.optimizer.update(params, carry.f, g, carry.state, carry.x)
    alone = level.optimizer.update(params, carry.f[1:2], g[1:2], map_rows(carry.state, 1), carry.x[1:2])[1]
    assert torch.equal(alone.kept[0], state.kept[1])
    assert alone.refused[0] == state.refused[1] == 1
    assert state.refused.tolist() == [0, 1, 0]


def map_rows(state, row):
    return map_leaves(lambda leaf: leaf[row : row + 1], state)


class Counted(Quadratic):
    """Quadratics that count their gradients, on all splits together."""

    name = "counted"
    asked = [0]  # noqa: RUF012, shared on purpose

    def value_and_grad(self, params, state):
        self.asked[0] += params[..., 0].numel()
        return super().value_and_grad(params, state)


@pytest.mark.parametrize("every", [1, 4])
def test_what_a_guard_asks_is_counted(every):
    tower = Tower(Counted(), below(unroll=5, horizon=20, batch=3), Level(optimizer=Self(every=every)))
    state = tower.init(0)
    state, _ = tower.step(state)  # the state is made, all keys are drawn
    for _ in range(every - 1):
        state, _ = tower.step(state)
    Counted.asked[0], steps, restarts = 0, 4 * every, 0
    for _ in range(steps):
        before = tower.carries(state)[0].age
        state, _ = tower.step(state)
        restarts += int((tower.carries(state)[0].age < before).sum())
    assert tower.base_steps == 5 + Fraction(2 * (1 + 20), every)
    assert Counted.asked[0] == 3 * steps * tower.base_steps + restarts


# The relay.


def test_a_relay_is_the_first_and_then_the_second():
    level = below(SGD(lr=0.001), unroll=5, horizon=20, batch=4)
    first, second = Adam(lr=0.1), SGD(lr=1e-4, momentum=0.5)
    relay = Tower(Quadratic(), level, Level(optimizer=Switch(first, second, 3)))
    alone = Tower(Quadratic(), level, Level(optimizer=first))
    a, b = relay.init(0), alone.init(0)
    for _ in range(3):
        a, b = relay.step(a)[0], alone.step(b)[0]
        assert torch.equal(a.carry.x, b.carry.x)
    after = Tower(Quadratic(), level, Level(optimizer=second))
    rule, x = after.top.optimizer, b.carry.x
    params = rule.init(KEY)
    c = b._replace(params=params, carry=b.carry._replace(state=rule.init_state(params, x)))
    for _ in range(4):
        a, c = relay.step(a)[0], after.step(c)[0]
        assert torch.equal(a.carry.x, c.carry.x)


def test_copies_of_a_relay_hand_over_each_at_its_own_time():
    layout = Layout.of({"a": (2,)})
    relay = Switch(SGD(lr=0.1), SGD(lr=1.0), 2).over(layout)
    params, x = relay.init(KEY), torch.zeros(2, 2)
    state = relay.init_state(params, x)
    state = state._replace(updates=torch.tensor([0, 1]))
    steps = []
    for _ in range(3):
        new, state = relay.update(params, torch.ones(2), torch.ones(2, 2), state, x)
        steps.append((x - new)[:, 0])
        x = new
    torch.testing.assert_close(torch.stack(steps), torch.tensor([[0.1, 0.1], [0.1, 1.0], [1.0, 1.0]]))


# In a tower.


NOTATIONS = [
    "quadratic: lstm(hidden=3)@5[batch=2] / self(every=3)",
    "quadratic: lstm(hidden=3)@5[batch=2] / guarded(own(norm=none), every=2, fallback=adam)",
    "quadratic: lstm(hidden=3)@5[batch=2] / relay(adam, self(every=2), after=2)",
    "quadratic: lstm(hidden=3)@5[batch=2] / start(own)@2[horizon=4] / adam",
    "quadratic: lstm(hidden=3)@5[batch=2] / lstm(hidden=2)@2[batch=2] / self(every=2)",
    "quadratic: lstm(hidden=3)@5[batch=2] / guarded(own, every=2)@2[gradient=truncated-es] / adam",
]


@pytest.mark.parametrize("notation", NOTATIONS)
def test_a_self_tuned_tower_resumes_bit_for_bit(notation, tmp_path):
    tower = parse(notation)
    assert repr(parse(repr(tower))) == repr(tower)
    state = tower.init(1)
    for step in range(8):
        state = checkpoint.settled(tower.step(state)[0])
        if step == 3:
            checkpoint.save(tmp_path / "half", tower, state, seed=1)
    again = checkpoint.load(tmp_path / "half").state
    for _ in range(4):
        again = checkpoint.settled(tower.step(again)[0])
    assert all(torch.equal(a, b) for a, b in zip(leaves(state), leaves(again), strict=True))


REFUSED = {
    "quadratic: own": r"own applies the optimizer below to itself; below is quadratic, a task",
    'quadratic: lstm@20 / by-name(["*"], [own])': r"laid over a layout alone; give it a level of its own",
    "digits-mlp: sgd(lr=log(0.1, per=tensor))@5 / own": r"would take 1, so it cannot be its own",
    "quadratic: lstm@20 / own(norm=0)": r"norm must be a number above 0, or none",
    "quadratic: lstm@20 / own(scale=0)": r"scale=0 is outside",
    "quadratic: lstm@20 / self(every=0)": r"every must be a whole number of at least 1, got 0",
    "quadratic: lstm@20 / self(split=all)": r"split must be",
    "quadratic: lstm@20 / self@2 / adam": r"cannot be differentiated by first-order",
    "quadratic: lstm@20 / relay(adam, self, after=0)": r"after must be a whole number of at least 1",
}


@pytest.mark.parametrize("notation", REFUSED)
def test_what_cannot_tune_itself_is_refused_when_the_tower_is_built(notation):
    with pytest.raises(ValueError, match=REFUSED[notation]):
        parse(notation)
