"""An optimizer that moves its own parameters, the guard around it, and the switch that leads up to it."""

from fractions import Fraction

import pytest
import torch

from levels import LSTM, SGD, Adam, Exact, FirstOrder, Guarded, Last, LearnedInit, Level, Quadratic, Self, keys
from levels.autodiff import as_data
from levels.layout import Layout
from levels.optimizers.self_update import SelfUpdate
from levels.optimizers.switch import Progress, Switch
from levels.tree import leaves, map_leaves
from recursion import Tower, checkpoint
from recursion.notation import parse

KEY = keys.seed(5)
TINY = LSTM(hidden=2, layers=1)


def below(optimizer=TINY, **settings):
    settings = {"unroll": 3, "horizon": 6, "batch": 2} | settings
    return Level(optimizer=optimizer, **settings)


def bound(optimizer=TINY, dtype="float64", **settings):
    return below(optimizer, **settings).over(Quadratic(dims=3, dtype=dtype))


# The rule itself.


@pytest.mark.parametrize("norm", [None, 0.5])
@pytest.mark.parametrize("batch", [(), (2,)])
def test_own_applies_the_optimizer_below_to_its_own_parameters(norm, batch):
    problem = bound()
    own = SelfUpdate(scale=0.2, norm=norm).bind(problem)
    key = keys.split(KEY, 2) if batch else KEY
    theta, x = own.init(key), problem.init(keys.split(key, 3))
    state, f = own.init_state(theta, x, keys.split(key, 3)), torch.ones(x.shape[:-1], dtype=x.dtype)
    rule = TINY.bind(problem.layout)
    expected, theirs = x, [None] * 3
    for t in range(3):
        g = keys.normal(keys.fold_in(keys.split(key, 3), t), x.shape[-1:], x.dtype)
        x, state = own.update(theta, x, state, f, g)
        rows = []
        for copy in range(3):  # one copy at a time, its weights as theta and as x
            w, grad = expected[..., copy, :], g[..., copy, :]
            if norm is not None:
                grad = grad * norm / grad.square().mean(-1, keepdim=True).sqrt()
            theirs[copy] = rule.init_state(w, w[..., None, :], key) if t == 0 else theirs[copy]
            moved, theirs[copy] = rule.update(w, w[..., None, :], theirs[copy], f[..., copy, None], grad[..., None, :])
            rows.append(w + 0.2 * (moved[..., 0, :] - w))
        expected = torch.stack(rows, -2)
        torch.testing.assert_close(x, expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(own.metrics(state)["self-gradient"], g.square().mean(-1).sqrt())


def test_any_optimizer_whose_parameters_fit_can_be_its_own():
    tower = parse("quadratic: adam@5 / own(norm=none, scale=1)")
    state = tower.init(0)
    x, g = state.carry.x, state.carry.g
    adam = tower.bound[0].optimizer.bind(tower.bound[0].layout)
    start = adam.init_state(x, x[:, None], state.carry.key[:, None])
    expected, _ = adam.update(x, x[:, None], start, g[..., :1], g[:, None])
    torch.testing.assert_close(tower.step(state)[0].carry.x, expected[:, 0])


# Through the self-updates.


@pytest.mark.parametrize("h", [1, 3])
def test_the_loss_after_self_updates_is_differentiated_through_them(h):
    settings = {"unroll": h, "horizon": h, "batch": 1, "objective": Last(), "gradient": FirstOrder()}
    problem = bound(horizon=None)
    level = Level(optimizer=LearnedInit(SelfUpdate(scale=0.2, norm=None)), **settings).over(problem)
    theta = level.init(KEY)
    state = level.init_state(theta, KEY)
    carry = state.carry
    value, grad, _ = level.value_and_grad(theta, state)
    # By hand: the same window, the start a leaf of autograd.
    start = carry.x[0].detach().requires_grad_()
    own = SelfUpdate(scale=0.2, norm=None).bind(problem)
    scale = own.init(KEY).requires_grad_()
    x, f, g, inner = start[None], carry.f, carry.g, carry.problem_state
    mine = own.init_state(scale, x, carry.key)
    for _ in range(h):
        x, mine = own.update(scale, x, mine, f, g)
        f, g, inner = problem.value_and_grad(x.detach(), inner)
    expected = torch.autograd.grad((g * x).sum(), (start, scale))
    torch.testing.assert_close(value, f[0])
    torch.testing.assert_close(grad, torch.cat(expected), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("h", [1, 2])
def test_exact_self_updates_agree_with_finite_differences(h):
    """What the level below carries over an edge is a constant, so it is frozen at each."""
    problem = bound(horizon=None, gradient=Exact())
    settings = {"unroll": h, "horizon": h, "batch": 1, "objective": Last(), "gradient": Exact()}
    level = Level(optimizer=LearnedInit(SelfUpdate(scale=0.2, norm=None)), **settings).over(problem)
    theta = level.init(KEY)
    state = level.init_state(theta, KEY)
    carry, n = state.carry, problem.layout.size
    _, grad, _ = level.value_and_grad(theta, state)
    own = SelfUpdate(scale=0.2, norm=None).bind(problem)
    draw = carry.x - theta[:n]
    frozen = [problem.init_state(carry.x, keys.split(carry.key, 2)[..., 1])]

    def loss(moved):
        x, scale = draw + moved[:n], moved[n:]
        f, g, after = problem.value_and_grad(x, frozen[0])
        mine = own.init_state(scale, x, carry.key)
        for t in range(1, h + 1):
            if len(frozen) == t:
                frozen.append(after)
            x, mine = own.update(scale, x, mine, f, g)
            f, g, after = problem.value_and_grad(x, frozen[t])
        return f.item()

    loss(theta)
    direction, step = keys.normal(KEY, theta.shape, theta.dtype), 1e-5
    slope = (loss(theta + step * direction) - loss(theta - step * direction)) / (2 * step)
    assert (grad * direction).sum().item() == pytest.approx(slope, rel=1e-6)


# Whole episodes.


def test_an_evaluation_from_scratch_is_an_episode_of_windows_from_a_fresh_start():
    problem = bound()
    theta = problem.init(keys.split(KEY, 3))
    losses = problem.evaluate_from_scratch(theta, KEY.expand(3))
    for i in range(3):
        x, state, f, g, inner, *rest = problem.begin(theta[i], keys.split(KEY, 2))
        total = 0.0
        for _ in range(2):  # horizon 6, unroll 3
            carry = type(problem.begin(theta[i], keys.split(KEY, 2)))(x, state, f, g, inner, *rest)
            steps = list(problem.window(theta[i], carry, as_data))
            total += torch.stack([step.answer.loss for step in steps]).sum(0).mean() / 2
            x, state, (f, g, inner, *_) = steps[-1]
        torch.testing.assert_close(losses[i], total)
    assert losses.unique().numel() == 3
    assert problem.traits.scratch_evals == 1 + 6


def test_an_evaluation_that_diverges_is_infinite_and_raises_nothing():
    problem = bound(SGD(lr=0.01), "float32", unroll=50, horizon=100)
    good = problem.init(KEY)
    losses = problem.evaluate_from_scratch(torch.stack((good, good + 12.0, good)), KEY.expand(3))  # a step size of 1600
    assert torch.isinf(losses[1])
    assert torch.isfinite(losses[::2]).all()
    torch.testing.assert_close(losses[0], losses[2])


# The guard.


class Climb(SGD):
    """The wrong way."""

    name = "climb"

    def update(self, theta, x, state, f, g):
        return super().update(theta, x, state, f, -g.sign())


def test_a_guard_drops_what_raises_the_held_out_loss():
    tower = Tower(Quadratic(), below(SGD(lr=0.001), unroll=5, horizon=20), Level(optimizer=Guarded(Climb(), 2)))
    start = tower.init(0)
    *_, (state, report) = tower.run(start, 8)
    assert report.metrics["level 2 refused"] == 4
    assert report.metrics["level 2 step scale"] == 2.0**-4
    assert torch.equal(tower.result(state), start.carry.x)
    assert torch.equal(state.carry.x, start.carry.x)


def test_a_guard_keeps_what_lowers_it():
    level = below(SGD(lr=0.001), unroll=5, horizon=20, batch=8)
    plain = Tower(Quadratic(), level, Level(optimizer=Adam(lr=0.05)))
    guarded = Tower(Quadratic(), level, Level(optimizer=Guarded(Adam(lr=0.05), 3)))
    a, b = plain.init(0), guarded.init(0)
    for _ in range(9):
        a, b = plain.step(a)[0], guarded.step(b)[0]
    assert b.carry.state[0].refused.item() == 0
    assert torch.equal(a.carry.x, b.carry.x)
    assert torch.equal(guarded.result(b), b.carry.x)


def test_the_fallback_takes_over_after_a_null_step_and_gives_back():
    level = below(SGD(lr=0.001), unroll=5, horizon=20, batch=8)
    tower = Tower(Quadratic(), level, Level(optimizer=Guarded(Climb(lr=0.3), 2, fallback=Adam(lr=0.1))))
    state, fell = tower.init(0), []
    evaluate = tower.bound[0].on("validation").evaluate_from_scratch
    before = evaluate(state.carry.x, KEY[None])
    for _ in range(12):
        state, report = tower.step(state)
        fell.append(bool(state.carry.state[0].falling))
    assert fell == [False, True, True, False] * 3
    assert report.metrics["level 2 fell back"] == report.metrics["level 2 refused"] == 3
    assert evaluate(tower.result(state), KEY[None]) < before, "the fallback moved it down"


def test_what_the_guard_keeps_never_gets_worse_on_its_own_evaluations():
    tower = parse("quadratic: lstm(hidden=2)@2[batch=4] / self(every=4)")
    state = tower.init(3)
    held_out = tower.bound[0].on("validation")
    for number in range(1, 17):
        before = state.carry.state[0]
        state, _ = tower.step(state)
        after = state.carry.state[0]
        if number % 4 == 0:
            key = keys.fold_in(before.key, after.updates)
            losses = [held_out.evaluate_from_scratch(own.best, key) for own in (after, before)]
            assert losses[0] <= losses[1]
        else:
            assert torch.equal(before.best, after.best)


def test_copies_are_judged_each_by_itself():
    problem = below(SGD(lr=0.001), unroll=5, horizon=20, batch=8).over(Quadratic())
    level = Level(optimizer=Guarded(SGD(lr=1e-7), 1), unroll=1, batch=3).over(problem)
    theta = level.init(KEY)
    x, state, f, g, *_ = level.init_state(theta, KEY).carry
    g = g * torch.tensor([1.0, -1.0, 1.0])[:, None]
    _, (all_three, _) = level.optimizer.update(theta, x, state, f, g)
    one = map_leaves(lambda leaf: leaf[1:2], state)
    _, (alone, _) = level.optimizer.update(theta, x[1:2], one, f[1:2], g[1:2])
    assert torch.equal(alone.best[0], all_three.best[1])
    assert alone.refused[0] == all_three.refused[1] == 1
    assert all_three.refused.tolist() == [0, 1, 0]


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
    for _ in range(every):
        state, _ = tower.step(state)
    Counted.asked[0], steps, restarts = 0, 4 * every, 0
    for _ in range(steps):
        before = tower.carries(state)[0].age
        state, _ = tower.step(state)
        restarts += int((tower.carries(state)[0].age < before).sum())
    assert tower.costs[-1] == 5 + Fraction(2 * (1 + 20), every)
    assert Counted.asked[0] == 3 * steps * tower.costs[-1] + restarts


# The switch.


def test_a_switch_is_the_first_and_then_the_second():
    level = below(SGD(lr=0.001), unroll=5, horizon=20, batch=4)
    first, second = Adam(lr=0.1), SGD(lr=1e-4, momentum=0.5)
    switch, alone, after = (
        Tower(Quadratic(), level, Level(optimizer=one)) for one in (Switch(first, second, 3), first, second)
    )
    a, b = switch.init(0), alone.init(0)
    for _ in range(3):
        a, b = switch.step(a)[0], alone.step(b)[0]
        assert torch.equal(a.carry.x, b.carry.x)
    rule, x = after.top.optimizer, b.carry.x
    theta = rule.init(KEY)
    c = b._replace(theta=theta, carry=b.carry._replace(state=rule.init_state(theta, x, KEY)))
    for _ in range(4):
        a, c = switch.step(a)[0], after.step(c)[0]
        assert torch.equal(a.carry.x, c.carry.x)


def test_copies_switch_each_at_its_own_time():
    switch = Switch(SGD(lr=0.1), SGD(lr=1.0), 2).bind(Layout.of({"a": (2,)}))
    theta, x = switch.init(KEY), torch.zeros(2, 2)
    state = (Progress(torch.tensor([0, 1]), keys.split(KEY, 2)), None, None)
    steps = []
    for _ in range(3):
        new, state = switch.update(theta, x, state, torch.ones(2), torch.ones(2, 2))
        steps.append((x - new)[:, 0])
        x = new
    torch.testing.assert_close(torch.stack(steps), torch.tensor([[0.1, 0.1], [0.1, 1.0], [1.0, 1.0]]))


# In a tower.


NOTATIONS = [
    "quadratic: lstm(hidden=2, layers=1)@2[batch=2] / guarded(own(norm=none), every=2, fallback=adam)",
    "quadratic: lstm(hidden=2, layers=1)@2[batch=2] / relay(adam, self(every=2), after=2)",
    "quadratic: lstm(hidden=2, layers=1)@2[batch=2] / start(own)@2[horizon=4] / adam",
    "quadratic: lstm(hidden=2, layers=1)@2[batch=2] / lstm(hidden=2)@2[batch=2] / self(every=2)",
    "quadratic: lstm(hidden=2, layers=1)@2[batch=2] / guarded(own, every=2)@2[gradient=truncated-es] / adam",
]


@pytest.mark.parametrize("notation", NOTATIONS)
def test_a_self_tuned_tower_resumes_bit_for_bit(notation, tmp_path):
    tower = parse(notation)
    assert repr(parse(repr(tower))) == repr(tower)
    state = tower.init(1)
    for step in range(5):
        state = checkpoint.settled(tower.step(state)[0])
        if step == 2:
            checkpoint.save(tmp_path / "half", tower, state, seed=1)
    again = checkpoint.load(tmp_path / "half").state
    for _ in range(2):
        again = checkpoint.settled(tower.step(again)[0])
    assert all(torch.equal(a, b) for a, b in zip(leaves(state), leaves(again), strict=True))


REFUSED = {
    "quadratic: own": r"own applies the optimizer below to itself; below is quadratic, a task",
    'quadratic: lstm@20 / by-name(["*"], [own])': r"some tensors of it have no loss, give it a level of its own",
    "digits-mlp: sgd(lr=log(0.1, per=tensor))@5 / own": r"would take 1, so it cannot be its own",
    "quadratic: lstm@20 / own(norm=0)": r"norm must be a number above 0, or none",
    "quadratic: lstm@20 / own(scale=0)": r"scale=0 is outside",
    "quadratic: lstm@20 / self(every=0)": r"every must be a whole number of at least 1, got 0",
    "quadratic: lstm@20 / self(split=all)": r"split must be train, validation or test, got all",
    "quadratic: lstm@20 / self@2 / adam": r"cannot be differentiated by first-order",
    "quadratic: lstm@20 / relay(adam, self, after=0)": r"after must be a whole number of at least 1",
}


@pytest.mark.parametrize("notation", REFUSED)
def test_what_cannot_tune_itself_is_refused_when_the_tower_is_built(notation):
    with pytest.raises(ValueError, match=REFUSED[notation]):
        parse(notation)
