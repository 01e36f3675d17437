"""Ensembles: several sets of one optimizer's parameters, and the last generation of a search put together."""

import math

import pytest
import torch
from towers import after

from levels import LSTM, SGD, Adam, DigitsMLP, Ensemble, Exact, Guarded, Last, Level, Quadratic, keys
from levels.testing import check_optimizer, check_problem
from recursion import Tower
from recursion.analysis.ensembles import compare, last_generation, mean_predictions, mean_updates, mean_weights
from recursion.evaluation.deploy import run
from recursion.notation import parse

KEY = keys.seed(3)
TINY = LSTM(hidden=2, layers=1)
TASK = Quadratic(dims=4, dtype="float64")
DIGITS = DigitsMLP(hidden=(3,), minibatch=16, dtype="float64")
PLAIN = "quadratic: adam@3[batch=1, horizon=6] / ga(population=5)"


@pytest.mark.parametrize("inner", [SGD(lr=0.1, momentum=0.9), TINY], ids=str)
def test_an_ensemble_keeps_the_contract(inner):
    check_optimizer(Ensemble(inner, 2), param_layout=Quadratic(dims=3).layout, steps=2)


@pytest.mark.parametrize("inner", [SGD(lr=0.1, momentum=0.9), Adam(lr=0.01), TINY], ids=str)
@pytest.mark.parametrize("spread", [0.3, 0.0], ids=["different", "equal"])
def test_the_update_is_the_mean_of_the_members_updates(inner, spread):
    """Equal members are the optimizer itself."""
    bound, ensemble = inner.bind(TASK), Ensemble(inner, 3).bind(TASK)
    theta = bound.init(KEY)
    members = theta + spread * keys.normal(KEY, (3, len(theta)), torch.float64)
    x, key = keys.normal(KEY, (2, 4), torch.float64), keys.split(KEY, 2)
    state = ensemble.init_state(members.flatten(), x, key)
    theirs = [bound.init_state(member, x, key) for member in members]
    for t in range(3):
        g = keys.normal(keys.fold_in(KEY, t), (2, 4), torch.float64)
        steps = [bound.update(member, x, own, g[:, 0], g) for member, own in zip(members, theirs)]
        theirs = [own for _, own in steps]
        x, state = ensemble.update(members.flatten(), x, state, g[:, 0], g)
        torch.testing.assert_close(x, sum(step for step, _ in steps) / 3, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("level", [
    Level(optimizer=Ensemble(TINY, 2), batch=2),
    Level(optimizer=Ensemble(Adam(lr=0.1), 3), unroll=3, batch=2, objective=Last(), gradient=Exact()),
], ids=str)  # fmt: skip
def test_its_gradient_agrees_with_finite_differences(level):
    check_problem(level.over(Quadratic(dims=3, dtype="float64")))


def test_an_ensemble_is_trained_like_any_optimizer_and_hands_on_what_its_members_ask():
    tower = parse("quadratic: ensemble(sgd(lr=0.001), members=3)@5[batch=8] / adam(lr=0.05)")
    losses = [report.losses[1] for _, report in tower.run(tower.init(0), 40)]
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])
    below, asks = Level(optimizer=SGD(lr=0.01), unroll=2, horizon=4, batch=1), Guarded(Adam(), 2)
    one, two = (Tower(Quadratic(), below, Level(optimizer=top)) for top in (asks, Ensemble(asks, 2)))
    assert two.costs[-1] - 2 == 2 * (one.costs[-1] - 2)
    assert math.isfinite(two.step(two.init(0))[1].losses[-1])


def generation(text="digits-mlp(hidden=[3], minibatch=16): lstm(hidden=2)@3[batch=1, horizon=6] / ga(population=5)"):
    return parse(text), after(parse(text), 2)


def with_population(state, **fields):
    return state._replace(carry=state.carry._replace(state=state.carry.state._replace(**fields)))


def test_the_last_generation_comes_with_the_best_first():
    tower, state = generation(f"{PLAIN}@1[batch=2]")
    population = state.carry.state
    for copy, members in enumerate(last_generation(tower, state)):
        order = sorted(range(5), key=lambda i: population.losses[copy, i])
        assert torch.equal(members, population.members[copy][order])
        assert torch.equal(members[0], tower.result(state)[copy])
    assert [len(members) for members in last_generation(tower, state, members=2)] == [2, 2]
    losses = population.losses.clone()
    losses[0, :2] = torch.inf
    left = last_generation(tower, with_population(state, losses=losses))
    assert [len(members) for members in left] == [3, 5]
    assert not (left[0][:, None] == population.members[0, :2]).all(-1).any()


def test_weights_and_updates_are_what_they_say():
    members = torch.tensor([[0.01], [0.05], [0.3]], dtype=torch.float64).log()
    task, key = Quadratic(dims=3, dtype="float64"), keys.split(KEY, 4)
    weights, updates = (put(SGD(), members, task, key, 5) for put in (mean_weights, mean_updates))
    torch.testing.assert_close(weights, run(SGD(), members.mean(0)[None], task, key, 5)[:, 0])
    mean = members.exp().mean(0).log()  # steps of SGD average their step sizes
    torch.testing.assert_close(updates, run(SGD(), mean[None], task, key, 5)[:, 0])


