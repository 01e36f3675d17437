"""How far a study is: lines in a log, bars on a terminal, and the time left."""

import io
from types import SimpleNamespace

import pytest

from recursion.study.commands import Board, duration
from recursion.study.pool import Event

RUNS = {"a": "done", "b": "waiting", "c": "waiting"}


def event(run, *rest):
    return Event(SimpleNamespace(id=run), *rest)


def test_a_log_has_a_line_now_and_then_and_one_for_each_failure():
    stream, clock = io.StringIO(), [0.0]
    with Board(RUNS, stream) as board:
        board.progress.get_time = lambda: clock[0]
        for step in range(1, 101):
            clock[0] += 1.0
            board(event("b", "at", "training", step / 100))
        board(event("b", "failed", "a bug"))
        clock[0] += 10.0
        board(event("c", "at", "training", 0.5))
        board(event("c", "done"))
    lines = stream.getvalue().splitlines()
    assert 5 < len(lines) < 20
    assert "b failed: a bug" in lines
    assert lines[-1] == "2 of 3 runs done, 1 failed"
    assert lines[2].startswith("1 of 3 runs done, 1 under way (")
    assert lines[2].endswith(" left")


def test_a_terminal_has_a_bar_for_each_run_under_way():
    stream = io.StringIO()
    stream.isatty = lambda: True
    with Board(RUNS, stream) as board:
        for message, bars in ((("at", "training", 0.25), ["all runs", "b"]), (("failed", "a bug"), ["all runs"])):
            board(event("b", *message))
            assert [task.description for task in board.progress.tasks if task.visible] == bars
    assert "b failed: a bug" in stream.getvalue()
    assert board.counts() == "1 of 3 runs done, 1 failed"


@pytest.mark.parametrize(("seconds", "words"), [(7, "7 s"), (200, "3 minutes"), (9000, "2.5 hours")])
def test_a_time_in_words(seconds, words):
    assert duration(seconds) == words
