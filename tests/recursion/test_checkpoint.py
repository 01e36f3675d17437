import json
import os
import resource
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from levels import LSTM, SGD, Adam, Level, ModuleTask, Quadratic, Skip
from levels.tree import named_leaves
from recursion import Tower, TowerState, checkpoint
from recursion.files import replace_file

TASK = Quadratic(dims=3)


def small(**settings) -> Tower:
    return Tower(TASK, Level(optimizer=LSTM(hidden=4, layers=1), unroll=5, batch=2), Level(optimizer=Adam(**settings)))


def trained(tower: Tower, steps: int = 3) -> TowerState:
    state = tower.init(0)
    for _ in range(steps):
        state, _ = tower.step(state)
    return state


def assert_same(one: TowerState, other: TowerState) -> None:
    left, right = named_leaves(one), named_leaves(other)
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert tensor.dtype == right[name].dtype, name
        assert tensor.shape == right[name].shape, name
        assert torch.equal(tensor, right[name]), name


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "checkpoint.safetensors"
    checkpoint.save(path, small(), trained(small()), seed=0, extra={"seconds": 1.5})
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
)  # fmt: skip
def test_a_state_comes_back_bit_for_bit(tower: Tower, tmp_path: Path) -> None:
    state = trained(tower)
    path = tmp_path / "c"
    checkpoint.save(path, tower, state, seed=7, extra={"note": "x"})
    for saved in (checkpoint.load(path), checkpoint.load(path, tower)):
        assert_same(saved.state, state)
        assert (repr(saved.tower), saved.seed, saved.extra) == (repr(tower), 7, {"note": "x"})


def test_the_file_is_safetensors_by_dotted_path_and_json(saved: Path) -> None:
    assert load_file(saved).keys() == named_leaves(small().init(0)).keys()
    with safe_open(saved, framework="pt") as file:
        metadata = file.metadata()
    content = json.loads(metadata["content"])
    assert (metadata["format"], metadata["version"]) == ("descent-tower checkpoint", "2")
    assert (content["notation"], content["step"], content["seed"]) == (repr(small()), 3, 0)
    assert content["spec"]["task"]["dims"] == 3


def test_settled_states_are_laid_out_as_loaded_ones() -> None:
    odd = torch.arange(12.0).reshape(3, 4)
    state = trained(small())._replace(theta=odd[1:, 1:])
    calm = checkpoint.settled(state)
    assert torch.equal(calm.theta, odd[1:, 1:])
    for leaf in named_leaves(calm).values():
        assert leaf.is_contiguous()
        assert leaf.storage_offset() == 0


@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.9999])
def test_a_truncated_file_is_refused(saved: Path, share: float) -> None:
    whole = saved.read_bytes()
    saved.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match=r"not a whole file, it is truncated or garbled"):
        checkpoint.load(saved)


@pytest.mark.parametrize("back", [1, 1000])
def test_a_flipped_bit_in_the_numbers_is_refused(saved: Path, back: int) -> None:
    data = bytearray(saved.read_bytes())
    data[-back] ^= 4
    saved.write_bytes(data)
    with pytest.raises(ValueError, match="garbled, its digest"):
        checkpoint.load(saved)


def test_garbage_is_refused(saved: Path) -> None:
    for garbage in (b"not a checkpoint at all", os.urandom(5000), struct.pack("<Q", 2) + b"{}", b"\0" * 100):
        saved.write_bytes(garbage)
        with pytest.raises(ValueError, match=r"truncated or garbled|something else"):
            checkpoint.load(saved)


def test_another_safetensors_file_is_refused(tmp_path: Path) -> None:
    for metadata in (None, {"format": "pt"}):
        save_file({"weight": torch.zeros(3)}, tmp_path / "model", metadata)
        with pytest.raises(
            ValueError, match="is not a checkpoint of a tower, it is a safetensors file of something else"
        ):
            checkpoint.load(tmp_path / "model")


def rewrite(path: Path, metadata: dict[str, str], tensors: dict[str, torch.Tensor] | None = None) -> None:
    """Write the checkpoint again with other metadata or tensors."""
    with safe_open(path, framework="pt") as file:
        old = file.metadata()
    save_file(load_file(path) if tensors is None else tensors, path, {**old, **metadata})


