"""Noisy quadratics, Rosenbrock and logistic regression: closed forms, and what scipy and scikit-learn say."""

import math

import numpy as np
import pytest
import torch
from draws import batch_of
from scipy import optimize
from sklearn.linear_model import LogisticRegression

from levels import Logistic, NoisyQuadratic, Rosenbrock, keys
from levels.tasks.data.scikit import table
from levels.tasks.noisy_quadratic import Moments
from levels.tasks.task import SPLITS
from levels.testing import check_problem


@pytest.mark.parametrize(
    "task",
    [
        NoisyQuadratic(dims=1),
        NoisyQuadratic(dims=3, noise=0),
        Rosenbrock(),
        Logistic(),
        Logistic(data="wine", minibatch=8, penalty=0),
    ],
    ids=str,
)
def test_tasks_conform(task):
    check_problem(task)


def test_noisy_quadratics_follow_the_expected_dynamics():
    """20,000 runs of SGD against the moments, and the moments against their geometric series."""
    task, lr, steps, runs = NoisyQuadratic(dims=4, low=0.05, high=1.0, noise=0.5, dtype="float64"), 0.4, 15, 20000
    key = batch_of(runs)
    x = task.init(key)
    state = task.init_state(x, keys.fold_in(key, 1))
    h = 1.0 * 0.05 ** (np.arange(4) / 3)
    assert task.curvature.numpy() == pytest.approx(h, rel=1e-12)
    moments = Moments(torch.zeros(4, dtype=torch.float64), torch.ones(4, dtype=torch.float64))
    for step in range(steps):
        kept = (1 - lr * h) ** (2 * step)
        variance = kept + (lr * h * 0.5) ** 2 * (1 - kept) / (1 - (1 - lr * h) ** 2)
        expected = 0.5 * (h * (variance + 0.25)).sum()
        assert float(task.expected_loss(moments)) == pytest.approx(expected, rel=1e-12)
        value, grad, state = task.value_and_grad(x, state)
        error = float(value.std()) / math.sqrt(runs)
        assert abs(float(value.mean()) - expected) < 5 * error
        x, moments = x - lr * grad, task.expected_sgd(moments, lr)


def test_the_mean_of_a_noisy_quadratic_shrinks():
    """From one start: mean of x after k steps is (1 - lr h)^k x_0; step sizes may differ by copy."""
    task = NoisyQuadratic(dims=3, dtype="float64")
    start = torch.tensor([3.0, -2.0, 1.0], dtype=torch.float64).expand(2, 3)
    rates = torch.tensor([[0.1], [0.5]], dtype=torch.float64)
    moments = Moments(start, torch.zeros_like(start))
    for _ in range(5):
        moments = task.expected_sgd(moments, rates)
    assert torch.allclose(moments.mean, (1 - rates * task.curvature) ** 5 * start, rtol=1e-12)
    x = start[1].expand(20000, 3)
    state = task.init_state(x, batch_of(20000))
    for _ in range(5):
        _, grad, state = task.value_and_grad(x, state)
        x = x - 0.5 * grad
    spread = x.std(0) / math.sqrt(20000)
    assert ((x.mean(0) - moments.mean[1]).abs() < 5 * spread).all()
    assert torch.allclose(x.var(0), moments.variance[1], rtol=0.05)


def test_rosenbrock_as_scipy_has_it():
    task = Rosenbrock(dims=6, dtype="float64")
    x = task.init(batch_of(2, 10))
    value, grad, _ = task.value_and_grad(x, None)
    assert x.min() < -1.9
    assert x.max() > 1.9
    assert x.abs().max() <= 2
    for point, f, g in zip(x.flatten(0, 1).numpy(), value.flatten(), grad.flatten(0, 1).numpy()):
        assert float(f) == pytest.approx(optimize.rosen(point), rel=1e-12)
        assert g == pytest.approx(optimize.rosen_der(point), rel=1e-10, abs=1e-10)
    value, grad, _ = task.value_and_grad(torch.ones(6, dtype=torch.float64), None)
    assert value == 0
    assert (grad == 0).all()


