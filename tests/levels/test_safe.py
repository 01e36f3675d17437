"""The guard at use: broken rules are rescued, sound ones keep what they gain, and all that is asked is counted."""

from dataclasses import dataclass
from functools import cache

import pytest
import torch

from levels import SGD, Adam, DigitsMLP, Layout, Quadratic, Safeguarded, keys
from levels.base import STATE
from levels.tree import leaves, map_leaves
from recursion import LearnedTorchOptimizer
from recursion.evaluation.deploy import run, run_afresh
from recursion.exported import Exported
from recursion.notation import parse
from recursion.spec import dumps, loads

KEY = keys.seed(5)
FALLBACKS = {"quadratic": Adam(lr=0.1), "digits-mlp": Adam(lr=0.03)}
TASKS = {"quadratic": Quadratic(), "digits-mlp": DigitsMLP()}
STEP = {"quadratic": 0.01, "digits-mlp": 1.0}  # step sizes with which plain descent does well


@dataclass(frozen=True, repr=False)
class Broken(SGD):
    """Descent that something is wrong with, from some step on."""

    name = "broken"

    fault: str = "none"

    def init_state(self, theta, x, key):
        return torch.zeros_like(key)

    def update(self, theta, x, state, f, g):
        h = self.read(theta)
        t, sound = state[..., None], x - h["lr"] * g
        moved = {
            "none": sound,
            "sign flipped": x + h["lr"] * g,
            "step times 1000": x - 1000 * h["lr"] * g,
            "nan": x * torch.nan,
            "nan later": torch.where(t < 30, sound, torch.nan),
            "idle": x,
            "stuck on a plateau": torch.where(t < 10, sound, x),
            "slowly worse": torch.where(t < 30, sound, x + 0.05 * h["lr"] * g),
            "drifting off": torch.where(t < 30, sound, sound + 0.003 * x.sign()),
            "one leap": torch.where(t == 30, sound + 100, sound),
        }[self.fault]
        return moved, state + 1


FAULTS = [
    "sign flipped", "step times 1000", "nan", "nan later", "idle", "stuck on a plateau", "slowly worse",
    "drifting off", "one leap",
]  # fmt: skip


def losses_of(rule, task, problems, steps):
    """Losses ``[steps + 1, P]`` on test problems."""
    task = task.on("test")
    return run(rule, rule.bind(task).init(KEY)[None], task, keys.split(KEY, problems), steps)[:, 0]


@cache
def fallback_losses(name, problems, steps):
    return losses_of(FALLBACKS[name], TASKS[name], problems, steps)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(
    ("name", "problems", "steps"),
    [
        ("quadratic", 32, 100),
        pytest.param("quadratic", 32, 1000, marks=pytest.mark.slow),
        pytest.param("digits-mlp", 8, 100, marks=pytest.mark.slow),
        pytest.param("digits-mlp", 2, 1000, marks=pytest.mark.slow),
    ],
)
def test_a_broken_rule_is_rescued(name, problems, steps, fault):
    """Each problem ends within 5% of the fallback's own final and mean loss; most of them alone are far off."""
    task, rule = TASKS[name], Broken(lr=STEP[name], fault=fault)
    fallback = fallback_losses(name, problems, steps)
    rescued = losses_of(Safeguarded(rule, FALLBACKS[name]), task, problems, steps)
    assert (rescued[-1] <= 1.05 * fallback[-1]).all()
    assert (rescued[1:].mean(0) <= 1.05 * fallback[1:].mean(0)).all()
    alone = losses_of(rule, task, problems, steps)
    assert (alone[-1] > 1.05 * fallback[-1]).any(), "it is broken"


@pytest.mark.parametrize(
    ("name", "steps"),
    [("quadratic", 100), pytest.param("digits-mlp", 300, marks=pytest.mark.slow)],
)
def test_a_sound_rule_keeps_what_it_gains(name, steps):
    """Of what it gains on a poor fallback, at least 97% stay, on the mean over problems."""
    poor, good = Adam(lr=0.1 * FALLBACKS[name].lr), FALLBACKS[name]
    fallback, alone, guarded = (
        losses_of(rule, TASKS[name], 8, steps) for rule in (poor, good, Safeguarded(good, poor))
    )
    for measure in (lambda losses: losses[1:].mean(), lambda losses: losses[-1].mean()):
        gain, kept = measure(fallback) - measure(alone), measure(fallback) - measure(guarded)
        assert gain > 0.1 * measure(fallback), "there is something to keep"
        assert kept > 0.97 * gain


