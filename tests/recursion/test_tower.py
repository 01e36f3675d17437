"""The stack: how a tower is built, written, started, stepped, cut, and what it says when something is wrong."""

import pytest
import torch

from levels import LSTM, PES, SGD, Adam, Exact, FirstOrder, Forward, Level, Mix, NonFiniteError, Quadratic, keys
from levels.tree import leaves
from recursion import Tower
from recursion.evaluation.observed import Observed, Tally
from recursion.notation import parse

STACK = (Level(optimizer=LSTM(hidden=3), unroll=4, batch=2), Level(optimizer=SGD(), unroll=3), Level(optimizer=Adam()))


def test_what_cannot_be_a_tower_is_refused():
    with pytest.raises(ValueError, match="at least one level, got none; add an optimizer"):
        Tower(Quadratic())
    with pytest.raises(ValueError, match="'lstm' is an optimizer, not a task"):
        Tower("lstm", *STACK)
    with pytest.raises(ValueError, match=r"level 3 \(adam@1\) takes 4 parameters, got shape \[5\]"):
        Tower(Quadratic(), *STACK).init(0, theta=torch.zeros(5))


@pytest.mark.parametrize(("levels", "sentence"), {
    "sgd@2[gradient=full-es, horizon=4] / adam": "level 1 (sgd@2[horizon=4, gradient=full-es]): full-es needs windows",
    "sgd@2 / sgd@2[gradient=bootstrapped] / adam": "level 2 (sgd@2[gradient=bootstrapped]): bootstrapped moves towards",
    "sgd@2 / by-name([y], [sgd])": "level 2 (by-name([y], [sgd])@1): ",
    "sgd@2 / sgd[ahead=2]": "level 2 (sgd@1[ahead=2]) is the topmost: nothing is trained by what it looks ahead to",
}.items())  # fmt: skip
def test_a_refusal_names_the_level_that_is_wrong(levels, sentence):
    with pytest.raises(ValueError) as refusal:
        parse(f"quadratic: {levels}")
    assert str(refusal.value).startswith(sentence)


def test_the_same_seed_is_the_same_run_and_another_is_another():
    tower = Tower(Quadratic(), *STACK)
    ends = [tower.carries(tower.step(tower.init(seed))[0])[0].x for seed in (0, 0, 1)]
    assert torch.equal(ends[0], ends[1])
    assert not torch.equal(ends[0], ends[2])


def test_a_report_has_a_loss_and_a_count_for_each_level():
    tower = Tower(Quadratic(), *STACK)
    state = tower.init(0)
    for number, (state, report) in enumerate(tower.run(state, 3), 1):  # noqa: B020
        assert (report.step, int(state.step)) == (number, number)
        assert report.skipped == [0, 0, 0]
        assert report.losses[0] == pytest.approx(tower.carries(state)[0].f.mean().item())
        assert report.losses[1] > report.losses[0]  # a sum of four losses above one of them


def test_carries_are_the_levels_from_the_bottom_up_and_the_one_under_the_top_never_restarts():
    tower = Tower(Quadratic(dims=5), *STACK)
    shapes = [tuple(carry.x.shape) for carry in tower.carries(tower.init(0))]
    assert shapes == [(1, 1, 2, 5), (1, 1, tower.bound[0].layout.size), (1, 1)]
    assert repr(tower) == "quadratic(dims=5): lstm(hidden=3)@4[batch=2] / sgd@3 / adam"
    assert repr(tower.under()) == "quadratic(dims=5): lstm(hidden=3)@4[batch=2] / sgd@3[horizon=none]"
    assert repr(Tower(Quadratic(), *STACK[1:], STACK[1])) == "quadratic: sgd@3 / adam@1 / sgd@3"


def test_what_is_not_finite_names_level_and_step():
    tower = Tower(Quadratic(), Level(optimizer=SGD(lr=1e8)))
    sentence = r"^level 1 \(sgd\(lr=100000000.0\)@1\): .* is not finite at top step \d+; "
    with pytest.raises(NonFiniteError, match=sentence):
        for _ in tower.run(tower.init(0), 100):
            pass


@pytest.mark.parametrize(
    ("gradients", "expected"),
    [
        ((FirstOrder(), FirstOrder()), 4 * 3 * 2),
        ((Exact(), FirstOrder()), 7 * 3 * 2),
        ((Exact(), Exact()), (3 * 7 + 2 * 11) * 2),
        ((Forward(), FirstOrder()), 8 * 3 * 2),
        ((PES(pairs=3), FirstOrder()), 4 * 6 * 3 * 2),
        ((FirstOrder(), PES(pairs=2)), 4 * 3 * 4 * 2),
        ((Mix(FirstOrder(), PES(pairs=2)), FirstOrder()), (4 + 4 * 4) * 3 * 2),
    ],
    ids=repr,
)
@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
def test_base_steps_are_what_the_task_counts(gradients, expected):
    tally, batch = Tally(), 5
    common = {"optimizer": SGD(lr=1e-3), "stagger": False}
    levels = [Level(**common, unroll=unroll, batch=copies, horizon=20 * unroll, gradient=gradient)
              for unroll, copies, gradient in zip((4, 3), (batch, 1), gradients, strict=True)]  # fmt: skip
    tower = Tower(Observed(Quadratic(dims=3, dtype="float64"), tally), *levels, Level(optimizer=SGD(lr=1e-6), unroll=2))
    state = tower.init(0)
    for _ in range(2):
        before = tally.gradients
        state, _ = tower.step(state)
        assert tally.gradients - before == batch * tower.costs[-1] == batch * expected


@pytest.mark.parametrize("gradient", ["first-order", "exact"])
def test_inference_mode_changes_nothing(gradient):
    """There autograd is off for good; a step leaves it for as long as it runs, and a level alone refuses."""
    tower = parse(f"quadratic(dims=3): lstm(hidden=3)@3[batch=2, gradient={gradient}] / adam")
    straight = tower.step(tower.step(tower.init(0))[0])[0]
    with torch.inference_mode():
        inside = tower.step(tower.step(tower.init(0))[0])[0]
        assert all(torch.equal(a, b) for a, b in zip(leaves(straight), leaves(inside), strict=True))
        level = tower.bound[0]
        theta = level.init(keys.seed(0))
        with pytest.raises(ValueError, match=r"no gradients under torch.inference_mode.*; use torch.no_grad$"):
            level.value_and_grad(theta, level.init_state(theta, keys.seed(1)))
