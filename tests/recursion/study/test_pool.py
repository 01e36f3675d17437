"""Pools: what happens is said, what goes wrong stays with its run, and a caller that stops listening stops all."""

import importlib.util
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
from fake_job import PERFORM

from recursion.study import records
from recursion.study.pool import Event, Local, Pool, Ray, events, processors
from recursion.study.request import Request, Run
from recursion.study.worker import Job

Make = Callable[..., Request]
needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is an extra")
SLOW = pytest.mark.slow
POOLS = [Local(2), pytest.param(Ray("local", workers=2), marks=[needs_ray, SLOW])]
WRONG = {
    "kill": "its process was ended by SIGKILL, as the system does when memory runs out; .*",
    "segfault": "its process was ended by SIGSEGV; see output.log in its folder",
    "exit": "its process ended with exit code 3; see output.log in its folder",
}


def job_of(request: Request, folder: Path) -> Job:
    return Job(request, folder, PERFORM)


def sessions(folder: Path, run: Run) -> list[list[int]]:
    """Process id and torch threads of each session."""
    lines = (records.run_folder(folder, run) / "sessions").read_text().splitlines()
    return [[int(word) for word in line.split()] for line in lines]


def ends(found: Sequence[Event]) -> dict[str, str]:
    """Why each run failed, or nothing if it did not, by id."""
    return {event.run.id: event.what for event in found if event.kind in ("done", "failed")}


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize(
    "does", ["kill", *(pytest.param(name, marks=pytest.mark.slow) for name in ("segfault", "exit"))]
)
def test_what_goes_wrong_stays_with_its_run(does: str, pool: Pool, request_of: Make, plan: Callable[..., Path]) -> None:
    request, folder = request_of(baseline=False, seeds=1), plan(depth_1_seed_0=does)
    happened = list(events(pool, request.runs(), job_of(request, folder)))
    found, (wrong, run) = ends(happened), request.runs()
    assert re.fullmatch(WRONG[does], found.pop(wrong.id))
    assert found == {run.id: ""}
    log = (records.run_folder(folder, wrong) / "output.log").read_text()
    assert does != "segfault" or ("Segmentation fault" in log and "in _go_wrong" in log)
    mine = [event for event in happened if event.run == run]
    assert [mine[0].kind, mine[-1].kind] == ["started", "done"]
    assert any(event.what == "counts" and event.fraction > 0 for event in mine)
    ((process, threads),) = sessions(folder, run)
    assert (process == os.getpid(), threads) == (False, 1)
    result = records.result_of(folder, run)
    assert result["about"]["threads"] == 1
    assert (records.run_folder(folder, run) / "output.log").read_text() == f"{run.id} begins\n"


@pytest.mark.slow
@pytest.mark.parametrize("pool", POOLS)
def test_a_caller_that_stops_listening_stops_the_processes(
    pool: Pool, request_of: Make, plan: Callable[..., Path]
) -> None:
    request, folder = request_of(steps=1000), plan()
    happening, moving = events(pool, request.runs(), job_of(request, folder)), dict[str, Run]()
    while len(moving) < 2:
        event = next(happening)
        moving |= {event.run.id: event.run} if event.kind == "at" else {}
    happening.close()  # type: ignore[attr-defined]
    end = time.monotonic() + 20
    for run in moving.values():
        ((process, _),) = sessions(folder, run)
        while Path(f"/proc/{process}").exists() and time.monotonic() < end:
            time.sleep(0.1)
        assert not Path(f"/proc/{process}").exists()
        assert (records.run_folder(folder, run) / "interrupted").exists()
        assert int((records.run_folder(folder, run) / "step").read_text()) > 0


def test_ray_that_is_missing_is_said_in_a_line(
    request_of: Make, plan: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"^Ray is not installed; pip install 'descent-tower\[ray\]'"):
        next(events(Ray(), request_of().runs(), job_of(request_of(), plan())))


@needs_ray
def test_a_cluster_that_is_not_there_is_said_in_a_line(request_of: Make, plan: Callable[..., Path]) -> None:
    with pytest.raises(OSError, match=r"^cannot reach the Ray cluster 127.0.0.1:1: .*refused$"):
        next(events(Ray("127.0.0.1:1"), request_of().runs(), job_of(request_of(), plan())))


def test_workers_are_as_many_as_processors() -> None:
    assert Local().size == processors() == len(os.sched_getaffinity(0))
    assert Local(3).size == 3


def test_a_ray_that_the_caller_started_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Starting it twice is an error, and it is the caller's to end."""
    ray = SimpleNamespace(is_initialized=lambda: True, cluster_resources=lambda: {"CPU": 3.0})
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setitem(sys.modules, "ray.exceptions", SimpleNamespace())
    with Ray("local").connected() as size:
        assert size == 3
