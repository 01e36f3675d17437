"""Windows that look ahead, and gradients bootstrapped from what they see there. Relative, in float64."""

import math
import re
from dataclasses import replace
from typing import Any, ClassVar, NamedTuple

import pytest
import torch
from exact_oracle import exactly
from exact_parts import MOMENTUM, BlackBox, digits, lstm, quadratic, stacked
from exact_parts import level as exact
from oracle import compare, equal
from test_dead_copies import Doomed
from test_exact import Poisoned
from torch import Tensor

from levels import (
    PES,
    SGD,
    Adam,
    Bootstrapped,
    Discounted,
    ESSingle,
    Estimator,
    Exact,
    FirstOrder,
    Forward,
    HeldOut,
    Last,
    Level,
    LevelState,
    MeanLog,
    Mix,
    NoisyQuadratic,
    Quadratic,
    Skip,
    Task,
    keys,
)
from levels.restart import run
from levels.tasks.nets import Cursor
from levels.tree import map_leaves
from recursion import Tower
from recursion.notation import parse

TOLERANCE = 1e-10


def level(optimizer: object, unroll: int, lookahead: int | None, gradient: Estimator, **settings: object) -> Level:
    return exact(
        optimizer, unroll, **{"lookahead": lookahead, "gradient": gradient, "horizon": 6, "batch": 3, **settings}
    )


# Against levels without ahead: one that looks as far, and one that goes as far.

ESTIMATORS = {
    "first-order": (lstm(1), FirstOrder()),
    "exact": (Adam(0.1, eps=1e-3), Exact()),
    "forward": (MOMENTUM, Forward()),
    "pes": (lstm(1), PES(sigma=0.1, pairs=2)),
    "es-single": (MOMENTUM, ESSingle(sigma=0.1)),
}
BELOW = {
    "task": (),
    "level": (level(MOMENTUM, 1, 2, Exact(), horizon=2, batch=1),),
}


class Trio(NamedTuple):
    """A level that looks ahead, one whose windows are as long as it looks, and one whose windows are as long as its."""

    ours: Level
    far: Level
    near: Level


def trio(task: Any, part: Level) -> Trio:
    far, near = replace(part, unroll=part.lookahead, lookahead=None), replace(part, lookahead=None)
    return Trio(part.over(task), far.over(task), near.over(task))


@pytest.mark.parametrize("below", BELOW)
@pytest.mark.parametrize("name", ESTIMATORS)
def test_it_sees_what_a_longer_window_sees_and_goes_on_as_a_shorter_one(name, below):
    """Bit for bit, over a life of three windows and more, staggered over two copies; also what estimators remember."""
    three = trio(stacked(quadratic(2), BELOW[below]), level(ESTIMATORS[name][0], 2, 6, ESTIMATORS[name][1], batch=2))
    key = keys.seed(4)
    params = three.ours.init(key)
    state, ages = three.ours.init_state(params, key), set()
    for _ in range(4):
        ages |= set(state.carry.age.tolist())
        value, grad, after = three.ours.value_and_grad(params, state)
        seen, gone = three.far.value_and_grad(params, state), three.near.value_and_grad(params, state)
        assert equal((value, grad), seen[:2])
        assert equal(after, gone[2])
        assert not torch.equal(value, gone[0])
        assert not torch.equal(grad, gone[1])
        params, state = params - 0.01 * grad / grad.norm(), after
    assert ages == {0, 2, 4, 6}


class Flash(Poisoned):
    """Only one loss of those that die is not finite: nothing of it is left at the end of a window."""

    name = "flash"

    def value_and_grad(self, params: Tensor, state: Doomed) -> tuple[Tensor, Tensor, Doomed]:
        f, g, problem_state = Quadratic.value_and_grad(self, params, state.problem_state)
        dead = state.dies & (state.calls + 1 == self.fatal)
        return f.where(~dead, math.inf), g, Doomed(problem_state, state.calls + 1, state.dies)


