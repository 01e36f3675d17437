"""A spec says a tower in full; it is read back equal, or refused in one line."""

import json

import pytest
import torch
from torch import nn
from towers import Odd, same

from levels import SGD, Adam, Discounted, Level, Log, ModuleTask, Quadratic, Skip
from recursion.notation import parse
from recursion.spec import dumps, from_spec, loads, to_spec
from recursion.tower import Tower


def test_a_spec_is_in_full_and_what_it_leaves_out_takes_its_default():
    level = Level(optimizer=SGD(lr=Log(0.5, "tensor")), unroll=4, objective=Discounted(0.5), nonfinite=Skip(), batch=2)
    lr = {"name": "log", "start": 0.5, "per": "tensor"}
    optimizer = {"name": "sgd", "lr": lr, "momentum": None, "weight_decay": None, "nesterov": False}
    settings = {"unroll": 4, "horizon": "auto", "batch": 2, "stagger": True, "ahead": None, "clip": None}
    parts = {"objective": {"name": "discounted", "discount": 0.5}, "gradient": {"name": "first-order"}}
    full = {
        "format": "descent-tower",
        "version": 1,
        "task": {"name": "quadratic", "split": "train", "dtype": "float32", "dims": 3},
        "levels": [{"optimizer": optimizer, **settings, **parts, "nonfinite": {"name": "skip"}}],
    }
    assert to_spec(Tower(Quadratic(dims=3), level)) == full
    bare = full | {"task": {"name": "quadratic"}, "levels": [{"optimizer": {"name": "sgd"}}]}
    assert same(from_spec(bare), parse("quadratic: sgd"))


def test_a_strangers_part_is_written_dotted():
    text = 'quadratic: towers.Odd(needed="ä b", widths=[1, 2], grid=[[1], [], [2, 3]], betas=[-inf, 2], '
    tower = parse(text + "objectives=[last, discounted(0.5)], anything=[1, [word, log(1.0)]])")
    spec = to_spec(tower)
    optimizer = spec["levels"][0]["optimizer"]
    assert (optimizer["name"], optimizer["betas"]) == ("towers.Odd", [{"float": "-inf"}, 2])
    again = loads(dumps(tower), ["towers"])
    assert same(again, tower)
    odd = again.levels[0].optimizer
    assert (odd.widths, odd.grid, odd.anything) == ([1, 2], ((1,), (), (2, 3)), (1, ("word", Log(1.0))))


def test_a_strangers_complaint_becomes_one_line():
    spec = changed("levels.0.optimizer", {"name": "towers.Odd", "needed": "x", "path": "bad"})
    with pytest.raises(ValueError, match=r"^level 1: odd: path must lead somewhere$"):
        from_spec(spec, ["towers"])


class Local:
    class Inside(SGD):
        name = "local"


DATA = (torch.zeros(4, 2), torch.zeros(4, dtype=torch.int64))
MODULE = ModuleTask(make=lambda: nn.Linear(2, 3), loss_function=nn.functional.cross_entropy, train=DATA)
UNWRITTEN = (
    "module holds Python objects (make, loss_function, train) and cannot be written down; build the tower in Python"
)


@pytest.mark.parametrize(("task", "optimizer", "sentence"), [
    (MODULE, Adam(), f"the tower: task: {UNWRITTEN}: Tower(ModuleTask(...), ...)"),
    (Quadratic(), Odd(needed="", anything=torch.zeros(100)),
     'level 1 (towers.Odd(anything=<Tensor>, needed="")@1): optimizer towers.Odd: anything is a Tensor; '
     "a spec holds only numbers, words, lists and parts; keep this tower in Python"),
    (Quadratic(), Local.Inside(), "level 1 (local@1): optimizer: test_spec.Local.Inside cannot be found by name; "
     "define it at the top of a module"),
], ids=["task", "setting", "class"])  # fmt: skip
def test_a_tower_that_cannot_be_written_down_is_refused(task, optimizer, sentence):
    with pytest.raises(ValueError) as caught:
        to_spec(Tower(task, Level(optimizer=optimizer)))
    assert str(caught.value) == sentence