def test_predictions_are_those_of_networks_trained_apart():
    tower, state = generation()
    members, steps = last_generation(tower, state)[0].double(), 4
    key, optimizer = keys.split(KEY, 2), tower.levels[0].optimizer
    losses, rule = mean_predictions(optimizer, members, DIGITS, key, steps), optimizer.bind(DIGITS)
    inputs, labels, _ = DIGITS.data()
    for p in range(2):
        start, data = keys.split(key[p], 2)
        total = torch.zeros(steps + 1, 16, dtype=torch.float64)  # probability of the right answer
        for member in members:
            x = DIGITS.init(start)
            below, memory = DIGITS.init_state(x, data), rule.init_state(member, x[None], key[:1])
            for t in range(steps + 1):
                rows = keys.integers(keys.fold_in(DIGITS.own(data), t), (16,), len(labels))
                layers, out = DIGITS.layout.unravel(x), inputs[rows]
                for i in range(2):
                    out = torch.sigmoid(out) if i else out
                    out = out @ layers[f"layer{i}.weight"] + layers[f"layer{i}.bias"]
                total[t] += out.softmax(-1)[torch.arange(16), labels[rows]] / len(members)
                f, g, below = DIGITS.value_and_grad(x, below)
                moved, memory = rule.update(member, x[None], memory, f[None], g[None])
                x = moved[0]
        torch.testing.assert_close(losses[:, p], -total.log().mean(-1))


def test_in_pieces_it_is_the_same(monkeypatch):
    tower, state = generation()
    members, key = last_generation(tower, state)[0].double(), keys.split(KEY, 5)
    rule, ways = tower.levels[0].optimizer, (mean_updates, mean_predictions)
    whole = [put(rule, members, DIGITS, key, 3) for put in ways]
    monkeypatch.setattr("recursion.analysis.ensembles.CHUNK", 2 * len(members) * DIGITS.layout.size)
    for one, put in zip(whole, ways):
        torch.testing.assert_close(put(rule, members, DIGITS, key, 3), one)


def test_an_ensemble_of_equals_is_the_best_member():
    tower, state = generation()
    same = state.carry.state.members[:, :1].expand_as(state.carry.state.members)
    compared = compare(tower, [with_population(state, members=same)], problems=3, steps=5)
    assert [each.name for each in compared.ensembles] == ["weights", "updates", "predictions"]
    for each in compared.ensembles:
        for measure in ("mean", "final"):
            assert each.difference[measure].value == pytest.approx(0, abs=1e-5)
            assert each.means[measure].value == pytest.approx(compared.best.means[measure].value, rel=1e-5)
    assert compared.best.difference["mean"].value == 0
    assert compared.base_steps == 6 * 3 * (1 + 1 + 1 + 5)


def test_what_differs_is_paired_over_problems_and_seeds():
    tower, first = generation()
    second = after(tower, 2, seed=1)
    compared = compare(tower, [first, second], problems=3, steps=4, members=3, seed=5)
    assert compared.members == (3, 3)
    task, key, rule = tower.task.on("test"), keys.split(keys.seed(5), 3), tower.levels[0].optimizer
    groups = [last_generation(tower, state)[0][:3] for state in (first, second)]
    best = torch.stack([run(rule, group[:1], task, key, 4)[1:, 0].mean(0) for group in groups])
    ours = torch.stack([mean_predictions(rule, group, task, key, 4)[1:].mean(0) for group in groups])
    found = compared.ensembles[2].difference["mean"]
    assert found.value == pytest.approx((ours - best).mean().item(), abs=1e-6)
    assert found.low <= found.value <= found.high
    word = ("lower", "no difference", "higher")[found.sign + 1]
    assert compared.ensembles[2].verdict["mean"].startswith(word)


def test_predictions_are_left_out_where_there_are_none():
    compared = compare(TOWER, [STATE], problems=3, steps=4)
    assert [each.name for each in compared.ensembles] == ["weights", "updates"]
    why = "makes no predictions that could be averaged; use a task on labelled data, as digits-mlp"
    assert compared.refused == {"predictions": f"quadratic(split=test) {why}"}


@pytest.mark.parametrize(("notation", "steps", "sentence"), [
    ("quadratic: adam@2[batch=1] / adam", 1, r"its topmost level has no population"),
    ("quadratic: adam@2[batch=1] / sgd@2 / ga(population=3)", 1, r"so of a tower of depth 2, got 3"),
    ("quadratic: ga(population=3)", 1, r"so of a tower of depth 2, got 1"),
    ("quadratic: adam@2[batch=1] / ga(population=3)", 0, r"it has judged none yet; train it first"),
])  # fmt: skip
def test_what_has_no_last_generation_is_refused(notation, steps, sentence):
    tower = parse(notation)
    state = after(tower, steps)
    for what in (lambda: last_generation(tower, state), lambda: compare(tower, [state])):
        with pytest.raises(ValueError, match=sentence):
            what()


TOWER, STATE = generation(PLAIN)


@pytest.mark.parametrize(("sentence", "what"), {
    "members must be a whole number of at least 1, got 0": lambda: parse("quadratic: ensemble(adam, members=0)"),
    "start": lambda: parse("quadratic: ensemble(start(adam))"),
    "ensemble is missing its setting inner": lambda: parse("quadratic: ensemble"),
    "problems must be a whole number of at least 1": lambda: compare(TOWER, [STATE], problems=0),
    "steps must be a whole number": lambda: compare(TOWER, [STATE], steps=0),
    "members must be at least 1": lambda: compare(TOWER, [STATE], members=0),
    "states is empty": lambda: compare(TOWER, []),
    "makes no predictions": lambda: mean_predictions(Adam(), torch.zeros(2, 4), Quadratic(), keys.split(KEY, 2), 3),
}.items())  # fmt: skip
def test_what_cannot_be_is_refused(sentence, what):
    with pytest.raises(ValueError, match=sentence):
        what()
