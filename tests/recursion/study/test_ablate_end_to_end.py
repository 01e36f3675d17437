"""Real runs: killed and continued they find what uninterrupted ones find, and so they do on a Ray cluster."""

import importlib.util
import subprocess
import sys
import time
from pathlib import Path

import pytest

from recursion.study import Budget, Local, Ray, Request, ablate
from recursion.study.results import load

REQUEST = Request(
    tower="quadratic: lstm(hidden=4)@5 / adam", depths=(1, 2), seeds=1, budget=Budget(amount=2e6), steps=20, problems=8,
    select=4, snapshots=3,
)  # fmt: skip
WORDS = [
    "study", REQUEST.tower, "--depths", "1-2", "--seeds", "1", "--budget", "2e6", "--steps", "20", "--problems", "8",
    "--select", "4", "--snapshots", "3", "--workers", "2", "--no-report",
]  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    ablate(REQUEST, folder, pool=Local(2))
    return folder


@pytest.mark.slow
def test_killed_and_continued_it_comes_to_the_same(whole: Path, tmp_path: Path) -> None:
    assert set(load(whole).runs.status) == {"done"}
    command = [sys.executable, "-m", "recursion.cli", *WORDS, "--out", str(tmp_path)]
    for seconds in (0.4, 1.5):
        process, began, end = subprocess.Popen(command, stderr=subprocess.DEVNULL), time.time(), time.monotonic() + 60
        while time.monotonic() < end and not any(
            path.stat().st_mtime > began for path in tmp_path.glob("runs/*/.lock")
        ):
            time.sleep(0.02)
        time.sleep(seconds)
        process.kill()
        process.wait()
    assert sum(load(tmp_path).runs.status == "done") < 3
    subprocess.run(command, stderr=subprocess.DEVNULL, check=True)
    assert load(tmp_path).repeatable() == load(whole).repeatable()


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is an extra")
def test_two_ray_workers_come_to_the_same_seed_by_seed(whole: Path, tmp_path: Path) -> None:
    ablate(REQUEST, tmp_path, pool=Ray("local", workers=2))
    assert load(tmp_path).repeatable() == load(whole).repeatable()
