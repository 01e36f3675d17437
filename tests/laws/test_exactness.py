"""First-order gradients of towers of depth 1-4 equal naive nested autograd, window after window.

Relative, in float64: the largest difference over the largest entry, of value, gradient, and all that is carried.
Each side carries its own state on, so errors would add up.
"""

from typing import NamedTuple

import pytest
import torch
from exact_parts import digits, lstm, quadratic, stacked
from oracle import compare, error, evaluate, naive

from levels import (
    SGD,
    Adam,
    Discounted,
    Last,
    Level,
    Linear,
    Log,
    Logit,
    MeanLog,
    RMSprop,
    Sum,
    Task,
    keys,
)

TOLERANCE = 1e-10


class Case(NamedTuple):
    """A tower, and how many copies of its topmost level run side by side."""

    task: Task
    levels: tuple[Level, ...]
    batch: int = 1
    windows: int = 5


def level(optimizer: object, unroll: int, **settings: object) -> Level:
    return Level(optimizer=optimizer, unroll=unroll, **{"horizon": None, "batch": 1, **settings})


def worst(case: Case) -> float:
    return compare(stacked(case.task, case.levels), naive(*case[:1], *case.levels), case.windows, batch=case.batch)


OPTIMIZERS = {
    "sgd": SGD(lr=0.01),
    "decay": SGD(lr=Linear(0.01), weight_decay=0.1),
    "momentum": SGD(lr=Log(0.01, shared_over="coordinate"), momentum=0.9),
    "nesterov": SGD(lr=0.01, momentum=Logit(0.8, shared_over="tensor"), nesterov=True),
    "adam": Adam(lr=0.1),
    "adam-tensor": Adam(lr=Log(0.1, shared_over="tensor"), beta1=Logit(0.8, shared_over="coordinate"), eps=1e-3),
    "rmsprop": RMSprop(lr=0.02, decay=0.9),
    "lstm": lstm(hidden=4, layers=2),
    "lstm-one-layer": lstm(hidden=2, layers=1),
}
OBJECTIVES = {"sum": Sum(), "last": Last(), "mean-log": MeanLog(), "discounted": Discounted(0.7)}
STAGGERED = {"horizon": 8, "batch": 3}


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_depth_1(optimizer, objective):
    part = level(OPTIMIZERS[optimizer], 4, objective=OBJECTIVES[objective], **STAGGERED)
    assert worst(Case(quadratic(4), (part,), batch=2)) < TOLERANCE


TOWERS = {
    "2 lstm / adam": Case(quadratic(), (level(lstm(3, 2), 3, batch=3, horizon=6), level(Adam(lr=0.01), 2, batch=2))),
    "2 adam / nesterov": Case(
        quadratic(),
        (
            level(Adam(lr=0.1), 2, batch=2, objective=Last()),
            level(SGD(0.01, momentum=0.9, nesterov=True), 3, horizon=6),
        ),
        batch=2,
    ),
    "2 digits": Case(
        digits(),
        (
            level(SGD(lr=Log(0.1, shared_over="tensor")), 2, batch=2),
            level(RMSprop(), 2, horizon=4, objective=MeanLog()),
        ),
    ),
    "3 momentum / lstm / adam": Case(
        quadratic(),
        (
            level(SGD(0.01, momentum=0.9), 2, batch=2, horizon=4, objective=MeanLog()),
            level(lstm(2, 2), 2, batch=2, horizon=4),
            level(Adam(lr=0.01), 2, objective=Last()),
        ),
        batch=2,
    ),
    "3 lstm / lstm / rmsprop": Case(
        quadratic(2),
        (level(lstm(2, 2), 3, batch=2, horizon=6, stagger=False), level(lstm(2, 1), 2, horizon=6), level(RMSprop(), 1)),
        windows=4,
    ),
    "3 digits": Case(
        digits(), (level(lstm(2, 2), 2, batch=2, horizon=6), level(SGD(0.001), 1), level(Adam(), 2, batch=2)), windows=3
    ),
    "4 adam / sgd / lstm / rmsprop": Case(
        quadratic(),
        (
            level(Adam(lr=0.1), 2, batch=2, horizon=4),
            level(SGD(lr=Log(0.001, shared_over="coordinate")), 2, horizon=6, objective=Discounted(0.5)),
            level(lstm(2, 2), 2, batch=2, horizon=4),
            level(RMSprop(lr=0.001), 2, horizon=4),
        ),
        windows=3,
    ),
    "4 lstm / adam / nesterov / sgd": Case(
        quadratic(2),
        (
            level(lstm(2, 2), 3, batch=2, horizon=9),
            level(Adam(lr=0.01), 2, batch=2, objective=Last()),
            level(SGD(0.01, momentum=0.5, nesterov=True), 2),
            level(SGD(0.01), 2, horizon=4),
        ),
        windows=3,
    ),
    "4 unrolls of 1": Case(
        quadratic(), tuple(level(SGD(lr), 1, batch=2) for lr in (0.01, 0.02, 0.03, 0.04)), windows=8
    ),
}


@pytest.mark.parametrize("name", TOWERS)
def test_depths_2_to_4(name):
    assert len(TOWERS[name].levels) == int(name[0])
    assert worst(TOWERS[name]) < TOLERANCE


def test_the_rising_gradient_is_clipped_to_its_norm():
    part = level(lstm(3, 2), 4, batch=3)
    whole, clipped = part.over(quadratic()), level(lstm(3, 2), 4, batch=3, clip=0.5).over(quadratic())
    key = keys.split(keys.seed(1), 2)
    params = whole.init(key)
    copies = [naive(quadratic(), part).start(row, k) for row, k in zip(params, key)]
    _, grad, _ = clipped.value_and_grad(params, clipped.init_state(params, key))
    for i in range(2):
        _, g, _ = evaluate(naive(quadratic(), part), params[i], copies[i])
        assert g.norm() > 0.5
        assert error(grad[i], 0.5 * g / g.norm()) < TOLERANCE
    loose = level(lstm(3, 2), 4, batch=3, clip=1e6).over(quadratic())
    torch.testing.assert_close(
        loose.value_and_grad(params, loose.init_state(params, key))[1],
        whole.value_and_grad(params, whole.init_state(params, key))[1],
        rtol=0,
        atol=0,
    )
