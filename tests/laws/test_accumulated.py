"""Gradients accumulated over parts of the copies are those of the estimator that they stand for."""

from dataclasses import replace

import pytest
import torch
from oracle import error
from parts import DIGITS, LSTM, QUADRATIC, SMALL, answers, begun, built, levels_of, stacked

from levels import Accumulated, Exact, FirstOrder
from levels.tree import leaves, named_leaves
from recursion.notation import parse

DEAD = "parts.Poisoned(3, dtype=float64, fatal=3): "
TOWERS = [
    QUADRATIC + "lstm(hidden=3)@4[batch=5, horizon=8]",
    QUADRATIC + "start(sgd(0.01, momentum=0.9))@2[batch=3, horizon=4]",
    QUADRATIC + "parts.Anchored@2[batch=3, horizon=4, ahead=3]",
    f"held-out(digits-mlp(hidden=[3], minibatch=8), dtype=float64): {LSTM}@3[batch=5, horizon=6, ahead=4]",
    f"{DIGITS}{LSTM}@2[batch=2] / adam(0.01)@2[batch=3, horizon=4, objective=mean-log]",
    f"{SMALL}{LSTM}@2[batch=2, horizon=4] / lstm(hidden=1, layers=1)@2[batch=2] / adam(0.01)@2[batch=3, horizon=6]",
    f"{DEAD}{LSTM}@2[batch=6, nonfinite=skip]",
]


@pytest.mark.parametrize("copies", [1, 2, 8])
@pytest.mark.parametrize("through", [FirstOrder(), Exact()], ids=repr)
@pytest.mark.parametrize("text", TOWERS)
def test_it_is_the_gradient_of_what_it_stands_for(text, through, copies):
    """At every level, over restarts and skipped copies, two sets of parameters side by side."""
    task, parts = levels_of(text)
    plain = stacked(task, [replace(part, gradient=through) for part in parts])
    ours = stacked(task, [replace(part, gradient=Accumulated(through=through, copies=copies)) for part in parts])
    assert ours.traits == plain.traits
    other = begun(ours, 2, 2)[1]
    for answer in answers(plain, 4, 2, 2, move=0.01):
        value, grad, other = ours.value_and_grad(answer.params, other)
        assert max(error(value, answer.value), error(grad, answer.grad)) < 1e-12
        assert not value.requires_grad
        for (path, mine), leaf in zip(named_leaves(other).items(), leaves(answer.state), strict=True):
            assert error(mine, leaf) < 1e-12 if leaf.is_floating_point() else torch.equal(mine, leaf), path
    assert (answer.state.carry.skipped.sum() > 0) == text.startswith(DEAD)


def test_an_exact_level_above_differentiates_it():
    texts = [
        f"{SMALL}{LSTM}@2[batch=3{how}] / adam(0.1)@3[gradient=exact]"
        for how in ("", ", gradient=accumulated(copies=1)")
    ]
    assert error(*(next(answers(built(text), 1)).grad for text in texts)) < 1e-12


def test_its_first_name_is_still_read():
    tower = parse("quadratic: lstm@2[gradient=recomputed(exact, copies=4)] / adam")
    assert tower.levels[0].gradient == Accumulated(through=Exact(), copies=4)
    assert "gradient=accumulated(" in repr(tower)
