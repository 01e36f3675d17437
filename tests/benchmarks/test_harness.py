"""The harness measures what it says: on sides that sleep, lie, print, fail, die or hold a known amount of memory."""

import io
import json
import os
from argparse import Namespace
from types import SimpleNamespace

import pytest
from rich.console import Console

from benchmarks import __main__ as command
from benchmarks import harness, showing
from benchmarks.harness import Row, Spread
from tests.benchmarks import counting

NAME = "tests.benchmarks.counting"


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(harness, "BLOCK", 0.02)


def run(*sides, rounds=2, **settings):
    told = []
    rows = harness.run(NAME, counting, {"top": 10} | settings, list(sides), rounds, told.append)
    assert len(told) == harness.count(list(sides), rounds)
    return rows


def test_times_and_ratios(short):
    rows = run("ours", "peer", "slow peer", rounds=4)
    assert all(len(row.seconds) == 4 and row.why is None for row in rows.values())
    assert 0.002 <= min(rows["ours"].seconds) < 0.004
    assert min(rows["slow peer"].seconds) >= 0.008
    assert rows["ours"].cpu[0] < 0.001, "sleep costs no processor time"
    assert harness.fastest_peer(rows) == "peer"
    result = showing.as_result("t", 4, {"v": ({}, rows)})["variants"]["v"]
    assert result["sides"]["ours"]["ratio"][0] < 0.9 < 1.5 < result["sides"]["slow peer"]["ratio"][0]
    assert rows["ours"].facts == {"top": 10}


def test_a_side_that_disagrees_is_not_timed_and_failures_are_said_in_their_row(short):
    rows = run("ours", "wrong", "talker", "failing", "absent", "unable", "dying")
    assert rows["wrong"].why == "disagrees with ours: sum by 5.6e-01"
    assert rows["wrong"].seconds == []
    assert rows["talker"].seconds, "what a side prints stays out of the answers"
    assert rows["talker"].differs == {"sum": 0.0, "alone": 0.0}
    assert rows["failing"].why == "RuntimeError: no such device"
    assert rows["absent"].why == "not installed: no_such_peer; pip install 'descent-tower[bench]'"
    assert rows["unable"].why == "cannot count"
    assert [name for name, row in rows.items() if row.unsupported] == ["unable"]
    assert rows["dying"].why == "died with status 3: out of luck"
    assert rows["ours"].seconds


def test_memory_of_steps_and_of_the_start(short):
    rows = run("ours", "spender", rounds=1)
    assert rows["ours"].peak < 20e6
    assert 95e6 < rows["spender"].peak < 130e6
    assert 195e6 < rows["spender"].peak_warm < 230e6


def test_threads_reach_the_worker(short):
    cores = len(os.sched_getaffinity(0))
    assert run("threaded", rounds=1, threads=1)["threaded"].facts["threads"] == [1, 1, 1]
    assert run("threaded", rounds=1, threads=2)["threaded"].facts["threads"] == [2, min(2, cores), 2]


def test_differences():
    a = {"x": [1.0, 2.0], "long": [1.0], "nan": [float("nan")], "only here": [0.0], "none": [0.0]}
    b = {"x": [1.0, 4.0], "long": [1.0, 1.0], "nan": [0.0], "none": [0.0]}
    assert harness.differences(a, b) == {"x": 0.5, "long": float("inf"), "nan": float("inf"), "none": 0.0}


@pytest.mark.parametrize(("theirs", "why"), [
    ({"float32 x": [1.1]}, None),
    ({"float64 x": [1.1]}, "disagrees with ours: float64 x by 1.0e-01"),
    ({"y": [1.0]}, "disagrees with ours: it proves nothing that is compared"),
])  # fmt: skip
def test_judge(theirs, why):
    rows = {"ours": Row(), "peer": Row()}
    proofs = {"ours": {"float32 x": [1.0], "float64 x": [1.0]}, "peer": theirs}
    harness.check_proofs(rows, proofs, {"float32": 0.2, "float64": 1e-9})
    assert rows["peer"].why == why


def test_ratio_is_taken_within_a_round():
    ours, peer = Row(seconds=[1.0, 10.0, 3.0]), Row(seconds=[2.0, 20.0, 2.0])
    found = showing.as_result("t", 3, {"v": ({}, {"ours": ours, "peer": peer})})["variants"]["v"]["sides"]
    assert found["ours"]["ratio"] == [0.5, 0.5, 1.0]
    assert found["peer"]["ratio"] == [1.0, 1.0, 1.0]
    assert found["ours"]["step"] == [3.0, 2.0, 6.5]
    assert Spread.of([4.0]).list() == [4.0, 4.0, 4.0]


def test_chosen_variants():
    workload = SimpleNamespace(VARIANTS={"a": {"threads": 1}, "ab": {"threads": 2}, "c": {"n": 3}})
    assert command.chosen_variants(workload, None, ["a", "b"]) == {"a": {"threads": 1}}
    assert command.chosen_variants(workload, [2], None) == {
        "ab": {"threads": 2}, "c, 2 threads": {"n": 3, "threads": 2},
    }  # fmt: skip
    with pytest.raises(ValueError, match="no side 'nobody'; there are ours, peer"):
        command.chosen_sides(counting, ["nobody"])


def test_whole_run_is_kept_and_shown(short, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "importlib", SimpleNamespace(import_module=lambda name: counting))
    made = harness.Worker.__init__
    monkeypatch.setattr(harness.Worker, "__init__", lambda self, name, *more: made(self, NAME, *more))
    args = Namespace(only=["ours", "peer", "wrong", "unable"], threads=None, variants=["ten"], rounds=2, out=tmp_path)
    console = Console(width=130, record=True, file=io.StringIO())
    assert not command.measure("W9", args, console), "a side disagrees"
    text = console.export_text()
    assert "wrong: disagrees with ours: sum by 5.6e-01" in text
    assert "unable" not in text
    result = json.loads((tmp_path / "w9.json").read_text())
    assert list(result["variants"]) == ["to ten", "to ten, 2 threads"]
    assert len(result["variants"]["to ten"]["sides"]["peer"]["seconds"]) == 2
    assert (tmp_path / "w9.png").read_bytes().startswith(b"\x89PNG")