def changed(path, value):
    """The spec of a small tower with another value at ``path``."""
    inner = spec = to_spec(parse("quadratic: lstm@20 / adam"))
    *way, last = (int(step) if step.isdecimal() else step for step in path.split("."))
    for step in way:
        inner = inner[step]
    inner[last] = value
    return spec


FOREIGN = "this is not a descent-tower spec: "
LEVEL = "it has optimizer, unroll, horizon, batch, stagger, ahead, objective, gradient, clip, nonfinite"


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ([], FOREIGN + "expected an object with format, version, task, levels, got []"),
        ({}, FOREIGN + 'expected "format": "descent-tower", got null'),
        (changed("format", "gltf"), FOREIGN + 'expected "format": "descent-tower", got "gltf"'),
        (changed("version", "1"), FOREIGN + 'version must be a whole number of at least 1, got "1"'),
        (changed("version", 0), FOREIGN + "version must be a whole number of at least 1, got 0"),
        (changed("version", 7), "this spec has version 7, this descent-tower reads up to version 1; upgrade descent-tower"),
        (changed("levls", []), "a spec has no field 'levls' (did you mean levels?); it has format, version, task, *"),
        ({"format": "descent-tower", "version": 1}, "a spec needs the field 'task', got only format, version"),
        (changed("levels", {}), "levels must be a list of objects, got {}"),
        (changed("levels", []), "a tower needs at least one level, got none; add an optimizer, *"),
        (changed("levels", [3]), "level 1: a level must be an object with its settings, got 3"),
        (changed("task", "quadratic"), 'task: task must be a task, an object with its name, got "quadratic"'),
        (changed("task.name", "adam"), "task: 'adam' is an optimizer, not a task; known: *"),
        (changed("task.dimz", 3), "task: quadratic has no setting 'dimz' (did you mean dims?); it has split, dtype, *"),
        (changed("task.dims", "3"), 'task: quadratic: dims must be a whole number, got "3"'),
        (changed("levels.0.unrol", 3), f"level 1: a level has no setting 'unrol' (did you mean unroll?); {LEVEL}"),
        (changed("levels.1.stagger", 1), "level 2: stagger must be true or false, got 1"),
        (changed("levels.1.objective", "last"), "level 2: objective must be an objective, got last"),
        (changed("levels.1.clip", {"name": "sum"}), 'level 2: clip must be a number or none, got {"name": "sum"}'),
        (changed("levels.1", {}), "level 2: a level is missing its setting optimizer, an optimizer"),
        (changed("levels.1.optimizer.lr", {"name": "log"}), "level 2: log is missing its setting start, a number"),
        (changed("levels.1.optimizer.lr", "big"), "level 2: adam: lr must be a hyperparameter space or a *"),
        (changed("levels.0.optimizer", {"name": "x" * 99}), "level 1: unknown optimizer 'xxx*"),
    ],
)  # fmt: skip
def test_specs_that_are_refused(spec, sentence):
    with pytest.raises(ValueError) as caught:
        from_spec(json.loads(json.dumps(spec)) if isinstance(spec, dict) and "version" in spec else spec)
    got = str(caught.value)
    assert "\n" not in got
    assert got.startswith(sentence[:-1]) if sentence.endswith("*") else got == sentence


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('{"format":\n 1,,}', "broken JSON at line 2, column 4: "),
        ("", "broken JSON at line 1, column 1: Expecting value"),
        (dumps(parse("quadratic: adam"))[:-30], "broken JSON at line 3"),
        (b"\xff\xff", "not UTF-8 text at byte 0"),
        ("[" * 100_000, "its JSON is nested too deeply"),
        ("3", "expected an object with format, version, task, levels, got 3"),
    ],
)
def test_text_that_is_no_spec(text, sentence):
    with pytest.raises(ValueError) as caught:
        loads(text)
    assert str(caught.value).startswith(FOREIGN + sentence)
    assert "\n" not in str(caught.value)
