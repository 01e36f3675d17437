"""Networks against torch's own modules, copy by copy; digits, text and photos against what their sources carry."""

import math
from pydoc_data.topics import topics as chapters

import numpy as np
import pytest
import torch
from draws import batch_of
from sklearn.datasets import load_digits, load_sample_image
from torch import nn

from levels import CharGRU, CharTransformer, DigitsConvNet, DigitsMLP, Photo, keys
from levels.tasks.data import ALPHABET
from levels.tasks.data.scikit import digits, photos
from levels.tasks.data.text import topics
from levels.tasks.task import SPLITS


def compare(task, loss_of, steps=3):
    """Loss and gradient of 2 x 2 copies against autograd through ``loss_of(tensors, rows, state)``, over some steps."""
    key = batch_of(2, 2)
    params = task.init(key)
    state = task.init_state(params, keys.fold_in(key, 1))
    for _ in range(steps):
        value, grad, after = task.value_and_grad(params, state)
        for at in np.ndindex(2, 2):
            flat = params[at].clone().requires_grad_()
            loss = loss_of(task.layout.unravel(flat), state, at)
            (expected,) = torch.autograd.grad(loss, flat)
            assert float(value[at]) == pytest.approx(loss.item(), rel=1e-12)
            assert torch.allclose(grad[at], expected, rtol=1e-10, atol=1e-13)
        params, state = params - 0.1 * grad, after


def drawn(cursor, at, count, high):
    """The rows of a minibatch, drawn for one copy alone."""
    return keys.integers(keys.fold_in(cursor.key[at], cursor.step[at]), (count,), high)


def call(module, weights, *inputs, **settings):
    """A torch module with these parameters."""
    return torch.func.functional_call(module.double(), weights, inputs, settings)


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
    inputs, labels, classes = digits(task.split, torch.float64)
    widths = (inputs.shape[1], *task.hidden, classes)
    activation = {"sigmoid": nn.Sigmoid, "tanh": nn.Tanh, "relu": nn.ReLU}[task.activation]
    layers = [layer for pair in zip(widths, widths[1:]) for layer in (nn.Linear(*pair), activation())][:-1]

    def loss_of(tensors, state, at):
        rows = drawn(state, at, task.minibatch, len(labels))
        named = {name.replace(f"layer{i}", str(2 * i)): tensor.T if tensor.dim() == 2 else tensor
                 for i in range(len(widths)) for name, tensor in tensors.items() if f"layer{i}." in name}  # fmt: skip
        return nn.functional.cross_entropy(call(nn.Sequential(*layers), named, inputs[rows]), labels[rows])

    compare(task, loss_of)


def test_convnets_equal_conv2d():
    task = DigitsConvNet(channels=(3, 5), minibatch=6, split="test", dtype="float64")
    inputs, labels, _ = digits("test", torch.float64)

    def loss_of(tensors, state, at):
        rows = drawn(state, at, 6, len(labels))
        x = inputs[rows].reshape(6, 1, 8, 8)
        for i, (before, after) in enumerate(((1, 3), (3, 5))):
            weight = tensors[f"conv{i}.weight"]
            kernel = torch.stack([weight[..., k] for k in range(after)])
            weights = {"weight": kernel, "bias": tensors[f"conv{i}.bias"]}
            x = torch.relu(call(nn.Conv2d(before, after, 3, 2, 1), weights, x))
        logits = x.flatten(1) @ tensors["dense.weight"] + tensors["dense.bias"]
        return nn.functional.cross_entropy(logits, labels[rows])

    compare(task, loss_of)


def piece(task, state, at):
    """What a character model reads and is to say, cut from the text by hand."""
    codes = topics(task.split).codes
    starts = drawn(state, at, task.minibatch, len(codes) - task.length).tolist()
    rows = torch.stack([codes[start : start + task.length + 1] for start in starts])
    return rows[:, :-1], rows[:, 1:].flatten()


