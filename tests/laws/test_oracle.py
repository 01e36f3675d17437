"""Gradients of towers of depth 1-4 are those of the oracle, at every level and window after window.

Relative, in float64: the largest difference over the largest entry, of value, gradient, and all that is carried.
Each side carries its own state on, so errors would add up.
"""

from itertools import product

import pytest
from oracle import naive, state_error
from parts import DIGITS, LSTM, MOMENTUM, OBJECTIVES, QUADRATIC, RULES, SMALL, TINY, levels_of, worst

from levels import LevelState, keys
from recursion import Tower

TOLERANCE = 1e-10
E, F = "gradient=exact", "gradient=forward"
FIRST, EXACT, FORWARD = ALL = "first-order", "exact", "forward"
BOOT = ("bootstrapped", "bootstrapped(exact)")
HELD_OUT = "held-out(digits-mlp(hidden=[3], minibatch=8), dtype=float64): "
DECAY, LIFE = "sgd(0.5, momentum=0.5)", "horizon=6, batch=2"


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize(
    ("gradient", "rule"), [*product(ALL, RULES), (FIRST, "lstm(hidden=4)"), (EXACT, LSTM), (FORWARD, TINY)]
)
def test_depth_1(gradient, rule, objective):
    """Two lives of two windows, staggered over three copies, with two sets of parameters side by side."""
    text = f"{QUADRATIC}{rule}@3[gradient={gradient}, objective={objective}, horizon=6, batch=3]"
    assert worst(text, 4, batch=2) < TOLERANCE


TALL = [  # with two sets of parameters side by side
    QUADRATIC + "lstm(hidden=3)@3[batch=3, horizon=6] / adam(0.01)@2[batch=2]",
    QUADRATIC + "adam(0.1)@2[batch=2, objective=last] / sgd(0.01, momentum=0.9, nesterov=true)@3[horizon=6]",
    DIGITS + "sgd(log(0.1, per=tensor))@2[batch=2] / rmsprop@2[horizon=4, objective=mean-log]",
    QUADRATIC + f"{MOMENTUM}@2[batch=2, horizon=4, objective=mean-log] / lstm(hidden=2)@2[batch=2, horizon=4]"
    " / adam(0.01)@2[objective=last]",
    SMALL + "lstm(hidden=2)@3[batch=2, horizon=6, stagger=false] / lstm(hidden=2, layers=1)@2[horizon=6] / rmsprop@1",
    DIGITS + "lstm(hidden=2)@2[batch=2, horizon=6] / sgd(0.001)@1 / adam@2[batch=2]",
    QUADRATIC + "adam(0.1)@2[batch=2, horizon=4] / sgd(log(0.001, per=coordinate))@2[horizon=6, objective=discounted(0.5)]"
    " / lstm(hidden=2)@2[batch=2, horizon=4] / rmsprop(0.001)@2[horizon=4]",
    SMALL + "lstm(hidden=2)@3[batch=2, horizon=9] / adam(0.01)@2[batch=2, objective=last]"
    " / sgd(0.01, momentum=0.5, nesterov=true)@2 / sgd(0.01)@2[horizon=4]",
    QUADRATIC + "sgd(0.01)@1[batch=2] / sgd(0.02)@1[batch=2] / sgd(0.03)@1[batch=2] / sgd(0.04)@1[batch=2]",
    QUADRATIC + "lstm(hidden=3)@4[batch=3, clip=0.5]",
    # Exact gradients, alone and mixed with first order.
    f"{DIGITS}{LSTM}@3[{E}, batch=2, objective=mean-log]",
    f"{QUADRATIC}{MOMENTUM}@3[{E}, batch=2, horizon=6] / adam(0.1)@3[{E}]",
    f"{SMALL}{LSTM}@3[{E}, batch=2, horizon=6] / adam(0.01)@2[{E}, objective=mean-log]",
    f"{DIGITS}sgd(log(0.1, per=tensor), momentum=0.5)@2[{E}] / rmsprop@2[{E}]",
    f"{SMALL}{MOMENTUM}@2[{E}, horizon=4] / {TINY}@2[{E}, objective=mean-log] / adam(0.01)@2[{E}]",
    f"{SMALL}{LSTM}@2[{E}, batch=2, horizon=4] / sgd(0.01, momentum=0.5)@2[{E}] / adam(0.01)@2[{E}]",
    f"{SMALL}adam(0.1)@2[{E}, batch=2, horizon=4] / sgd(0.01)@3[{E}] / {MOMENTUM}@2[{E}, objective=last]",
    f"{QUADRATIC}adam(0.1)@3[{E}] / {MOMENTUM}@3[batch=2]",
    f"{QUADRATIC}adam(0.1)@3 / {MOMENTUM}@3[{E}, batch=2]",
    f"{QUADRATIC}adam(0.1)@3[{E}, clip=0.5, batch=2] / {MOMENTUM}@3[{E}]",
    f"{SMALL}{LSTM}@2[batch=2, objective=mean-log] / adam(0.01)@2[{E}, clip=0.1]",
    f"{SMALL}{MOMENTUM}@2 / adam(0.1)@3[{E}] / {MOMENTUM}@2",
    f"{SMALL}{MOMENTUM}@2[{E}] / adam(0.1)@3 / {MOMENTUM}@2[{E}]",
    f"{SMALL}{MOMENTUM}@2 / adam(0.1)@2[{E}] / {MOMENTUM}@3[{E}]",
]  # fmt: skip


