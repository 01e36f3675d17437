"""The command line: what commands leave behind, and mistakes in one line."""

import json
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from towers import SMALL, assert_same

from recursion import checkpoint, cli, files
from recursion.notation import parse

QUICK = ["--problems", "4", "--eval-steps", "5"]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def steps_in(run):
    return int(checkpoint.load(Path(run) / "checkpoint.safetensors").state.step)


def fails(capsys, *words):
    """The one line of an error, which comes last; before it there may be what was begun and how far it got."""
    capsys.readouterr()
    assert cli.main(words) == 2
    *before, line = capsys.readouterr().err.splitlines()
    assert line.startswith("tower: error: ")
    assert not [text for text in before if "error" in text or not text.startswith(("tower: ", "step "))]
    return line


def test_train_leaves_a_run_and_a_report(capsys):
    assert cli.main(["train", SMALL, "--steps", "4", "--seed", "3", *QUICK]) == 0
    (run,) = Path("runs").iterdir()
    assert run.name == "quadratic-dims-3-lstm-hidden-4-layers-1-5-horizon-10-batch-2-adam-seed3"
    names = {"checkpoint.safetensors", "metrics.jsonl", "spec.json", "evaluation.json", "losses.png"}
    assert names <= {path.name for path in run.iterdir()}
    assert (run / "losses.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((run / "evaluation.json").read_text())["training_seeds"] == 1
    told = capsys.readouterr()
    assert "this tower" in told.out
    assert f"written to {run}" in told.out
    assert "step 4 of 4, 0 s left, losses" in told.err


def test_a_spec_file_trains_the_same_tower_and_a_finished_run_says_so(tmp_path, capsys):
    assert cli.main(["show", SMALL, "--json"]) == 0
    (tmp_path / "tower.json").write_text(capsys.readouterr().out)
    for out, spec, steps in (("a", "tower.json", "1"), ("a", "a/spec.json", "2"), ("a", SMALL, "2"), ("b", SMALL, "2")):
        assert cli.main(["train", spec, "--steps", steps, "--out", out, "--no-eval", "--resume"]) == 0
    assert "tower: a is already at step 2 of 2; nothing left to train" in capsys.readouterr().err
    one, other = (checkpoint.load(f"{out}/checkpoint.safetensors") for out in ("a", "b"))
    assert repr(one.tower) == repr(parse(SMALL))
    assert_same(one.state, other.state)


def test_nonfinite_is_set_on_all_levels(capsys):
    words = ["train", "quadratic(dims=3): sgd(lr=1e30)@3[batch=2] / adam", "--steps", "3", "--no-eval", "--out"]
    assert re.search("level 1 .* not finite", fails(capsys, *words, "stop"))
    assert cli.main([*words, "skip", "--nonfinite", "skip"]) == 0
    levels = checkpoint.load("skip/checkpoint.safetensors").tower.levels
    assert [repr(level.nonfinite) for level in levels] == ["skip", "skip"]
    assert json.loads(Path("skip/metrics.jsonl").read_text().splitlines()[-1])["skipped"][0] > 0
    assert ", skipped " in capsys.readouterr().err


def test_a_loss_that_is_not_finite_keeps_the_run(capsys):
    wild = "quadratic(dims=3): sgd(lr=3.0)@2[horizon=none, batch=2]"
    line = fails(capsys, "train", wild, "--steps", "400", "--out", "a", "--no-eval")
    step = steps_in("a")
    assert f"at top step {step + 1}; " in line
    assert line.endswith("; the state before it is kept in a")
    assert step > 0


def test_eval_takes_several_seeds_together(capsys):
    for seed in ("0", "1"):
        assert cli.main(["train", SMALL, "--steps", "2", "--seed", seed, "--out", f"s{seed}", "--no-eval"]) == 0
    assert cli.main(["eval", "s0", "s1", *QUICK, "--no-transfer", "--seed", "5", "--out", "both"]) == 0
    report = json.loads(Path("both/evaluation.json").read_text())
    assert (report["training_seeds"], report["seed"]) == (2, 5)
    assert len(report["scenarios"]) == 1
    assert report["scenarios"][0]["problems"] == 4
    assert cli.main(["eval", "s1", *QUICK, "--no-transfer"]) == 0
    assert Path("s1/losses.png").exists()
    assert "the same seed 0; give each seed once" in fails(capsys, "eval", "s0", "s1", "s0")
    assert cli.main(["train", "quadratic: sgd", "--steps", "1", "--out", "other", "--no-eval"]) == 0
    assert "other is of 'quadratic: sgd', s0 of" in fails(capsys, "eval", "s0", "other")
    assert "cannot read nowhere/checkpoint.safetensors: No such file" in fails(capsys, "eval", "nowhere")


def test_show_says_what_a_tower_is(capsys):
    assert cli.main(["show", "quadratic: lstm@20[batch=8] / lstm@5[batch=3, horizon=none] / adam"]) == 0
    told = capsys.readouterr().out
    for words in (
        "lstm, updates the 10 parameters of the task",
        "parameters  5,141, trained by level 2",
        "100 updates, trajectories restart after 5 windows",
        "8 copies of the task; 24 below in all",
        "3 copies of level 1; 3 below in all",
        "none, trajectories never restart",
        "parameters  4, fixed, for it is the topmost",
        "100 base steps a window",
        "one step: 100 base steps, each on 24 copies of the task",
        "start-up: 121 base steps",
    ):
        assert words in told


def test_a_reason_is_one_line():
    assert files.reason(ValueError("one\n  two\n")) == "one two"
    assert files.reason(ValueError()) == "ValueError"
    assert files.reason(OSError(28, "No space left on device", "here")) == "here: No space left on device"


def test_a_bug_shows_its_traceback(monkeypatch):
    from recursion import commands

    def broken(args):
        raise AttributeError("a bug")

    monkeypatch.setattr(commands, "show", broken)
    with pytest.raises(AttributeError, match="a bug"):
        cli.main(["show", SMALL])


def test_help_names_every_option_with_its_default(capsys):
    assert cli.main(["--help"]) == 0
    assert capsys.readouterr().out.count("\n  tower ") == 5
    for command, options in {"train": 10, "eval": 7, "ablate": 16, "report": 1, "export": 4, "show": 1}.items():
        (group,) = [action for action in cli.build_parser()._actions if action.dest == "command"]
        assert group.choices is not None
        actions = [a for a in group.choices[command]._actions if a.option_strings and a.dest != "help"]
        assert len(actions) >= options
        for action in actions:
            flag = action.nargs == 0
            assert flag or "default" in (action.help or ""), action.option_strings


def test_help_and_version_do_not_import_torch():
    code = "import sys; from recursion import cli; cli.main([sys.argv[1]]); sys.exit('torch' in sys.modules)"
    for word in ("--help", "--version"):
        done = subprocess.run([sys.executable, "-c", code, word], capture_output=True, text=True)
        assert done.returncode == 0
    assert done.stdout.startswith("tower 0.")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_run_that_says_how_to_go_on(number):
    words = ["train", SMALL, "--steps", "100000", "--out", "a run"]
    # Where SIGINT is ignored, as under nohup, a child inherits that: it sets Python's handler itself.
    code = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    code += "signal.signal(signal.SIGHUP, signal.SIG_DFL); "
    code += "from recursion import cli; sys.exit(cli.main(sys.argv[1:]))"
    process = subprocess.Popen([sys.executable, "-c", code, *words], stderr=subprocess.PIPE, text=True)
    lines = Path("a run/metrics.jsonl")
    while not (lines.exists() and lines.stat().st_size > 500):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    *_, last = process.communicate()[1].splitlines()
    assert process.returncode == 128 + number
    said = f"tower: stopped; go on with: tower train {shlex.quote(SMALL)} --steps 100000 --out 'a run' --resume"
    assert last == said
    assert steps_in("a run") in (len(lines.read_text().splitlines()), len(lines.read_text().splitlines()) - 1)
