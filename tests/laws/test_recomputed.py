"""Updates made again, some copies at a time, give the gradient of the estimator that they stand for; in less memory."""

from dataclasses import replace

import pytest
import torch
from exact_parts import MOMENTUM, Anchored, digits, first, level, lstm, quadratic, stacked
from live import LiveBytes
from oracle import equal, error
from test_exact import Poisoned

from levels import LSTM, Adam, Exact, FirstOrder, LearnedInit, Level, MeanLog, Quadratic, Recomputed, Skip, keys

TOWERS = {
    "lstm": (quadratic(), (first(lstm(3, 2), 4, batch=5, horizon=8),)),
    "learned start": (quadratic(), (first(LearnedInit(MOMENTUM), 2, batch=3, horizon=4),)),
    "learned state": (quadratic(), (first(Anchored(), 2, batch=3, horizon=4, lookahead=3),)),
    "depth 2": (digits(), (first(lstm(2), 2, batch=2), first(Adam(0.01), 2, batch=3, horizon=4, objective=MeanLog()))),
    "depth 3": (
        quadratic(2),
        (first(lstm(2), 2, batch=2, horizon=4), first(lstm(1), 2, batch=2), first(Adam(0.01), 2, batch=3, horizon=6)),
    ),
    "skipped": (Poisoned(dims=3, dtype="float64", fatal=3), (first(lstm(2), 2, batch=6, nonfinite=Skip()),)),
}


def recomputed(part: Level, through: object, copies: int) -> Level:
    return replace(part, gradient=Recomputed(through=through, copies=copies))


@pytest.mark.parametrize("copies", [1, 2, 8])
@pytest.mark.parametrize("through", [FirstOrder(), Exact()], ids=repr)
@pytest.mark.parametrize("name", TOWERS)
def test_it_is_the_gradient_of_what_it_stands_for(name, through, copies):
    """At every level, over restarts and skipped copies, two sets of parameters side by side; carries bit for bit."""
    task, parts = TOWERS[name]
    plain = stacked(task, tuple(replace(part, gradient=through) for part in parts))
    ours = stacked(task, tuple(recomputed(part, through, copies) for part in parts))
    key = keys.split(keys.seed(2), 2)
    params = plain.init(key)
    state, other = plain.init_state(params, key), ours.init_state(params, key)
    for _ in range(4):
        value, grad, state = plain.value_and_grad(params, state)
        found, slope, other = ours.value_and_grad(params, other)
        assert max(error(found, value), error(slope, grad)) < 1e-11
        assert not found.requires_grad
        assert torch.equal(other.carry.skipped, state.carry.skipped)
        assert error(other.carry.x, state.carry.x) < 1e-11
        params = params - 0.01 * grad / grad.norm()
    assert (state.carry.skipped.sum() > 0) == (name == "skipped")
    if through == FirstOrder() and len(parts) == 1:
        assert equal(other.carry, state.carry)


def test_an_exact_level_above_differentiates_it():
    gradients = []
    for bottom in (first(lstm(2), 2, batch=3), recomputed(first(lstm(2), 2, batch=3), FirstOrder(), 1)):
        laid = stacked(quadratic(2), (bottom, level(Adam(0.1), 3)))
        params = laid.init(keys.seed(0))
        gradients.append(laid.value_and_grad(params, laid.init_state(params, keys.seed(0)))[1])
    assert error(*gradients) < 1e-12


def test_memory_is_that_of_the_copies_with_a_graph():
    def peak(gradient: object) -> int:
        part = Level(optimizer=LSTM(hidden=8, layers=1), unroll=16, horizon=None, batch=16, gradient=gradient)
        laid = part.over(Quadratic(dims=64))
        params = laid.init(keys.seed(0))
        with LiveBytes() as live:
            state = laid.init_state(params, keys.seed(0))
            before = live.reset_peak().bytes
            laid.value_and_grad(params, state)
            return live.peak - before

    whole, one, four = peak(FirstOrder()), peak(Recomputed()), peak(Recomputed(copies=4))
    assert one < four < whole / 3
    assert one < whole / 8


def test_what_it_cannot_go_through_is_refused():
    with pytest.raises(ValueError, match="recomputed: through must be first-order or exact, got none"):
        Recomputed(through=None)
    with pytest.raises(ValueError, match="recomputed: copies must be a whole number of at least 1, got 0"):
        Recomputed(copies=0)
