import importlib.util
import os
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from fake_job import NAME

from recursion.study import pool as pools
from recursion.study.pool import Event, Failed, Finished, Local, Pool, Progress, Ray, Started
from recursion.study.request import Request, Run
from recursion.study.worker import Job, read_result, run_folder, write_result

Make = Callable[..., Request]
needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is an extra")


def carried_out(pool: Pool, request: Request, folder: Path) -> list[Event]:
    return list(pool.events(request.runs(), Job(request.to_json(), str(folder), NAME)))


def sessions(folder: Path, run: Run) -> list[list[int]]:
    """Process id and torch threads of each session."""
    lines = (run_folder(folder, run) / "sessions").read_text().splitlines()
    return [[int(word) for word in line.split()] for line in lines]


def ends(events: Sequence[Event]) -> dict[str, str | None]:
    """Why each run failed, or None if it did not, by id."""
    return {event.run.id: event.why if isinstance(event, Failed) else None
            for event in events if isinstance(event, (Failed, Finished))}  # fmt: skip


def test_processes_persist_and_have_one_thread(request_of: Make, plan: Callable[..., Path]) -> None:
    request, folder = request_of(seeds=2), plan()
    events = carried_out(Local(2), request, folder)
    assert ends(events) == dict.fromkeys((run.id for run in request.runs()), None)
    found = [session for run in request.runs() for session in sessions(folder, run)]
    assert len(found) == 6
    assert len({process for process, _ in found}) == 2
    assert {threads for _, threads in found} == {1}
    for run in request.runs():
        mine = [event for event in events if event.run == run]
        assert isinstance(mine[0], Started)
        assert any(isinstance(event, Progress) and event.what == "counts" for event in mine[1:-1])
        result = read_result(run_folder(folder, run), run, request.to_json())
        assert result is not None
        assert result["about"]["threads"] == 1
        assert (run_folder(folder, run) / "output.log").read_text() == f"{run.id} begins\n"


WRONG = {
    "depth_1_seed_0": ("raise", "ZeroDivisionError: a bug in two lines"),
    "depth_2_seed_0": ("kill", "its process was ended by SIGKILL, as the system does when memory runs out; .*"),
    "depth_1_seed_1": ("segfault", "its process was ended by SIGSEGV; see output.log in its folder"),
    "depth_2_seed_1": ("memory", "MemoryError"),
    "baseline_seed_0": ("exit", "its process ended with exit code 3; see output.log in its folder"),
    "baseline_seed_1": ("refuse", r"level 1 \(lstm@5\): gradient is not finite"),
}


def test_what_goes_wrong_is_said_and_the_others_go_on(request_of: Make, plan: Callable[..., Path]) -> None:
    folder = plan(**{run: does for run, (does, _) in WRONG.items()})
    found = ends(carried_out(Local(2), request_of(seeds=3), folder))
    assert len(found) == 9
    for run, (_, line) in WRONG.items():
        assert re.fullmatch(line, str(found.pop(run.replace("_", "-"))))
    assert set(found.values()) == {None}
    log = (folder / "runs" / "depth-1-seed-1" / "output.log").read_text()
    assert "Segmentation fault" in log
    assert "in _go_wrong" in log


def test_a_full_disk_is_not_one_runs_own_fault(request_of: Make, plan: Callable[..., Path]) -> None:
    events = carried_out(Local(1), request_of(depths=(1,), seeds=1, baseline=False), plan(depth_1_seed_0="full"))
    assert isinstance(events[-1], Failed)
    assert events[-1].everywhere
    assert events[-1].why.endswith("No space left on device")


def test_whoever_stops_listening_stops_the_processes(request_of: Make, plan: Callable[..., Path]) -> None:
    request, folder = request_of(steps=1000), plan()
    events = Local(2).events(request.runs(), Job(request.to_json(), str(folder), NAME))
    moving: dict[str, Run] = {}
    while len(moving) < 2:
        event = next(events)
        moving |= {event.run.id: event.run} if isinstance(event, Progress) else {}
    events.close()  # type: ignore[attr-defined]
    for run in moving.values():
        ((process, _),) = sessions(folder, run)
        assert not Path(f"/proc/{process}").exists()
        assert (run_folder(folder, run) / "interrupted").exists()
        assert int((run_folder(folder, run) / "step").read_text()) > 0


