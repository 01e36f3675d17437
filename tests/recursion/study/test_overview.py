import io
import time
from collections.abc import Callable

import pytest
from rich.console import Console

from recursion.study import overview as overviews
from recursion.study.overview import Board, Course, Lines, duration, overview, said
from recursion.study.pool import Failed, Finished, Progress, Started
from recursion.study.request import Request
from recursion.study.store import Record, Status

Make = Callable[..., Request]


def records(request: Request, **status: Status) -> list[Record]:
    return [
        Record(run=run, status=status.get(run.id.replace("-", "_"), "waiting"), why=None, facts={}, about={})
        for run in request.runs()
    ]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(overviews, "time", type("Clock", (), {"monotonic": staticmethod(lambda: now[0])}))
    return now


def test_elsewhere_it_is_about_twenty_lines(request_of: Make, clock: list[float]) -> None:
    found = records(request_of(seeds=10))
    stream = io.StringIO()
    with overview(found, 1, stream) as shown:
        assert isinstance(shown, Lines)
        for record in found:
            shown(Started(record.run))
            for place in range(50):
                clock[0] += 1
                shown(Progress(record.run, "trains", place / 49))
            shown(Finished(record.run))
    lines = stream.getvalue().splitlines()
    assert 15 <= len(lines) <= 22
    assert lines[-1] == "30 of 30 runs done"
    assert "1 under way" in lines[0]


def test_a_failure_is_said_at_once(request_of: Make) -> None:
    found = records(request_of())
    stream = io.StringIO()
    with overview(found, 1, stream) as shown:
        shown(Started(found[1].run))
        shown(Failed(found[1].run, "out of luck", everywhere=False))
    assert stream.getvalue().splitlines() == [
        "depth-2-seed-0 failed: out of luck", "0 of 6 runs done, 1 failed",
    ]  # fmt: skip


def test_time_left_is_that_of_the_runs_that_finished(request_of: Make, clock: list[float]) -> None:
    found = records(request_of())
    course = Course(found, 2)
    assert course.left() is None
    for record in found[:2]:
        course.take(Started(record.run))
        course.take(Progress(record.run, "trains", 0.0))
    clock[0] += 10
    course.take(Progress(found[0].run, "trains", 0.5))
    course.take(Progress(found[1].run, "trains", 0.25))
    # 10 s and 30 s are left of those under way, and four more that take 20 s and 40 s, 30 s in the mean, by two workers
    assert course.left() == pytest.approx((10 + 30 + 4 * 30) / 2)
    clock[0] += 10
    course.take(Finished(found[0].run))
    course.take(Progress(found[1].run, "trains", 0.5))
    # the first took 20 s; the second is one of another cell, half done after 20 s
    assert course.left() == pytest.approx((20 + 4 * 20) / 2)
    assert said(course) == "1 of 6 runs done, 1 under way (50%), about 50 s left"


def test_a_run_that_goes_on_is_not_taken_for_a_fast_one(request_of: Make, clock: list[float]) -> None:
    found = records(request_of())
    course = Course(found, 1)
    course.take(Started(found[0].run))
    course.take(Progress(found[0].run, "trains", 0.9))
    clock[0] += 1
    course.take(Finished(found[0].run))
    assert course.left() is None


def test_the_table_shows_cells_by_seeds_and_what_is_under_way(request_of: Make) -> None:
    found = records(request_of(), depth_1_seed_0="done")
    stream = io.StringIO()
    board = Board(Course(found, 2), stream)
    board(Started(found[1].run))
    board(Progress(found[1].run, "trains at 3 of 9", 1 / 3))
    board(Failed(found[2].run, "[red] luck", everywhere=False))
    console = Console(file=io.StringIO(), width=100)
    console.print(board.render())
    assert isinstance(console.file, io.StringIO)
    assert [line.split() for line in console.file.getvalue().splitlines()] == [
        ["1", "of", "6", "runs", "done,", "1", "failed,", "1", "under", "way", "(33%)"],
        ["depth-2-seed-0", "33%", *["trains", "at", "3", "of", "9"]],
        ["depth", "1", "✓·"],
        ["depth", "2", "▸·"],
        ["tuned", "baseline", "✗·"],
    ]
    assert "baseline-seed-0 failed: [red] luck" in stream.getvalue()


def test_a_terminal_gets_the_table(request_of: Make) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    with overview(records(request_of()), 1, stream) as shown:
        assert isinstance(shown, Board)
        time.sleep(0.01)
    assert "0 of 6 runs done" in stream.getvalue()


def test_times_are_said_roughly() -> None:
    assert [duration(seconds) for seconds in (3.2, 99, 100, 5000, 7200)] == [
        "3 s", "99 s", "2 minutes", "83 minutes", "2.0 hours",
    ]  # fmt: skip
