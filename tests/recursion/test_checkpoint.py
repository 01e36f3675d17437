"""Checkpoints come back bit for bit, or are refused in one sentence; files are replaced whole."""

import json
import os
import struct

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from towers import after, assert_same

from levels import LSTM, SGD, Adam, Level, ModuleTask, Quadratic, Skip
from levels.tree import named_leaves
from recursion import Tower, checkpoint
from recursion.files import replace_file

TASK = Quadratic(dims=3)


def small(nonfinite=None, **settings):
    more = {} if nonfinite is None else {"nonfinite": nonfinite}
    bottom = Level(optimizer=LSTM(hidden=4, layers=1), unroll=5, batch=2, **more)
    return Tower(TASK, bottom, Level(optimizer=Adam(**settings), **more))


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    checkpoint.save(path, small(), after(small(), 3), seed=0, extra={"seconds": 1.5})
    return path


@pytest.mark.parametrize(
    "tower",
    [
        small(),
        Tower(TASK, Level(optimizer=SGD())),  # a state without tensors of its own
        Tower(TASK, *(Level(optimizer=SGD(momentum=0.9), unroll=unroll) for unroll in (2, 3, 1))),
        Tower(Quadratic(dims=2, dtype="float64"), Level(optimizer=SGD()), Level(optimizer=SGD())),
    ],
    ids=str,
)
def test_a_state_comes_back_bit_for_bit(tower, tmp_path):
    state = after(tower, 3)
    checkpoint.save(tmp_path / "c", tower, state, seed=7, extra={"note": "x"})
    for back in (checkpoint.load(tmp_path / "c"), checkpoint.load(tmp_path / "c", tower)):
        assert_same(back.state, state)
        assert (repr(back.tower), back.seed, back.extra) == (repr(tower), 7, {"note": "x"})


def test_the_file_is_safetensors_by_dotted_path_and_json(saved):
    assert load_file(saved).keys() == named_leaves(small().init(0)).keys()
    with safe_open(saved, framework="pt") as file:
        metadata = file.metadata()
    content = json.loads(metadata["content"])
    assert (metadata["format"], metadata["version"]) == ("descent-tower checkpoint", "2")
    assert (content["notation"], content["step"], content["seed"]) == (repr(small()), 3, 0)
    assert content["spec"]["task"]["dims"] == 3


NOT_WHOLE = r"is not a whole file, it is truncated or garbled|is not a checkpoint .*safetensors file of something else"


@pytest.mark.parametrize(("damage", "sentence"), [
    *((lambda whole, share=share: whole[: int(share * len(whole))], NOT_WHOLE) for share in (0, 0.01, 0.5, 0.9999)),
    (lambda whole: whole[:-1] + bytes([whole[-1] ^ 4]), "garbled, its digest"),
    (lambda whole: whole[:-1000] + bytes([whole[-1000] ^ 4]) + whole[-999:], "garbled, its digest"),
    *((lambda _, junk=junk: junk, NOT_WHOLE) for junk in (b"not a checkpoint", os.urandom(5000), b"\0" * 100)),
    (lambda _: struct.pack("<Q", 2) + b"{}", NOT_WHOLE),
    (lambda whole: whole.replace(b'"version":"2"', b'"version":"3"'),
     "checkpoint version 3, this program reads up to 2; update descent-tower"),
    (lambda whole: whole.replace(b'"version":"2"', b'"version":"1"'),
     "checkpoint version 1, this program reads 2; go on with the older program"),
    (lambda whole: whole.replace(b'"version":"2"', b'"version":"x"'), "garbled, its metadata is incomplete"),
])  # fmt: skip
def test_a_damaged_file_and_another_version_are_refused(damage, sentence, saved):
    saved.write_bytes(damage(saved.read_bytes()))
    with pytest.raises(ValueError, match=sentence):
        checkpoint.load(saved)


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_another_safetensors_file_is_refused(metadata, tmp_path):
    save_file({"weight": torch.zeros(3)}, tmp_path / "model", metadata)
    with pytest.raises(ValueError, match="is not a checkpoint of a tower, it is a safetensors file of something else"):
        checkpoint.load(tmp_path / "model")


def test_another_tower_is_refused_by_both_notations_but_not_for_its_policy(saved):
    with pytest.raises(ValueError) as caught:
        checkpoint.load(saved, small(lr=0.5))
    assert f"'{small()}'" in str(caught.value)
    assert f"'{small(lr=0.5)}'" in str(caught.value)
    assert_same(checkpoint.load(saved, small(Skip())).state, after(small(), 3))


@pytest.mark.parametrize("wrong", [
    lambda theta: torch.zeros(5), lambda theta: theta.double(), lambda theta: (), lambda theta: (theta, theta),
], ids=["shape", "dtype", "missing", "extra"])  # fmt: skip
def test_tensors_that_do_not_fit_are_refused(wrong, tmp_path):
    state = after(small(), 1)
    checkpoint.save(tmp_path / "c", small(), state._replace(theta=wrong(state.theta)), seed=0)
    with pytest.raises(ValueError, match=r"does not fit its tower: theta\S* is .* in the file, the tower needs"):
        checkpoint.load(tmp_path / "c")


def test_a_tower_without_a_spec_is_compared_by_its_tensors(tmp_path):
    def modules(units):
        data = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
        task = ModuleTask(make=lambda: nn.Linear(2, units), loss_function=nn.functional.mse_loss,
                          train=(data, data[:, :1].repeat(1, units)))  # fmt: skip
        return Tower(task, Level(optimizer=SGD()))

    state = after(modules(1), 3)
    checkpoint.save(tmp_path / "c", modules(1), state, seed=0)
    assert_same(checkpoint.load(tmp_path / "c", modules(1)).state, state)
    for tower, sentence in ((None, "parts of your own"), (modules(2), "does not fit"), (small(), "is of the tower")):
        with pytest.raises(ValueError, match=sentence):
            checkpoint.load(tmp_path / "c", tower)


def test_missing_files_and_folders_say_so_and_nothing_is_left_behind(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"cannot read .*nothing: No such file"):
        checkpoint.load(tmp_path / "nothing")
    with pytest.raises(IsADirectoryError, match=r"cannot read .*: Is a directory"):
        checkpoint.load(tmp_path)
    with pytest.raises(IsADirectoryError, match=r"cannot write .*: Is a directory"):
        replace_file(tmp_path, b"data")
    assert list(tmp_path.parent.glob(".*.tmp")) == list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match=r"cannot write .*file/c: Not a directory"):
        checkpoint.save(tmp_path / "file" / "c", small(), small().init(0), seed=0)


def test_an_interrupt_while_writing_keeps_the_old_file(tmp_path, monkeypatch):
    def interrupt(descriptor):
        raise KeyboardInterrupt

    replace_file(tmp_path / "one", b"old")
    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        replace_file(tmp_path / "one", b"new")
    assert (tmp_path / "one").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["one"]