def test_a_result_counts_only_for_its_own_run_and_request(request_of: Make, tmp_path: Path) -> None:
    request = request_of()
    run, other, *_ = request.runs()
    found = {"rows": [], "facts": {}, "about": {}}
    write_result(tmp_path, run, request.to_json(), found)
    assert (read_result(tmp_path, run, request.to_json()) or {})["rows"] == []
    assert read_result(tmp_path, other, request.to_json()) is None
    assert read_result(tmp_path, run, request_of(steps=21).to_json()) is None
    for data in (b"", b"[]", b"{}", (tmp_path / "result.json").read_bytes()[:-5]):
        (tmp_path / "result.json").write_bytes(data)
        assert read_result(tmp_path, run, request.to_json()) is None


def test_two_processes_are_never_in_one_folder(
    request_of: Make, plan: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    from recursion.study import worker

    request, folder = request_of(), plan()
    run = request.runs()[0]
    place = run_folder(folder, run)
    place.mkdir(parents=True)
    monkeypatch.setattr(worker, "PATIENCE", 0.1)
    with (place / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        outcome = worker.carry_out(run.to_json(), Job(request.to_json(), str(folder), NAME), lambda *_: None)
    assert outcome.why is not None
    assert outcome.why.startswith(f"another process is at work in {place}")
    assert not (place / "sessions").exists()


def test_ray_that_is_missing_is_said_in_a_line(
    request_of: Make, plan: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"^Ray is not installed; pip install 'descent-tower\[ray\]'"):
        carried_out(Ray(), request_of(), plan())


@needs_ray
@pytest.mark.slow
def test_a_cluster_carries_runs_out_as_processes_do(request_of: Make, plan: Callable[..., Path]) -> None:
    folder = plan(depth_1_seed_0="raise", depth_2_seed_0="kill")
    request = request_of(seeds=2)
    events = carried_out(Ray("local", workers=2), request, folder)
    found = ends(events)
    assert found.pop("depth-1-seed-0") == "ZeroDivisionError: a bug in two lines"
    assert str(found.pop("depth-2-seed-0")).startswith("its Ray worker died: ")
    assert list(found.values()) == [None] * 4
    assert any(isinstance(event, Progress) for event in events)
    for run in request.runs():
        if run.id in found:
            assert [threads for _, threads in sessions(folder, run)] == [1]


@needs_ray
@pytest.mark.slow
def test_whoever_stops_listening_stops_a_cluster(request_of: Make, plan: Callable[..., Path]) -> None:
    request, folder = request_of(steps=2000), plan()
    events = Ray("local", workers=2).events(request.runs(), Job(request.to_json(), str(folder), NAME))
    run = next(event.run for event in events if isinstance(event, Progress))
    ((process, _),) = sessions(folder, run)
    events.close()  # type: ignore[attr-defined]
    end = time.monotonic() + 20
    while Path(f"/proc/{process}").exists() and time.monotonic() < end:
        time.sleep(0.1)
    assert not Path(f"/proc/{process}").exists()
    assert (run_folder(folder, run) / "interrupted").exists()


@needs_ray
def test_a_cluster_that_is_not_there_is_said_in_a_line(request_of: Make, plan: Callable[..., Path]) -> None:
    with pytest.raises(OSError, match=r"^cannot reach the Ray cluster 127.0.0.1:1: .*refused$"):
        carried_out(Ray("127.0.0.1:1"), request_of(), plan())


def test_workers_are_as_many_as_processors() -> None:
    assert Local().size == pools.processors() == len(os.sched_getaffinity(0))
    assert Local(3).size == 3
