"""Tasks in closed form and as scipy and scikit-learn have them; what all tasks refuse; splits that share nothing."""

import math

import numpy as np
import pytest
import torch
from draws import batch_of
from scipy import optimize
from sklearn.linear_model import LogisticRegression

from levels import (
    Augmented,
    CharGRU,
    CharTransformer,
    DigitsConvNet,
    DigitsMLP,
    Few,
    HeldOut,
    Logistic,
    Mixture,
    NoisyQuadratic,
    Photo,
    Quadratic,
    Rosenbrock,
    keys,
)
from levels.tasks.data.scikit import table
from levels.tasks.noisy_quadratic import Moments
from levels.tasks.task import SPLITS
from levels.testing import check_problem


@pytest.mark.parametrize(
    "task",
    [
        Quadratic(dims=1),
        Quadratic(split="test", dtype="float64"),
        NoisyQuadratic(dims=1),
        NoisyQuadratic(dims=3, noise=0),
        Rosenbrock(),
        Logistic(),
        Logistic(data="wine", minibatch=8, penalty=0),
        DigitsMLP(hidden=(4, 3), activation="tanh", minibatch=16),
        DigitsMLP(hidden=(4,), activation="relu", minibatch=16),
        HeldOut(DigitsMLP(hidden=(3,), minibatch=16)),
        DigitsConvNet(channels=(2, 3), activation="tanh", minibatch=4),
        DigitsConvNet(channels=(), minibatch=4),
        CharGRU(width=4, length=5, minibatch=2),
        CharTransformer(width=4, length=5, minibatch=2, blocks=2),
        Photo(hidden=(6, 5), features=5, minibatch=16, size=32, activation="tanh"),
    ],
    ids=str,
)
def test_tasks_conform(task):
    check_problem(task)


def test_quadratics_in_closed_form():
    task, key = Quadratic(dims=4, dtype="float64"), batch_of(2, 3)
    x = task.init(key)
    state = task.init_state(x, keys.fold_in(key, 9))
    value, grad, after = task.value_and_grad(x, state)
    for at in np.ndindex(2, 3):
        w, y, x_at = state.w[at].numpy(), state.y[at].numpy(), x[at].numpy()
        assert float(value[at]) == pytest.approx(((w @ x_at - y) ** 2).sum(), rel=1e-13)
        assert grad[at].numpy() == pytest.approx(2 * w.T @ (w @ x_at - y), rel=1e-12)
    assert after is state
    lowest = torch.linalg.solve(state.w, state.y[..., None]).squeeze(-1)
    value, grad, _ = task.value_and_grad(lowest, state)
    assert float(value.max()) < 1e-20
    assert float(grad.abs().max()) < 1e-9


def test_what_quadratics_draw_is_standard_normal():
    count, task = 4000, Quadratic(dims=5, dtype="float64")
    key = batch_of(count)
    x = task.init(keys.fold_in(key, 1))
    state = task.init_state(x, keys.fold_in(key, 2))
    for drawn in (x, state.w, state.y):
        bound = 5 / math.sqrt(drawn.numel())
        for power, moment, deviation in ((1, 0, 1), (2, 1, math.sqrt(2)), (4, 3, math.sqrt(96))):
            assert abs(float((drawn**power).mean()) - moment) < bound * deviation
    entries = torch.cat((x, state.w.flatten(1), state.y), -1)
    correlation = entries.T @ entries / count
    assert float((correlation - torch.diag(correlation.diagonal())).abs().max()) < 5 / math.sqrt(count)


def test_the_mean_loss_of_random_quadratics():
    """E |W x - y|^2 = n (|x|^2 + 1) at a fixed x; at normal starts n (n + 1)."""
    task, key = Quadratic(dims=10), batch_of(5000)
    state = task.init_state(torch.zeros(5000, 10), key)
    for x, expected in ((torch.full((5000, 10), 0.3), 10 * (0.9 + 1)), (task.init(keys.fold_in(key, 3)), 110)):
        assert float(task.value_and_grad(x, state)[0].mean()) == pytest.approx(expected, rel=0.05)


