"""Windows that look ahead: copies that die there, and what is bootstrapped from it; gradients are in test_oracle."""

from dataclasses import replace

import pytest
import torch
from oracle import equal
from parts import MOMENTUM, QUADRATIC, TINY, answers, built

from levels.restart import run
from levels.tree import map_leaves

ESTIMATORS = {"first-order": TINY, "exact": "adam(0.1, eps=1e-3)", "forward": MOMENTUM, "pes(sigma=0.1, pairs=2)": TINY}


@pytest.mark.parametrize("kind", ["Poisoned", "Flash"])
@pytest.mark.parametrize("gradient", ESTIMATORS)
def test_a_copy_that_dies_beyond_the_unroll_is_skipped(gradient, kind):
    """It weighs what it does for a longer window, stays where it was and begins again; the others go on."""
    ours = built(  # asked once at the start, twice within the unroll
        f"parts.{kind}(3, dtype=float64, fatal=5): {ESTIMATORS[gradient]}@2"
        f"[ahead=6, gradient={gradient}, horizon=6, batch=6, stagger=false, nonfinite=skip]"
    )
    far, near = replace(ours, unroll=6, lookahead=None), replace(ours, lookahead=None)
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


def test_a_step_along_the_bootstrapped_gradient_gets_sooner_to_where_it_would_get():
    level = built(f"{QUADRATIC}sgd(0.001)@2[ahead=20, gradient=bootstrapped(exact), batch=8]")
    far = built(f"{QUADRATIC}sgd(0.001)@20[batch=8]")
    (params, state, _, grad, after) = next(answers(level, 1))
    target = run(far, params, state.carry)[0].x
    moved = run(level, params - 0.1 * grad / grad.norm(), state.carry)[0].x
    gaps = [(x - target).square().sum(-1).mean() for x in (moved, after.carry.x)]
    assert gaps[0] < 0.99 * gaps[1]