@pytest.mark.slow
def test_a_trained_optimizer_keeps_what_it_gains():
    tower = parse("quadratic: lstm(hidden=8)@20 / adam(lr=0.01)")
    state = tower.init(0)
    for _ in range(150):
        state, _ = tower.step(state)
    task, rule = Quadratic(split="test"), tower.levels[0].optimizer
    safe, key = Safeguarded(rule, Adam(lr=0.1)), keys.split(KEY, 64)
    params = safe.bind(task).joined(tower.result(state))
    guarded, alone = run(safe, params, task, key, 100), run(rule, tower.result(state), task, key, 100)
    fallback = losses_of(Adam(lr=0.1), task, 64, 100)
    assert torch.equal(params[..., : tower.result(state).shape[-1]], tower.result(state))
    gain, kept = fallback[1:].mean() - alone[1:].mean(), fallback[1:].mean() - guarded[1:].mean()
    assert gain > 0.2 * fallback[1:].mean(), "it was trained"
    assert kept > 0.85 * gain, "most of what is lost is the first step, which is the fallback's"
    assert guarded[-1].mean() < 1.02 * torch.minimum(alone, fallback[:, None])[-1].mean()


class Hand:
    """A guard at work by hand, on the problems of some keys."""

    def __init__(self, safe, task, key):
        self.task = task
        self.safe = safe.bind(task)
        self.theta = self.safe.init(KEY)[None]
        for_x, for_problem = keys.split(key[None], 2).unbind(-1)
        self.x = task.init(for_x)
        self.state = self.safe.init_state(self.theta, self.x, keys.fold_in(key[None], STATE))
        self.f, self.g, self.problem_state = task.value_and_grad(self.x, task.init_state(self.x, for_problem))

    def step(self):
        self.x, self.state = self.safe.update(self.theta, self.x, self.state, self.f, self.g)
        self.f, self.g, self.problem_state = self.task.value_and_grad(self.x, self.problem_state)

    @property
    def watch(self):
        return self.state[0]

    def metrics(self):
        return {name: value[0].tolist() for name, value in self.safe.metrics(self.state).items()}


def path_of(rule, task, key, steps):
    """Where an optimizer stands on its own after each of ``steps`` updates."""
    for_x, for_problem = keys.split(key[None], 2).unbind(-1)
    bound = rule.bind(task)
    theta, x = bound.init(KEY)[None], task.init(for_x)
    state, problem_state, path = bound.init_state(theta, x, key[None]), task.init_state(x, for_problem), []
    for _ in range(steps):
        f, g, problem_state = task.value_and_grad(x, problem_state)
        x, state = bound.update(theta, x, state, f, g)
        path.append(x)
    return path


@pytest.mark.parametrize("task", [Quadratic(), DigitsMLP(hidden=(3,), minibatch=8)], ids=str)
@pytest.mark.parametrize("swap", [False, True])
def test_both_run_as_they_would_alone(task, swap):
    """One of both is shown, the other hidden; each on the problem and the minibatches of the copy."""
    key = keys.split(KEY, 3)
    rule, fallback = Adam(lr=0.05), SGD(lr=0.001)
    rule, fallback = (fallback, rule) if swap else (rule, fallback)
    hand = Hand(Safeguarded(rule, fallback, patience=1000), task, key)
    ours, theirs = path_of(rule, task, key, 15), path_of(fallback, task, key, 15)
    for a, b in zip(ours, theirs):
        hand.step()
        shown = hand.watch.shown[..., None]
        assert torch.allclose(hand.x, torch.where(shown, a, b), rtol=1e-4, atol=1e-5)
        assert torch.allclose(hand.watch.hidden, torch.where(shown, b, a), rtol=1e-4, atol=1e-5)
    assert bool((hand.watch.shown == (not swap)).all()), "the better one is shown"


