import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path

import pytest
from fake_job import NAME as PERFORM

from recursion.study.ablate import ablate
from recursion.study.pool import Event, Failed, Local, Started
from recursion.study.request import Budget, Request
from recursion.study.store import NAME, Store

Make = Callable[..., Request]
Drive = Callable[[Request, Path], "subprocess.Popen[str]"]


def run(request: Request, folder: Path, **settings: object) -> list[Event]:
    """Drive an ablation here; what happened."""
    events: list[Event] = []
    settings = {"pool": Local(2), "perform": PERFORM, "on_event": events.append, **settings}
    ablate(request, folder, **settings).close()  # type: ignore[arg-type]
    return events


def table(folder: Path) -> list[tuple[object, ...]]:
    """All that was found, but for when and how fast."""
    with Store.open(folder, readonly=True) as store:
        return store.repeatable()


def standing(folder: Path) -> dict[str, str]:
    with Store.open(folder, readonly=True) as store:
        return {record.run.id: record.status for record in store.runs()}


def sessions(folder: Path) -> int:
    return sum(len(path.read_text().splitlines()) for path in folder.glob("runs/*/sessions"))


def alive(folder: Path) -> list[int]:
    """Processes that have worked in the folder and have not ended."""
    lines = (line for path in folder.glob("runs/*/sessions") for line in path.read_text().splitlines())
    found = {int(line.split()[0]) for line in lines if line}
    return [process for process in found if Path(f"/proc/{process}").exists()]


def test_all_runs_are_carried_out_and_stored(request_of: Make, plan: Callable[..., Path]) -> None:
    request, folder = request_of(), plan()
    begun: list[object] = []
    events = run(request, folder, argv=["tower", "ablate"], on_begin=begun.extend)
    assert len(begun) == 6
    assert sum(isinstance(event, Started) for event in events) == 6
    with Store.open(folder) as store:
        assert {record.status for record in store.runs()} == {"done"}
        assert len(store.rows()) == 18
        assert store.runs()[0].facts == {"steps": 20, "budget": "10000"}
        assert json.loads(store.meta()["argv"]) == ["tower", "ablate"]
    before = table(folder)
    assert run(request, folder) == []
    assert table(folder) == before


def test_a_failing_run_is_a_row_that_says_why(request_of: Make, plan: Callable[..., Path]) -> None:
    request, folder = request_of(), plan(depth_2_seed_0="refuse", depth_1_seed_1="kill")
    run(request, folder)
    with Store.open(folder) as store:
        why = {record.run.id: record.why for record in store.runs("failed")}
        assert set(why) == {"depth-2-seed-0", "depth-1-seed-1"}
        assert why["depth-2-seed-0"] == "level 1 (lstm@5): gradient is not finite"
        assert len(store.runs("done")) == 4
    plan()
    assert run(request, folder) == []  # they stay as they are
    again = run(request, folder, retry=True)
    assert {event.run.id for event in again} == set(why)
    assert set(standing(folder).values()) == {"done"}


def test_a_lost_store_is_filled_from_the_results(request_of: Make, plan: Callable[..., Path]) -> None:
    request, folder = request_of(), plan()
    run(request, folder)
    before, worked = table(folder), sessions(folder)
    (folder / NAME).unlink()
    assert run(request, folder) == []
    assert table(folder) == before
    assert sessions(folder) == worked


def test_another_request_is_refused_with_the_field_that_differs(request_of: Make, plan: Callable[..., Path]) -> None:
    folder = plan()
    run(request_of(), folder)
    before = table(folder)
    with pytest.raises(
        ValueError, match=rf"^{folder} is of another ablation: its budget is 10000, got 20000; choose .*$"
    ):
        run(request_of(budget=Budget(amount=2e4)), folder)
    with pytest.raises(ValueError, match=r"its grid is \(\), got \(\('lr', \('0.1',\)\),\); choose"):
        run(request_of(grid=(("lr", ("0.1",)),)), folder)
    assert table(folder) == before


def test_a_store_of_another_version_is_left_alone(request_of: Make, plan: Callable[..., Path]) -> None:
    folder = plan()
    run(request_of(), folder)
    with Store.open(folder) as store, store.connection:
        store.connection.execute("update meta set value = '2' where key = 'version'")
    before = (folder / NAME).read_bytes()
    with pytest.raises(ValueError, match=r"has ablation version 2, this program reads up to 1; update descent-tower$"):
        run(request_of(), folder)
    assert (folder / NAME).read_bytes() == before