def lowest(task):
    """The minimum of a full-batch logistic regression, by L-BFGS on the task's own loss and gradient."""
    layout = task.layout

    def value_and_grad(x):
        x = torch.tensor(x)
        value, grad, _ = task.value_and_grad(x, task.init_state(x, keys.seed(0)))
        return float(value), grad.numpy()

    start = task.init(keys.seed(3)).numpy()
    options = {"maxiter": 5000, "ftol": 1e-15, "gtol": 1e-10}
    found = optimize.minimize(value_and_grad, start, jac=True, method="L-BFGS-B", options=options)
    return found.fun, layout.unravel(torch.tensor(found.x))


@pytest.mark.parametrize("split", SPLITS)
def test_the_minimum_of_wine_is_that_of_scikit_learn(split):
    task = Logistic(data="wine", penalty=0.02, split=split, dtype="float64")
    inputs, labels, _ = task.examples()
    model = LogisticRegression(C=1 / (0.02 * len(labels)), tol=1e-10, max_iter=5000).fit(inputs, labels)
    value, found = lowest(task)
    assert found["layer.weight"].T.numpy() == pytest.approx(model.coef_, abs=1e-4)
    chances = model.predict_proba(inputs)[np.arange(len(labels)), labels]
    expected = -np.log(chances).mean() + 0.01 * (model.coef_**2).sum()
    assert value == pytest.approx(expected, rel=1e-8)


def test_the_minimum_of_breast_cancer_is_that_of_scikit_learn():
    """Two columns share the penalty: scikit-learn's single one, their difference, has half of it."""
    task = Logistic(penalty=0.02, dtype="float64")
    inputs, labels, _ = task.examples()
    model = LogisticRegression(C=2 / (0.02 * len(labels)), tol=1e-10, max_iter=5000).fit(inputs, labels)
    _, found = lowest(task)
    weight = found["layer.weight"]
    assert (weight[:, 1] - weight[:, 0]).numpy() == pytest.approx(model.coef_[0], abs=1e-4)


def test_logistic_regression_is_convex():
    task = Logistic(dtype="float64")
    first, second = (task.init(batch_of(50, seed=i)) for i in (0, 1))
    state = task.init_state(first, batch_of(50))
    ends = [3 * first, 3 * second]
    middle = task.value_and_grad((ends[0] + ends[1]) / 2, state)[0]
    assert (middle <= sum(task.value_and_grad(x, state)[0] for x in ends) / 2).all()


def test_minibatches_of_logistic_regression_average_to_the_whole():
    task = Logistic(data="wine", minibatch=16, dtype="float64")
    whole = Logistic(data="wine", dtype="float64")
    x = task.init(keys.seed(0)).expand(4000, -1)
    value, grad, _ = task.value_and_grad(x, task.init_state(x, batch_of(4000)))
    expected, slope, _ = whole.value_and_grad(x[0], whole.init_state(x[0], keys.seed(0)))
    assert float(value.mean()) == pytest.approx(float(expected), abs=5 * float(value.std()) / math.sqrt(4000))
    assert torch.allclose(grad.mean(0), slope, atol=6 * float(grad.std(0).max()) / math.sqrt(4000))


@pytest.mark.parametrize(("name", "rows", "columns"), [("breast-cancer", 569, 30), ("wine", 178, 13)])
def test_tables_are_split_by_rows_and_standardised_by_column(name, rows, columns):
    parts = {split: table(split, torch.float64, name) for split in SPLITS}
    seen = [row.numpy().tobytes() for part in parts.values() for row in part.inputs]
    assert len(seen) == len(set(seen)) == rows
    train = parts["train"].inputs
    assert train.shape[1] == columns
    assert train.mean(0).numpy() == pytest.approx(np.zeros(columns), abs=1e-12)
    assert train.std(0, correction=0).numpy() == pytest.approx(np.ones(columns), abs=1e-12)


def test_variants():
    assert Rosenbrock(split="test").variants() == {"4 dims": Rosenbrock(dims=4, split="test")}
    assert Logistic().variants() == {"wine": Logistic(data="wine")}
    assert Logistic(data="wine").variants() == {"breast-cancer": Logistic()}
    further = NoisyQuadratic(dims=3).variants()
    assert further["6 dims"] == NoisyQuadratic(dims=6)
    assert further["curvature down to a tenth"].low == pytest.approx(0.001)
