"""Copies that are not finite: what a skipped copy leaves in a gradient (nothing), and what stops a tower says."""

import math

import pytest
import torch
from oracle import error, naive, state_error
from parts import MOMENTUM, QUADRATIC, SMALL, answers, begun, built, levels_of

from levels import NonFiniteError, Stop, keys
from levels.tree import leaves
from recursion.notation import parse

TINY = "lstm(hidden=3, layers=1)"
CASES = [  # the evaluation at which copies die: the first is at the start, each window makes three
    *[("first-order", "Dying", 3, rule) for rule in ("lstm(hidden=3)", "adam(0.1)", MOMENTUM)],
    *[("exact", "Poisoned", fatal, rule) for fatal in (2, 3) for rule in (TINY, "adam(0.1)", MOMENTUM)],
    *[("forward", "Poisoned", 5, rule) for rule in ("adam(0.1)", MOMENTUM)],
]


@pytest.mark.parametrize(("gradient", "kind", "fatal", "rule"), CASES)
def test_the_gradient_is_that_of_the_living(gradient, kind, fatal, rule):
    """The dead stand still for their window, and begin again from the key that a restart draws."""
    text = f"parts.{kind}(3, dtype=float64, fatal={fatal}): {rule}@3[gradient={gradient}, batch=6, nonfinite=skip]"
    task, (part,) = levels_of(text)
    level, oracle = part.over(task), naive(task, part)
    params, state = begun(level, 2)
    copies, dies, fatal_window = oracle.start(params, keys.seed(2)), state.carry.problem_state.dies, (fatal - 2) // 3
    assert 0 < dies.sum() < 6
    for window in range(fatal_window + 2):
        dead = dies & (window == fatal_window)
        alone = level.value(params, state)[0]  # which stores no steps
        value, grad, state = level.value_and_grad(params, state)
        assert error(alone, value) < 1e-12
        living = [copy for copy, gone in zip(copies, dead) if not gone]
        f, g, ends = oracle.ask(params.clone().requires_grad_(), living)
        still = sum(3 * copy.f.detach() for copy, gone in zip(copies, dead) if gone)
        assert error(grad, g.detach() * len(living) / 6) < 1e-10
        assert error(value, (f.detach() * len(living) + still) / 6) < 1e-10
        assert torch.equal(state.carry.skipped, dies.long() * (window >= fatal_window))
        assert all(torch.isfinite(leaf).all() for leaf in leaves(state.memory))
        left = iter(ends)
        copies = [oracle.begin(keys.fold_in(copy.key, -1)) if gone else next(left) for copy, gone in zip(copies, dead)]
    assert state_error(state, copies) < 1e-10
    if level.traits.differentiable:
        above = levels_of(f"{SMALL}sgd(0.001)@2[gradient=exact]")[1][0].over(level)
        assert above.value_and_grad(*begun(above, 2))[1].isfinite().all()


def test_sensitivities_that_overflow_restart_their_copy():
    text = f"{QUADRATIC}{MOMENTUM}@2[gradient=forward, batch=2, nonfinite=skip]"
    lenient, strict = built(text), built(text, nonfinite=Stop())
    (params, _, _, _, state) = next(answers(lenient, 1))
    state.memory.x[0, 1, 2] = math.inf
    with pytest.raises(NonFiniteError, match="gradient of the meta-loss is not finite"):
        strict.value_and_grad(params, state)
    _, grad, state = lenient.value_and_grad(params, state)
    assert grad.tolist() == [0.0, 0.0]
    assert state.carry.age.tolist() == [-1, 4]
    _, grad, state = lenient.value_and_grad(params, state)
    assert grad.isfinite().all()
    assert state.carry.age.tolist() == [2, 6]


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
    *_, (state, report) = tower.run(state, 3)
    assert report.skipped == [deaths, 0]
    assert all(torch.isfinite(carry.x).all() for carry in tower.carries(state))
