"""Twins of towers, stepped beside the plain ones."""

import pytest
from torch.testing import assert_close

from levels.tree import leaves, named_leaves
from recursion.accelerate import accelerate, native

needs_compiler = pytest.mark.skipif(not native.compiler(), reason="no C++ compiler")
STRAIGHT = ["sgd(lr=1e-2)", "sgd(momentum=0.5) / sgd / sgd", "adam(eps=1e-2) / sgd(lr=1e-4)", "rmsprop / adagrad / sgd"]


def assert_same(mine, theirs, tolerance):
    """Every leaf: whole numbers equal, others to ``tolerance`` of the largest entry."""
    assert list(named_leaves(mine)) == list(named_leaves(theirs))
    for (name, a), b in zip(named_leaves(mine).items(), leaves(theirs)):
        assert a.dtype == b.dtype
        scale = float(b.detach().abs().max()) if b.numel() and b.is_floating_point() else 0.0
        assert_close(a, b, rtol=0, atol=tolerance * scale, msg=lambda text, name=name: f"{name}: {text}")


def with_x(state, x):
    """The state of a tower of depth 2 with other parameters of the task."""
    below = state.carry.problem_state
    below = below._replace(carry=below.carry._replace(x=x))
    return state._replace(carry=state.carry._replace(problem_state=below))


def compare(plain, *, steps=3, tolerance=1e-12, **options):
    """Step a tower and its twin side by side; returns the twin and its state."""
    fast = accelerate(plain, **options)
    a, b = plain.init(0), fast.init(0)
    assert (repr(fast), fast.costs) == (repr(plain), plain.costs)
    for _ in range(steps):
        (a, expected), (b, report) = plain.step(a), fast.step(b)
        assert_same(b, a, tolerance)
        assert (report.step, report.skipped) == (expected.step, expected.skipped)
        assert_close(report.losses, expected.losses, rtol=max(tolerance, 1e-12) * 10, atol=0)
        assert report.metrics.keys() == expected.metrics.keys()
    assert_close(fast.result(b), plain.result(a), rtol=1e3 * tolerance, atol=tolerance)
    return fast, b