COUNTS = "counts other data than it trains on, which would have no effect in here; use the task in it"


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Quadratic(dims=True), "quadratic: dims must be a whole number of at least 1, got true"),
        (lambda: Quadratic(split="eval"), "quadratic: split must be one of train, validation, test, got eval"),
        (lambda: Quadratic(dtype="float16"), "quadratic: dtype must be one of float32, float64, got float16"),
        (lambda: Rosenbrock(dims=1), "rosenbrock: dims must be a whole number of at least 2, got 1"),
        (lambda: NoisyQuadratic(low=0), "noisy-quadratic: low must be a number above 0, got 0"),
        (lambda: NoisyQuadratic(low=2.0), "noisy-quadratic: low must be at most high, got 2.0 and 1.0"),
        (lambda: NoisyQuadratic(noise=math.inf), "noisy-quadratic: noise must be a number of at least 0, got inf"),
        (lambda: Logistic(data="iris"), "logistic: data must be one of breast-cancer, wine, got iris"),
        (lambda: Logistic(minibatch=0), "logistic: minibatch must be a whole number of at least 1, or none, got 0"),
        (lambda: DigitsMLP(hidden="wide"),
         "digits-mlp: hidden must be a list, each a whole number of at least 1, got [wide]"),
        (lambda: DigitsMLP(activation="gelu"), "digits-mlp: activation must be one of sigmoid, tanh, relu, got gelu"),
        (lambda: DigitsConvNet(channels=(8, 0)),
         "digits-convnet: channels must be a list, each a whole number of at least 1, got [8, 0]"),
        (lambda: CharGRU(width=0), "char-gru: width must be a whole number of at least 1, got 0"),
        (lambda: CharTransformer(width=32, heads=5), "char-transformer: heads must divide the width 32, got 5"),
        (lambda: Photo(size=129), "photo: size must be a whole number from 2 to 128, got 129"),
        (lambda: Few(Quadratic(), 0), "few: problems must be a whole number of at least 1, got 0"),
        (lambda: Few(Quadratic(), 1, "all"), "few: validation must be one of own, same, got all"),
        (lambda: Few(3), "few: task must be a Task, got 3"),
        (lambda: Few(Quadratic(split="test")),
         "few: set split, dtype and device on the few, not on the task in it, got quadratic(split=test)"),
        (lambda: Augmented(Quadratic(), 2.0, 1.0), "augmented: low must be at most high, got 2.0 and 1.0"),
        (lambda: Augmented(Quadratic(), shared_over="value"),
         "augmented: per must be one of copy, tensor, got value"),
        (lambda: Mixture(()), "mixture: it needs at least one task, got none"),
        (lambda: Mixture(Quadratic()), "mixture: tasks must be a list, each a Task, got quadratic"),
        (lambda: Few(HeldOut(DigitsMLP())), f"few: held-out(digits-mlp) {COUNTS}"),
    ],
)  # fmt: skip
def test_bad_settings(make, sentence):
    with pytest.raises(ValueError) as caught:
        make()
    assert str(caught.value) == sentence


@pytest.mark.parametrize(
    ("task", "label", "further"),
    [
        (Quadratic(dims=3), "6 dims", Quadratic(dims=6)),
        (Rosenbrock(split="test"), "4 dims", Rosenbrock(dims=4, split="test")),
        (NoisyQuadratic(dims=3), "6 dims", NoisyQuadratic(dims=6)),
        (NoisyQuadratic(low=0.5), "curvature down to a tenth", NoisyQuadratic(low=0.05)),
        (Logistic(), "wine", Logistic(data="wine")),
        (Logistic(data="wine"), "breast-cancer", Logistic()),
        (DigitsMLP(split="test"), "40 units", DigitsMLP(hidden=(40,), split="test")),
        (DigitsMLP(), "2 layers", DigitsMLP(hidden=(20, 20))),
        (DigitsMLP(), "relu", DigitsMLP(activation="relu")),
        (DigitsConvNet(), "twice the channels", DigitsConvNet(channels=(16, 32))),
        (CharGRU(split="test"), "64 units", CharGRU(width=64, split="test")),
        (CharTransformer(), "64 characters", CharTransformer(length=64)),
        (Photo(), "64 features", Photo(features=64)),
    ],
    ids=str,
)
def test_variants(task, label, further):
    assert task.variants()[label] == further


def test_a_network_without_layers_has_no_variants_and_a_bare_number_is_one_layer():
    assert DigitsMLP(hidden=()).variants() == DigitsConvNet(channels=()).variants() == {}
    assert DigitsMLP(hidden=7) == DigitsMLP(hidden=(7,)) == DigitsMLP(hidden=[7])
    assert DigitsConvNet(channels=5) == DigitsConvNet(channels=[5])
    assert Photo(hidden=5) == Photo(hidden=[5])


def test_splits_of_quadratics_share_no_problem():
    drawn = torch.cat([Quadratic(dims=2, split=split, dtype="float64").init(batch_of(1000)) for split in SPLITS])
    assert len(drawn.unique(dim=0)) == 3000


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
        left = (1 - lr * h) ** (2 * step)
        variance = left + (lr * h * 0.5) ** 2 * (1 - left) / (1 - (1 - lr * h) ** 2)
        expected = 0.5 * (h * (variance + 0.25)).sum()
        assert float(task.expected_loss(moments)) == pytest.approx(expected, rel=1e-12)
        value, grad, state = task.value_and_grad(x, state)
        assert abs(float(value.mean()) - expected) < 5 * float(value.std()) / math.sqrt(runs)
        x, moments = x - lr * grad, task.expected_sgd(moments, lr)