def test_the_recurrent_model_equals_nn_gru():
    task = CharGRU(width=5, length=6, minibatch=3, split="validation", dtype="float64")

    def loss_of(tensors, state, at):
        read, said = piece(task, state, at)
        weights = {
            "weight_ih_l0": tensors["gates.embedding"].T,
            "weight_hh_l0": tensors["state.weight"].T,
            "bias_ih_l0": torch.zeros(15, dtype=torch.float64),
            "bias_hh_l0": tensors["state.bias"],
        }
        one_hot = nn.functional.one_hot(read, len(ALPHABET)).double()
        states, _ = call(nn.GRU(len(ALPHABET), 5, batch_first=True), weights, one_hot)
        logits = states @ tensors["out.weight"] + tensors["out.bias"]
        return nn.functional.cross_entropy(logits.flatten(0, 1), said)

    compare(task, loss_of)


def test_the_transformer_equals_nn_transformer_encoder_layer():
    task = CharTransformer(width=6, heads=2, blocks=2, length=5, minibatch=3, dtype="float64")
    names = {"norm0.scale": "norm1.weight", "norm0.shift": "norm1.bias", "mix.weight": "self_attn.in_proj_weight",
             "mix.bias": "self_attn.in_proj_bias", "join.weight": "self_attn.out_proj.weight",
             "join.bias": "self_attn.out_proj.bias", "norm1.scale": "norm2.weight", "norm1.shift": "norm2.bias",
             "up.weight": "linear1.weight", "up.bias": "linear1.bias", "down.weight": "linear2.weight",
             "down.bias": "linear2.bias"}  # fmt: skip
    mask = nn.Transformer.generate_square_subsequent_mask(5, dtype=torch.float64)

    def loss_of(tensors, state, at):
        read, said = piece(task, state, at)
        x = tensors["token.embedding"][read] + tensors["place.embedding"]
        for i in range(2):
            layer = nn.TransformerEncoderLayer(6, 2, 24, 0.0, "gelu", batch_first=True, norm_first=True)
            weights = {theirs: tensors[f"block{i}.{ours}"] for ours, theirs in names.items()}
            weights = {name: value.T if value.dim() == 2 else value for name, value in weights.items()}
            x = call(layer, weights, x, src_mask=mask)
        x = nn.functional.layer_norm(x, (6,), tensors["norm.scale"], tensors["norm.shift"])
        logits = x @ tensors["out.weight"] + tensors["out.bias"]
        return nn.functional.cross_entropy(logits.flatten(0, 1), said)

    compare(task, loss_of)


@pytest.mark.parametrize("model", [CharGRU, CharTransformer])
def test_models_do_not_see_the_future(model):
    task = model(width=6, length=8, minibatch=1, dtype="float64")
    tensors = task.layout.unravel(task.init(keys.seed(0)))
    read = torch.arange(8)[None]
    other = read.clone()
    other[0, 5] = 50
    before, after = task.logits(tensors, read), task.logits(tensors, other)
    assert torch.equal(before[:5], after[:5])
    assert (before[5:] != after[5:]).any(-1).all()


def test_photos_by_hand():
    task = Photo(hidden=(5,), features=3, size=20, minibatch=4, split="test", dtype="float64")
    images = [torch.tensor(load_sample_image(name)) for name in ("china.jpg", "flower.jpg")]

    def loss_of(tensors, state, at):
        photo, top, left = state.corner[at].tolist()
        total = 0.0
        for pixel in drawn(state.cursor, at, 4, 400).tolist():
            row, column = divmod(pixel, 20)
            colour = images[photo][top + row, 512 + left + column].double() / 127.5 - 1
            place = torch.tensor([row / 20, column / 20], dtype=torch.float64)
            phase = 2 * math.pi * place @ state.frequencies[at]
            inputs = torch.cat((phase.cos(), phase.sin()))
            hidden = torch.relu(inputs @ tensors["layer0.weight"] + tensors["layer0.bias"])
            out = hidden @ tensors["layer1.weight"] + tensors["layer1.bias"]
            total = total + (out - colour).square().sum()
        return total / 12

    compare(task, loss_of)


