"""The command ``tower ablate``: what it says, with a fake job."""

import functools
import subprocess
import sys
from pathlib import Path

import pytest
from fake_job import PERFORM, Here

from recursion import cli
from recursion.study import commands
from recursion.study.pool import ablate
from recursion.study.results import load

SMALL = "quadratic(dims=3): lstm(hidden=2, layers=1)@5[batch=2] / adam"
WORDS = ["ablate", SMALL, "--seeds", "2", "--budget", "1e4", "--steps", "10", "--workers", "2", "--no-report"]


@pytest.fixture(autouse=True)
def _fake(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(commands, "carry_out", functools.partial(ablate, perform=PERFORM))
    monkeypatch.setattr(commands, "Local", lambda workers: Here())


@pytest.fixture
def said(capsys):
    """Runs a command; the lines of its standard error."""

    def run(*words, code=0):
        capsys.readouterr()
        assert cli.main(words) == code
        return capsys.readouterr().err.splitlines()

    return run


def test_it_says_what_it_costs_then_runs_all(said):
    lines = said(*WORDS)
    (folder,) = Path("runs").iterdir()
    assert folder.name == "quadratic-dims-3-lstm-hidden-2-layers-1-5-batch-2-adam-ablation"
    assert lines[:4] == [
        f"tower: 6 runs in {folder}, of 3 cells and 2 seeds: 10000 base steps each, 6e+04 in all, 1 at a time",
        "tower:   depth 1: quadratic(dims=3): adam",
        f"tower:   depth 2: {SMALL}",
        "tower:   tuned baseline: the best of the hand-made rules",
    ]
    assert lines[-1] == "6 of 6 runs done"
    results = load(folder)
    assert (set(results.runs.status), results.argv[:2]) == ({"done"}, ["tower", "ablate"])
    assert "tower: going on, 6 of 6 runs are done" in said("study", *WORDS[1:])


def test_options_reach_the_request(said):
    more = "--grid 1.unroll=5,10 --grid lr*=0.1,1 --problems 7 --select 3 --snapshots 2 --no-baseline --windows 4"
    lines = said(*WORDS, *more.split(), "--out", "a")
    request = load("a").request
    assert request.grid == (("1.unroll", ("5", "10")), ("lr*", ("0.1", "1")))
    assert (request.depths, request.seeds, request.steps, repr(request.budget)) == ((1, 2), 2, 10, "10000")
    assert (request.problems, request.select, request.snapshots, request.windows) == (7, 3, 2, 4)
    assert not request.baseline
    assert any(line.startswith("tower:   depth 2, level 1 unroll 10, lr times 0.1: quadratic") for line in lines)


def test_failed_runs_are_said_and_tried_again_when_asked(said):
    Path("a").mkdir()
    Path("a/plan.json").write_text('{"depth-2-seed-1": "refuse"}')
    last = said(*WORDS, "--out", "a")[-1]
    why = "level 1 (lstm@5): gradient is not finite; mend"
    assert last.startswith(f"tower: 1 of 6 runs failed, as depth-2-seed-1: {why}")
    assert last.endswith("--out a --retry")
    Path("a/plan.json").unlink()
    assert said(*WORDS, "--out", "a", "--retry")[-1] == "6 of 6 runs done"


@pytest.mark.parametrize(("words", "line"), [
    ([*WORDS, "--grid", "1.hiden=3"], "grid 1.hiden: level 1 has no setting 'hiden'"),
    ([*WORDS, "--budget", "lots"], "a budget is written 2e6 (base steps) or 90s"),
    ([*WORDS, "--depths", "1-9"], "depth 3: the tower has 2 levels; write more"),
    (["report", "nowhere"], "cannot read nowhere/study.json: No such file or directory"),
    (["report", "b"], "b/study.json is empty; delete it and run tower ablate again: finished runs stay"),
])  # fmt: skip
def test_mistakes_are_one_line_each(words, line, said):
    Path("b").mkdir()
    Path("b/study.json").touch()
    *_, last = said(*words, code=2)
    assert last.startswith(f"tower: error: {line}")
    assert not Path("runs").exists()


def test_seconds_are_said_not_to_repeat_and_interrupted_it_says_how_to_go_on(said, monkeypatch):
    words = "90 s each, about 9 minutes 1 at a time; a run in seconds is not repeatable"
    assert words in said(*WORDS, "--budget", "90s", "--out", "a")[0]

    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, "carry_out", stop)
    last = said(*WORDS, "--out", "a", code=130)[-1]
    assert last.startswith("tower: stopped; go on with the same command: tower ablate 'quadratic(dims=3): lstm")


def test_help_is_quick_and_does_not_import_torch():
    code = "import sys; from recursion import cli; cli.main(['ablate', '--help']); assert 'torch' not in sys.modules"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--grid NAME=LIST" in shown.stdout
