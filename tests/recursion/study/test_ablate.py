"""A study as a whole: what is carried out, stored, refused and tried again. With a fake job, but for the last tests."""

import functools
import importlib.util
import json
import signal
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import pytest
from fake_job import PERFORM, Here

from recursion.study import Local, Ray
from recursion.study.pool import ablate
from recursion.study.request import Budget, Request, plain
from recursion.study.results import load

DRIVER = f"""
import json, sys
from recursion.study import Local, Request, ablate
try:
    ablate(Request.from_json(json.loads(sys.argv[1])), sys.argv[2], pool=Local(2), perform="{PERFORM}")
except KeyboardInterrupt:
    sys.exit(130)
"""


def run(request, folder, **settings):
    """Drive a study here; what happened."""
    events = []
    ablate(request, folder, **{"pool": Here(), "perform": PERFORM, "on_event": events.append} | settings)
    return [event for event in events if event.kind != "at"]


def statuses(folder):
    return load(folder).runs.set_index("run").status.to_dict()


def test_all_runs_are_carried_out_once(request_of, plan):
    request, folder, begun = request_of(), plan(), []
    events = run(request, folder, argv=["tower", "ablate"], on_begin=begun.append)
    assert begun == [dict.fromkeys((one.id for one in request.runs()), "waiting")]
    assert [event.kind for event in events] == ["started", "done"] * 6
    results = load(folder)
    assert (set(results.runs["status"]), len(results.rows), results.argv) == ({"done"}, 18, ["tower", "ablate"])
    assert results.runs["facts"][0] == {"steps": 20, "budget": "10000"}
    assert run(request, folder) == []
    assert load(folder).repeatable() == results.repeatable()


def test_a_failing_run_says_why_and_is_tried_again_when_asked(request_of, plan):
    request, folder = request_of(), plan(depth_2_seed_0="refuse", depth_1_seed_1="raise")
    run(request, folder)
    failed = load(folder).runs.query("status == 'failed'")
    assert dict(zip(failed["run"], failed["why"])) == {
        "depth-2-seed-0": "level 1 (lstm@5): gradient is not finite",
        "depth-1-seed-1": "ZeroDivisionError: a bug in two lines",
    }
    plan()
    assert run(request, folder) == []  # they stay as they are
    assert {event.run.id for event in run(request, folder, retry=True)} == set(failed["run"])
    assert set(statuses(folder).values()) == {"done"}


def test_another_request_is_refused_with_the_field_that_differs_and_a_missing_optuna(request_of, plan, monkeypatch):
    folder = plan()
    run(request_of(seeds=1), folder)
    before = load(folder).repeatable()
    with pytest.raises(ValueError, match=rf"^{folder} is of another study: its budget is '10000', got '20000'; choose"):
        run(request_of(seeds=1, budget=Budget(amount=2e4)), folder)
    with pytest.raises(ValueError, match=r"its grid is \[\], got \[\['lr', \['0.1'\]\]\]; choose"):
        run(request_of(seeds=1, grid=(("lr", ("0.1",)),)), folder)
    assert load(folder).repeatable() == before
    monkeypatch.setattr(import_module("recursion.study.pool"), "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"^optuna is not installed; pip install 'descent-tower\[tune\]'"):
        run(request_of(search="optuna"), folder / "new")
    assert not (folder / "new").exists(), "said before anything runs"


def test_a_full_disk_ends_it_in_a_line_and_loses_nothing(request_of, plan):
    request, folder = request_of(), plan(depth_1_seed_1="full")
    with pytest.raises(OSError, match=r"^depth-1-seed-1: cannot write .*: No space left on device; what was found"):
        run(request, folder)
    stood = statuses(folder)
    assert [stood[key] for key in ("depth-1-seed-0", "depth-2-seed-0", "baseline-seed-0")] == ["done"] * 3
    assert "failed" not in stood.values()
    plan()
    run(request, folder)
    assert set(statuses(folder).values()) == {"done"}


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
def test_a_driver_that_ends_takes_its_processes_with_it(sent, request_of, plan):
    request, folder = request_of(steps=3000), plan()
    here = {"PYTHONPATH": ":".join(filter(None, [str(Path(__file__).parent), *sys.path])), "PATH": "/usr/bin:/bin"}
    words = [sys.executable, "-c", DRIVER, json.dumps(plain(request)), str(folder)]

    def alive():
        """Processes that have worked in the folder and have not ended."""
        lines = [line for path in folder.glob("runs/*/sessions") for line in path.read_text().splitlines()]
        return [process for process in {int(line.split()[0]) for line in lines} if Path(f"/proc/{process}").exists()]

    with subprocess.Popen(words, env=here) as process:
        try:
            wait_for(lambda: len(list(folder.glob("runs/*/step"))) == 2)
            assert len(alive()) == 2
            with pytest.raises(OSError, match=f"^another study is at work in {folder}; wait for it, or stop it$"):
                run(request, folder)
            process.send_signal(sent)
            assert process.wait(20) == (130 if sent == signal.SIGINT else -signal.SIGKILL)
        finally:
            process.kill()
    wait_for(lambda: alive() == [], 20)
    under_way = [key for key, status in statuses(folder).items() if status == "running"]
    assert len(under_way) == 2
    assert all((folder / "runs" / key / "interrupted").exists() for key in under_way)


REAL = Request(tower="quadratic: lstm(hidden=4)@5 / adam", depths=(1, 2), seeds=1, budget=Budget(amount=2e6), steps=20,
               problems=8, select=4, snapshots=3)  # fmt: skip


@functools.cache
def whole(folder):
    ablate(REAL, folder, pool=Local(2))
    return load(folder)


@pytest.mark.slow
def test_killed_and_continued_it_comes_to_the_same(tmp_path, tmp_path_factory):
    results = whole(tmp_path_factory.getbasetemp() / "whole")
    assert set(results.runs.status) == {"done"}
    options = "--depths 1-2 --seeds 1 --budget 2e6 --steps 20 --problems 8 --select 4 --snapshots 3 --workers 2"
    words = ["study", REAL.tower, *options.split(), "--no-report", "--out", str(tmp_path)]
    command = [sys.executable, "-m", "recursion.cli", *words]
    for seconds in (0.4, 1.5):
        began = time.time()
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
            wait_for(lambda began=began: any(p.stat().st_mtime > began for p in tmp_path.glob("runs/*/.lock")))
            time.sleep(seconds)
            process.kill()
    assert sum(status == "done" for status in statuses(tmp_path).values()) < 3
    subprocess.run(command, stderr=subprocess.DEVNULL, check=True)
    assert load(tmp_path).repeatable() == results.repeatable()


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is an extra")
def test_two_ray_workers_come_to_the_same_seed_by_seed(tmp_path, tmp_path_factory):
    ablate(REAL, tmp_path, pool=Ray("local", workers=2))
    assert load(tmp_path).repeatable() == whole(tmp_path_factory.getbasetemp() / "whole").repeatable()