@pytest.mark.parametrize("text", TALL)
def test_depths_1_to_4(text):
    assert worst(text, 4, batch=2) < TOLERANCE


TOWERS = [
    f"{QUADRATIC}{MOMENTUM}@3[{F}, batch=2]",
    f"{DIGITS}sgd(log(0.5, per=tensor), momentum=0.5)@3[{F}, batch=2]",
    f"{DIGITS}adam(0.05, eps=1e-4)@3[{F}, batch=2, horizon=9, objective=mean-log]",
    f"{QUADRATIC}adam(0.1)@2[gradient=exact, batch=2] / {MOMENTUM}@2[{F}, batch=2]",
    f"{SMALL}{TINY}@2 / adam(0.01)@2[{F}]",
    f"{QUADRATIC}adam(0.1)@2[clip=0.5] / {MOMENTUM}@2[{F}, horizon=4]",
    f"{QUADRATIC}{MOMENTUM}@2[{F}, batch=2, horizon=6] / adam(0.01)@3[batch=2]",
    f"{SMALL}{TINY}@2 / {MOMENTUM}@2[{F}, horizon=6] / adam(0.1)@2",
    # Windows that look ahead, and gradients bootstrapped from what they see there.
    *[f"{QUADRATIC}{MOMENTUM}@2[ahead=5, gradient={g}, horizon=6, batch=3]" for g in ALL],
    *[f"{QUADRATIC}adam(0.1, eps=1e-3)@2[ahead=6, gradient={g}, {LIFE}, objective=mean-log]" for g in ALL],
    *[f"{QUADRATIC}{MOMENTUM}@3[ahead=4, gradient={g}, {LIFE}, objective=last]" for g in ALL],
    f"{QUADRATIC}{MOMENTUM}@2[ahead=2, {E}, {LIFE}]",  # as without it
    *[f"{SMALL}{LSTM}@1[ahead=4, gradient={g}, batch=2]" for g in (FIRST, EXACT)],
    f"{DIGITS}sgd(0.1, momentum=0.5)@2[ahead=3, gradient=exact, horizon=4]",
    *[f"{SMALL}{MOMENTUM}@1[ahead=3, gradient={below}, {LIFE}] / adam(0.01)@2[ahead=3, gradient={g}, {LIFE}]"
      for below, g in ((FIRST, FIRST), (EXACT, FIRST), (EXACT, EXACT), (FIRST, EXACT), (FORWARD, FIRST))],
    *[f"{QUADRATIC}{MOMENTUM}@2[ahead=6, gradient={g}, horizon=6, batch=3]" for g in BOOT],
    *[f"{QUADRATIC}sgd(0.01, 0.8, 0.1)@3[ahead=4, gradient={g}, {LIFE}, objective=last]" for g in BOOT],
    *[f"{SMALL}{LSTM}@2[ahead=5, gradient={g}, {LIFE}, objective=discounted(0.7)]" for g in BOOT],
    *[f"{DIGITS}{TINY}@1[ahead=3, gradient={g}]" for g in BOOT],
    *[f"{SMALL}{MOMENTUM}@2[{E}, horizon=4] / adam(0.1)@2[ahead=4, gradient={g}, horizon=4, batch=3]" for g in BOOT],
    f"{SMALL}{MOMENTUM}@2[ahead=4, gradient=bootstrapped(exact), {LIFE}] / adam(0.1)@2[ahead=3, {LIFE}]",
    # Meta-losses of data that the steps below never see.
    *[f"{HELD_OUT}{DECAY}@2[horizon=4, batch=2, gradient={g}]" for g in ALL],
    *[f"{HELD_OUT}{DECAY}@2[ahead=4, horizon=4, gradient={g}]" for g in ALL],
    *[f"{HELD_OUT}{TINY}@2[horizon=6, objective=mean-log, gradient={g}]" for g in (FIRST, EXACT)],
    *[f"{HELD_OUT}{DECAY}@2[gradient={below}, horizon=4] / sgd(0.3)@2[horizon=4, gradient={g}]"
      for below, g in ((EXACT, EXACT), (FIRST, EXACT), (FORWARD, FIRST))],
    f"{HELD_OUT}{DECAY}@2[ahead=3, gradient=pes(sigma=0.1), {LIFE}]",
    # Evolution on minibatches.
    f"{DIGITS}lstm(hidden=2)@2[gradient=pes(sigma=0.1, pairs=2), horizon=6, batch=3]",
    f"{DIGITS}lstm(hidden=2)@2[gradient=truncated-es(sigma=0.1), horizon=6, batch=3]",
    f"{DIGITS}adam(0.1)@2[gradient=evolution(sigma=0.1, pairs=2, noise=4), horizon=6, batch=3]",
    f"{DIGITS}{MOMENTUM}@2[gradient=nres(sigma=0.1, pairs=2), horizon=6, batch=3]",
]  # fmt: skip


