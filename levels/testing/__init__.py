"""Conformance suites for problems and optimizers that somebody else wrote, as Gymnasium's check_env is for games.

    check_problem(MyTask())
    check_optimizer(MyRule())

Each returns None, or raises `ConformanceError` with one sentence: what was got, what was expected, how to mend it.
A part that passes fits into a tower at any height.
"""

from levels.testing.optimizers import check_optimizer
from levels.testing.problems import check_problem
from levels.testing.shared import ConformanceError

__all__ = ["ConformanceError", "check_optimizer", "check_problem"]
