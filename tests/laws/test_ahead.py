"""Windows that look ahead, and gradients bootstrapped from what they see there. Relative, in float64."""

import re
from dataclasses import replace

import pytest
import torch
from oracle import equal
from parts import DIGITS, LSTM, MOMENTUM, QUADRATIC, SMALL, Tallied, begun, built, worst

from levels import Level
from levels.restart import run
from levels.tree import map_leaves
from recursion import Tower
from recursion.notation import parse

TOLERANCE = 1e-10

# Against levels without ahead: one that looks as far, and one that goes as far.

ESTIMATORS = {
    "first-order": "lstm(hidden=1, layers=1)",
    "exact": "adam(0.1, eps=1e-3)",
    "forward": MOMENTUM,
    "pes(sigma=0.1, pairs=2)": "lstm(hidden=1, layers=1)",
    "es-single(sigma=0.1)": MOMENTUM,
}


def trio(text: str) -> tuple[Level, Level, Level]:
    """A level that looks ahead, one whose windows are as long as it looks, and one whose windows are as long as its."""
    ours = built(text)
    return ours, replace(ours, unroll=ours.lookahead, lookahead=None), replace(ours, lookahead=None)


@pytest.mark.parametrize("below", ["", f"{MOMENTUM}@1[ahead=2, gradient=exact, horizon=2] / "], ids=["task", "level"])
@pytest.mark.parametrize("gradient", ESTIMATORS)
def test_it_sees_what_a_longer_window_sees_and_goes_on_as_a_shorter_one(gradient, below):
    """Bit for bit, over a life of three windows and more, staggered over two copies; also what estimators remember."""
    ours, far, near = trio(f"{SMALL}{below}{ESTIMATORS[gradient]}@2[ahead=6, gradient={gradient}, horizon=6, batch=2]")
    (params, state), ages = begun(ours, 4), set()
    for _ in range(4):
        ages |= set(state.carry.age.tolist())
        value, grad, after = ours.value_and_grad(params, state)
        seen, gone = far.value_and_grad(params, state), near.value_and_grad(params, state)
        assert equal((value, grad), seen[:2])
        assert equal(after, gone[2])
        assert not torch.equal(value, gone[0])
        assert not torch.equal(grad, gone[1])
        params, state = params - 0.01 * grad / grad.norm(), after
    assert ages == {0, 2, 4, 6}


@pytest.mark.parametrize("kind", ["Poisoned", "Flash"])
@pytest.mark.parametrize("gradient", list(ESTIMATORS)[:4])
def test_a_copy_that_dies_beyond_the_unroll_is_skipped(gradient, kind):
    """It weighs what it does for a longer window, stays where it was and begins again; the others go on."""
    ours, far, near = trio(  # asked once at the start, twice within the unroll
        f"parts.{kind}(3, dtype=float64, fatal=5): {ESTIMATORS[gradient]}@2"
        f"[ahead=6, gradient={gradient}, horizon=6, batch=6, stagger=false, nonfinite=skip]"
    )
    params, state = begun(ours, 2)
    dead = state.carry.problem_state.dies
    assert 0 < dead.sum() < len(dead)
    value, grad, after = ours.value_and_grad(params, state)
    gone = near.value_and_grad(params, state)[2]
    assert not gone.carry.skipped.any()
    for mask, expected in ((dead, state.carry), (~dead, gone.carry)):
        rest = map_leaves(lambda leaf, mask=mask: leaf[mask], after.carry._replace(age=expected.age, skipped=dead * 0))
        assert equal(rest, map_leaves(lambda leaf, mask=mask: leaf[mask], expected))
    assert torch.equal(after.carry.age, torch.where(dead, -1, 2))
    assert torch.equal(after.carry.skipped, dead.long())
    assert equal((value, grad), far.value_and_grad(params, state)[:2])
    for _ in range(3):
        state = after
        value, grad, after = ours.value_and_grad(params, state)
        assert equal((value, grad), far.value_and_grad(params, state)[:2])
    assert (after.carry.age[dead] > 0).any()


# Against naive autograd, every window from the carry as a constant.

