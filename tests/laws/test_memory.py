"""Memory stays flat from step to step, and within a step grows as the sum of the unrolls, not their product.

Measured in bytes of live tensor storages (see live.py), which is exact: equal means equal to the byte.
"""

import gc
import itertools

import pytest
import torch
from live import LiveBytes
from oracle import naive
from parts import begun, built, levels_of

from levels import keys
from recursion.notation import parse

STACK = [
    "lstm(hidden=4, layers=1)@2[horizon=6, batch=3]",
    "adam(0.01)[horizon=5, batch=2]",
    "sgd(1e-4, momentum=0.5)[horizon=4, batch=1]",
    "rmsprop(0.001)[batch=1]",
]
FLAT = [" / ".join(STACK[:depth]) for depth in (1, 2, 3)] + [
    "sgd(0.01, momentum=0.9)@3[gradient=forward, batch=2, horizon=none] / sgd"
]


@pytest.mark.parametrize(("early", "late"), [(24, 60), pytest.param(120, 1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("levels", [*FLAT, pytest.param(" / ".join(STACK), marks=pytest.mark.slow)])
def test_memory_is_flat(levels, early, late):
    """The same bytes, storages and tensor objects after ``early`` and ``late`` steps, and the same peak up to each."""
    tower, seen = parse(f"quadratic(5): {levels}"), []
    with LiveBytes() as live:
        state = tower.init(seed=0)
        for _ in range(late):
            state, report = tower.step(state)
            if report.step in (early // 2, early, late):
                gc.collect()
                tensors = sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())
                seen.append((live.bytes, live.count, live.peak, tensors))
                live.reset_peak()
    assert seen[1] == seen[2]


# The sum of the unrolls.

DIMS = 100
GRID = [*itertools.product((2, 4), repeat=3), (8, 2, 2), (2, 8, 2), (2, 2, 8), (8, 8, 8)]


@pytest.fixture(scope="module")
def peaks() -> dict[tuple[int, ...], int]:
    """Peaks of a top step over what was alive before it: momentum SGD by coordinate, twice, under plain SGD."""
    rules = ["sgd(log(1e-6, per=coordinate), momentum=0.5)"] * 2 + ["sgd(1e-6)"]
    peaks = {}
    for unrolls in GRID:
        levels = " / ".join(f"{rule}@{unroll}[horizon=none, batch=1]" for rule, unroll in zip(rules, unrolls))
        tower = parse(f"quadratic({DIMS}, dtype=float64): {levels}")
        with LiveBytes() as live:
            state = tower.init(seed=0)
            before = live.reset_peak().bytes
            tower.step(state)
            peaks[unrolls] = live.peak - before
    return peaks


def test_memory_is_the_sum_of_the_unrolls(peaks):
    """Unrolls at several levels cost at most what each costs alone, and a step is a few of what its level carries."""
    for one, two, three in GRID:
        together = peaks[one, 2, 2] + peaks[2, two, 2] + peaks[2, 2, three] - 2 * peaks[2, 2, 2]
        assert 0.8 * together < peaks[one, two, three] < 1.01 * together
    for level, n in enumerate((DIMS, DIMS + 1, 0)):  # a step size for each coordinate and one momentum
        longer = tuple(4 if number == level else 2 for number in range(3))
        step = (peaks[longer] - peaks[2, 2, 2]) / 2
        assert step <= 8 * (7 * n + 40)


def test_memory_is_not_the_product_of_the_unrolls(peaks):
    """The best fit of constant + slope * T1 T2 T3 misses by a fifth and more; that of the sum by less than half of that."""
    unrolls, measured = torch.tensor(GRID).double(), torch.tensor([float(peaks[each]) for each in GRID]).double()

    def worst(columns: torch.Tensor) -> float:
        design = torch.cat((torch.ones(len(GRID), 1), columns), 1).double()
        fitted = design @ torch.linalg.lstsq(design, measured[:, None]).solution[:, 0]
        return float(((fitted - measured) / measured).abs().max())

    assert worst(unrolls) < 0.1
    assert worst(unrolls.prod(1, keepdim=True)) > 0.2
    assert peaks[8, 8, 8] < 3.5 * peaks[2, 2, 2]  # 64 times the work


# Estimators that trade memory for something else.


def peak(text: str, oracle: bool = False) -> int:
    """Peak of one gradient over what was alive before it; of the oracle as it is below an exact level."""
    task, levels = levels_of(text)
    level, theirs = built(text), naive(task, *levels) if oracle else None
    level.value_and_grad(*begun(level))  # first calls fill torch's caches
    with LiveBytes() as live:
        params, state = begun(level)
        if theirs is None:
            before = live.reset_peak().bytes
            level.value_and_grad(params, state)
        else:
            theirs.follow()
            copies = theirs.start(params, keys.seed(0))
            before = live.reset_peak().bytes
            theirs.ask(params.clone().requires_grad_(), copies)
        return live.peak - before


def test_exact_memory_grows_by_the_carries_alone():
    """Each step more costs a few carries (x, g, momentum, loss), whatever the model's backward graph weighs.

    Naive nested autograd keeps that graph at every step; here it weighs as the minibatch does.
    """
    text = "digits-mlp(hidden=[8], minibatch={}, dtype=float64): sgd(0.01, momentum=0.9)@{}[gradient=exact]"
    carry = 8 * (3 * parse("digits-mlp(hidden=[8]): sgd").task.layout.size + 1)
    small, large = ([peak(text.format(size, unroll)) for unroll in (10, 40, 160)] for size in (8, 128))
    for peaks in (small, large):
        steps = [(more - less) / count for less, more, count in zip(peaks, peaks[1:], (30, 120))]
        assert steps[0] == pytest.approx(steps[1], rel=0.2)
        assert steps[1] < 2.5 * carry
    theirs = [peak(text.format(128, unroll), oracle=True) for unroll in (10, 40)]
    assert (theirs[1] - theirs[0]) / 30 > 10 * carry
    assert large[1] < theirs[1] / 5


def test_accumulated_memory_is_that_of_the_copies_with_a_graph():
    text = "quadratic(64): lstm(hidden=8, layers=1)@16[batch=16, gradient={}]"
    whole, one, four = (peak(text.format(g)) for g in ("first-order", "accumulated(copies=1)", "accumulated(copies=4)"))
    assert one < four < whole / 3
    assert one < whole / 8


def test_evolution_memory_does_not_grow_with_the_unroll():
    short, long = (
        peak(f"quadratic(200): adam@{n}[horizon={n}, batch=2, gradient=es-single(pairs=2)]") for n in (4, 64)
    )
    assert long < 1.1 * short
