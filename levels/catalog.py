"""Catalog: parts by name, and what their settings take; read off the classes themselves, so nothing is registered.

A part is known as soon as its file stands in `levels.optimizers`, `levels.tasks` or `levels.gradients` (or its class
in `levels.objectives`, `levels.schedules`, `levels.hyper` or `levels.faults`). A part of your own is named by its
dotted path, ``mypkg.mymodule.MyOptimizer``, and imported. What a setting takes is what its type annotation says; ranges
are checked by the part itself (`levels.config.Config`), which takes parts as text: so this file knows no part.
"""

import contextlib
import inspect
import pkgutil
import types
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from importlib import import_module
from typing import Any, Literal, NamedTuple, get_args, get_origin

from levels.fields import (
    alternatives,
    closest,
    fields_of,
    fits,
    format_value,
    hints_of,
    is_required,
    require,
    shown,
    word,
)
from levels.importing import OURS, imported, run_users

KINDS = {  # the name of the base class of each
    "task": "Problem",
    "optimizer": "Optimizer",
    "objective": "Objective",
    "gradient estimator": "Estimator",
    "hyperparameter space": "Hyper",
    "schedule": "Schedule",
    "nonfinite policy": "NonFinite",
}
PACKAGES = ("levels.optimizers", "levels.tasks", "levels.gradients")
MODULES = ("levels.objectives", "levels.schedules", "levels.hyper", "levels.faults")
PLAIN = {type(None): "none", bool: "true or false", int: "a whole number", float: "a number", str: "a word"}
LISTS = (tuple, list, Sequence)
OLDER = (("rule", "inner"), ("rule", "algorithm"))  # words of earlier notation and specs, still read
OLDER_NAMES = {"recomputed": "accumulated"}  # the same for parts


class Setting(NamedTuple):
    """What a part's constructor takes. ``hint``: its type, `Any` where that cannot be told."""

    name: str  # in notation
    hint: Any
    required: bool = False
    positional: bool = False
    field: str = ""  # in Python, where that is another name


def kinds_of(cls: type) -> list[str]:
    """The kinds that a class is of; none if it is no part."""
    bases = {base.__name__ for base in cls.__mro__ if base.__module__.startswith("levels.")}
    return [kind for kind, base in KINDS.items() if base in bases]


@cache
def parts(kind: str) -> Mapping[str, type[Any]]:
    """The concrete parts of a kind, by name, sorted. ValueError, naming both, if two classes have one name."""
    named: dict[str, type[Any]] = {}
    for module in _modules():
        for cls in vars(module).values():
            ours = _is_part(cls, module.__name__) and kind in kinds_of(cls)
            if ours and (first := named.setdefault(cls.name, cls)) is not cls:
                raise ValueError(f"{cls.name!r} names both {_path(first)} and {_path(cls)}; rename one of them")
    return types.MappingProxyType(dict(sorted(named.items())))


def find(name: str, *kinds: str) -> Any:
    """The class called ``name``, of one of the ``kinds``. ValueError if there is none.

    A name with dots or of a file is imported (`levels.importing`); it may also be a task, or a function that makes one.
    """
    if "." in name:
        return _imported(name, kinds)
    name = OLDER_NAMES.get(name, name)
    for kind in kinds:
        if name in parts(kind):
            return parts(kind)[name]
    wanted, names = " or ".join(kinds), [one for kind in kinds for one in parts(kind)]
    known = f"known: {', '.join(names)}"
    for kind in KINDS:
        if name in parts(kind):
            raise ValueError(f"{name!r} is {article(kind)}, not {article(wanted)}; {known}")
    raise ValueError(f"unknown {wanted} {name!r}{closest(name, names)}; {known}")


def name_of(cls: type[Any]) -> str:
    """The name under which `find` finds a class again. ValueError if nothing does, as for one inside a function."""
    own = cls.__name__
    require(cls.name != "", f"{own} has no name; write name = {own.lower()!r} into class {own}")
    if any(parts(kind).get(cls.name) is cls for kind in KINDS):
        return str(cls.name)
    if "." in cls.__qualname__:
        raise ValueError(f"{_path(cls)} cannot be found by name; define it at the top of a module")
    return _path(cls)


