"""A family of few problems: which are drawn, that start and problem belong together, and what other splits see."""

import pytest
import torch
from draws import halves

from levels import MLP, SGD, Augmented, DigitsMLP, Few, HeldOut, Level, Quadratic, keys
from levels.testing import check_problem
from recursion import Tower
from recursion.evaluate.deploy import run
from recursion.notation import parse

SMALL = DigitsMLP(hidden=(3,), minibatch=8)


@pytest.mark.parametrize("task", [Quadratic(dims=4), SMALL, Augmented(Quadratic(dims=3))], ids=str)
@pytest.mark.parametrize("validation", ["own", "same"])
def test_few_problems_conform(task, validation):
    few = Few(task, 1, validation)
    check_problem(few, splits=("train", "test"), varied=False)
    check_problem(few.on("validation"), varied=False, splits=("validation",))


def drawn(task, count=400):
    """What a family draws for many keys: start, matrix and vector of quadratics, in one row."""
    for_params, for_state = halves(count)
    x = task.init(for_params)
    state = task.init_state(x, for_state)
    return torch.cat((x, state.w.flatten(1), state.y), -1)


@pytest.mark.parametrize("problems", [1, 2, 7])
def test_so_many_problems_are_ever_drawn(problems):
    """A start goes with its problem: were they drawn apart, there would be more pairs."""
    few = Few(Quadratic(dims=3), problems)
    assert len(torch.unique(drawn(few), dim=0)) == problems
    assert len(torch.unique(drawn(few.on("validation")), dim=0)) == 400
    assert len(torch.unique(drawn(few.on("test")), dim=0)) == 400


def test_they_are_about_equally_likely():
    _, counts = torch.unique(drawn(Few(Quadratic(dims=1), 4), 4000), dim=0, return_counts=True)
    assert len(counts) == 4
    assert (counts - 1000).abs().max() < 5 * (4000 * 0.25 * 0.75) ** 0.5


def test_other_splits_are_the_tasks_own():
    few, plain = Few(Quadratic(dims=3), 2), Quadratic(dims=3)
    for split in ("validation", "test"):
        assert torch.equal(drawn(few.on(split)), drawn(plain.on(split)))


def test_validation_may_be_the_very_same_problems():
    few = Few(Quadratic(dims=3), 3, "same")
    assert torch.equal(drawn(few.on("validation")), drawn(few))
    assert torch.equal(drawn(few.on("test")), drawn(Quadratic(dims=3, split="test")))
    assert not torch.equal(drawn(few.on("validation")), drawn(Few(Quadratic(dims=3), 3).on("validation")))


def test_minibatches_are_the_same_too():
    """A run of one problem is the same for every key, and as on training data where validation is the same."""
    few, rule = Few(SMALL, 1, "same"), SGD(lr=0.5)
    params = rule.bind(few).init(keys.seed(0))[None]
    losses = run(rule, params, few, keys.split(keys.seed(1), 5), 6)
    assert torch.allclose(losses, losses[..., :1].expand_as(losses), rtol=1e-6)
    again = run(rule, params, few.on("validation"), keys.split(keys.seed(2), 3), 6)
    assert torch.allclose(again, losses[..., :3], rtol=1e-6)
    other = run(rule, params, few.on("test"), keys.split(keys.seed(1), 5), 6)
    assert torch.equal(other, run(rule, params, SMALL.on("test"), keys.split(keys.seed(1), 5), 6))


def test_in_a_tower_they_come_back_after_restarts():
    tower = Tower(Few(Quadratic(dims=3), 2), Level(optimizer=SGD(lr=1e-3), unroll=2, horizon=4, batch=16))
    state, seen = tower.init(seed=0), []
    for _ in range(6):
        state, _ = tower.step(state)
        seen.append(state.carry.problem_state.w.flatten(1))
    assert len(torch.unique(torch.cat(seen), dim=0)) == 2


def test_data_can_be_held_out_of_few():
    held = HeldOut(Few(SMALL, 2))
    check_problem(held, varied=False)
    with pytest.raises(ValueError, match=r"few\(quadratic\) has no data that could be held out"):
        HeldOut(Few(Quadratic()))


def test_it_takes_on_what_the_task_is():
    few = Few(SMALL, 2, dtype="float64")
    assert few.layout == DigitsMLP(hidden=(3,), minibatch=8, dtype="float64").layout
    assert few.traits == SMALL.traits
    assert few.has_data
    assert isinstance(few.on("test").inner, MLP)
    assert few.on("test").inner.split == "test"
    assert list(few.variants()) == list(SMALL.variants())


@pytest.mark.parametrize("text", ["few(quadratic)", "few(digits-mlp, problems=3, validation=same)"])
def test_notation(text):
    assert repr(parse(f"{text}: adam").task) == text