def test_the_fallback_itself_changes_no_bit():
    """Behind a tie the fallback is shown all the while."""
    fallback = FALLBACKS["quadratic"]
    assert torch.equal(
        losses_of(Safeguarded(fallback, fallback), Quadratic(), 5, 50), losses_of(fallback, Quadratic(), 5, 50)
    )


class Counted(Quadratic):
    """Quadratics that count their gradients."""

    name = "counted"
    asked = [0]  # noqa: RUF012, shared on purpose

    def value_and_grad(self, params, state):
        self.asked[0] += params[..., 0].numel()
        return super().value_and_grad(params, state)


def test_what_is_asked_is_counted_and_ends_with_the_fall():
    task, key = Counted(), keys.split(KEY, 4)
    Counted.asked[0] = 0
    hand = Hand(Safeguarded(Broken(lr=0.01, fault="nan later"), Adam(lr=0.1)), task, key)
    for _ in range(50):
        hand.step()
    assert hand.metrics()["fell back"] == [1] * 4
    assert hand.metrics()["asked"] == [1 + 30] * 4, "once at the start, and in each of the updates 2 to 31"
    assert Counted.asked[0] == 4 * (51 + 31)
    assert hand.safe.traits.evals == 1
    assert parse("quadratic: safe(sgd)").costs == [2]
    assert parse("quadratic: safe(sgd, watch=0)").costs == [1]
    assert parse("quadratic: lstm@5 / safe(lstm)").costs[-1] == 5 + 5


def test_copies_fall_each_by_itself():
    """Among others as alone: what a copy is asked, and when it falls."""
    task, key = Quadratic(), keys.split(KEY, 6)
    safe = Safeguarded(Broken(lr=0.03, fault="none"), Adam(lr=0.1), watch=25, patience=5)
    hand = Hand(safe, task, key)
    ones = [Hand(safe, task, key[i : i + 1]) for i in range(6)]
    for _ in range(40):
        for each in (hand, *ones):
            each.step()
    fell = hand.metrics()["fell back"]
    assert 0 < sum(fell) < 6, "a step size that is too large for some"
    assert min(hand.metrics()["asked"]) < 20, "some fell while others were still watched"
    for i, one in enumerate(ones):
        mine = map_leaves(lambda leaf, i=i: leaf[:, i : i + 1], hand.state)
        for a, b in zip(leaves(mine), leaves(one.state), strict=True):
            assert torch.allclose(a, b, rtol=1e-4, atol=1e-6)


