"""What exact gradients cost in evaluations and memory, and what they refuse."""

import pytest
from live import LiveBytes
from oracle import naive
from parts import QUADRATIC, Tallied, begun, built, levels_of, second_window, stacked

from levels import keys
from recursion.notation import parse

E = "gradient=exact"


def evaluations(levels: str) -> int:
    """Times that the task is asked in one window without a restart, at unrolls and batches of its levels."""
    level = built(f"parts.Tallied(2, dtype=float64): {levels}")
    params, state = second_window(level)
    Tallied.take()
    level.value_and_grad(params, state)
    asked, _ = Tallied.take()
    assert asked == level.traits.evals
    return asked


@pytest.mark.parametrize(("levels", "asked"), [
    (f"sgd(1e-3)@5[{E}]", 9),
    ("sgd(1e-3)@5", 5),
    (f"sgd(1e-3)@4[{E}] / sgd(1e-3)@3[{E}]", 3 * 7 + 2 * 11),
    (f"sgd(1e-3)@1[{E}] / sgd(1e-3)@1[{E}] / sgd(1e-3)@1[{E}]", 1),
    (f"sgd(1e-3)@4[{E}] / sgd(1e-3)@3", 7 * 3),
    (f"sgd(1e-3)@4 / sgd(1e-3)@3[{E}]", 3 * 4 + 2 * 8),
    (f"sgd(1e-3)@3[{E}] / sgd(1e-3)@2[{E}] / sgd(1e-3)@2[{E}]", None),
])  # fmt: skip
def test_evaluations_of_the_task(levels, asked):
    """A window of T asks below T times and takes T - 1 products; unrolls of 1 cost what first order does.

    A product over an exact window of T asks again: T evaluations, T - 1 products, and T products of its own sweep.
    """
    assert evaluations(levels) == asked or asked is None


def peak_bytes(minibatch: int, unroll: int, oracle: bool = False) -> int:
    """Peak of one gradient over what was alive before it."""
    text = f"digits-mlp(hidden=[8], minibatch={minibatch}, dtype=float64): sgd(0.01, momentum=0.9)@{unroll}[{E}]"
    task, levels = levels_of(text)
    level, theirs = stacked(task, levels), naive(task, *levels)
    theirs.follow()  # as below another exact level
    params, state = begun(level, 1)
    copies = theirs.start(params, keys.seed(1))
    level.value_and_grad(params, state)  # first calls fill torch's caches
    with LiveBytes() as live:
        if oracle:
            theirs.ask(params.clone().requires_grad_(), copies)
        else:
            level.value_and_grad(params, state)
    return live.peak


def test_memory_grows_by_the_carries_alone():
    """Each step more costs a few carries (x, g, momentum, loss), whatever the model's backward graph weighs.

    Naive nested autograd keeps that graph at every step; here it weighs as the minibatch does.
    """
    n = parse("digits-mlp(hidden=[8]): sgd").task.layout.size
    carry = 8 * (3 * n + 1)
    small, large = ([peak_bytes(minibatch, unroll) for unroll in (10, 40, 160)] for minibatch in (8, 128))
    for peaks in (small, large):
        steps = [(more - less) / count for less, more, count in zip(peaks, peaks[1:], (30, 120))]
        assert steps[0] == pytest.approx(steps[1], rel=0.2)
        assert steps[1] < 2.5 * carry
    theirs = [peak_bytes(128, unroll, oracle=True) for unroll in (10, 40)]
    assert (theirs[1] - theirs[0]) / 30 > 10 * carry
    assert large[1] < theirs[1] / 5


TOP = f" / sgd(0.1)@1[{E}]"
CUT = "level 1 .*its value has another one than its gradient; .*gradient=first-order"
REFUSED = {
    f"{QUADRATIC}parts.BlackBox@2[{E}]": "level 1 .*cannot be differentiated by exact; let it be the topmost level",
    f"{QUADRATIC}parts.Numpy@2[{E}]": "level 1 .*cannot be differentiated twice .*; use another optimizer",
    f"parts.Detached: sgd@2[{E}]": CUT,
    f"parts.Stored: sgd@2[{E}]": "level 1 .*whose derivative is not what differences of it say; .*gradient=first-order",
    f"parts.Cut: sgd@2[{E}]": CUT,
    f"parts.Once: sgd@2[{E}]": "level 1 .*gradient that cannot be differentiated by exact; use gradient=first-order",
    f"{QUADRATIC}sgd@2[gradient=pes] / sgd@2[{E}]": "level 2 .*the level below, .*pes.* cannot be differentiated by exact",
    f"parts.Stored: sgd@2 / sgd(0.1)@2[{E}]": "level 2 .*whose derivative is not what differences",
}


@pytest.mark.parametrize(("text", "message"), REFUSED.items())
def test_what_cannot_be_differentiated_is_refused_when_a_tower_is_built(text, message):
    with pytest.raises(ValueError, match=message):
        parse(text + TOP)
    parse(text)  # nothing is differentiated at the topmost level
