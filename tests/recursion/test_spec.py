"""A spec says a tower in full; it is read back equal, or refused in one line."""

import copy
import json
import random
import sys

import pytest
import torch
from torch import nn

from levels import SGD, Adam, Discounted, Level, Log, ModuleTask, Quadratic, Skip
from recursion.notation import parse
from recursion.spec import dumps, from_spec, loads, to_spec
from recursion.tower import Tower

STRANGER = '''
from dataclasses import dataclass, field
from typing import Any
from levels.objectives import Objective, Sum
from levels.optimizers.sgd import SGD

@dataclass(frozen=True, repr=False, kw_only=True)
class Odd(SGD):
    """Settings of every type."""

    name = "odd"
    path: str = "a.csv"
    widths: list[int] = field(default_factory=list)
    grid: tuple[tuple[int, ...], ...] = ()
    bounds: tuple[float, float] = (0.0, 1.0)
    objectives: tuple[Objective, ...] = (Sum(),)
    anything: Any = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.path == "bad":
            raise TypeError("path must lead\\n  somewhere")
'''

TEXTS = [
    "quadratic: adam",
    "digits-mlp: lstm@20 / lstm@5 / adam(lr=1e-3)",
    "quadratic(10): lstm(hidden=20, layers=2)@20[batch=64, horizon=100, clip=1, objective=mean-log] / adam(lr=3e-3)",
    "digits-mlp(hidden=[20, 20], activation=relu): sgd(lr=linear(0.1), momentum=0.9)@1 / sgd(lr=linear(1e-4))",
    "quadratic(split=test, dtype=float64): rmsprop(lr=log(0.01, per=tensor))@3[objective=discounted(0.5)] / adam",
    "quadratic: lstm[horizon=none, stagger=false, nonfinite=skip, clip=2.5, gradient=first-order] / adam",
    "quadratic: " + " / ".join(["sgd@2"] * 9),
]


def same(one: Tower, other: Tower) -> bool:
    return one.task == other.task and one.levels == other.levels


@pytest.fixture
def stranger(tmp_path, monkeypatch):
    (tmp_path / "strangers_spec.py").write_text(STRANGER)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("strangers_spec", None)


@pytest.mark.parametrize("text", TEXTS)
def test_round_trip(text):
    tower = parse(text)
    spec = to_spec(tower)
    assert same(from_spec(spec), tower)
    assert same(loads(dumps(tower)), tower)
    assert json.loads(dumps(tower)) == spec
    assert to_spec(from_spec(spec)) == spec


def test_a_spec_is_in_full():
    tower = Tower(
        Quadratic(dims=3),
        Level(optimizer=SGD(lr=Log(0.5, "tensor")), unroll=4, objective=Discounted(0.5), nonfinite=Skip(), batch=2),
    )
    assert to_spec(tower) == {
        "format": "descent-tower",
        "version": 1,
        "task": {"name": "quadratic", "split": "train", "dtype": "float32", "dims": 3},
        "levels": [
            {
                "optimizer": {
                    "name": "sgd",
                    "lr": {"name": "log", "start": 0.5, "per": "tensor"},
                    "momentum": None,
                    "weight_decay": None,
                    "nesterov": False,
                },
                "unroll": 4,
                "horizon": "auto",
                "batch": 2,
                "stagger": True,
                "ahead": None,
                "objective": {"name": "discounted", "discount": 0.5},
                "gradient": {"name": "first-order"},
                "clip": None,
                "nonfinite": {"name": "skip"},
            }
        ],
    }


def partial_part(rng: random.Random, name: str, **settings) -> dict:
    """A part with some of its settings."""
    return {"name": name} | {key: value for key, value in settings.items() if rng.random() < 0.6}


def partial_level(rng: random.Random) -> dict:
    start = rng.choice([0.5, 1e-3, 0.123456789])
    lr = {"name": rng.choice(["log", "linear", "logit"]), "start": start}
    optimizers = [
        partial_part(rng, "lstm", hidden=rng.randint(1, 9), layers=rng.randint(1, 3), scale=rng.random() + 0.1),
        partial_part(rng, "adam", lr=lr, beta1=start, eps={"name": "fixed", "start": start}),
        partial_part(rng, "sgd", lr=lr | {"per": "coordinate"}, momentum=start, weight_decay=None),
    ]
    settings = {
        "horizon": rng.choice([None, "auto", 60]),
        "batch": rng.randint(1, 3),
        "stagger": rng.random() < 0.5,
        "objective": partial_part(rng, "discounted", discount=start),
        "clip": rng.choice([None, 1, 0.5]),
        "nonfinite": {"name": rng.choice(["stop", "skip"])},
    }
    given = {key: value for key, value in settings.items() if rng.random() < 0.5}
    return {"optimizer": rng.choice(optimizers), "unroll": rng.choice([1, 2, 3, 4, 5])} | given