def article(noun: str) -> str:
    """The noun with its indefinite article."""
    return ("an " if noun[0] in "aeio" else "a ") + noun


@cache
def settings_of(cls: type) -> Mapping[str, Setting]:
    """What the constructor of a part takes: by name in notation, in order; free settings aside."""
    hints = hints_of(cls, ranges=False)
    settings = (Setting(word(field), hints.get(field.name, Any), is_required(field), not field.kw_only, field.name)
                for field in fields_of(cls) if not field.metadata.keys() & {"free", "unwritten"})  # fmt: skip
    return {setting.name: setting for setting in settings}


def setting_of(cls: type, name: str) -> Setting | None:
    """The setting of a class that notation calls ``name``, a field or a free one (`levels.fields.free`), or None."""
    known = settings_of(cls)
    name = name if name in known else next((new for old, new in OLDER if old == name and new in known), name)
    hints = (field.metadata["free"] for field in fields_of(cls) if "free" in field.metadata)
    return known.get(name) or next((Setting(name, hint, field=name) for hint in hints), None)


def require_plain(cls: type) -> None:
    """ValueError if a part cannot be made from numbers, words, lists and parts."""
    opaque = [s.name for s in settings_of(cls).values() if s.required and not any(map(_plain, alternatives(s.hint)))]
    if opaque:
        fix = f"build the tower in Python: Tower({cls.__name__}(...), ...)"
        raise ValueError(f"{label(cls)} holds Python objects ({', '.join(opaque)}) and cannot be written down; {fix}")


def make(cls: type, given: Mapping[str, Any]) -> Any:
    """``cls`` with the settings ``given``, by their names in notation. ValueError, one sentence, if they are wrong."""
    known = settings_of(cls)
    taken: dict[str, Setting] = {}
    for name in given:
        if (setting := setting_of(cls, name)) is None:
            raise ValueError(unknown_setting(cls, name, list(known)))
        taken[name] = setting
    require_plain(cls)
    for setting in known.values():
        if setting.required and setting not in taken.values():
            raise ValueError(f"{label(cls)} is missing its setting {setting.name}, {describe(setting.hint)}")
    prefix = f"{label(cls)}: " if getattr(cls, "name", "") else ""  # the caller names the level
    values = {}
    for name, setting in taken.items():
        try:
            values[setting.field] = coerce(given[name], setting.hint)
        except ValueError as error:
            raise ValueError(f"{prefix}{name} {error}") from error
    try:
        return cls(**values)
    except TypeError as error:
        raise ValueError(f"{label(cls)}: {error}") from error
    except ValueError as error:
        raise ValueError(str(error).removeprefix("level: ")) from error


def task_of(thing: Any, name: str) -> Any:
    """The task that a name stands for: a task, or a function without arguments that returns one."""
    if not hasattr(thing, "origin") and callable(thing):
        thing = run_users(thing, f"{name!r} makes no task ({{}}); it must be a task, or a function without arguments")
    what = f"{name!r} must be a task or a function that returns one (a ModuleTask, say)"
    require(hasattr(thing, "origin"), f"{what}, got {type(thing).__name__}")
    return replace(thing, origin=name)


def adjusted(task: Any, given: Mapping[str, Any]) -> Any:
    """A task of the user's with another split or dtype. ValueError, in one sentence, for other settings."""
    known = task_settings(type(task))
    for name in given:
        require(name in known, f"{task} has no setting {name!r}; it has {', '.join(known)}")
    return replace(task, **{name: coerce(value, known[name].hint) for name, value in given.items()})


def task_settings(cls: type) -> Mapping[str, Setting]:
    """The settings of a task that is named by its file: those that every task has."""
    return {name: setting for name, setting in settings_of(cls).items() if name in ("split", "dtype")}


def label(cls: type) -> str:
    """What messages call a class."""
    name: str = getattr(cls, "name", "")
    return name or article(cls.__name__.lower())


def unknown_setting(cls: type, name: str, known: Sequence[str]) -> str:
    """The sentence for a setting that does not exist."""
    has = f"it has {', '.join(known)}" if known else "it has none"
    return f"{label(cls)} has no setting {name!r}{closest(name, known)}; {has}"