def test_the_mean_of_a_noisy_quadratic_shrinks():
    """From one start: mean of x after k steps is (1 - lr h)^k x_0; step sizes may differ by copy."""
    task = NoisyQuadratic(dims=3, dtype="float64")
    start = torch.tensor([3.0, -2.0, 1.0], dtype=torch.float64).expand(2, 3)
    rates = torch.tensor([[0.1], [0.5]], dtype=torch.float64)
    x = start[1].expand(20000, 3)
    moments, state = Moments(start, torch.zeros_like(start)), task.init_state(x, batch_of(20000))
    for _ in range(5):
        moments = task.expected_sgd(moments, rates)
        _, grad, state = task.value_and_grad(x, state)
        x = x - 0.5 * grad
    assert torch.allclose(moments.mean, (1 - rates * task.curvature) ** 5 * start, rtol=1e-12)
    assert ((x.mean(0) - moments.mean[1]).abs() < 5 * x.std(0) / math.sqrt(20000)).all()
    assert torch.allclose(x.var(0), moments.variance[1], rtol=0.05)


def test_rosenbrock_as_scipy_has_it():
    task = Rosenbrock(dims=6, dtype="float64")
    x = task.init(batch_of(2, 10))
    value, grad, _ = task.value_and_grad(x, None)
    assert -2 <= x.min() < -1.9
    assert 1.9 < x.max() <= 2
    for point, f, g in zip(x.flatten(0, 1).numpy(), value.flatten(), grad.flatten(0, 1).numpy()):
        assert float(f) == pytest.approx(optimize.rosen(point), rel=1e-12)
        assert g == pytest.approx(optimize.rosen_der(point), rel=1e-10, abs=1e-10)


def lowest(task):
    """The minimum of a full-batch logistic regression, by L-BFGS on the task's own loss and gradient."""

    def value_and_grad(x):
        x = torch.tensor(x)
        value, grad, _ = task.value_and_grad(x, task.init_state(x, keys.seed(0)))
        return float(value), grad.numpy()

    options = {"maxiter": 5000, "ftol": 1e-15, "gtol": 1e-10}
    start = task.init(keys.seed(3)).numpy()
    best = optimize.minimize(value_and_grad, start, jac=True, method="L-BFGS-B", options=options)
    return best.fun, task.layout.unravel(torch.tensor(best.x))["layer.weight"]


@pytest.mark.parametrize("split", SPLITS)
def test_the_minimum_of_wine_is_that_of_scikit_learn(split):
    task = Logistic(data="wine", penalty=0.02, split=split, dtype="float64")
    inputs, labels, _ = task.examples()
    model = LogisticRegression(C=1 / (0.02 * len(labels)), tol=1e-10, max_iter=5000).fit(inputs, labels)
    value, weight = lowest(task)
    assert weight.T.numpy() == pytest.approx(model.coef_, abs=1e-4)
    chances = model.predict_proba(inputs)[np.arange(len(labels)), labels]
    expected = -np.log(chances).mean() + 0.01 * (model.coef_**2).sum()
    assert value == pytest.approx(expected, rel=1e-8)


def test_the_minimum_of_breast_cancer_is_that_of_scikit_learn():
    """Two columns share the penalty: scikit-learn's single one, their difference, has half of it."""
    task = Logistic(penalty=0.02, dtype="float64")
    inputs, labels, _ = task.examples()
    model = LogisticRegression(C=2 / (0.02 * len(labels)), tol=1e-10, max_iter=5000).fit(inputs, labels)
    _, weight = lowest(task)
    assert (weight[:, 1] - weight[:, 0]).numpy() == pytest.approx(model.coef_[0], abs=1e-4)


def test_minibatches_of_logistic_regression_average_to_the_whole():
    task, whole = (Logistic(data="wine", minibatch=size, dtype="float64") for size in (16, None))
    x = task.init(keys.seed(0)).expand(4000, -1)
    value, grad, _ = task.value_and_grad(x, task.init_state(x, batch_of(4000)))
    expected, slope, _ = whole.value_and_grad(x[0], whole.init_state(x[0], keys.seed(0)))
    assert float(value.mean()) == pytest.approx(float(expected), abs=5 * float(value.std()) / math.sqrt(4000))
    assert torch.allclose(grad.mean(0), slope, atol=6 * float(grad.std(0).max()) / math.sqrt(4000))


@pytest.mark.parametrize(("name", "rows", "columns"), [("breast-cancer", 569, 30), ("wine", 178, 13)])
def test_tables_are_split_by_rows_and_standardised_by_column(name, rows, columns):
    parts = [table(split, torch.float64, name).inputs for split in SPLITS]
    assert len(torch.cat(parts).unique(dim=0)) == sum(map(len, parts)) == rows
    assert parts[0].mean(0).numpy() == pytest.approx(np.zeros(columns), abs=1e-12)
    assert parts[0].std(0, correction=0).numpy() == pytest.approx(np.ones(columns), abs=1e-12)