@pytest.mark.parametrize("kind", [Poisoned, Flash])
@pytest.mark.parametrize("name", ["first-order", "exact", "forward", "pes"])
def test_a_copy_that_dies_beyond_the_unroll_is_skipped(name, kind):
    """It weighs what it does for a longer window, stays where it was and begins again; the others go on."""
    optimizer, gradient = ESTIMATORS[name]
    task = kind(dims=3, dtype="float64", fatal=5)  # asked once at the start, twice within the unroll
    three = trio(task, level(optimizer, 2, 6, gradient, batch=6, stagger=False, nonfinite=Skip()))
    key = keys.seed(2)
    params = three.ours.init(key)
    state = three.ours.init_state(params, key)
    dead = state.carry.problem_state.dies
    assert 0 < dead.sum() < len(dead)
    value, grad, after = three.ours.value_and_grad(params, state)
    gone = three.near.value_and_grad(params, state)[2]
    assert not gone.carry.skipped.any()
    for mask, expected in ((dead, state.carry), (~dead, gone.carry)):
        kept = map_leaves(lambda leaf, mask=mask: leaf[mask], after.carry._replace(age=expected.age, skipped=dead * 0))
        assert equal(kept, map_leaves(lambda leaf, mask=mask: leaf[mask], expected))
    assert torch.equal(after.carry.age, torch.where(dead, -1, 2))
    assert torch.equal(after.carry.skipped, dead.long())
    assert equal((value, grad), three.far.value_and_grad(params, state)[:2])
    for _ in range(3):
        state = after
        value, grad, after = three.ours.value_and_grad(params, state)
        assert equal((value, grad), three.far.value_and_grad(params, state)[:2])
    assert (after.carry.age[dead] > 0).any()


# Against naive autograd, every window from the carry as a constant.


class Case(NamedTuple):
    """A tower without its topmost level, and windows."""

    task: Task
    levels: tuple[Level, ...]
    windows: int = 5


def worst(case: Case) -> float:
    return compare(stacked(case.task, case.levels), exactly(case.task, *case.levels), case.windows)


FIRST, BOTH = FirstOrder(), (FirstOrder(), Exact(), Forward())
CASES = {
    **{f"momentum, {g}": Case(quadratic(), (level(MOMENTUM, 2, 5, g),)) for g in BOTH},
    **{f"adam, {g}": Case(quadratic(), (level(Adam(0.1, eps=1e-3), 2, 6, g, objective=MeanLog()),)) for g in BOTH},
    **{f"last, {g}": Case(quadratic(), (level(MOMENTUM, 3, 4, g, objective=Last()),)) for g in BOTH},
    **{f"lstm, {g}": Case(quadratic(2), (level(lstm(2), 1, 4, g, horizon=None, batch=2),)) for g in BOTH[:2]},
    "minibatches": Case(digits(), (level(SGD(0.1, momentum=0.5), 2, 3, Exact(), horizon=4, batch=1),), 3),
    **{
        f"{g} over {h}": Case(quadratic(2), (level(MOMENTUM, 1, 3, h, batch=2), level(Adam(0.01), 2, 3, g, batch=2)))
        for g, h in ((FIRST, FIRST), (FIRST, Exact()), (Exact(), Exact()), (Exact(), FIRST), (FIRST, Forward()))
    },
}


@pytest.mark.parametrize("name", CASES)
def test_naive_autograd(name):
    case = CASES[name]
    assert worst(case) < TOLERANCE


# Bootstrapped.

THROUGH = (Bootstrapped(), Bootstrapped(Exact()))
BOOTED = {
    **{f"momentum, {g}": Case(quadratic(), (level(MOMENTUM, 2, 6, g, batch=3),)) for g in THROUGH},
    **{f"decay, {g}": Case(quadratic(), (level(SGD(0.01, 0.8, 0.1), 3, 4, g, objective=Last()),)) for g in THROUGH},
    **{f"lstm, {g}": Case(quadratic(2), (level(lstm(2), 2, 5, g, objective=Discounted(0.7)),)) for g in THROUGH},
    **{f"digits, {g}": Case(digits(), (level(lstm(1), 1, 3, g, horizon=None, batch=1),), 3) for g in THROUGH},
    **{
        f"{g} over exact": Case(quadratic(2), (exact(MOMENTUM, 2, horizon=4), level(Adam(0.1), 2, 4, g, horizon=4)))
        for g in THROUGH
    },
    "first order over it": Case(quadratic(2), (level(MOMENTUM, 2, 4, THROUGH[1]), level(Adam(0.1), 2, 3, FIRST))),
}