def test_another_version_is_refused(saved: Path) -> None:
    rewrite(saved, {"version": "3"})
    with pytest.raises(ValueError, match=r"version 3, this program reads up to 2; update descent-tower"):
        checkpoint.load(saved)
    rewrite(saved, {"version": "1"})
    with pytest.raises(ValueError, match=r"version 1, this program reads 2; go on with the older program"):
        checkpoint.load(saved)
    rewrite(saved, {"version": "new"})
    with pytest.raises(ValueError, match="metadata is incomplete"):
        checkpoint.load(saved)


def test_another_tower_is_refused_by_both_notations(saved: Path) -> None:
    with pytest.raises(ValueError) as caught:
        checkpoint.load(saved, small(lr=0.5))
    assert f"'{small()}'" in str(caught.value)
    assert f"'{small(lr=0.5)}'" in str(caught.value)


def test_another_nonfinite_policy_is_the_same_tower(saved: Path) -> None:
    tower = small()
    skipping = Tower(tower.task, *(Level(optimizer=level.optimizer, unroll=level.unroll, batch=level.batch,
                                         nonfinite=Skip()) for level in tower.levels))  # fmt: skip
    assert_same(checkpoint.load(saved, skipping).state, trained(tower))


@pytest.mark.parametrize("change", ["shape", "dtype", "missing", "extra"])
def test_tensors_that_do_not_fit_are_refused(tmp_path: Path, change: str) -> None:
    state = trained(small())
    wrong = {
        "shape": state._replace(theta=torch.zeros(5)),
        "dtype": state._replace(theta=state.theta.double()),
        "missing": state._replace(theta=()),
        "extra": state._replace(theta=(state.theta, state.theta)),
    }
    checkpoint.save(tmp_path / "c", small(), wrong[change], seed=0)
    with pytest.raises(ValueError, match=r"does not fit its tower: theta\S* is .* in the file, the tower needs"):
        checkpoint.load(tmp_path / "c")


def modules(units: int) -> Tower:
    data = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
    task = ModuleTask(make=lambda: nn.Linear(2, units), loss_function=nn.functional.mse_loss,
                      train=(data, data[:, :1].repeat(1, units)))  # fmt: skip
    return Tower(task, Level(optimizer=SGD()))


def test_a_tower_without_a_spec_is_compared_by_its_tensors(tmp_path: Path) -> None:
    state = trained(modules(1))
    checkpoint.save(tmp_path / "c", modules(1), state, seed=0)
    assert_same(checkpoint.load(tmp_path / "c", modules(1)).state, state)
    with pytest.raises(ValueError, match="parts of your own"):
        checkpoint.load(tmp_path / "c")
    with pytest.raises(ValueError, match="does not fit"):
        checkpoint.load(tmp_path / "c", modules(2))
    with pytest.raises(ValueError, match="is of the tower"):
        checkpoint.load(tmp_path / "c", small())


def test_missing_files_and_folders_say_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"cannot read .*nothing: No such file"):
        checkpoint.load(tmp_path / "nothing")
    with pytest.raises(IsADirectoryError, match=r"cannot read .*: Is a directory"):
        checkpoint.load(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match=r"cannot write .*file/c: Not a directory"):
        checkpoint.save(tmp_path / "file" / "c", small(), small().init(0), seed=0)


def test_a_path_that_is_a_folder_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(IsADirectoryError, match=r"cannot write .*taken: Is a directory"):
        replace_file(tmp_path / "taken", b"data")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


LIMITED = """
import resource, sys
from pathlib import Path
from recursion.files import replace_file
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
replace_file(Path(sys.argv[1]), b"n" * 5000)
"""


def test_a_file_too_large_keeps_the_old_one(tmp_path: Path) -> None:
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 1000
    path = tmp_path / "kept"
    replace_file(path, b"old" * 2000)
    done = subprocess.run([sys.executable, "-c", LIMITED, str(path)], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1] == f"OSError: cannot write {path}: File too large"
    assert path.read_bytes() == b"old" * 2000
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_an_interrupt_while_writing_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "kept"
    replace_file(path, b"old")

    def interrupt(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        replace_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
