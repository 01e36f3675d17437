"""The suite for estimators: a small level that uses one is held to the contract of a problem."""

from dataclasses import replace
from fractions import Fraction

from levels import keys
from levels.base import Estimator
from levels.level import Level
from levels.optimizers.sgd import SGD
from levels.tasks.quadratic import Quadratic
from levels.testing.problems import check_problem
from levels.testing.shared import check_part, check_state, check_tensor, expect, untouched


def check_estimator(
    estimator: Estimator, *, level: Level | None = None, seed: int = 0, exact_gradient: bool = False
) -> None:
    """Whether ``estimator`` keeps the contract of `Estimator`.

    ``level``: where it is tried, a level on a problem (`Level.over`), best in float64; None takes SGD with momentum on
    quadratics, 2 updates a window and 4 an episode, so that copies restart. ``exact_gradient``: whether the gradient is
    meant to be the derivative of the value. Where `traits` says differentiable, the derivative of the gradient is
    compared with central differences. Raises `ConformanceError`; ValueError if the estimator refuses the level.
    """
    if level is None:
        level = Level(optimizer=SGD(momentum=0.9), unroll=2, horizon=4, batch=2).over(
            Quadratic(dims=3, dtype="float64")
        )
    level = replace(level, gradient=estimator)
    estimator.check(level)
    check_part(estimator, level.layout, least=0)
    evals = estimator.evals(level)
    good = isinstance(evals, int | Fraction) and evals >= 0
    expect(good, estimator, f"{evals!r} as evals", "a whole number or a Fraction", "count task gradients a window")
    check_problem(level, seed=seed, exact_gradient=exact_gradient)
    key = keys.split(keys.seed(seed, device=level.layout.device), 3)
    theta = level.init(key)
    state = level.init_state(theta, key)
    for _ in range(3):  # windows, across a restart
        with untouched(estimator, "value", theta=theta, state=state):
            value, new = estimator.value(level, theta, state)
        check_tensor(estimator, "value", value, key.shape, level.layout.dtype)
        check_state(estimator, "state", new, key.shape, state)
        check_state(estimator, "metrics", estimator.metrics(new), key.shape)
        state = new