@pytest.mark.parametrize("name", BOOTED)
def test_bootstrapped_by_hand(name):
    case = BOOTED[name]
    assert worst(case) < TOLERANCE


def test_bootstrapped_reports_the_losses_of_its_unroll():
    part = level(MOMENTUM, 2, 6, THROUGH[1])
    laid, near = part.over(quadratic()), replace(part, lookahead=None, gradient=FIRST).over(quadratic())
    params = laid.init(keys.seed(0))
    state = laid.init_state(params, keys.seed(0))
    for _ in range(4):
        expected, _, after = near.value_and_grad(params, state)
        value, _, state = laid.value_and_grad(params, state)
        assert equal((value, state), (expected, after))


def test_a_step_along_the_bootstrapped_gradient_gets_sooner_to_where_it_would_get():
    part = level(SGD(0.001), 2, 20, THROUGH[1], batch=8, horizon=None)
    laid, far = part.over(quadratic()), replace(part, unroll=20, lookahead=None, gradient=FIRST).over(quadratic())
    params = laid.init(keys.seed(0))
    state = laid.init_state(params, keys.seed(0))
    _, grad, after = laid.value_and_grad(params, state)
    target = run(far, params, state.carry)[0].x
    moved = run(laid, params - 0.1 * grad / grad.norm(), state.carry)[0].x
    gaps = [(x - target).square().sum(-1).mean() for x in (moved, after.carry.x)]
    assert gaps[0] < 0.99 * gaps[1]


# What it costs.


class Tallied(NoisyQuadratic):
    """Notes for how many copies it is asked."""

    name = "tallied"
    asked: ClassVar[list[int]] = []

    def value_and_grad(self, params: Tensor, state: Cursor) -> tuple[Tensor, Tensor, Cursor]:
        self.asked.append(math.prod(params.shape[:-1]))
        return super().value_and_grad(params, state)


COSTLY = [FirstOrder(), Exact(), Forward(), PES(pairs=2), Mix(Exact(), ESSingle()), *THROUGH]
FEW, MANY = SGD(1e-3), Tallied(dims=2)


@pytest.mark.parametrize("task", [MANY, HeldOut(MANY)], ids=str)
@pytest.mark.parametrize("gradient", COSTLY, ids=str)
def test_counted_costs_are_those_that_a_tower_states(gradient, task):
    """Windows of every level, behind their start and before a restart; batches of 2 and 3."""
    settings = {"horizon": 1200, "batch": 2}
    levels = level(FEW, 3, 5, gradient, **settings), level(FEW, 2, 4, FIRST, **settings), exact(FEW, 3, batch=3)
    tower = Tower(task, *levels)
    state = tower.init(0)
    Tallied.asked.clear()
    tower.step(state)
    assert sum(Tallied.asked) == tower.costs[-1] * 2 * 2 * 3
    for number in (0, 1):
        laid, key = tower.bound[number], keys.seed(0)
        params = laid.init(key)
        _, _, behind = laid.value_and_grad(params, laid.init_state(params, key))
        Tallied.asked.clear()
        laid.value_and_grad(params, behind)
        assert sum(Tallied.asked) == tower.costs[number] * 2 ** (number + 1)


@pytest.mark.parametrize("task", [MANY, HeldOut(MANY)], ids=str)
@pytest.mark.parametrize("gradient", [Exact(), Forward(), Bootstrapped(Exact())], ids=str)
def test_costs_above_an_exact_level(gradient, task):
    settings = {"horizon": None, "batch": 1}
    tower = Tower(task, level(FEW, 2, 3, Exact(), **settings), level(FEW, 1, 2, gradient, **settings), exact(FEW, 1))
    state = tower.init(0)
    Tallied.asked.clear()
    tower.step(state)
    assert sum(Tallied.asked) == tower.costs[-1]


