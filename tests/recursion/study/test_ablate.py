"""A study as a whole: what is carried out, kept, refused and tried again; with a fake job."""

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path

import pytest
from fake_job import PERFORM, Here

from recursion.study import records
from recursion.study.ablate import ablate
from recursion.study.pool import Event
from recursion.study.request import Budget, Request, plain
from recursion.study.results import Results, load

Make = Callable[..., Request]
Drive = Callable[[Request, Path], "subprocess.Popen[str]"]
DRIVER = f"""
import json, sys
from pathlib import Path
from recursion.study import Local, Request, ablate
say = lambda event: print(event.kind, event.run.id, flush=True)
try:
    ablate(Request.from_json(json.loads(sys.argv[1])), sys.argv[2], pool=Local(2), perform="{PERFORM}", on_event=say)
except KeyboardInterrupt:
    sys.exit(130)
"""


def run(request: Request, folder: Path, **settings: object) -> list[Event]:
    """Drive a study here; what happened."""
    events: list[Event] = []
    ablate(request, folder, **{"pool": Here(), "perform": PERFORM, "on_event": events.append, **settings})  # type: ignore[arg-type]
    return [event for event in events if event.kind != "at"]


def statuses(found: Results) -> dict[str, str]:
    return dict(zip(found.runs["run"], found.runs["status"]))


def test_all_runs_are_carried_out_once(request_of: Make, plan: Callable[..., Path]) -> None:
    request, folder, begun = request_of(), plan(), list[dict[str, str]]()
    events = run(request, folder, argv=["tower", "ablate"], on_begin=begun.append)
    assert begun == [dict.fromkeys((one.id for one in request.runs()), "waiting")]
    assert [event.kind for event in events] == ["started", "done"] * 6
    found = load(folder)
    assert (set(found.runs["status"]), len(found.rows), found.argv) == ({"done"}, 18, ["tower", "ablate"])
    assert found.runs["facts"][0] == {"steps": 20, "budget": "10000"}
    assert run(request, folder) == []
    assert load(folder).repeatable() == found.repeatable()


def test_a_failing_run_says_why_and_is_tried_again_when_asked(request_of: Make, plan: Callable[..., Path]) -> None:
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
    assert set(load(folder).runs["status"]) == {"done"}


def test_another_request_is_refused_with_the_field_that_differs(request_of: Make, plan: Callable[..., Path]) -> None:
    folder = plan()
    run(request_of(seeds=1), folder)
    before = load(folder).repeatable()
    with pytest.raises(ValueError, match=rf"^{folder} is of another study: its budget is '10000', got '20000'; choose"):
        run(request_of(seeds=1, budget=Budget(amount=2e4)), folder)
    with pytest.raises(ValueError, match=r"its grid is \[\], got \[\['lr', \['0.1'\]\]\]; choose"):
        run(request_of(seeds=1, grid=(("lr", ("0.1",)),)), folder)
    assert load(folder).repeatable() == before


def test_a_missing_optuna_is_said_before_anything_runs(
    request_of: Make, plan: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(import_module("recursion.study.ablate"), "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"^optuna is not installed; pip install 'descent-tower\[tune\]'"):
        run(request_of(search="optuna"), plan())
    assert not (plan() / records.STUDY).exists()


def test_a_full_disk_ends_it_in_a_line_and_loses_nothing(request_of: Make, plan: Callable[..., Path]) -> None:
    request, folder = request_of(), plan(depth_1_seed_1="full")
    with pytest.raises(OSError, match=r"^depth-1-seed-1: cannot write .*: No space left on device; what was found"):
        run(request, folder)
    stood = statuses(load(folder))
    assert [stood[key] for key in ("depth-1-seed-0", "depth-2-seed-0", "baseline-seed-0")] == ["done"] * 3
    assert "failed" not in stood.values()
    plan()
    run(request, folder)
    assert set(statuses(load(folder)).values()) == {"done"}


@pytest.fixture
def drive() -> Iterator[Drive]:
    """Starts a process that drives a study of the fake job, and says what happens on its stdout."""
    started: list[subprocess.Popen[str]] = []

    def start(request: Request, out: Path) -> "subprocess.Popen[str]":
        here = {"PYTHONPATH": ":".join(filter(None, [str(Path(__file__).parent), *sys.path])), "PATH": "/usr/bin:/bin"}
        words = [sys.executable, "-c", DRIVER, json.dumps(plain(request)), str(out)]
        started.append(subprocess.Popen(words, env=here, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def alive(folder: Path) -> list[int]:
    """Processes that have worked in the folder and have not ended."""
    lines = [line for path in folder.glob("runs/*/sessions") for line in path.read_text().splitlines()]
    return [process for process in {int(line.split()[0]) for line in lines} if Path(f"/proc/{process}").exists()]


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
def test_a_driver_that_ends_takes_its_processes_with_it(
    sent: int, request_of: Make, plan: Callable[..., Path], drive: Drive
) -> None:
    request, folder = request_of(steps=3000), plan()
    process = drive(request, folder)
    wait_for(lambda: len(list(folder.glob("runs/*/step"))) == 2)
    assert len(alive(folder)) == 2
    with pytest.raises(OSError, match=f"^another study is at work in {folder}; wait for it, or stop it$"):
        run(request, folder)
    process.send_signal(sent)
    assert process.wait(20) == (130 if sent == signal.SIGINT else -signal.SIGKILL)
    wait_for(lambda: alive(folder) == [], 20)
    under_way = [key for key, status in statuses(load(folder)).items() if status == "running"]
    assert len(under_way) == 2
    assert all((folder / "runs" / key / "interrupted").exists() for key in under_way)


@pytest.mark.slow
def test_killed_at_random_moments_it_comes_to_the_same(
    request_of: Make, plan: Callable[..., Path], drive: Drive, tmp_path: Path
) -> None:
    request, folder, moments = request_of(steps=60), plan(), random.Random(5)
    run(request, tmp_path / "whole")
    for _ in range(3):
        process = drive(request, folder)
        assert process.stdout is not None
        assert any(line.startswith("at") for line in process.stdout)
        time.sleep(moments.uniform(0, 0.5))
        process.kill()
        process.wait()
    run(request, folder)
    assert load(folder).repeatable() == load(tmp_path / "whole").repeatable()
    assert sum(len(path.read_text().splitlines()) for path in folder.glob("runs/*/sessions")) > 6
