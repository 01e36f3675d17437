"""A family of few problems: which are drawn, that start and problem belong together, and what other splits see."""

import pytest
import torch
from draws import halves

from levels import SGD, Augmented, DigitsMLP, Few, HeldOut, Level, Quadratic, keys
from levels.testing import check_problem
from recursion import Tower
from recursion.evaluation.deploy import run
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


@pytest.mark.parametrize("problems", [1, 2, 4])
def test_so_many_problems_are_ever_drawn_about_equally_often(problems):
    """A start goes with its problem: were they drawn apart, there would be more pairs."""
    _, counts = torch.unique(drawn(Few(Quadratic(dims=3), problems), 4000), dim=0, return_counts=True)
    assert len(counts) == problems
    share = 1 / problems
    assert (counts - 4000 * share).abs().max() <= 5 * (4000 * share * (1 - share)) ** 0.5


@pytest.mark.parametrize("validation", ["own", "same"])
def test_other_splits_are_the_tasks_own_or_the_very_same_problems(validation):
    few = Few(Quadratic(dims=3), 3, validation)
    expected = few if validation == "same" else Quadratic(dims=3, split="validation")
    assert torch.equal(drawn(few.on("validation")), drawn(expected))
    assert torch.equal(drawn(few.on("test")), drawn(Quadratic(dims=3, split="test")))


def test_minibatches_are_the_same_too():
    """A run of one problem is the same for every key, and as on training data where validation is the same."""
    few, sgd = Few(SMALL, 1, "same"), SGD(lr=0.5)
    params = sgd.bind(few).init(keys.seed(0))[None]
    losses, again = (run(sgd, params, few.on(split), keys.split(keys.seed(1), 5), 6)
                     for split in ("train", "validation"))  # fmt: skip
    for each in (losses, again):
        assert torch.allclose(each, losses[..., :1].expand_as(losses), rtol=1e-6)
    other, plain = (run(sgd, params, task.on("test"), keys.split(keys.seed(1), 5), 6) for task in (few, SMALL))
    assert torch.equal(other, plain)


def test_in_a_tower_they_come_back_after_restarts():
    tower = Tower(Few(Quadratic(dims=3), 2), Level(optimizer=SGD(lr=1e-3), unroll=2, horizon=4, batch=16))
    state, seen = tower.init(seed=0), []
    for _ in range(6):
        state, _ = tower.step(state)
        seen.append(state.carry.problem_state.w.flatten(1))
    assert len(torch.unique(torch.cat(seen), dim=0)) == 2


def test_it_takes_on_what_the_task_is():
    few = Few(SMALL, 2, dtype="float64")
    assert few.layout == DigitsMLP(hidden=(3,), minibatch=8, dtype="float64").layout
    assert few.traits == SMALL.traits
    assert few.on("test").inner.split == "test"
    assert few.variants() == few.inner.variants()
    check_problem(HeldOut(Few(SMALL, 2)), varied=False)
    with pytest.raises(ValueError, match=r"few\(quadratic\) has no data that could be held out"):
        HeldOut(Few(Quadratic()))


@pytest.mark.parametrize("text", ["few(quadratic)", "few(digits-mlp, problems=3, validation=same)"])
def test_notation(text):
    assert repr(parse(f"{text}: adam").task) == text