def test_what_photos_draw():
    """Pieces lie anywhere in the strip of their split; frequencies have the bandwidth."""
    assert torch.cat([photos(split, torch.float64) for split in SPLITS], 2).shape == (2, 427, 640, 3)
    key = batch_of(3000)
    for split, columns in zip(SPLITS, (384, 128, 128)):
        task = Photo(hidden=(), features=16, split=split, size=100, bandwidth=7.0)
        corner, frequencies, _ = task.init_state(task.init(key), key)
        assert corner.amin(0).tolist() == [0, 0, 0]
        assert corner[:, 0].max() == 1
        assert 320 <= corner[:, 1].max() <= 327
        assert columns - 104 <= corner[:, 2].max() <= columns - 100
        assert float(frequencies.std()) == pytest.approx(7.0, rel=0.02)
        assert float(frequencies.mean()) == pytest.approx(0.0, abs=0.2)


def test_perceptrons_start_as_documented():
    task = DigitsMLP(hidden=(50, 40))
    tensors = task.layout.unravel(task.init(batch_of(20)))
    for name, fan_in in (("layer0.weight", 64), ("layer1.weight", 50), ("layer2.weight", 40)):
        assert float(tensors[name].std()) == pytest.approx(fan_in**-0.5, rel=0.03)
        assert float(tensors[name].mean()) == pytest.approx(0, abs=3e-3)
    assert all((tensor == 0).all() for name, tensor in tensors.items() if name.endswith("bias"))
    assert DigitsMLP().layout.size == 64 * 20 + 20 + 20 * 10 + 10 == 1510


def test_every_step_and_copy_draws_another_minibatch():
    task, key = DigitsMLP(hidden=(2,), minibatch=64), batch_of(2)
    params = task.init(key)[:1].expand(2, -1)
    state, losses = task.init_state(params, key), []
    for _ in range(5):
        value, _, state = task.value_and_grad(params, state)
        losses += value.tolist()
    assert len(set(losses)) == 10


def test_digits_are_those_of_scikit_learn_each_in_one_split():
    """Compared by pixels, not by index, and standardised by the training split."""
    labels = {image.tobytes(): label for image, label in zip(*load_digits(return_X_y=True))}
    parts = [digits(split, torch.float64) for split in SPLITS]
    train = parts[0].inputs
    assert float(train.mean()) == pytest.approx(0, abs=1e-12)
    assert float(train.std(correction=0)) == pytest.approx(1, abs=1e-12)
    step, black = float(train.flatten().unique().diff().min()), float(train.min())  # one grey level, and none
    images = [row.tobytes() for part in parts for row in ((part.inputs - black) / step).round().numpy()]
    assert [labels[image] for image in images] == [label for part in parts for label in part.labels.tolist()]
    assert [len(part.labels) for part in parts] == [1078, 359, 360]
    assert len(set(images)) == 1797


def test_the_text_is_pythons_documentation_split_by_position():
    parts = [topics(split) for split in SPLITS]
    text = "".join(ALPHABET[code] for part in parts for code in part.codes.tolist())
    count = len(text)
    assert [len(part.codes) for part in parts] == pytest.approx([0.8 * count, 0.1 * count, 0.1 * count], abs=1)
    first = chapters[min(chapters)][:200]
    assert text.startswith("".join(c if c in ALPHABET else "?" for c in first))
    assert 300_000 < count < 900_000
    (hashed,) = {part.sha256 for part in parts}
    assert CharGRU().sha256 == CharTransformer(split="test").sha256 == hashed
    assert len(hashed) == 64
    shortest = min(len(part.codes) for part in parts)
    with pytest.raises(ValueError, match=f"^char-gru: length must be below the {shortest} of a split, got {shortest}$"):
        CharGRU(length=shortest)


def test_other_splits_are_not_in_the_training_text():
    """Pieces of 128 characters; boilerplate that recurs within a sentence is shorter."""
    train, *others = (bytes(topics(split).codes.tolist()) for split in SPLITS)
    known = {train[i : i + 128] for i in range(len(train) - 127)}
    for other in others:
        pieces = [other[i : i + 128] for i in range(0, len(other) - 127, 5)]
        assert sum(p in known for p in pieces) <= 0.01 * len(pieces)