@pytest.mark.parametrize("text", TOWERS)
def test_every_estimator(text):
    assert worst(text, 6) < TOLERANCE


MOVED, STEP, SLOW = "adam(0.1, eps=1e-3)", "sgd(0.3)", "sgd(0.02)"
T, TWO = "horizon=4", "horizon=4, batch=2"
THREE = [  # another estimator on each level: windows of two updates, lives of two windows
    f"{MOMENTUM}@2[{TWO}, {E}] / {MOVED}@2[{T}] / {STEP}@2[{TWO}, gradient=pes(sigma=0.1, pairs=2)]",
    f"{MOMENTUM}@2[{TWO}, {F}, objective=mean-log] / {MOVED}@2[{T}] / {STEP}@2[{TWO}, gradient=es-single(sigma=0.1)]",
    f"{TINY}@2[{TWO}, gradient=pes(sigma=0.05, pairs=2)] / {SLOW}@2[{TWO}] / {MOMENTUM}@2[{T}, gradient=truncated-es(sigma=0.3)]",
    f"{MOVED}@2[{TWO}] / {MOMENTUM}@2[{T}, {E}] / {STEP}@2[{TWO}, gradient=pes(sigma=0.1)]",
    f"{TINY}@2[{T}] / {MOMENTUM}@2[{TWO}, {F}] / {STEP}@2[{TWO}, gradient=nres(sigma=0.1)]",
    f"{MOMENTUM}@2[{TWO}, {E}] / {MOVED}@2[{T}, clip=0.5] / {MOMENTUM}@2[{TWO}, {F}]",
    f"{MOMENTUM}@2[{T}] / {MOVED}@2[{TWO}, {E}] / {STEP}@2[{T}, {F}]",
    f"{TINY}@2[{TWO}, gradient=es-single(sigma=0.05), stagger=false] / {SLOW}@2[{TWO}, gradient=truncated-es(sigma=0.1)]"
    f" / {MOMENTUM}@2[{T}]",
    f"{MOMENTUM}@2[{TWO}, {F}]"
    f" / {SLOW}@2[horizon=8, gradient=evolution(sigma=0.1, noise=4, accumulate=false), batch=2] / {MOVED}@2[{T}]",
    f"{TINY}@2[horizon=2, gradient=full-es(sigma=0.05), batch=2] / {SLOW}@2[{TWO}] / {MOMENTUM}@2[{T}, gradient=pes(sigma=0.1)]",
    f"{MOMENTUM}@2[{TWO}, gradient=bootstrapped(exact), ahead=5] / {STEP}@2[{T}, gradient=es-single(sigma=0.1), ahead=3, batch=2]"
    f" / {MOVED}@2[{T}, ahead=3]",
    f"{MOMENTUM}@2[{TWO}, {E}, ahead=3] / {MOVED}@2[{T}, ahead=4] / {STEP}@2[{T}, gradient=pes(sigma=0.1), ahead=3, batch=2]",
]  # fmt: skip


@pytest.mark.parametrize("levels", THREE)
def test_three_estimators(levels):
    assert worst(SMALL + levels, 4, seed=1) < TOLERANCE


@pytest.mark.parametrize("levels", THREE[:3])
def test_adam_on_top_moves_the_third_level_as_on_the_oracle(levels):
    """All that is carried at the four levels, after each step of the tower."""
    task, parts = levels_of(f"{SMALL}{levels} / adam(0.1)")
    tower, theirs = Tower(task, *parts), naive(task, *parts)
    state = tower.init(seed=3)
    start, theta = state.carry.x, state.theta
    copies = theirs.start(theta, keys.split(keys.seed(3), 2)[1])
    for _ in range(2):
        state, _ = tower.step(state)
        copies = [theirs.run(theta, copy).end for copy in copies]
        assert state_error(LevelState(state.carry, None), copies) < TOLERANCE
    assert (state.carry.x - start).abs().max() > 0.01
