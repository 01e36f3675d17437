"""What exact gradients cost in evaluations and memory, and what they refuse."""

import pytest
from exact_oracle import exactly
from exact_parts import (
    MOMENTUM,
    BlackBox,
    Counting,
    Cut,
    Detached,
    Numpy,
    Once,
    Stored,
    first,
    level,
    quadratic,
    second_window,
)
from live import LiveBytes

from levels import PES, SGD, DigitsMLP, Level, keys
from recursion import Tower


def evaluations(*levels: Level) -> int:
    """Times that the task is asked in one window without a restart, at unrolls and batches of its levels."""
    task = Counting(dims=2, dtype="float64")
    laid, params, state = second_window(task, *levels)
    Counting.calls.clear()
    laid.value_and_grad(params, state)
    assert len(Counting.calls) == laid.traits.evals
    return len(Counting.calls)


def test_evaluations_of_the_task():
    """A window of T asks below T times and takes T - 1 products; unrolls of 1 cost what first order does.

    A product over an exact window of T asks again: T evaluations, T - 1 products, and T products of its own sweep.
    """
    sgd = SGD(1e-3)
    assert evaluations(level(sgd, 5)) == 9
    assert evaluations(first(sgd, 5)) == 5
    assert evaluations(level(sgd, 4), level(sgd, 3)) == 3 * 7 + 2 * 11
    assert evaluations(level(sgd, 1), level(sgd, 1), level(sgd, 1)) == 1
    assert evaluations(level(sgd, 4), first(sgd, 3)) == 7 * 3
    assert evaluations(first(sgd, 4), level(sgd, 3)) == 3 * 4 + 2 * 8
    evaluations(level(sgd, 3), level(sgd, 2), level(sgd, 2))


def peak_bytes(minibatch: int, unroll: int, naive: bool = False) -> int:
    """Peak of one gradient over what was alive before it."""
    task, part = DigitsMLP(hidden=(8,), minibatch=minibatch, dtype="float64"), level(MOMENTUM, unroll)
    laid, key = part.over(task), keys.seed(1)
    params = laid.init(key)
    state, oracle = laid.init_state(params, key), exactly(task, part)
    copies = oracle.start(params, key)
    laid.value_and_grad(params, state)  # first calls fill torch's caches
    with LiveBytes() as live:
        if naive:
            oracle.ask(params.clone().requires_grad_(), copies)
        else:
            laid.value_and_grad(params, state)
    return live.peak


def test_memory_grows_by_the_carries_alone():
    """Each step more costs a few carries (x, g, momentum, loss), whatever the model's backward graph weighs.

    Naive nested autograd keeps that graph at every step; here it weighs as the minibatch does.
    """
    n = DigitsMLP(hidden=(8,)).layout.size
    carry = 8 * (3 * n + 1)
    small, large = ([peak_bytes(minibatch, unroll) for unroll in (10, 40, 160)] for minibatch in (8, 128))
    for peaks in (small, large):
        steps = [(more - less) / count for less, more, count in zip(peaks, peaks[1:], (30, 120))]
        assert steps[0] == pytest.approx(steps[1], rel=0.2)
        assert steps[1] < 2.5 * carry
    naive = [peak_bytes(128, unroll, naive=True) for unroll in (10, 40)]
    assert (naive[1] - naive[0]) / 30 > 10 * carry
    assert large[1] < naive[1] / 5


# What is refused.


def test_what_cannot_be_differentiated_is_refused_when_a_tower_is_built():
    top = level(SGD(0.1), 1)
    for task, bottom, message in (
        (quadratic(), level(BlackBox(0.1), 2), "cannot be differentiated by exact; let it be the topmost level"),
        (quadratic(), level(Numpy(0.1), 2), "cannot be differentiated twice .*; use another optimizer"),
        (Detached(), level(SGD(0.1), 2), "its value has another one than its gradient; .*gradient=first-order"),
        (Stored(), level(SGD(0.1), 2), "its gradient moves, but its derivative is 0; .*gradient=first-order"),
        (Cut(), level(SGD(0.1), 2), "its value has another one than its gradient; .*gradient=first-order"),
        (Once(), level(SGD(0.1), 2), "gradient that cannot be differentiated by exact; use gradient=first-order"),
    ):
        with pytest.raises(ValueError, match=f"level 1 .*{message}"):
            Tower(task, bottom, top)
        with pytest.raises(ValueError, match=message):
            top.over(bottom.over(task))
        Tower(task, bottom)
    with pytest.raises(ValueError, match=r"level 2 .*the level below, .*pes.* cannot be differentiated by exact; use"):
        Tower(quadratic(), level(SGD(0.1), 2, gradient=PES(), horizon=4), level(SGD(0.1), 2), top)
    Tower(Stored(), first(SGD(0.1), 2), top)
    Tower(quadratic(), level(SGD(0.1), 2), level(BlackBox(0.1), 2))
    with pytest.raises(ValueError, match=r"level 2 .*cuts derivatives"):
        Tower(Stored(), first(SGD(0.1), 2), level(SGD(0.1), 2), top)