def test_after_the_watch_the_better_one_goes_on_alone():
    task, key = Quadratic(), keys.split(KEY, 4)
    for rule, fell in ((SGD(lr=0.01), 0), (SGD(lr=1e-5), 1)):
        hand = Hand(Safeguarded(rule, Adam(lr=0.01), watch=10, patience=1000), task, key)
        for _ in range(30):
            hand.step()
        assert hand.metrics() == {"fell back": [fell] * 4, "asked": [10] * 4}
        alone = path_of(SGD(lr=0.01) if fell == 0 else Adam(lr=0.01), task, key, 30)[-1]
        assert torch.allclose(hand.x, alone, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("fault", ["nan later", "slowly worse"])
def test_a_rule_alone_goes_back_to_the_best_point_kept(fault):
    """Where it falls, the run stands where its losses were lowest, and a fresh fallback goes on from there."""
    task, key = Quadratic(), keys.split(KEY, 4)
    rule = Broken(lr=0.005, fault=fault)
    hand = Hand(Safeguarded(rule, Adam(lr=0.01), watch=0, patience=3, factor=1.1), task, key)
    seen, back = [hand.x], None
    for t in range(400):
        before = hand.watch
        hand.step()
        assert torch.isfinite(hand.x).all()
        if bool((hand.watch.fell > before.fell)[0, 0]):
            back = t
            assert torch.equal(hand.x[0, 0], hand.watch.best_x[0, 0])
            assert any(torch.equal(hand.x[0, 0], x[0, 0]) for x in seen)
            assert int(hand.state[2].t[0, 0]) == 0
            low = hand.f[0, 0].clone()
        seen.append(hand.x)
    assert back is not None
    assert (back == 30) == (fault == "nan later")
    assert hand.f[0, 0] < low, "the fallback went on from there"


def test_a_level_gives_its_copies_the_same_problem_after_restarts():
    tower = parse("quadratic: safe(sgd(lr=0.01), adam(lr=0.1))@2[horizon=4, batch=8, gradient=pes] / adam")
    state = tower.init(0)
    for _ in range(5):
        carry = tower.carries(state)[0]
        assert torch.equal(carry.problem_state.w, carry.state[0].problem_state.w)
        assert torch.equal(carry.problem_state.y, carry.state[0].problem_state.y)
        state, report = tower.step(state)
    assert set(report.metrics) == {"level 1 fell back", "level 1 asked"}
    assert tower.costs[-1] == 2 * 2 * (1 + 1)


def test_it_cannot_be_trained_by_backpropagation():
    with pytest.raises(ValueError, match=r"safe\(lstm\) cannot be differentiated"):
        parse("quadratic: safe(lstm)@5 / adam")


def test_it_moves_a_level():
    """A trainer that throws its LSTM away is never shown, and stops nobody: the tower is trained by its fallback."""
    text = "quadratic: lstm(hidden=4)@5[batch=2]"
    tower, plain = parse(f"{text} / safe(sgd(lr=1e30), adam)"), parse(f"{text} / adam")
    state, other = tower.init(0), plain.init(0)
    for _ in range(5):
        state, _ = tower.step(state)
        other, _ = plain.step(other)
        assert not state.carry.state[0].shown.any()
    assert torch.allclose(state.carry.x, other.carry.x)
    assert tower.costs[-1] == 10


def test_it_is_an_optimizer_of_its_own():
    tower = parse("quadratic: safe(sgd(lr=1e3), adam(lr=0.1))")
    found = run_afresh(tower, Quadratic(split="test"), 4, 20, seed=0, theta=None)
    assert torch.isfinite(found.losses).all()
    assert found.base_steps > 4 * 21, "what it asks is counted"
    plain = run_afresh(parse("quadratic: adam(lr=0.1)"), Quadratic(split="test"), 4, 20, seed=0, theta=None)
    assert torch.equal(found.losses, plain.losses)


def test_exported_it_guards_by_the_losses_it_is_told():
    """A torch.optim.Optimizer whose rule explodes ends with the fallback's fit; to watch it would need the problem."""
    model = torch.nn.Linear(3, 2)
    inputs, targets = torch.linspace(-1, 1, 60).reshape(20, 3), torch.linspace(2, -1, 40).reshape(20, 2)
    safe = Safeguarded(SGD(lr=1e3), Adam(lr=0.05), watch=0)
    weights = safe.bind(Layout.of({"one": ()})).init(KEY)
    optimizer = Exported.of(safe, weights)(model.parameters())
    assert isinstance(optimizer, LearnedTorchOptimizer)

    def closure():
        optimizer.zero_grad()
        loss = (model(inputs) - targets).square().mean()
        loss.backward()
        return loss

    losses = [optimizer.step(closure).item() for _ in range(100)]
    assert max(losses[:10]) > 1e6
    assert losses[-1] < 0.05 * losses[0]
    with pytest.raises(ValueError, match="reads the loss; call step"):
        optimizer.step()
    for watch in (None, 5):
        with pytest.raises(ValueError, match="unless watch=0 guards by the losses alone; it was bound to a layout"):
            Exported.of(Safeguarded(SGD(), watch=watch), torch.zeros(5))


@pytest.mark.parametrize("text", ["safe(lstm)", "safe(sgd, fallback=adam(lr=0.1), watch=20, patience=5, factor=3.0)"])
def test_notation_and_spec(text):
    tower = parse(f"quadratic: {text}")
    assert repr(tower.levels[0].optimizer) == text
    assert loads(dumps(tower)).levels == tower.levels


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Safeguarded(Quadratic()), "safe: inner must be an Optimizer, got quadratic"),
        (lambda: Safeguarded(SGD(), None), "safe: fallback must be an Optimizer, got none"),
        (lambda: Safeguarded(SGD(), watch=-1), "safe: watch must be a whole number of at least 0, or none, got -1"),
        (lambda: Safeguarded(SGD(), patience=0), "safe: patience must be a whole number of at least 1, got 0"),
        (lambda: Safeguarded(SGD(), factor=1.0), "safe: factor must be a number above 1, got 1.0"),
    ],
)
def test_what_is_refused(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()
