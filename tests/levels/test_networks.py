"""Convolutional networks, character models and photos, each against torch's own modules, copy by copy."""

import math

import pytest
import torch
from draws import batch_of
from sklearn.datasets import load_sample_image
from torch import nn

from levels import CharGRU, CharTransformer, DigitsConvNet, Photo, keys
from levels.tasks.data import ALPHABET
from levels.tasks.data.scikit import digits, photos
from levels.tasks.data.text import topics
from levels.tasks.task import SPLITS
from levels.testing import check_problem


@pytest.mark.parametrize(
    "task",
    [
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


def compare(task, loss_of, steps=2):
    """Loss and gradient of 2 x 2 copies against autograd through ``loss_of(views, state, (i, j))``, over some steps."""
    key = batch_of(2, 2)
    params = task.init(key)
    state = task.init_state(params, keys.fold_in(key, 1))
    for _ in range(steps):
        value, grad, after = task.value_and_grad(params, state)
        for at in ((0, 0), (0, 1), (1, 0), (1, 1)):
            flat = params[at].clone().requires_grad_()
            loss = loss_of(task.layout.unravel(flat), state, at)
            (expected,) = torch.autograd.grad(loss, flat)
            assert float(value[at]) == pytest.approx(loss.item(), rel=1e-10)
            assert torch.allclose(grad[at], expected, rtol=1e-8, atol=1e-12)
        params, state = params - 0.1 * grad, after


def call(module, weights, *inputs):
    """A torch module with these parameters."""
    return torch.func.functional_call(module.double(), weights, inputs)


def test_convnets_equal_conv2d():
    task = DigitsConvNet(channels=(3, 5), minibatch=6, split="test", dtype="float64")
    inputs, labels, _ = digits("test", torch.float64)

    def loss_of(views, state, at):
        rows = keys.integers(keys.fold_in(state.key[at], state.step[at]), (6,), len(labels))
        x = inputs[rows].reshape(6, 1, 8, 8)
        for i, (before, after) in enumerate(((1, 3), (3, 5))):
            weight, bias = views[f"conv{i}.weight"], views[f"conv{i}.bias"]
            kernel = torch.stack([weight[..., k] for k in range(after)])
            assert kernel.shape == (after, before, 3, 3)
            x = torch.relu(call(nn.Conv2d(before, after, 3, 2, 1), {"weight": kernel, "bias": bias}, x))
        logits = x.flatten(1) @ views["dense.weight"] + views["dense.bias"]
        return nn.functional.cross_entropy(logits, labels[rows])

    compare(task, loss_of)


def piece(task, state, at):
    """What a character model reads and is to say, cut from the text by hand."""
    codes = topics(task.split).codes
    starts = keys.integers(
        keys.fold_in(state.key[at], state.step[at]), (task.minibatch,), len(codes) - task.length
    ).tolist()
    rows = torch.stack([codes[s : s + task.length + 1] for s in starts])
    return rows[:, :-1], rows[:, 1:]


def test_the_recurrent_model_equals_nn_gru():
    task = CharGRU(width=5, length=6, minibatch=3, split="validation", dtype="float64")

    def loss_of(views, state, at):
        read, said = piece(task, state, at)
        weights = {
            "weight_ih_l0": views["gates.embedding"].T,
            "weight_hh_l0": views["state.weight"].T,
            "bias_ih_l0": torch.zeros(15, dtype=torch.float64),
            "bias_hh_l0": views["state.bias"],
        }
        one_hot = nn.functional.one_hot(read, len(ALPHABET)).double()
        states, _ = call(nn.GRU(len(ALPHABET), 5, batch_first=True), weights, one_hot)
        logits = states @ views["out.weight"] + views["out.bias"]
        return nn.functional.cross_entropy(logits.flatten(0, 1), said.flatten())

    compare(task, loss_of)


def test_the_transformer_equals_nn_transformer_encoder_layer():
    task = CharTransformer(width=6, heads=2, blocks=2, length=5, minibatch=3, dtype="float64")
    names = {"norm0.scale": "norm1.weight", "norm0.shift": "norm1.bias", "mix.weight": "self_attn.in_proj_weight",
             "mix.bias": "self_attn.in_proj_bias", "join.weight": "self_attn.out_proj.weight",
             "join.bias": "self_attn.out_proj.bias", "norm1.scale": "norm2.weight", "norm1.shift": "norm2.bias",
             "up.weight": "linear1.weight", "up.bias": "linear1.bias", "down.weight": "linear2.weight",
             "down.bias": "linear2.bias"}  # fmt: skip
    mask = nn.Transformer.generate_square_subsequent_mask(5, dtype=torch.float64)

    def loss_of(views, state, at):
        read, said = piece(task, state, at)
        x = views["token.embedding"][read] + views["place.embedding"]
        for i in range(2):
            layer = nn.TransformerEncoderLayer(6, 2, 24, 0.0, "gelu", batch_first=True, norm_first=True)
            weights = {theirs: views[f"block{i}.{ours}"] for ours, theirs in names.items()}
            weights = {name: value.T if value.dim() == 2 else value for name, value in weights.items()}
            x = torch.func.functional_call(layer.double(), weights, (x,), {"src_mask": mask})
        x = nn.functional.layer_norm(x, (6,), views["norm.scale"], views["norm.shift"])
        logits = x @ views["out.weight"] + views["out.bias"]
        return nn.functional.cross_entropy(logits.flatten(0, 1), said.flatten())

    compare(task, loss_of)


@pytest.mark.parametrize("model", [CharGRU, CharTransformer])
def test_models_do_not_see_the_future(model):
    task = model(width=6, length=8, minibatch=1, dtype="float64")
    views = task.layout.unravel(task.init(keys.seed(0)))
    read = torch.arange(8)[None]
    other = read.clone()
    other[0, 5] = 50
    before, after = task.logits(views, read), task.logits(views, other)
    assert torch.equal(before[:5], after[:5])
    assert (before[5:] != after[5:]).any(-1).all()


def test_the_text_is_pythons_documentation_split_by_position():
    from pydoc_data.topics import topics as chapters

    parts = [topics(split) for split in SPLITS]
    text = "".join(ALPHABET[code] for part in parts for code in part.codes.tolist())
    count = len(text)
    assert [len(part.codes) for part in parts] == pytest.approx([0.8 * count, 0.1 * count, 0.1 * count], abs=1)
    first = chapters[min(chapters)][:200]
    assert text.startswith("".join(c if c in ALPHABET else "?" for c in first))
    assert 300_000 < count < 900_000
    assert len({part.sha256 for part in parts}) == 1
    assert CharGRU().sha256 == CharTransformer(split="test").sha256 == parts[0].sha256
    assert len(parts[0].sha256) == 64


def test_what_is_held_out_is_not_in_the_training_text():
    """Pieces of 128 characters; boilerplate that recurs within a sentence is shorter."""
    train, *others = (bytes(topics(split).codes.tolist()) for split in SPLITS)
    known = {train[i : i + 128] for i in range(len(train) - 127)}
    for other in others:
        pieces = [other[i : i + 128] for i in range(0, len(other) - 127, 5)]
        assert sum(p in known for p in pieces) <= 0.01 * len(pieces)


def test_photos_by_hand():
    task = Photo(hidden=(5,), features=3, size=20, minibatch=4, split="test", dtype="float64")
    images = [torch.tensor(load_sample_image(name)) for name in ("china.jpg", "flower.jpg")]

    def loss_of(views, state, at):
        photo, top, left = state.corner[at].tolist()
        cursor = state.cursor
        pixels = keys.integers(keys.fold_in(cursor.key[at], cursor.step[at]), (4,), 400).tolist()
        total = 0.0
        for pixel in pixels:
            row, column = divmod(pixel, 20)
            colour = images[photo][top + row, 512 + left + column].double() / 127.5 - 1
            place = torch.tensor([row / 20, column / 20], dtype=torch.float64)
            phase = 2 * math.pi * place @ state.frequencies[at]
            hidden = torch.relu(torch.cat((phase.cos(), phase.sin())) @ views["layer0.weight"] + views["layer0.bias"])
            out = hidden @ views["layer1.weight"] + views["layer1.bias"]
            total = total + (out - colour).square().sum()
        return total / 12

    compare(task, loss_of)


def test_pieces_of_photos_lie_anywhere_in_the_strip_of_their_split():
    assert torch.cat([photos(split, torch.float64) for split in SPLITS], 2).shape == (2, 427, 640, 3)
    key = batch_of(3000)
    for split, columns in zip(SPLITS, (384, 128, 128)):
        task = Photo(hidden=(), features=1, split=split, size=100)
        corner = task.init_state(task.init(key), key).corner
        assert corner.amin(0).tolist() == [0, 0, 0]
        assert corner[:, 0].max() == 1
        assert 320 <= corner[:, 1].max() <= 327
        assert columns - 104 <= corner[:, 2].max() <= columns - 100


def test_frequencies_have_the_bandwidth():
    task = Photo(hidden=(), bandwidth=7.0)
    key = batch_of(500)
    drawn = task.init_state(task.init(key), key).frequencies
    assert float(drawn.std()) == pytest.approx(7.0, rel=0.02)
    assert float(drawn.mean()) == pytest.approx(0.0, abs=0.2)


def test_a_piece_longer_than_the_text():
    shortest = min(len(topics(split).codes) for split in SPLITS)
    with pytest.raises(ValueError, match=f"^char-gru: length must be below the {shortest} of a split, got {shortest}$"):
        CharGRU(length=shortest)


def test_variants():
    assert DigitsConvNet().variants()["twice the channels"] == DigitsConvNet(channels=(16, 32))
    assert CharGRU(split="test").variants()["64 units"] == CharGRU(width=64, split="test")
    assert CharTransformer().variants()["64 characters"] == CharTransformer(length=64)
    assert Photo().variants()["64 features"] == Photo(features=64)
    assert DigitsConvNet(channels=()).variants() == {}
    assert DigitsConvNet(channels=5) == DigitsConvNet(channels=[5])
    assert Photo(hidden=5) == Photo(hidden=[5])