def kinds_in(hint: Any) -> tuple[str, ...]:
    """The kinds of part that a value of this type may be, or, for a list, hold; every kind for `Any` and `Config`."""
    kinds: list[str] = []
    for option in alternatives(hint):
        if option is Any or getattr(option, "__name__", "") == "Config":
            return tuple(KINDS)
        if is_list(option):
            kinds += [kind for item in get_args(option) if item is not ... for kind in kinds_in(item)]
        elif isinstance(option, type):
            kinds += kinds_of(option)
    return tuple(dict.fromkeys(kinds))


def takes_words(hint: Any) -> bool:
    """Whether a bare word can be a value of this type."""
    return any(option in (str, Any) or get_origin(option) is Literal for option in alternatives(hint))


def is_list(hint: Any) -> bool:
    """Whether this type is a list or tuple of something."""
    return hint in LISTS or get_origin(hint) in LISTS


def items_of(hint: Any, count: int) -> tuple[Any, ...]:
    """Types of the ``count`` items of a list type; as many as the type says if that is another number."""
    inner = get_args(hint) or (Any, ...)
    if get_origin(hint) is tuple and inner[-1] is not ...:
        return inner
    return (inner[0],) * count


def coerce(value: Any, hint: Any) -> Any:
    """``value`` as a value of the type ``hint``, for a list also a single item; ValueError ``must be ..., got ...``."""
    for option in alternatives(hint):
        with contextlib.suppress(ValueError):
            return _coerce(value, option)
    if any(map(is_list, alternatives(hint))) and not isinstance(value, (tuple, list, type(None))):
        with contextlib.suppress(ValueError):
            return coerce((value,), hint)
    raise ValueError(f"must be {describe(hint)}, got {shown(value)}")


def describe(hint: Any) -> str:
    """A type in words: ``a hyperparameter space, a number or none``."""
    *words, last = (words for option in alternatives(hint) for words in _describe(option))
    return f"{', '.join(words)} or {last}" if words else last


def _coerce(value: Any, option: Any) -> Any:
    """`coerce` for one alternative."""
    if is_list(option) and isinstance(value, (tuple, list)):
        inner = items_of(option, len(value))
        if len(inner) == len(value):
            items = [coerce(item, kind) for item, kind in zip(value, inner)]
            return items if list in (option, get_origin(option)) else tuple(items)
    elif option is Any or ((isinstance(option, type) or get_origin(option) is Literal) and fits(value, option)):
        return value
    raise ValueError("of another type")


def _describe(option: Any) -> list[str]:
    if get_origin(option) is Literal:
        return [format_value(value) for value in get_args(option)]
    if is_list(option):
        kinds = [item for item in get_args(option) if item is not ...]
        return [f"a list (each {', '.join(map(describe, kinds))})" if kinds else "a list"]
    if option is Any:
        return ["a value"]
    own = PLAIN.get(option) or getattr(option, "described", "")
    return [own] if own else [article(kind) for kind in kinds_in(option)] or ["a Python object"]


def _plain(option: Any) -> bool:
    if is_list(option):
        return all(any(map(_plain, alternatives(item))) for item in get_args(option) if item is not ...)
    return option is Any or option in PLAIN or get_origin(option) is Literal or bool(kinds_in(option))


def _modules() -> list[types.ModuleType]:
    inside = [f"{package}.{module.name}" for package in PACKAGES
              for module in pkgutil.iter_modules(import_module(package).__path__)]  # fmt: skip
    return [import_module(name) for name in (*inside, *MODULES)]


def _is_part(cls: object, module: str) -> bool:
    """Whether it is a concrete part with a name, defined there rather than imported."""
    defined = isinstance(cls, type) and hasattr(cls, "described") and cls.__module__ == module
    return defined and getattr(cls, "name", "") != "" and not inspect.isabstract(cls)


def _imported(path: str, kinds: tuple[str, ...]) -> Any:
    thing = imported(path)
    if "task" in kinds and not isinstance(thing, type) and path.partition(".")[0] not in OURS:  # no file calls ours
        return task_of(thing, path)
    good = isinstance(thing, type) and {*kinds_of(thing)} & {*kinds} and _is_part(thing, thing.__module__)
    wanted = f"{article(' or '.join(kinds))}: expected a concrete subclass of Config with a name"
    require(bool(good), f"{path!r} is not {wanted}")
    return thing


def _path(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