BOTH, ALL = ("first-order", "exact"), ("first-order", "exact", "forward")
THROUGH = ("bootstrapped", "bootstrapped(exact)")
LIFE = "horizon=6, batch=2"
PAIRS = [(BOTH[0], BOTH[0]), (BOTH[0], "exact"), ("exact", "exact"), ("exact", BOTH[0]), (BOTH[0], "forward")]
TOWERS = [
    *[f"{QUADRATIC}{MOMENTUM}@2[ahead=5, gradient={g}, horizon=6, batch=3]" for g in ALL],
    *[f"{QUADRATIC}adam(0.1, eps=1e-3)@2[ahead=6, gradient={g}, {LIFE}, objective=mean-log]" for g in ALL],
    *[f"{QUADRATIC}{MOMENTUM}@3[ahead=4, gradient={g}, {LIFE}, objective=last]" for g in ALL],
    *[f"{SMALL}{LSTM}@1[ahead=4, gradient={g}, batch=2]" for g in BOTH],
    f"{DIGITS}sgd(0.1, momentum=0.5)@2[ahead=3, gradient=exact, horizon=4]",
    *[
        f"{SMALL}{MOMENTUM}@1[ahead=3, gradient={h}, {LIFE}] / adam(0.01)@2[ahead=3, gradient={g}, {LIFE}]"
        for g, h in PAIRS
    ],
    # Bootstrapped.
    *[f"{QUADRATIC}{MOMENTUM}@2[ahead=6, gradient={g}, horizon=6, batch=3]" for g in THROUGH],
    *[f"{QUADRATIC}sgd(0.01, 0.8, 0.1)@3[ahead=4, gradient={g}, {LIFE}, objective=last]" for g in THROUGH],
    *[f"{SMALL}{LSTM}@2[ahead=5, gradient={g}, {LIFE}, objective=discounted(0.7)]" for g in THROUGH],
    *[f"{DIGITS}lstm(hidden=1, layers=1)@1[ahead=3, gradient={g}]" for g in THROUGH],
    *[
        f"{SMALL}{MOMENTUM}@2[gradient=exact, horizon=4] / adam(0.1)@2[ahead=4, gradient={g}, horizon=4, batch=3]"
        for g in THROUGH
    ],
    f"{SMALL}{MOMENTUM}@2[ahead=4, gradient={THROUGH[1]}, {LIFE}] / adam(0.1)@2[ahead=3, {LIFE}]",
]


@pytest.mark.parametrize("text", TOWERS)
def test_naive_autograd(text):
    assert worst(text, 5) < TOLERANCE


BOOTED = f"{QUADRATIC}{MOMENTUM}@2[ahead=6, gradient=bootstrapped(exact), horizon=6, batch=3]"


def test_bootstrapped_reports_the_losses_of_its_unroll():
    level, near = built(BOOTED), built(f"{QUADRATIC}{MOMENTUM}@2[horizon=6, batch=3]")
    params, state = begun(level)
    for _ in range(4):
        expected, _, after = near.value_and_grad(params, state)
        value, _, state = level.value_and_grad(params, state)
        assert equal((value, state), (expected, after))


def test_a_step_along_the_bootstrapped_gradient_gets_sooner_to_where_it_would_get():
    level = built(f"{QUADRATIC}sgd(0.001)@2[ahead=20, gradient=bootstrapped(exact), batch=8]")
    far = built(f"{QUADRATIC}sgd(0.001)@20[batch=8]")
    params, state = begun(level)
    _, grad, after = level.value_and_grad(params, state)
    target = run(far, params, state.carry)[0].x
    moved = run(level, params - 0.1 * grad / grad.norm(), state.carry)[0].x
    gaps = [(x - target).square().sum(-1).mean() for x in (moved, after.carry.x)]
    assert gaps[0] < 0.99 * gaps[1]


# What it costs.

TASKS = ["parts.Tallied(2): ", "held-out(parts.Tallied(2)): "]
COSTLY = [*ALL, "pes(pairs=2)", "mix(exact, es-single)", *THROUGH]


def asked_in_a_step(tower: Tower) -> int:
    state = tower.init(0)
    Tallied.take()
    tower.step(state)
    return Tallied.take()[1]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("gradient", COSTLY)
def test_counted_costs_are_those_that_a_tower_states(gradient, task):
    """Windows of every level, behind their start and before a restart; batches of 2 and 3."""
    tower = parse(
        f"{task}sgd(1e-3)@3[ahead=5, gradient={gradient}, horizon=1200, batch=2]"
        " / sgd(1e-3)@2[ahead=4, horizon=1200, batch=2] / sgd(1e-3)@3[horizon=none, batch=3]"
    )
    assert asked_in_a_step(tower) == tower.costs[-1] * 2 * 2 * 3
    for number in (0, 1):
        params, state = begun(tower.bound[number])
        _, _, behind = tower.bound[number].value_and_grad(params, state)
        Tallied.take()
        tower.bound[number].value_and_grad(params, behind)
        assert Tallied.take()[1] == tower.costs[number] * 2 ** (number + 1)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("gradient", ["exact", "forward", "bootstrapped(exact)"])
