"""Tasks: quadratics in closed form, perceptrons against nn.Sequential, splits that share nothing."""

import math

import numpy as np
import pytest
import torch
from draws import batch_of
from torch import nn

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
from levels.tasks.data.scikit import digits
from levels.tasks.task import SPLITS


def test_quadratic_in_closed_form():
    task = Quadratic(dims=4, dtype="float64")
    key = batch_of(2, 3)
    x = task.init(key)
    state = task.init_state(x, keys.fold_in(key, 9))
    value, grad, after = task.value_and_grad(x, state)
    for i in range(2):
        for j in range(3):
            w, y, at = state.w[i, j].numpy(), state.y[i, j].numpy(), x[i, j].numpy()
            assert float(value[i, j]) == pytest.approx(((w @ at - y) ** 2).sum(), rel=1e-13)
            assert grad[i, j].numpy() == pytest.approx(2 * w.T @ (w @ at - y), rel=1e-12)
    assert after is state
    lowest = torch.linalg.solve(state.w, state.y[..., None]).squeeze(-1)
    value, grad, _ = task.value_and_grad(lowest, state)
    assert float(value.max()) < 1e-20
    assert float(grad.abs().max()) < 1e-9
    value, _, _ = task.value_and_grad(torch.zeros_like(x), state)
    assert torch.allclose(value, state.y.square().sum(-1))


def test_what_quadratics_draw_is_standard_normal():
    count, dims = 4000, 5
    task = Quadratic(dims=dims, dtype="float64")
    key = batch_of(count)
    x = task.init(keys.fold_in(key, 1))
    state = task.init_state(x, keys.fold_in(key, 2))
    for drawn in (x, state.w, state.y):
        bound = 5 / math.sqrt(drawn.numel())
        assert abs(float(drawn.mean())) < bound
        assert abs(float(drawn.square().mean()) - 1) < bound * math.sqrt(2)
        assert abs(float((drawn**4).mean()) - 3) < bound * math.sqrt(96)
    entries = torch.cat((x, state.w.flatten(1), state.y), -1)
    correlation = entries.T @ entries / count
    off = correlation - torch.diag(correlation.diagonal())
    assert float(off.abs().max()) < 5 / math.sqrt(count)


def test_the_mean_loss_of_random_quadratics():
    """E |W x - y|^2 = n (|x|^2 + 1) at a fixed x; at normal starts n (n + 1)."""
    task = Quadratic(dims=10)
    key = batch_of(5000)
    state = task.init_state(torch.zeros(5000, 10), key)
    at = torch.full((5000, 10), 0.3)
    assert float(task.value_and_grad(at, state)[0].mean()) == pytest.approx(10 * (0.9 + 1), rel=0.05)
    start = task.init(keys.fold_in(key, 3))
    assert float(task.value_and_grad(start, state)[0].mean()) == pytest.approx(110, rel=0.05)


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
        (lambda: Few(HeldOut(DigitsMLP())),
         f"few: held-out(digits-mlp) {COUNTS}"),
    ],
)  # fmt: skip
def test_bad_settings(make, sentence):
    with pytest.raises(ValueError) as caught:
        make()
    assert str(caught.value) == sentence


def test_splits_of_quadratics_share_no_problem():
    key = batch_of(1000)
    drawn = torch.cat([Quadratic(dims=2, split=s, dtype="float64").init(key) for s in SPLITS])
    assert len(drawn.unique(dim=0)) == 3000


def sequential(task, params):
    """The same perceptron as torch builds it."""
    layers, views = [], list(task.layout.unravel(params).values())
    activation = {"sigmoid": nn.Sigmoid, "tanh": nn.Tanh, "relu": nn.ReLU}[task.activation]
    for i, (weight, bias) in enumerate(zip(views[::2], views[1::2])):
        linear = nn.Linear(*weight.shape, dtype=params.dtype)
        with torch.no_grad():
            linear.weight.copy_(weight.T)
            linear.bias.copy_(bias)
        layers += [activation(), linear] if i else [linear]
    return nn.Sequential(*layers)


