"""Pools: what happens is said, what goes wrong stays with its run, and a caller that stops listening stops all."""

import importlib.util
import os
import re
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from fake_job import PERFORM

from recursion.study import records
from recursion.study.job import Job
from recursion.study.pool import Local, Ray, events, processors

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is an extra")
SLOW = pytest.mark.slow
POOLS = [Local(2), pytest.param(Ray("local", workers=2), marks=[needs_ray, SLOW])]
WRONG = {
    "kill": "its process was ended by SIGKILL, as the system does when memory runs out; .*",
    "segfault": "its process was ended by SIGSEGV; see output.log in its folder",
    "exit": "its process ended with exit code 3; see output.log in its folder",
}


def happening(pool, request, folder):
    return events(pool, request.runs(), Job(request, folder, PERFORM))


def sessions(folder, run):
    """Process id and torch threads of each session."""
    lines = (records.run_folder(folder, run) / "sessions").read_text().splitlines()
    return [[int(word) for word in line.split()] for line in lines]


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("does", ["kill", *(pytest.param(name, marks=SLOW) for name in ("segfault", "exit"))])
def test_what_goes_wrong_stays_with_its_run(does, pool, request_of, plan):
    request, folder = request_of(baseline=False, seeds=1), plan(depth_1_seed_0=does)
    happened, (wrong, run) = list(happening(pool, request, folder)), request.runs()
    ends = {event.run: event.what for event in happened if event.kind in ("done", "failed")}
    assert re.fullmatch(WRONG[does], ends.pop(wrong))
    assert ends == {run: ""}
    logs = [(records.run_folder(folder, each) / "output.log").read_text() for each in (wrong, run)]
    assert does != "segfault" or ("Segmentation fault" in logs[0] and "in _go_wrong" in logs[0])
    assert logs[1] == f"{run.id} begins\n"
    mine = [event for event in happened if event.run == run]
    assert [mine[0].kind, mine[-1].kind] == ["started", "done"]
    assert any(event.what == "counts" and event.fraction > 0 for event in mine)
    ((process, threads),) = sessions(folder, run)
    assert (process == os.getpid(), threads) == (False, 1)
    assert records.result_of(folder, run)["about"]["threads"] == 1


@SLOW
@pytest.mark.parametrize("pool", POOLS)
def test_a_caller_that_stops_listening_stops_the_processes(pool, request_of, plan):
    request, folder = request_of(steps=1000), plan()
    under_way, moving = happening(pool, request, folder), {}
    while len(moving) < 2:
        event = next(under_way)
        moving |= {event.run.id: event.run} if event.kind == "at" else {}
    under_way.close()
    end = time.monotonic() + 20
    for run in moving.values():
        ((process, _),), place = sessions(folder, run), records.run_folder(folder, run)
        while Path(f"/proc/{process}").exists():
            assert time.monotonic() < end
            time.sleep(0.1)
        assert (place / "interrupted").exists()
        assert int((place / "step").read_text()) > 0


def test_ray_that_is_missing_is_said_in_a_line(request_of, plan, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"^Ray is not installed; pip install 'descent-tower\[ray\]'"):
        next(happening(Ray(), request_of(), plan()))


@needs_ray
def test_a_cluster_that_is_not_there_is_said_in_a_line(request_of, plan):
    with pytest.raises(OSError, match=r"^cannot reach the Ray cluster 127.0.0.1:1: .*refused$"):
        next(happening(Ray("127.0.0.1:1"), request_of(), plan()))


def test_workers_are_as_many_as_processors_and_a_ray_that_the_caller_started_is_left_as_it_is(monkeypatch):
    """Starting it twice is an error, and it is the caller's to end."""
    assert Local().size == processors() == len(os.sched_getaffinity(0))
    assert Local(3).size == 3
    ray = SimpleNamespace(is_initialized=lambda: True, cluster_resources=lambda: {"CPU": 3.0})
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setitem(sys.modules, "ray.exceptions", SimpleNamespace())
    with Ray("local").connected() as size:
        assert size == 3
