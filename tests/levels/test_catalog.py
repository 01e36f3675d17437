"""Parts are found by name without being listed, and settings are checked against their annotations."""

import dataclasses
import inspect
import sys
from collections.abc import Iterator
from typing import Any, Literal

import pytest

import levels
import levels.optimizers
from levels import catalog
from levels.config import Config
from levels.hyper import Hyper, Log
from levels.level import Level
from levels.objectives import Objective, Sum
from levels.optimizers.adam import Adam
from levels.optimizers.sgd import SGD
from levels.tasks.module import ModuleTask

NEW_RULE = '''
from dataclasses import dataclass
from levels.hyper import HyperparamOptimizer
from levels.optimizers.sgd import SGD

@dataclass(frozen=True, repr=False)
class Unfinished(HyperparamOptimizer):
    """Has a name, but no step."""

    name = "unfinished"

@dataclass(frozen=True, repr=False)
class Slow(SGD):
    """Half the step."""

    name = "slow"
    factor: float = 0.5

class Unnamed: ...
number = 3
'''


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Iterator[Any]:
    """A folder on the path; what is imported from it is forgotten afterwards, and so is what was scanned."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(tmp_path)
    catalog.parts.cache_clear()
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]
    catalog.parts.cache_clear()


def test_every_concrete_part_of_the_package_is_found():
    exported = [cls for cls in vars(levels).values() if isinstance(cls, type) and issubclass(cls, Config)]
    concrete = {cls for cls in exported if getattr(cls, "name", "") and not inspect.isabstract(cls)} - {Level}
    found = {cls for kind in catalog.KINDS for cls in catalog.parts(kind).values()}
    assert concrete <= found
    assert all(catalog.name_of(cls) == cls.name for cls in found)


@pytest.mark.parametrize(
    ("kind", "some"),
    [
        ("task", {"digits-mlp", "module", "quadratic"}),
        ("optimizer", {"adam", "lstm", "rmsprop", "sgd"}),
        ("objective", {"discounted", "last", "mean-log", "sum"}),
        ("gradient estimator", {"first-order"}),
        ("hyperparameter space", {"fixed", "linear", "log", "logit"}),
        ("nonfinite policy", {"skip", "stop"}),
    ],
)
def test_kinds(kind, some):
    found = catalog.parts(kind)
    assert some <= set(found)
    assert list(found) == sorted(found)
    assert all(cls.name == name and issubclass(cls, catalog.KINDS[kind]) for name, cls in found.items())
    assert catalog.parts(kind) is found


def test_adding_an_optimizer_is_writing_one_file(folder, monkeypatch):
    (folder / "a_new_rule.py").write_text(NEW_RULE)
    monkeypatch.setattr(levels.optimizers, "__path__", [*levels.optimizers.__path__, str(folder)])
    slow = catalog.find("slow", "optimizer")
    assert slow.__module__ == "levels.optimizers.a_new_rule"
    assert catalog.name_of(slow) == "slow"
    assert repr(slow(factor=0.25)) == "slow(factor=0.25)"
    assert "unfinished" not in catalog.parts("optimizer")


def test_a_class_imported_by_a_file_of_the_package_is_not_of_the_package(folder, monkeypatch):
    (folder / "strangers_rule.py").write_text(NEW_RULE)
    (folder / "inside").mkdir()
    (folder / "inside" / "a_user_of_it.py").write_text("from strangers_rule import Slow")
    monkeypatch.setattr(levels.optimizers, "__path__", [*levels.optimizers.__path__, str(folder / "inside")])
    assert "slow" not in catalog.parts("optimizer")
    assert "levels.optimizers.a_user_of_it" in sys.modules


def test_two_classes_with_one_name_are_refused(folder, monkeypatch):
    (folder / "one_more_sgd.py").write_text(NEW_RULE.replace('"slow"', '"sgd"'))
    monkeypatch.setattr(levels.optimizers, "__path__", [*levels.optimizers.__path__, str(folder)])
    with pytest.raises(ValueError) as caught:
        catalog.parts("optimizer")
    assert str(caught.value) == (
        "'sgd' names both levels.optimizers.sgd.SGD and levels.optimizers.one_more_sgd.Slow; rename one of them"
    )


def test_a_stranger_is_imported_by_its_dotted_name(folder):
    (folder / "strangers_catalog.py").write_text(NEW_RULE)
    slow = catalog.find("strangers_catalog.Slow", "optimizer")
    assert slow.name == "slow"
    assert catalog.name_of(slow) == "strangers_catalog.Slow"
    assert repr(slow()) == "strangers_catalog.Slow"
    assert "slow" not in catalog.parts("optimizer")
    with pytest.raises(
        ValueError, match=r"^'strangers_catalog.Unfinished' is not an optimizer: expected a concrete sub"
    ):
        catalog.find("strangers_catalog.Unfinished", "optimizer")


@pytest.mark.parametrize(
    ("name", "kinds", "sentence"),
    [
        ("zzz", ("objective",), "unknown objective 'zzz'; known: discounted, last, mean-log, sum"),
        ("sum", ("task",), "'sum' is an objective, not a task; known: "),
        (
            "no.such.Rule",
            ("optimizer",),
            "cannot import 'no.such' (No module named 'no'); install it or put it on PYTH",
        ),
        ("levels.Adm", ("optimizer",), "module 'levels' has no 'Adm' (did you mean Adam?)"),
        ("levels.Adam", ("task",), "'levels.Adam' is not a task: expected a concrete subclass of Config with a name"),
        (
            "levels.HyperparamOptimizer",
            ("optimizer",),
            "'levels.HyperparamOptimizer' is not an optimizer: expected a concrete subclass of",
        ),
        (
            "math.pi",
            ("optimizer",),
            "'math.pi' is not an optimizer: expected a concrete subclass of Config with a name",
        ),
        ("..Adam", ("optimizer",), "'..Adam' is not the path of a class; write it as mypkg.mymodule.MyClass"),
    ],
)
def test_names_that_lead_nowhere(name, kinds, sentence):
    with pytest.raises(ValueError) as caught:
        catalog.find(name, *kinds)
    assert str(caught.value).startswith(sentence)
    assert "\n" not in str(caught.value)


def test_a_class_inside_a_function_has_no_name_to_be_found_by():
    class Hidden(SGD):
        name = "hidden"

    with pytest.raises(ValueError, match=r"Hidden cannot be found by name; define it at the top of a module$"):
        catalog.name_of(Hidden)
    assert repr(Hidden()) == "hidden"


def test_settings_are_the_constructors():
    settings = catalog.settings_of(Adam)
    assert list(settings) == ["lr", "beta1", "beta2", "eps"]
    assert settings["lr"] == catalog.Setting("lr", Hyper | float, required=False, positional=True, field="lr")
    assert catalog.settings_of(Log)["start"] == catalog.Setting(
        "start", float, required=True, positional=True, field="start"
    )
    assert not any(setting.positional for setting in catalog.settings_of(Level).values())
    assert catalog.settings_of(Level)["ahead"].field == "lookahead"
    assert "site" not in catalog.settings_of(Adam)
    assert catalog.settings_of(int) == {}


def test_annotations_that_cannot_be_resolved_take_anything():
    @dataclasses.dataclass(frozen=True, repr=False)
    class Odd(Sum):
        width: "NotImported" = 3  # noqa: F821

    assert catalog.settings_of(Odd)["width"].hint is Any
    assert catalog.make(Odd, {"width": "wide"}).width == "wide"


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
    [
        (3, int, 3),
        (3, float, 3),
        (True, bool, True),
        (None, int | None, None),
        ("auto", int | Literal["auto"], "auto"),
        ((1, 2), tuple[int, ...], (1, 2)),
        ((1, 2), list[int], [1, 2]),
        (((1, 2), (3,)), tuple[list[int], ...], ([1, 2], [3])),
        ((1, "a"), tuple[int, str], (1, "a")),
        ((), tuple[int, ...], ()),
        (20, tuple[int, ...], (20,)),
        (Sum(), Objective, Sum()),
        ("word", Any, "word"),
    ],
)
def test_coerce(value, hint, expected):
    settled = catalog.coerce(value, hint)
    assert settled == expected
    assert type(settled) is type(expected)


@pytest.mark.parametrize(
    ("value", "hint", "sentence"),
    [
        (True, int, "must be a whole number, got true"),
        (2.5, int | None, "must be a whole number or none, got 2.5"),
        (1, bool, "must be true or false, got 1"),
        (1, Literal["auto", "none so far"], 'must be auto or "none so far", got 1'),
        (3, str, "must be a word, got 3"),
        (Sum(), Hyper | float, "must be a hyperparameter space or a number, got sum"),
        ((1, 2.5), tuple[int, ...], "must be a list (each a whole number), got [1, 2.5]"),
        ((1, 2, 3), tuple[int, int], "must be a list (each a whole number, a whole number), got [1, 2, 3]"),
        ("x", tuple[int, ...], "must be a list (each a whole number), got x"),
    ],
)
def test_coerce_refuses_other_kinds(value, hint, sentence):
    with pytest.raises(ValueError) as caught:
        catalog.coerce(value, hint)
    assert str(caught.value) == sentence


PYTHON = (
    "module holds Python objects (make, loss_function, train) and cannot be written down; "
    "build the tower in Python: Tower(ModuleTask(...), ...)"
)


@pytest.mark.parametrize(
    ("cls", "given", "sentence"),
    [
        (Adam, {"lrr": 1}, "adam has no setting 'lrr' (did you mean lr?); it has lr, beta1, beta2, eps"),
        (Log, {}, "log is missing its setting start, a number"),
        (Level, {"optimizer": SGD(), "stagger": 3}, "stagger must be true or false, got 3"),
        (SGD, {"nesterov": "yes"}, "sgd: nesterov must be true or false, got yes"),
        (ModuleTask, {"minibatch": 3}, PYTHON),
    ],
)
def test_make_refuses(cls, given, sentence):
    with pytest.raises(ValueError) as caught:
        catalog.make(cls, given)
    assert str(caught.value) == sentence


def test_make_turns_a_type_error_into_a_sentence():
    @dataclasses.dataclass(frozen=True, repr=False)
    class Picky(Sum):
        name = "picky"
        width: Any = 3

        def __post_init__(self) -> None:
            raise TypeError("width must be wide")

    with pytest.raises(ValueError, match=r"^picky: width must be wide$"):
        catalog.make(Picky, {"width": 1})


def test_types_in_words():
    assert catalog.describe(Any) == "a value"
    assert catalog.describe(list) == "a list"
    assert catalog.describe(Hyper | float | None) == "a hyperparameter space, a number or none"
    assert catalog.describe(Config) == ", ".join(map(catalog.article, [*catalog.KINDS][:-1])) + " or a nonfinite policy"
    assert catalog.describe(complex) == "a Python object"


def test_words_of_earlier_specs_are_still_read():
    start = catalog.find("start", "optimizer")
    assert catalog.make(start, {"rule": SGD()}) == catalog.make(start, {"inner": SGD()})
