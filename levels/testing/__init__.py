"""Conformance suites for your own problems, optimizers and estimators, as Gymnasium's check_env is for games.

    check_problem(MyTask())
    check_optimizer(MyRule())
    check_estimator(MyEstimator())

Each returns None, or raises `ConformanceError` with one sentence: what was got, what was expected, how to mend it.
A part that passes fits into a tower at any height.
"""

from levels.testing.estimators import check_estimator
from levels.testing.optimizers import check_optimizer
from levels.testing.problems import check_problem
from levels.testing.shared import ConformanceError

__all__ = ["ConformanceError", "check_estimator", "check_optimizer", "check_problem"]
