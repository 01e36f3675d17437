import functools
import subprocess
import sys
from pathlib import Path

import pytest
from fake_job import PERFORM, Here

from recursion import cli
from recursion.study import commands
from recursion.study.ablate import ablate
from recursion.study.results import load

SMALL = "quadratic(dims=3): lstm(hidden=2, layers=1)@5[batch=2] / adam"
WORDS = ["ablate", SMALL, "--seeds", "2", "--budget", "1e4", "--steps", "10", "--workers", "2"]


@pytest.fixture(autouse=True)
def _fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(commands, "carry_out", functools.partial(ablate, perform=PERFORM))
    monkeypatch.setattr(commands, "Local", lambda workers: Here())


def fails(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    assert cli.main(words) == 2
    told = capsys.readouterr()
    *_, line = told.err.splitlines()
    assert line.startswith("tower: error: ")
    assert "Traceback" not in told.err
    return line.removeprefix("tower: error: ")


def test_it_says_what_it_costs_then_runs_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*WORDS, "--no-report"]) == 0
    (folder,) = Path("runs").iterdir()
    assert folder.name == "quadratic-dims-3-lstm-hidden-2-layers-1-5-batch-2-adam-ablation"
    lines = capsys.readouterr().err.splitlines()
    assert lines[:4] == [
        f"tower: 6 runs in {folder}, of 3 cells and 2 seeds: 10000 base steps each, 6e+04 in all, 1 at a time",
        "tower:   depth 1: quadratic(dims=3): adam",
        f"tower:   depth 2: {SMALL}",
        "tower:   tuned baseline: the best of the hand-made rules",
    ]
    assert lines[-1] == "6 of 6 runs done"
    found = load(folder)
    assert (set(found.runs.status), found.argv[:2]) == ({"done"}, ["tower", "ablate"])
    assert cli.main(["study", *WORDS[1:], "--no-report"]) == 0
    assert "tower: going on, 6 of 6 runs are done" in capsys.readouterr().err


def test_options_reach_the_request(capsys: pytest.CaptureFixture[str]) -> None:
    more = ["--grid", "1.unroll=5,10", "--grid", "lr*=0.1,1", "--problems", "7", "--select", "3", "--snapshots", "2",
            "--no-baseline", "--windows", "4", "--out", "a", "--no-report"]  # fmt: skip
    assert cli.main([*WORDS, *more]) == 0
    request = load("a").request
    assert request.grid == (("1.unroll", ("5", "10")), ("lr*", ("0.1", "1")))
    assert (request.depths, request.seeds, request.steps, repr(request.budget)) == ((1, 2), 2, 10, "10000")
    assert (request.problems, request.select, request.snapshots, request.windows) == (7, 3, 2, 4)
    assert not request.baseline
    assert "depth 2, level 1 unroll 10, lr times 0.1: quadratic" in capsys.readouterr().err


def test_failed_runs_are_said_and_tried_again_when_asked(capsys: pytest.CaptureFixture[str]) -> None:
    Path("a").mkdir()
    Path("a/plan.json").write_text('{"depth-2-seed-1": "refuse"}')
    words = [*WORDS, "--out", "a", "--no-report"]
    assert cli.main(words) == 0
    told = capsys.readouterr().err
    assert "tower: 1 of 6 runs failed, as depth-2-seed-1: level 1 (lstm@5): gradient is not finite; mend" in told
    assert told.rstrip().endswith("--no-report --retry")
    Path("a/plan.json").unlink()
    assert cli.main([*words, "--retry"]) == 0
    assert capsys.readouterr().err.splitlines()[-1] == "6 of 6 runs done"


def test_mistakes_are_one_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    assert fails(capsys, *WORDS, "--grid", "1.hiden=3").startswith("grid 1.hiden: level 1 has no setting 'hiden'")
    assert fails(capsys, *WORDS, "--budget", "lots").startswith("a budget is written 2e6 (base steps) or 90s")
    assert fails(capsys, "ablate", SMALL, "--depths", "1-9").startswith("depth 3: the tower has 2 levels; write more")
    assert not Path("runs").exists()
    assert fails(capsys, "report", "nowhere") == "cannot read nowhere/study.json: No such file or directory"
    Path("b").mkdir()
    assert fails(capsys, "report", "b") == "cannot read b/study.json: No such file or directory"
    Path("b/study.json").touch()
    assert fails(capsys, "report", "b").startswith("b/study.json is empty; delete it and run tower ablate again")
    assert fails(capsys, *WORDS, "--out", "b").endswith("finished runs stay")


def test_seconds_are_said_not_to_repeat(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*WORDS, "--budget", "90s", "--out", "a", "--no-report"]) == 0
    assert "90 s each, about 9 minutes 1 at a time; a run in seconds is not repeatable" in capsys.readouterr().err


def test_interrupted_it_says_how_to_go_on(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, "carry_out", stop)
    assert cli.main([*WORDS, "--out", "a"]) == 130
    *_, line = capsys.readouterr().err.splitlines()
    assert line.startswith("tower: stopped; go on with the same command: tower ablate 'quadratic(dims=3): lstm")


def test_help_is_quick_and_does_not_import_torch() -> None:
    code = "import sys; from recursion import cli; cli.main(['ablate', '--help']); assert 'torch' not in sys.modules"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path.cwd())
    assert "--grid NAME=LIST" in told.stdout
