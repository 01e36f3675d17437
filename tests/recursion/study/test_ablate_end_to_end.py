"""Real runs: killed and continued they come to what uninterrupted ones come to, and so they do on a Ray cluster."""

import importlib.util
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from recursion.study.ablate import ablate
from recursion.study.pool import Local, Ray
from recursion.study.request import Budget, Request
from recursion.study.store import Store

REQUEST = Request(
    tower="quadratic: lstm(hidden=4)@5 / adam", depths=(1, 2), seeds=2, budget=Budget(amount=2e6), steps=20, problems=8,
    select=4, snapshots=3, search="grid",
)  # fmt: skip
WORDS = [
    "ablate", REQUEST.tower, "--depths", "1-2", "--seeds", "2", "--budget", "2e6", "--steps", "20", "--problems", "8",
    "--select", "4", "--snapshots", "3", "--workers", "2", "--no-report",
]  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    ablate(REQUEST, folder, pool=Local(2)).close()
    return folder


def found(folder: Path) -> list[tuple[object, ...]]:
    with Store.open(folder, readonly=True) as store:
        return store.repeatable()


@pytest.mark.slow
def test_all_real_runs_end_well(whole: Path) -> None:
    with Store.open(whole, readonly=True) as store:
        assert [record.why for record in store.runs()] == [None] * 6
        for record in store.runs():
            assert len(store.rows(run=record.run.id, stage="chosen", split="report", measure="mean loss")) == 8


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.4, 1.5])
def test_killed_and_continued_it_comes_to_the_same(whole: Path, tmp_path: Path, seconds: float) -> None:
    command = [sys.executable, "-m", "recursion.cli", *WORDS, "--out", str(tmp_path)]
    for _ in range(2):
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
        began, end = time.time(), time.monotonic() + 60
        while time.monotonic() < end and not any(
            path.stat().st_mtime > began for path in tmp_path.glob("runs/*/.lock")
        ):
            time.sleep(0.02)
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        process.wait()
    with Store.open(tmp_path, readonly=True) as store:
        assert len(store.runs("done")) < 6
    assert subprocess.run(command, stderr=subprocess.DEVNULL, check=True).returncode == 0
    assert found(tmp_path) == found(whole)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is an extra")
def test_two_ray_workers_come_to_the_same_seed_by_seed(whole: Path, tmp_path: Path) -> None:
    ablate(REQUEST, tmp_path, pool=Ray("local", workers=2)).close()
    assert found(tmp_path) == found(whole)
