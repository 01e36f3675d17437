"""Parts are found by name without being listed, and settings are checked against their annotations."""

import dataclasses
import inspect
import sys
from typing import Any, Literal

import pytest

import levels
import levels.optimizers
from levels import Accumulated, catalog
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
def folder(tmp_path, monkeypatch):
    """A folder on the path, also of `levels.optimizers`; its modules and what was scanned are forgotten afterwards."""
    before = set(sys.modules)
    (tmp_path / "inside").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(levels.optimizers, "__path__", [*levels.optimizers.__path__, str(tmp_path / "inside")])
    catalog.parts.cache_clear()
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]
    catalog.parts.cache_clear()


def test_every_concrete_part_of_the_package_is_known():
    exported = [cls for cls in vars(levels).values() if isinstance(cls, type) and issubclass(cls, Config)]
    concrete = {cls for cls in exported if cls.name and not inspect.isabstract(cls)} - {Level}
    parts = {kind: catalog.parts(kind) for kind in catalog.KINDS}
    assert concrete <= {cls for known in parts.values() for cls in known.values()}
    for kind, known in parts.items():
        assert list(known) == sorted(known)
        for name, cls in known.items():
            assert catalog.KINDS[kind] in {base.__name__ for base in cls.__mro__}
            assert catalog.name_of(cls) == cls.name == name
    assert set(parts["objective"]) == {"discounted", "last", "mean-log", "sum", "time-to"}
    assert catalog.parts("objective") is parts["objective"]


def test_adding_an_optimizer_is_writing_one_file(folder):
    (folder / "inside" / "a_new_rule.py").write_text(NEW_RULE)
    slow = catalog.find("slow", "optimizer")
    assert slow.__module__ == "levels.optimizers.a_new_rule"
    assert catalog.name_of(slow) == "slow"
    assert repr(slow(factor=0.25)) == "slow(factor=0.25)"
    assert "unfinished" not in catalog.parts("optimizer")


def test_two_classes_with_one_name_are_refused(folder):
    (folder / "inside" / "one_more_sgd.py").write_text(NEW_RULE.replace('"slow"', '"sgd"'))
    with pytest.raises(ValueError) as caught:
        catalog.parts("optimizer")
    assert str(caught.value) == (
        "'sgd' names both levels.optimizers.sgd.SGD and levels.optimizers.one_more_sgd.Slow; rename one of them"
    )


def test_a_stranger_is_imported_by_its_dotted_name_and_a_file_that_imports_it_does_not_own_it(folder):
    (folder / "strangers_catalog.py").write_text(NEW_RULE)
    (folder / "inside" / "a_user_of_it.py").write_text("from strangers_catalog import Slow")
    slow = catalog.find("strangers_catalog.Slow", "optimizer")
    assert catalog.name_of(slow) == repr(slow()) == "strangers_catalog.Slow"
    assert "slow" not in catalog.parts("optimizer")
    assert "levels.optimizers.a_user_of_it" in sys.modules
    sentence = (
        r"^'strangers_catalog.Unfinished' is not an optimizer: expected a concrete subclass of Config with a name$"
    )
    with pytest.raises(ValueError, match=sentence):
        catalog.find("strangers_catalog.Unfinished", "optimizer")


CONCRETE = "expected a concrete subclass of Config with a name"


@pytest.mark.parametrize(
    ("name", "kind", "sentence"),
    [
        ("zzz", "objective", "unknown objective 'zzz'; known: discounted, last, mean-log, sum"),
        ("sun", "objective", "unknown objective 'sun' (did you mean sum?); known: discounted, last, mean-log, sum"),
        ("sum", "task", "'sum' is an objective, not a task; known: "),
        ("no.such.Rule", "optimizer", "cannot import 'no.such' (No module named 'no'); install it or put it on PYTH"),
        ("levels.Adm", "optimizer", "module 'levels' has no 'Adm' (did you mean Adam?)"),
        ("levels.Adam", "task", f"'levels.Adam' is not a task: {CONCRETE}"),
        ("levels.HyperparamOptimizer", "optimizer", f"'levels.HyperparamOptimizer' is not an optimizer: {CONCRETE}"),
        ("math.pi", "optimizer", f"'math.pi' is not an optimizer: {CONCRETE}"),
        ("..Adam", "optimizer", "'..Adam' is not the path of a class; write it as mypkg.mymodule.MyClass"),
    ],
)
def test_names_that_lead_nowhere(name, kind, sentence):
    with pytest.raises(ValueError) as caught:
        catalog.find(name, kind)
    assert str(caught.value).startswith(sentence)
    assert "\n" not in str(caught.value)


def test_a_class_inside_a_function_has_no_name_to_find_it_by():
    class Hidden(SGD):
        name = "hidden"

    with pytest.raises(ValueError, match=r"Hidden cannot be found by name; define it at the top of a module$"):
        catalog.name_of(Hidden)
    assert repr(Hidden()) == "hidden"


def test_settings_are_the_constructors():
    settings = catalog.settings_of(Adam)
    assert list(settings) == ["lr", "beta1", "beta2", "eps"]
    assert settings["lr"] == catalog.Setting("lr", Hyper | float, required=False, positional=True, field="lr")
    start = catalog.Setting("start", float, required=True, positional=True, field="start")
    assert catalog.settings_of(Log)["start"] == start
    assert not any(setting.positional for setting in catalog.settings_of(Level).values())
    assert catalog.settings_of(Level)["ahead"].field == "lookahead"
    assert catalog.settings_of(int) == {}


def test_annotations_that_cannot_be_resolved_take_anything():
    @dataclasses.dataclass(frozen=True, repr=False)
    class Odd(Sum):
        width: "NotImported" = 3  # noqa: F821

    assert catalog.settings_of(Odd)["width"].hint is Any
    assert catalog.make(Odd, {"width": "wide"}).width == "wide"


def test_one_annotation_that_cannot_be_resolved_leaves_the_others_checked():
    @dataclasses.dataclass(frozen=True, repr=False)
    class Odd(Accumulated):
        width: "NotImported" = 3  # noqa: F821

    with pytest.raises(ValueError, match="copies must be a whole number of at least 1, got 0"):
        Odd(copies=0)


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
    coerced = catalog.coerce(value, hint)
    assert coerced == expected
    assert type(coerced) is type(expected)


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


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        (Any, "a value"),
        (list, "a list"),
        (Hyper | float | None, "a hyperparameter space, a number or none"),
        (Config, ", ".join(map(catalog.article, [*catalog.KINDS][:-1])) + " or a nonfinite policy"),
        (complex, "a Python object"),
    ],
)
def test_types_in_words(hint, words):
    assert catalog.describe(hint) == words


def test_words_of_earlier_specs_are_still_read():
    start = catalog.find("start", "optimizer")
    assert catalog.make(start, {"rule": SGD()}) == catalog.make(start, {"inner": SGD()})
