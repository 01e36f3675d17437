"""Mistakes, in Python and on the command line: each gets one sentence that says what to do."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn
from towers import SMALL

from levels import (
    LSTM,
    SGD,
    Adam,
    Exact,
    Gated,
    Level,
    Mix,
    ModuleTask,
    Optimizer,
    Partition,
    Quadratic,
    keys,
    meta_loss,
)  # fmt: skip
from recursion import Exported, Tower, cli, export, load, parse, probe, train
from recursion.spec import dumps

LEVEL = Level(optimizer=SGD())
INPUTS = torch.zeros(6, 2)


def tower(text="quadratic: adam"):
    return parse(text)


class Nameless(Optimizer):
    lr: float = 0.1


class Undecorated(SGD):
    name = "undecorated"
    rate: float = 0.1


def module_task(**changes):
    given = {"make": lambda: nn.Linear(2, 1), "loss_function": nn.functional.mse_loss, "train": (INPUTS, INPUTS[:, :1])}
    return ModuleTask(**given | changes)


def grown(state):
    """A window of a level whose parameters have another dtype."""
    level = Level(optimizer=SGD(), unroll=2).over(Quadratic())
    theta = level.init(keys.seed(0))
    return meta_loss(level, theta.double(), level.init_state(theta, keys.seed(1)))


PYTHON = {
    "rules for levels": (lambda: Tower(Quadratic(), LSTM(), Adam()),
                         "level 1 must be a Level, got lstm; write Level(optimizer=LSTM(...))"),
    "a class": (lambda: Tower(Quadratic(), Adam), "write Level(optimizer=Adam(...))"),
    "torch's": (lambda: Tower(Quadratic(), torch.optim.Adam), "write Level(optimizer=TorchOptim('Adam'))"),
    "a list": (lambda: Tower(Quadratic(), [LEVEL]), "give levels one by one: Tower(task, *levels)"),
    "a module": (lambda: Tower(nn.Linear(2, 2), LEVEL), "wrap it: ModuleTask("),
    "a task's class": (lambda: Tower(Quadratic, LEVEL), "a tower stands on a task, got <class"),
    "no level": (lambda: Tower(Quadratic()), "a tower needs at least one level, got none; add an optimizer"),
    "too high": (lambda: Tower(Quadratic(), *[LEVEL] * 61), "a tower has at most 60 levels, got 61: the copies of each"),
    "a number": (lambda: Tower(Quadratic(), 3), "level 1 must be a Level, got 3; write Level(optimizer=..., unroll=20)"),
    "text that is no tower": (lambda: Tower("quadratic"), "expected ':' behind the task, got the end of the text"),
    "a level in text": (lambda: Tower(Quadratic(), "lstm@0"), "level 1 (lstm@0): unroll must be a whole number"),
    "two levels in one": (lambda: Tower(Quadratic(), "sgd / sgd"), "expected one level, got '/'"),
    "a state of less height": (lambda: tower("quadratic: sgd / sgd / sgd").step(tower("quadratic: sgd / sgd").init(0)),
                               "steps a state that it made, got that of another tower"),
    "of other sizes": (lambda: tower().step(tower("quadratic: sgd").init(0)), "got that of another tower"),
    "no state": (lambda: tower().step(None), "steps a state that it made, got NoneType"),
    "theta of another size": (lambda: tower().init(0, theta=torch.zeros(3)),
                              "level 1 (adam@1) takes 4 parameters, got shape [3]"),
    "theta of another dtype": (lambda: grown(None), "takes parameters [..., 1] in torch.float32, got [1] in torch.float64"),
    "an objective": (lambda: Level(optimizer=Adam(), objective="lst"),
                     "objective: unknown objective 'lst' (did you mean last?)"),
    "an estimator": (lambda: Level(optimizer=Adam(), gradient="exakt"), "gradient: unknown gradient estimator 'exakt'"),
    "an estimator's class": (lambda: Level(optimizer=Adam(), gradient=Exact), "write Exact(...)"),
    "an optimizer's class": (lambda: Level(optimizer=Adam), "optimizer must be an Optimizer, got <class"),
    "a misspelt setting": (lambda: Level(optimizer=Adam(), unrol=5),
                           "level has no setting 'unrol' (did you mean unroll?); it has optimizer, unroll, horizon"),
    "torch's setting": (lambda: Adam(betas=(0.9, 0.99)), "adam has no setting 'betas' (did you mean beta"),
    "a setting of another task": (lambda: Quadratic(dim=3), "quadratic has no setting 'dim' (did you mean dims?)"),
    "too many": (lambda: Adam(0.1, 0.9, 0.9, 1e-8, 3), "adam takes lr, beta1, beta2, eps without a name, got 3"),
    "no names": (lambda: Level(Adam()), "level takes settings by name, as optimizer=..., got adam"),
    "no dataclass": (lambda: Undecorated(rate=0.2), "write @dataclass(frozen=True, repr=False) above class Undecorated"),
    "out of range": (lambda: Level(optimizer=Adam(), unroll=0), "unroll must be a whole number of at least 1, got 0"),
    "no whole number": (lambda: Level(optimizer=Adam(), unroll=2.5), "unroll must be a whole number of at least 1, got 2.5"),
    "no multiple": (lambda: Level(optimizer=Adam(), horizon=7, unroll=5), "multiple of the unroll 5, got 7; use 5"),
    "a negative rate": (lambda: Adam(lr=-1), "adam: lr=-1 is outside (0.0, inf); use a value in between"),
    "text for a number": (lambda: Adam(lr="0.1"), 'adam: lr must be a number, got "0.1"'),
    "a dtype of torch's": (lambda: Quadratic(dtype=torch.float64), "quadratic: dtype must be one of float32, float64"),
    "a split": (lambda: Quadratic(split="dev"), "split must be one of train, validation, test, got dev"),
    "a device": (lambda: tower().to("gpu"), "device must be one that torch has here"),
    "a lone estimator in a mixture": (lambda: Mix("exact", "ps"), "mix: second: unknown gradient estimator 'ps'"),
    "an inner optimizer": (lambda: Gated("adm"), "gated: inner: unknown optimizer 'adm' (did you mean adam?)"),
    "an inner one of a list": (lambda: Partition(["*"], ["adm"]), "by-name: optimizers: unknown optimizer 'adm'"),
    "no run": (lambda: load("nowhere"), "cannot read nowhere: No such file or directory"),
    "no export": (lambda: Exported.load("nowhere"), "cannot read nowhere: No such file or directory"),
    "nothing to export": (lambda: export(tower(), tower().init(0)), "learns nothing to keep"),
    "no steps": (lambda: train(tower(), steps=0, out="run"), "steps must be a whole number of at least 1, got 0"),
    "no module": (lambda: tower().module(tower().init(0)), "quadratic is not over a module"),
    "a module for make": (lambda: module_task(make=nn.Linear(2, 1)), "got a module; write make=lambda: ..."),
    "other data": (lambda: module_task(train=(torch.zeros(6, 3), INPUTS[:, :1])), "the module (Linear): mat1 and mat2"),
    "other targets": (lambda: module_task(train=(INPUTS, INPUTS[:3])), "6 inputs but 3 targets in train"),
    "probed windows": (lambda: probe(tower("quadratic: sgd@2 / adam"), tower("quadratic: sgd@2 / adam").init(0), windows=0),
                       "windows must be a whole number of at least 1, got 0"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", PYTHON)
def test_mistakes_in_python_are_answered_by_one_sentence(mistake):
    make, sentence = PYTHON[mistake]
    with pytest.raises((TypeError, ValueError, OSError), match=re.escape(sentence)) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_text_stands_for_parts_and_levels():
    assert str(Tower("quadratic: lstm@20 / adam")) == "quadratic: lstm@20 / adam"
    mixed = Tower("quadratic(3)", "lstm(hidden=2)@5[objective=last]", Level(optimizer="adam(0.1)"))
    assert str(mixed) == "quadratic(dims=3): lstm(hidden=2)@5[objective=last] / adam(lr=0.1)"
    level = Level(optimizer="by-name([a, '*'], [sgd, adam])".replace("'", '"'), gradient="exact", nonfinite="skip")
    assert repr(level) == 'by-name([a, "*"], [sgd, adam])@1[gradient=exact, nonfinite=skip]'
    assert Partition(["a", "*"], ["sgd", Adam()]) == level.optimizer
    assert Level(optimizer="torch(adagrad)").optimizer.algorithm == "adagrad"  # a word where a word fits


LINE = {
    "no command": ([], "COMMAND"),
    "another command": (["fly"], "there is no command 'fly'; commands: train, eval,"),
    "a misspelt command": (["trian", SMALL], "there is no command 'trian' (did you mean train?)"),
    "a tower first": ([SMALL], f"a tower comes behind the command: tower train '{SMALL}'"),
    "no tower": (["train"], "the following arguments are required: tower"),
    "no quotes": (["train", "quadratic:", "lstm@20", "/", "adam"], "put the tower in quotes: tower train 'quadratic: lstm@20 / adam'"),
    "too much": (["train", SMALL, "more"], "tower train does not take more"),
    "a misspelt option": (["train", SMALL, "--step", "3"], "tower train has no option --step (did you mean --steps?)"),
    "an option in front": (["--verbose", "train", SMALL], "tower train has no option --verbose; it has"),
    "an option of another": (["show", SMALL, "--steps", "3"], "tower show has no option --steps; it has"),
    "no steps": (["train", SMALL, "--steps", "0"], "at least 1, got '0'"),
    "half a step": (["train", SMALL, "--steps", "1.5"], "at least 1, got '1.5'"),
    "steps of words": (["train", SMALL, "--steps", "1e3x"], "at least 1, got '1e3x'"),
    "a small part of a step": (["train", SMALL, "--steps", "1e-3"], "at least 1, got '1e-3'"),
    "a large seed": (["train", SMALL, "--seed", str(2**63)], "--seed"),
    "no thread": (["train", SMALL, "--threads", "0"], "at least 1 and at most 1024, got '0'"),
    "words for a number": (["train", SMALL, "--eval-steps", "x"], "--eval-steps"),
    "a choice": (["train", SMALL, "--nonfinite", "hope"], "invalid choice: 'hope' (choose from"),
    "a device": (["train", SMALL, "--device", "gpu"], "device must be one that torch has here"),
    "capitals": (["train", "quadratic: LSTM@20"], "unknown optimizer 'LSTM' (did you mean lstm?)"),
    "an unroll": (["train", "quadratic: lstm@"], "expected the unroll, a whole number, behind '@'"),
    "the unroll in brackets": (["train", "quadratic: lstm[unroll=3]"], "unroll: it is written @20, before the brackets"),
    "a horizon": (["train", "quadratic: lstm@20[horizon=30] / adam"], "multiple of the unroll 20, got 30"),
    "no memory": (["train", "quadratic: sgd@2[batch=100000000000] / adam", "--steps", "1"], "there is not enough memory (it asked for"),
    "too many": (["train", "quadratic: sgd@2[batch=99999999999999] / adam"], "batch must be a whole number of at least 1, or auto, got about 2^47"),
    "no spec": (["train", "missing.json"], "cannot read missing.json: No such file or directory"),
    "a broken spec": (["show", "broken.json"], "broken.json: this is not a descent-tower spec"),
    "a newer spec": (["show", "newer.json"], "newer.json: this spec has version 99"),
    "a folder that is no run": (["show", "garbled"], "cannot read garbled/spec.json: No such file or directory"),
    "no runs": (["eval"], "RUN"),
    "a file for a run": (["eval", "file"], "cannot read file/checkpoint.safetensors: Not a directory"),
    "a garbled run": (["eval", "garbled"], "garbled/checkpoint.safetensors is not a whole file"),
    "a tower for a run": (["export", SMALL], f"got the tower '{SMALL}'; train it first: tower train '{SMALL}' --out runs/first"),
    "a tower to prune": (["prune", SMALL, "--out", "x"], "this takes a run folder of tower train"),
    "no study": (["report", "garbled"], "cannot read garbled/study.json"),
    "steps of a run that is there": (["probe", "garbled", "--steps", "3"], "--steps is for a tower that is not trained yet"),
    "a garbled run to resume": (["train", SMALL, "--out", "garbled", "--resume"], "garbled/checkpoint.safetensors is not a whole file"),
    "a run that is there": (["train", SMALL, "--out", "garbled"], "garbled already holds a run; resume it (--resume)"),
    "a file for a folder": (["train", SMALL, "--out", "file"], "cannot make the run folder file: File exists"),
    "a folder that cannot be": (["train", SMALL, "--out", "/proc/nowhere/run"], "cannot make the run folder /proc/nowhere/run"),
    "a budget": (["ablate", SMALL, "--budget", "1z"], "a budget is written 2e6 (base steps) or 90s (seconds), got '1z'"),
    "depths": (["ablate", SMALL, "--depths", "9"], "depth 9: the tower has 2 levels"),
    "a grid": (["ablate", SMALL, "--grid", "lr"], "grid lr: it has no '='; a grid entry is written"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", LINE)
def test_mistakes_on_the_command_line_are_one_line_and_exit_code_2(mistake, tmp_path, monkeypatch, capsys):
    words, sentence = LINE[mistake]
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("mine")
    Path("broken.json").write_text('{"format": ')
    Path("newer.json").write_text(json.dumps({**json.loads(dumps(parse(SMALL))), "version": 99}))
    Path("garbled").mkdir()
    Path("garbled/checkpoint.safetensors").write_bytes(b"junk" * 100)
    assert cli.main(words) == 2
    *before, line = capsys.readouterr().err.splitlines()
    assert line.startswith("tower: error: ")
    assert sentence in line
    assert all(text.startswith("tower: ") for text in before)


def test_a_number_of_steps_may_be_written_as_a_power_of_ten():
    assert cli.whole(1, 2000)("1e3") == 1000


@dataclass(frozen=True, repr=False)
class Mine(Nameless):
    """A rule that forgot its name."""

    def shapes(self, layout):
        return {}

    def init(self, key):
        return torch.zeros(*key.shape, 0)

    def init_state(self, theta, x, key):
        return None

    def update(self, theta, x, state, f, g):
        return x - 0.1 * g, state


def test_a_part_without_a_name_runs_and_cannot_be_written_down():
    nameless = Tower(Quadratic(dims=3), Level(optimizer=Mine(), unroll=2))
    nameless.step(nameless.init(0))
    with pytest.raises(ValueError, match="no name; write name = 'mine' into class Mine"):
        dumps(nameless)
