"""Memory stays flat from step to step, and within a step grows as the sum of the unrolls, not their product.

Measured in bytes of live tensor storages (see live.py), which is exact: equal means equal to the byte.
"""

import gc
import itertools

import pytest
import torch
from live import LiveBytes

from recursion.notation import parse

STACK = [
    "lstm(hidden=4, layers=1)@2[horizon=6, batch=3]",
    "adam(0.01)[horizon=5, batch=2]",
    "sgd(1e-4, momentum=0.5)[horizon=4, batch=1]",
    "rmsprop(0.001)[batch=1]",
]


@pytest.mark.parametrize(("early", "late"), [(24, 60), pytest.param(120, 1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("depth", [1, 2, 3, pytest.param(4, marks=pytest.mark.slow)])
def test_memory_is_flat(depth, early, late):
    """The same bytes, storages and tensor objects after ``early`` and ``late`` steps, and the same peak up to each."""
    tower, seen = parse("quadratic(5): " + " / ".join(STACK[:depth])), []
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

    def worst(columns: list[list[float]]) -> float:
        design = torch.tensor([[1.0, *row] for row in columns], dtype=torch.float64)
        measured = torch.tensor([float(peaks[unrolls]) for unrolls in GRID], dtype=torch.float64)
        fitted = design @ torch.linalg.lstsq(design, measured[:, None]).solution[:, 0]
        return float(((fitted - measured) / measured).abs().max())

    assert worst([[float(t) for t in unrolls] for unrolls in GRID]) < 0.1
    assert worst([[float(a * b * c)] for a, b, c in GRID]) > 0.2
    assert peaks[8, 8, 8] < 3.5 * peaks[2, 2, 2]  # 64 times the work