@pytest.mark.parametrize(
    "task",
    [
        DigitsMLP(minibatch=32, dtype="float64"),
        DigitsMLP(hidden=(7, 5), activation="tanh", minibatch=5, dtype="float64", split="validation"),
        DigitsMLP(hidden=(6,), activation="relu", minibatch=16, dtype="float64", split="test"),
        DigitsMLP(hidden=(), minibatch=16, dtype="float64"),
    ],
    ids=str,
)
def test_perceptrons_equal_nn_sequential(task):
    key = batch_of(2, 2)
    params = task.init(key)
    state = task.init_state(params, keys.fold_in(key, 1))
    for number in range(3):
        inputs, labels, _ = digits(task.split, torch.float64)
        rows = keys.integers(keys.fold_in(state.key, state.step), (task.minibatch,), len(labels))
        value, grad, state = task.value_and_grad(params, state)
        assert (state.step == number + 1).all()
        for i in range(2):
            for j in range(2):
                model = sequential(task, params[i, j])
                loss = nn.functional.cross_entropy(model(inputs[rows[i, j]]), labels[rows[i, j]])
                assert float(value[i, j]) == pytest.approx(loss.item(), rel=1e-12)
                slopes = torch.autograd.grad(loss, list(model.parameters()))
                expected = torch.cat([slope.t().flatten() for slope in slopes])
                assert torch.allclose(grad[i, j], expected, rtol=1e-10, atol=1e-13)
        params = params - 0.1 * grad


def test_every_step_and_copy_draws_another_minibatch():
    task = DigitsMLP(hidden=(2,), minibatch=64)
    key = batch_of(2)
    params = task.init(key)[:1].expand(2, -1)
    state = task.init_state(params, key)
    seen = []
    for _ in range(5):
        value, _, state = task.value_and_grad(params, state)
        seen += value.tolist()
    assert len(set(seen)) == 10


def test_perceptrons_start_as_documented():
    task = DigitsMLP(hidden=(50, 40))
    views = task.layout.unravel(task.init(batch_of(20)))
    for name, fan_in in (("layer0.weight", 64), ("layer1.weight", 50), ("layer2.weight", 40)):
        assert float(views[name].std()) == pytest.approx(fan_in**-0.5, rel=0.03)
        assert float(views[name].mean()) == pytest.approx(0, abs=3e-3)
    assert all((view == 0).all() for name, view in views.items() if name.endswith("bias"))
    assert DigitsMLP().layout.size == 64 * 20 + 20 + 20 * 10 + 10 == 1510


def test_no_image_is_in_two_splits():
    """Compared by pixels, not by index."""
    from sklearn.datasets import load_digits

    images = {split: {row.numpy().tobytes() for row in digits(split, torch.float64).inputs} for split in SPLITS}
    for first, second in (("train", "validation"), ("train", "test"), ("validation", "test")):
        assert not images[first] & images[second]
    sizes = [len(digits(split, torch.float32).labels) for split in SPLITS]
    assert sizes == [1078, 359, 360]
    assert sum(sizes) == len(load_digits().target)


def test_images_are_standardised_by_the_training_split_and_labels_fit():
    from sklearn.datasets import load_digits

    raw = {image.tobytes(): label for image, label in zip(*load_digits(return_X_y=True))}
    train = digits("train", torch.float64)
    assert float(train.inputs.mean()) == pytest.approx(0, abs=1e-12)
    assert float(train.inputs.std(correction=0)) == pytest.approx(1, abs=1e-12)
    assert train.classes == 10
    pixels = np.stack([np.frombuffer(image) for image in raw])
    step = float(train.inputs.flatten().unique().diff().min())  # one grey level
    black = float(train.inputs.min())
    assert float(pixels.max()) == 16
    for split in SPLITS:
        part = digits(split, torch.float64)
        greys = ((part.inputs - black) / step).round().numpy()
        assert [raw[row.tobytes()] for row in greys] == part.labels.tolist()


def test_one_hidden_layer_may_be_a_bare_number():
    assert DigitsMLP(hidden=7) == DigitsMLP(hidden=(7,)) == DigitsMLP(hidden=[7])


def test_variants():
    task = DigitsMLP(hidden=(20,), split="test")
    variants = task.variants()
    assert variants["40 units"] == DigitsMLP(hidden=(40,), split="test")
    assert variants["2 layers"] == DigitsMLP(hidden=(20, 20), split="test")
    assert variants["relu"] == DigitsMLP(hidden=(20,), activation="relu", split="test")
    assert DigitsMLP(hidden=()).variants() == {}
    assert Quadratic(dims=3).variants() == {"6 dims": Quadratic(dims=6)}