def test_costs_by_hand():
    """Level 1 looks 5 ahead of 3, level 2 4 ahead of 2; held out, each of the 5 is asked once more."""
    expected = {FirstOrder(): (5, 10), Exact(): (9, 14), Forward(): (10, 15), PES(pairs=2): (20, 40)}
    expected |= {Bootstrapped(): (5, 10), Bootstrapped(Exact()): (7, 12)}
    for gradient, costs in expected.items():
        for task, cost in zip((MANY, HeldOut(MANY)), costs):
            levels = level(FEW, 3, 5, gradient, horizon=30), level(FEW, 2, 4, FIRST, horizon=4)
            assert Tower(task, *levels, exact(FEW, 3)).costs == [cost, 4 * cost, 12 * cost]


# What is refused.


def test_ahead_none_and_the_unroll_are_the_same():
    parts = [level(MOMENTUM, 2, lookahead, Exact()).over(quadratic()) for lookahead in (None, 2)]
    params = parts[0].init(keys.seed(0))
    results = [part.value_and_grad(params, part.init_state(params, keys.seed(0))) for part in parts]
    assert equal(*results)


REFUSED = [
    ("sgd@2[ahead=4]", r"level 1 \(sgd@2\[ahead=4\]\) is the topmost: nothing is trained by .*; leave ahead out"),
    ("sgd@2 / adam[ahead=4]", r"level 2 .* is the topmost: .*; leave ahead out"),
    ("sgd@4[ahead=3] / adam", "ahead must be at least the unroll 4, or none, got 3"),
    ("sgd@4[ahead=0] / adam", "ahead must be a whole number of at least 1, or none, got 0"),
    ("sgd@4[ahead=4.5] / adam", "ahead.*got 4.5"),
    ("sgd@5[gradient=bootstrapped] / adam", "after its window of 5; set ahead=20"),
    ("sgd@5[ahead=5, gradient=bootstrapped(exact)] / adam", "after its window of 5; set ahead=20"),
    (
        "sgd@5[ahead=9, gradient=bootstrapped(pes)] / adam",
        "bootstrapped: through must be .*, got pes",
    ),
    ("sgd@2[ahead=9, gradient=bootstrapped(forward)] / adam", "through must be .*, got forward"),
    (
        "torch(adafactor, lr=log(0.1))@2[ahead=9, gradient=bootstrapped] / adam",
        "cannot be differentiated by first-order; .*gradient=pes",
    ),
    (
        "sgd@2[ahead=4, gradient=bootstrapped(exact)] / sgd@2[gradient=exact] / adam",
        r"level 2 .*the level below, .*bootstrapped.* cannot be differentiated by exact; use",
    ),
    (
        "sgd@2[gradient=pes] / sgd@2[ahead=3, gradient=bootstrapped(exact)] / adam",
        r"level 2 .*the level below, .*pes.* cannot be differentiated by exact; use",
    ),
]


@pytest.mark.parametrize(("levels", "message"), REFUSED)
def test_what_cannot_work_is_refused_when_the_tower_is_built(levels, message):
    with pytest.raises(ValueError, match=message):
        parse(f"quadratic(dims=2): {levels}")


def test_a_tower_under_one_that_looks_ahead_does_not():
    tower = parse("quadratic(dims=2): sgd@2 / adam@2[ahead=4] / adam")
    assert repr(tower.under()) == "quadratic(dims=2): sgd@2 / adam@2[horizon=none]"
    with pytest.raises(ValueError, match=re.escape("leave ahead out")):
        Tower(tower.task, *tower.levels[:-1])


def test_black_boxes_look_ahead_by_evolution():
    laid = level(BlackBox(0.01), 2, 6, PES(sigma=0.1)).over(quadratic())
    far = level(BlackBox(0.01), 6, None, PES(sigma=0.1)).over(quadratic())
    params = laid.init(keys.seed(0))
    state: LevelState = laid.init_state(params, keys.seed(0))
    assert equal(laid.value_and_grad(params, state)[:2], far.value_and_grad(params, state)[:2])
