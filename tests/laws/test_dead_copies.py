"""Copies that are not finite: what a skipped copy leaves in a gradient (nothing), and what stops a tower says."""

import pytest
import torch
from oracle import equal, error, naive, state_error
from parts import begun, built, levels_of

from levels import NonFiniteError, Skip, keys
from recursion.notation import parse


@pytest.mark.parametrize("optimizer", ["lstm(hidden=3)", "adam(0.1)", "sgd(0.01, momentum=0.9)"])
def test_the_gradient_is_that_of_the_living(optimizer):
    task, (part,) = levels_of(f"parts.Dying(3, dtype=float64): {optimizer}@3[batch=6, nonfinite=skip]")
    level, oracle = part.over(task), naive(task, part)
    params, state = begun(level, 2)
    copies = oracle.start(params, keys.seed(2))
    dead = state.carry.problem_state.dies
    assert 0 < dead.sum() < 6

    value, grad, state = level.value_and_grad(params, state)
    theta = params.clone().requires_grad_()
    windows = [oracle.run(theta, copy, cut=True) for copy in copies]
    living = oracle.meta([window for window, gone in zip(windows, dead) if not gone]) * (~dead).sum() / 6
    still = sum(3 * copy.f for copy, gone in zip(copies, dead) if gone) / 6  # stood still for a window of three
    assert error(grad, torch.autograd.grad(living, theta, retain_graph=True)[0]) < 1e-10
    assert error(value, (living + still).detach()) < 1e-10
    assert state.carry.skipped.tolist() == dead.long().tolist()

    # In the next window the dead begin again from the key that a restart draws, the living go on.
    ends = [
        oracle.begin(keys.fold_in(copy.key, -1)) if gone else window.end
        for copy, window, gone in zip(copies, windows, dead)
    ]
    fresh = torch.stack([copy.problem_state.dies for copy in ends])
    assert not (fresh & dead).any(), "pick a seed whose restarted copies live"
    value, grad, state = level.value_and_grad(params, state)
    f, g, ends = oracle.ask(theta, ends)
    assert max(error(value, f.detach()), error(grad, g), state_error(state, ends)) < 1e-10
    assert state.carry.skipped.tolist() == dead.long().tolist()


def test_without_deaths_skipping_is_not_noticed():
    plain, skipping = (
        built("quadratic(3): lstm(hidden=3)@3[horizon=6, batch=4]", **how) for how in ({}, {"nonfinite": Skip()})
    )
    assert equal(plain.value_and_grad(*begun(plain, 1))[:2], skipping.value_and_grad(*begun(skipping, 1))[:2])


def test_the_error_names_level_and_step():
    """Unrolls 2, 3, 1: start-up makes 1 + 2 + 2*3 = 9 evaluations, a top step 6, so the 16th is in step 2."""
    tower = parse(
        "parts.Dying(2, fatal=16): sgd(lr=0.001)@2[horizon=none, batch=4] / sgd(0.001)@3[horizon=none, batch=2] / sgd"
    )
    state = tower.init(seed=0)
    assert tower.carries(state)[0].problem_state.dies.any()
    state, _ = tower.step(state)
    with pytest.raises(NonFiniteError, match=r"^level 1 \(sgd\(lr=0\.001\)@2.*loss is not finite at top step 2; "):
        tower.step(state)


def test_a_dead_copy_below_does_not_stop_the_levels_above():
    tower = parse(
        "parts.Dying(2, fatal=8): lstm(hidden=2)@2[horizon=none, batch=6, nonfinite=skip]"
        " / adam@2[horizon=none, batch=1]"
    )
    state = tower.init(seed=0)
    deaths = int(tower.carries(state)[0].problem_state.dies.sum())
    assert deaths > 0
    for _ in range(3):
        state, report = tower.step(state)
    assert report.skipped == [deaths, 0]
    assert all(torch.isfinite(carry.x).all() for carry in tower.carries(state))