def test_costs_above_an_exact_level(gradient, task):
    text = (
        f"sgd(1e-3)@2[ahead=3, gradient=exact, {{0}}] / sgd(1e-3)@1[ahead=2, gradient={gradient}, {{0}}] / sgd[{{0}}]"
    )
    tower = parse(task + text.format("horizon=none, batch=1"))
    assert asked_in_a_step(tower) == tower.costs[-1]


COSTS = dict(zip(["first-order", "exact", "forward", "pes(pairs=2)", *THROUGH],
                 [(5, 10), (9, 14), (10, 15), (20, 40), (5, 10), (7, 12)]))  # fmt: skip


@pytest.mark.parametrize("gradient", COSTS)
def test_costs_by_hand(gradient):
    """Level 1 looks 5 ahead of 3, level 2 4 ahead of 2; held out, each of the 5 is asked once more."""
    for task, cost in zip(TASKS, COSTS[gradient]):
        tower = parse(f"{task}sgd@3[ahead=5, gradient={gradient}, horizon=30] / sgd@2[ahead=4, horizon=4] / sgd@3")
        assert tower.costs == [cost, 4 * cost, 12 * cost]


# What is refused.


def test_ahead_none_and_the_unroll_are_the_same():
    levels = [built(f"{QUADRATIC}{MOMENTUM}@2[{ahead}gradient=exact, {LIFE}]") for ahead in ("", "ahead=2, ")]
    assert equal(*(level.value_and_grad(*begun(level)) for level in levels))


REFUSED = {
    "sgd@2[ahead=4]": r"level 1 \(sgd@2\[ahead=4\]\) is the topmost: nothing is trained by .*; leave ahead out",
    "sgd@2 / adam[ahead=4]": r"level 2 .* is the topmost: .*; leave ahead out",
    "sgd@4[ahead=3] / adam": "ahead must be at least the unroll 4, or none, got 3",
    "sgd@4[ahead=0] / adam": "ahead must be a whole number of at least 1, or none, got 0",
    "sgd@4[ahead=4.5] / adam": "ahead.*got 4.5",
    "sgd@5[gradient=bootstrapped] / adam": "after its window of 5; set ahead=20",
    "sgd@5[ahead=5, gradient=bootstrapped(exact)] / adam": "after its window of 5; set ahead=20",
    "sgd@5[ahead=9, gradient=bootstrapped(pes)] / adam": "bootstrapped: through must be .*, got pes",
    "sgd@2[ahead=9, gradient=bootstrapped(forward)] / adam": "through must be .*, got forward",
    "torch(adafactor, lr=log(0.1))@2[ahead=9, gradient=bootstrapped] / adam": "cannot be differentiated by first-order; .*gradient=pes",
    "sgd@2[ahead=4, gradient=bootstrapped(exact)] / sgd@2[gradient=exact] / adam": r"level 2 .*the level below, .*bootstrapped.* cannot be differentiated by exact; use",
    "sgd@2[gradient=pes] / sgd@2[ahead=3, gradient=bootstrapped(exact)] / adam": r"level 2 .*the level below, .*pes.* cannot be differentiated by exact; use",
}


@pytest.mark.parametrize(("levels", "message"), REFUSED.items())
def test_what_cannot_work_is_refused_when_the_tower_is_built(levels, message):
    with pytest.raises(ValueError, match=message):
        parse(f"quadratic(dims=2): {levels}")


def test_a_tower_under_one_that_looks_ahead_does_not():
    tower = parse("quadratic(dims=2): sgd@2 / adam@2[ahead=4] / adam")
    assert repr(tower.under()) == "quadratic(dims=2): sgd@2 / adam@2[horizon=none]"
    with pytest.raises(ValueError, match=re.escape("leave ahead out")):
        Tower(tower.task, *tower.levels[:-1])


def test_black_boxes_look_ahead_by_evolution():
    ours, far, _ = trio(f"{QUADRATIC}parts.BlackBox@2[ahead=6, gradient=pes(sigma=0.1), horizon=6, batch=3]")
    params, state = begun(ours)
    assert equal(ours.value_and_grad(params, state)[:2], far.value_and_grad(params, state)[:2])