def within(part: object, whole: object) -> bool:
    """Whether everything that ``part`` says stands in ``whole``."""
    if isinstance(part, dict):
        return isinstance(whole, dict) and all(key in whole and within(part[key], whole[key]) for key in part)
    if isinstance(part, list):
        return isinstance(whole, list) and len(part) == len(whole) and all(map(within, part, whole))
    return type(part) is type(whole) and part == whole


def test_partial_specs_of_a_family_are_filled_in():
    rng = random.Random(0)
    grown = 0
    for _ in range(50):
        images = partial_part(rng, "digits-mlp", hidden=[3, rng.randint(1, 9)], dtype="float64")
        task = rng.choice([partial_part(rng, "quadratic", dims=rng.randint(1, 9), split="test"), images])
        levels = [partial_level(rng) for _ in range(rng.randint(1, 4))]
        spec = {"format": "descent-tower", "version": 1, "task": task, "levels": levels}
        kept = copy.deepcopy(spec)
        tower = from_spec(spec)
        full = to_spec(tower)
        assert spec == kept
        assert within(spec, full)
        assert same(from_spec(full), tower)
        assert same(parse(repr(tower)), tower)
        grown += full != spec
    assert grown == 50


def test_a_strangers_part_is_written_dotted(stranger):
    text = (
        'quadratic: strangers_spec.Odd(path="ä b", widths=[1, 2], grid=[[1], [], [2, 3]], bounds=[-inf, 2], '
        "objectives=[last, discounted(0.5)], anything=[1, [word, log(1.0)]])"
    )
    tower = parse(text)
    spec = to_spec(tower)
    optimizer = spec["levels"][0]["optimizer"]
    assert optimizer["name"] == "strangers_spec.Odd"
    assert optimizer["bounds"] == [{"float": "-inf"}, 2]
    assert same(from_spec(spec), tower)
    again = loads(dumps(tower)).levels[0].optimizer
    assert (again.widths, again.grid, again.anything) == ([1, 2], ((1,), (), (2, 3)), (1, ("word", Log(1.0))))


def test_a_strangers_complaint_becomes_one_line(stranger):
    spec = changed("levels.0.optimizer", {"name": "strangers_spec.Odd", "path": "bad"})
    with pytest.raises(ValueError, match=r"^level 1: odd: path must lead somewhere$"):
        from_spec(spec)


def test_a_task_of_python_objects_is_refused():
    data = (torch.zeros(4, 2), torch.zeros(4, dtype=torch.int64))
    task = ModuleTask(make=lambda: nn.Linear(2, 3), loss_function=nn.functional.cross_entropy, train=data)
    with pytest.raises(ValueError) as caught:
        to_spec(Tower(task, Level(optimizer=Adam())))
    assert str(caught.value) == (
        "the tower: task: module holds Python objects (make, loss_function, train) and cannot be written down; "
        "build the tower in Python: Tower(ModuleTask(...), ...)"
    )


def test_a_setting_that_holds_a_python_object_is_refused(stranger):
    odd = type(parse("quadratic: strangers_spec.Odd").levels[0].optimizer)
    with pytest.raises(ValueError) as caught:
        to_spec(Tower(Quadratic(), Level(optimizer=odd(anything=torch.zeros(100)))))
    assert str(caught.value) == (
        "level 1 (strangers_spec.Odd(anything=<Tensor>)@1): optimizer strangers_spec.Odd: anything is a Tensor; "
        "a spec holds only numbers, words, lists and parts; keep this tower in Python"
    )


def test_a_class_that_cannot_be_found_again_is_refused():
    class Local(SGD):
        name = "local"

    with pytest.raises(
        ValueError, match=r"^level 1 \(local@1\): optimizer: .*Local cannot be found by name; define it"
    ):
        to_spec(Tower(Quadratic(), Level(optimizer=Local())))


def changed(path: str, value: object) -> object:
    """The spec of a small tower with another value at ``path``."""
    spec = to_spec(parse("quadratic: lstm@20 / adam"))
    *way, last = path.split(".")
    inner = spec
    for step in way:
        inner = inner[int(step) if step.isdecimal() else step]
    inner[int(last) if last.isdecimal() else last] = value
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


def test_a_newer_version_says_to_upgrade():
    with pytest.raises(ValueError) as caught:
        from_spec(changed("version", 7))
    assert str(caught.value) == (
        "this spec has version 7, this descent-tower reads up to version 1; upgrade descent-tower"
    )


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
