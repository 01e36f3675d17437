"""Gradients accumulated over parts of the copies are those of the estimator that they stand for; in less memory."""

from dataclasses import replace

import pytest
import torch
from exact_parts import MOMENTUM, Anchored, digits, first, level, lstm, quadratic, stacked
from live import LiveBytes
from oracle import error
from test_exact import Poisoned

from levels import (
    LSTM,
    Accumulated,
    Adam,
    Exact,
    FirstOrder,
    HeldOut,
    LearnedInit,
    Level,
    MeanLog,
    Quadratic,
    Skip,
    keys,
)
from levels.tree import leaves, named_leaves
from recursion.notation import parse

TOWERS = {
    "lstm": (quadratic(), (first(lstm(3, 2), 4, batch=5, horizon=8),)),
    "learned start": (quadratic(), (first(LearnedInit(MOMENTUM), 2, batch=3, horizon=4),)),
    "learned state": (quadratic(), (first(Anchored(), 2, batch=3, horizon=4, lookahead=3),)),
    "held out": (
        HeldOut(replace(digits(), dtype="float32"), dtype="float64"),
        (first(lstm(2), 3, batch=5, horizon=6, lookahead=4),),
    ),
    "depth 2": (digits(), (first(lstm(2), 2, batch=2), first(Adam(0.01), 2, batch=3, horizon=4, objective=MeanLog()))),
    "depth 3": (
        quadratic(2),
        (first(lstm(2), 2, batch=2, horizon=4), first(lstm(1), 2, batch=2), first(Adam(0.01), 2, batch=3, horizon=6)),
    ),
    "skipped": (Poisoned(dims=3, dtype="float64", fatal=3), (first(lstm(2), 2, batch=6, nonfinite=Skip()),)),
}


def accumulated(part: Level, through: object, copies: int) -> Level:
    return replace(part, gradient=Accumulated(through=through, copies=copies))


@pytest.mark.parametrize("copies", [1, 2, 8])
@pytest.mark.parametrize("through", [FirstOrder(), Exact()], ids=repr)
@pytest.mark.parametrize("name", TOWERS)
def test_it_is_the_gradient_of_what_it_stands_for(name, through, copies):
    """At every level, over restarts and skipped copies, two sets of parameters side by side."""
    task, parts = TOWERS[name]
    plain = stacked(task, tuple(replace(part, gradient=through) for part in parts))
    ours = stacked(task, tuple(accumulated(part, through, copies) for part in parts))
    assert ours.traits == plain.traits
    key = keys.split(keys.seed(2), 2)
    theta = plain.init(key)
    state, other = plain.init_state(theta, key), ours.init_state(theta, key)
    for _ in range(4):
        value, grad, state = plain.value_and_grad(theta, state)
        other_value, other_grad, other = ours.value_and_grad(theta, other)
        assert max(error(other_value, value), error(other_grad, grad)) < 1e-12
        assert not other_value.requires_grad
        for (path, mine), leaf in zip(named_leaves(other).items(), leaves(state), strict=True):
            assert error(mine, leaf) < 1e-12 if leaf.is_floating_point() else torch.equal(mine, leaf), path
        theta = theta - 0.01 * grad / grad.norm()
    assert (state.carry.skipped.sum() > 0) == (name == "skipped")


def test_an_exact_level_above_differentiates_it():
    gradients = []
    for bottom in (first(lstm(2), 2, batch=3), accumulated(first(lstm(2), 2, batch=3), FirstOrder(), 1)):
        problem = stacked(quadratic(2), (bottom, level(Adam(0.1), 3)))
        theta = problem.init(keys.seed(0))
        gradients.append(problem.value_and_grad(theta, problem.init_state(theta, keys.seed(0)))[1])
    assert error(*gradients) < 1e-12


def test_memory_is_that_of_the_copies_with_a_graph():
    def peak(gradient: object) -> int:
        part = Level(optimizer=LSTM(hidden=8, layers=1), unroll=16, horizon=None, batch=16, gradient=gradient)
        problem = part.over(Quadratic(dims=64))
        theta = problem.init(keys.seed(0))
        with LiveBytes() as live:
            state = problem.init_state(theta, keys.seed(0))
            before = live.reset_peak().bytes
            problem.value_and_grad(theta, state)
            return live.peak - before

    whole, one, four = peak(FirstOrder()), peak(Accumulated(copies=1)), peak(Accumulated(copies=4))
    assert one < four < whole / 3
    assert one < whole / 8


def test_what_it_cannot_go_through_is_refused():
    with pytest.raises(ValueError, match="accumulated: through must be first-order or exact, got none"):
        Accumulated(through=None)
    with pytest.raises(ValueError, match="accumulated: copies must be a whole number of at least 1, got 0"):
        Accumulated(copies=0)


def test_its_first_name_is_still_read():
    tower = parse("quadratic: lstm@2[gradient=recomputed(exact, copies=4)] / adam")
    assert tower.levels[0].gradient == Accumulated(through=Exact(), copies=4)
    assert "gradient=accumulated(" in repr(tower)
