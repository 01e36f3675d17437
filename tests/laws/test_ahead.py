"""Windows that look ahead: against levels without it, one that looks as far, and one that goes as far."""

from dataclasses import replace

import pytest
import torch
from oracle import equal
from parts import MOMENTUM, QUADRATIC, SMALL, TINY, answers, built

from levels import Level
from levels.restart import run
from levels.tree import map_leaves

ESTIMATORS = {"first-order": TINY, "exact": "adam(0.1, eps=1e-3)", "forward": MOMENTUM,
              "pes(sigma=0.1, pairs=2)": TINY, "es-single(sigma=0.1)": MOMENTUM}  # fmt: skip


def trio(text: str) -> tuple[Level, Level, Level]:
    """A level that looks ahead, one whose windows are as long as it looks, and one whose windows are as long as its."""
    ours = built(text)
    return ours, replace(ours, unroll=ours.lookahead, lookahead=None), replace(ours, lookahead=None)


@pytest.mark.parametrize("below", ["", f"{MOMENTUM}@1[ahead=2, gradient=exact, horizon=2] / "], ids=["task", "level"])
@pytest.mark.parametrize("gradient", ESTIMATORS)
def test_it_sees_what_a_longer_window_sees_and_goes_on_as_a_shorter_one(gradient, below):
    """Bit for bit, over a life of three windows and more, staggered over two copies; also what estimators remember."""
    ours, far, near = trio(f"{SMALL}{below}{ESTIMATORS[gradient]}@2[ahead=6, gradient={gradient}, horizon=6, batch=2]")
    ages = set()
    for params, state, value, grad, after in answers(ours, 4, 4, move=0.01):
        ages |= set(state.carry.age.tolist())
        seen, gone = far.value_and_grad(params, state), near.value_and_grad(params, state)
        assert equal((value, grad), seen[:2])
        assert equal(after, gone[2])
        assert not torch.equal(value, gone[0])
        assert not torch.equal(grad, gone[1])
    assert ages == {0, 2, 4, 6}


@pytest.mark.parametrize("kind", ["Poisoned", "Flash"])
@pytest.mark.parametrize("gradient", list(ESTIMATORS)[:4])
def test_a_copy_that_dies_beyond_the_unroll_is_skipped(gradient, kind):
    """It weighs what it does for a longer window, stays where it was and begins again; the others go on."""
    ours, far, near = trio(  # asked once at the start, twice within the unroll
        f"parts.{kind}(3, dtype=float64, fatal=5): {ESTIMATORS[gradient]}@2"
        f"[ahead=6, gradient={gradient}, horizon=6, batch=6, stagger=false, nonfinite=skip]"
    )
    first, *later = answers(ours, 4, 2)
    state, after = first.before, first.state
    dead, gone = state.carry.problem_state.dies, near.value_and_grad(first.params, state)[2]
    assert 0 < dead.sum() < len(dead)
    assert not gone.carry.skipped.any()
    for mask, expected in ((dead, state.carry), (~dead, gone.carry)):
        mine = after.carry._replace(age=expected.age, skipped=dead * 0)
        assert equal(*(map_leaves(lambda leaf, mask=mask: leaf[mask], carry) for carry in (mine, expected)))
    assert torch.equal(after.carry.age, torch.where(dead, -1, 2))
    assert torch.equal(after.carry.skipped, dead.long())
    for params, before, value, grad, _ in (first, *later):
        assert equal((value, grad), far.value_and_grad(params, before)[:2])
    assert (later[-1].state.carry.age[dead] > 0).any()


def test_ahead_none_and_the_unroll_are_the_same():
    levels = (built(f"{QUADRATIC}{MOMENTUM}@2[{ahead}gradient=exact, horizon=6]") for ahead in ("", "ahead=2, "))
    assert equal(*(next(answers(level, 1)) for level in levels))


def test_bootstrapped_reports_the_losses_of_its_unroll():
    ours = built(f"{QUADRATIC}{MOMENTUM}@2[ahead=6, gradient=bootstrapped(exact), horizon=6, batch=3]")
    near = built(f"{QUADRATIC}{MOMENTUM}@2[horizon=6, batch=3]")
    for answer, expected in zip(answers(ours, 4), answers(near, 4)):
        assert equal((answer.value, answer.state), (expected.value, expected.state))


def test_a_step_along_the_bootstrapped_gradient_gets_sooner_to_where_it_would_get():
    level = built(f"{QUADRATIC}sgd(0.001)@2[ahead=20, gradient=bootstrapped(exact), batch=8]")
    far = built(f"{QUADRATIC}sgd(0.001)@20[batch=8]")
    (params, state, _, grad, after) = next(answers(level, 1))
    target = run(far, params, state.carry)[0].x
    moved = run(level, params - 0.1 * grad / grad.norm(), state.carry)[0].x
    gaps = [(x - target).square().sum(-1).mean() for x in (moved, after.carry.x)]
    assert gaps[0] < 0.99 * gaps[1]