def test_a_missing_optuna_is_said_before_anything_runs(
    request_of: Make, plan: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(import_module("recursion.study.ablate"), "find_spec", lambda name: None)
    folder = plan()
    with pytest.raises(ValueError, match=r"^optuna is not installed; pip install 'descent-tower\[tune\]'"):
        run(request_of(search="optuna"), folder)
    assert not (folder / NAME).exists()


def test_a_full_disk_ends_it_in_a_line_and_loses_nothing(request_of: Make, plan: Callable[..., Path]) -> None:
    request, folder = request_of(), plan(depth_1_seed_1="full")
    with pytest.raises(
        OSError, match=r"^depth-1-seed-1: cannot write .*: No space left on device; what was found stays"
    ):
        run(request, folder, pool=Local(1))
    stood = standing(folder)
    assert [stood[key] for key in ("depth-1-seed-0", "depth-2-seed-0", "baseline-seed-0")] == ["done"] * 3
    assert "failed" not in stood.values()
    plan()
    assert "Started" in str([type(event).__name__ for event in run(request, folder)])
    assert set(standing(folder).values()) == {"done"}


def test_a_store_that_cannot_be_written_loses_nothing(
    request_of: Make, plan: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    request, folder = request_of(), plan()
    finish = Store.finish

    def full(self: Store, key: str, result: dict[str, object]) -> None:
        if key == "depth-2-seed-0":
            raise OSError(f"cannot write {self.path}: database or disk is full; what was stored stays")
        finish(self, key, result)

    monkeypatch.setattr(Store, "finish", full)
    with pytest.raises(OSError, match="database or disk is full"):
        run(request, folder)
    monkeypatch.undo()
    worked = sessions(folder)
    run(request, folder)
    assert set(standing(folder).values()) == {"done"}
    assert len((folder / "runs/depth-2-seed-0/sessions").read_text().splitlines()) == 1  # it was not run again
    assert sessions(folder) >= worked


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "disk"
    place.mkdir()
    if (
        shutil.which("mount") is None
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=120k", "tmpfs", str(place)], capture_output=True
        ).returncode
    ):
        pytest.skip("may not mount a small disk here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_disk_that_is_really_full(request_of: Make, small_disk: Path) -> None:
    request, folder = request_of(seeds=3), small_disk / "out"
    (small_disk / "ballast").write_bytes(bytes(24 * 1024))
    with pytest.raises(OSError, match=r"^[^\n]*(No space left on device|disk is full)[^\n]*$"):
        run(request, folder)
    stood = standing(folder) if (folder / NAME).exists() else {}
    subprocess.run(["mount", "-o", "remount,size=4m", str(small_disk)], check=True)
    kept = {key for key, status in stood.items() if status == "done"}
    events = run(request, folder)
    assert not kept & {event.run.id for event in events}
    assert set(standing(folder).values()) == {"done"}


def test_only_one_drives_a_folder(request_of: Make, plan: Callable[..., Path], drive: Drive) -> None:
    request, folder = request_of(steps=3000), plan()
    process = drive(request, folder)
    assert process.stdout is not None
    assert process.stdout.readline().startswith("Started")
    with pytest.raises(ValueError, match=f"^another ablation is at work in {folder}; wait for it, or stop it$"):
        run(request, folder)
    assert process.poll() is None


def test_ctrl_c_keeps_what_each_run_had(request_of: Make, plan: Callable[..., Path], drive: Drive) -> None:
    request, folder = request_of(steps=300), plan()
    process = drive(request, folder)
    _wait_for(lambda: len(list(folder.glob("runs/*/step"))) == 2)
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 130
    assert alive(folder) == []
    under_way = [key for key, status in standing(folder).items() if status == "running"]
    assert len(under_way) == 2
    for key in under_way:
        assert (folder / "runs" / key / "interrupted").exists()
        assert int((folder / "runs" / key / "step").read_text()) > 0


def test_a_killed_driver_takes_its_processes_with_it(request_of: Make, plan: Callable[..., Path], drive: Drive) -> None:
    request, folder = request_of(steps=3000), plan()
    process = drive(request, folder)
    _wait_for(lambda: len(list(folder.glob("runs/*/step"))) == 2)
    assert len(alive(folder)) == 2
    process.kill()
    process.wait()
    _wait_for(lambda: alive(folder) == [], 5)


def test_a_killed_child_is_a_failed_run(request_of: Make, plan: Callable[..., Path]) -> None:
    request, folder = request_of(steps=100), plan()
    killed: list[str] = []

    def kill(event: Event) -> None:
        if not killed and (folder / "runs" / event.run.id / "step").exists():
            killed.append(event.run.id)
            os.kill(int((folder / "runs" / event.run.id / "sessions").read_text().split()[0]), signal.SIGKILL)

    run(request, folder, on_event=kill)
    with Store.open(folder) as store:
        (failed,) = store.runs("failed")
        assert [failed.run.id] == killed
        assert "SIGKILL" in str(failed.why)
        assert len(store.runs("done")) == 5
    events = run(request, folder, retry=True)
    assert not any(isinstance(event, Failed) for event in events)
    assert set(standing(folder).values()) == {"done"}


@pytest.mark.slow
def test_killed_at_random_moments_it_comes_to_the_same(
    request_of: Make, plan: Callable[..., Path], drive: Drive, tmp_path: Path
) -> None:
    request, folder = request_of(steps=60, seeds=3), plan()
    run(request, tmp_path / "whole")
    moments, kills = random.Random(5), 0
    while kills < 5:
        process = drive(request, folder)
        assert process.stdout is not None
        if not any(line.startswith("Progress") for line in process.stdout):
            break  # it came to its end
        time.sleep(moments.uniform(0, 0.7))
        process.kill()
        process.wait()
        kills += 1
    run(request, folder)
    assert kills >= 2
    assert table(folder) == table(tmp_path / "whole")
    assert sessions(folder) > 9


def _wait_for(condition: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)
