"""Spec: a tower in full as plain JSON data: every setting of every part, defaults included.

    {"format": "descent-tower", "version": 1,
     "task": {"name": "quadratic", "split": "train", "dtype": "float32", "dims": 10},
     "levels": [{"optimizer": {"name": "adam", "lr": 0.001, ...}, "unroll": 1, "horizon": "auto", ...}]}

A part is an object with its ``name``; that of a class outside this package is dotted. Its module is imported only if
the caller trusts it (`levels.importing`). Numbers that JSON lacks are ``{"float": "inf"}``.
Settings that a spec leaves out take their defaults, so a spec outlives the settings that are added after it.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from levels import catalog
from levels.config import Config
from levels.fields import Count, alternatives, closest, fits, require, settings
from levels.importing import require_trusted
from levels.level import Level
from levels.reading import located, one_line
from levels.tasks.task import Task
from recursion.files import explained
from recursion.notation import parse
from recursion.tower import Tower

FORMAT = "descent-tower"
VERSION = 1
FOREIGN = "this is not a descent-tower spec"
FIELDS = ("format", "version", "task", "levels")


def to_spec(tower: Tower) -> dict[str, Any]:
    """The tower as JSON data. ValueError if a part holds what JSON cannot (tensors, functions)."""
    levels = [
        {word: _plain(f"level {number} ({level})", word, value) for word, value in settings(level).items()}
        for number, level in enumerate(tower.levels, 1)
    ]
    return {"format": FORMAT, "version": VERSION, "task": _plain("the tower", "task", tower.task), "levels": levels}


def from_spec(spec: object, trust: Sequence[str] = ()) -> Tower:
    """The tower that a spec describes. ValueError, in one line, for anything that is not such a spec.

    ``trust``: modules and files whose code may run because the spec names it; others are refused before any import.
    """
    written, levels = _envelope(spec)
    require_trusted([written, levels], trust)
    with located("task"):
        task = _part("task", written, "task")
    return Tower(task, *(_level(number, level) for number, level in enumerate(levels, 1)))


def part_to_spec(part: Config) -> dict[str, Any]:
    """One part alone as JSON data, its name first. ValueError if it holds what JSON cannot."""
    return _named("the part", part.name, part)


def part_from_spec(data: object, kind: str, trust: Sequence[str] = ()) -> Any:
    """The part of that kind (``optimizer``, ``task``, ...) that `part_to_spec` wrote. ValueError, in one line."""
    with located(kind):
        require_trusted(data, trust)
        return _part(kind, data, kind)


def dumps(tower: Tower) -> str:
    """The spec of a tower as JSON text, indented by two."""
    return json.dumps(to_spec(tower), indent=2, allow_nan=False) + "\n"


def loads(text: str | bytes, trust: Sequence[str] = ()) -> Tower:
    """The tower of a spec in JSON text, as `from_spec`. ValueError, with line and column, if it is not JSON."""
    try:
        spec = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{FOREIGN}: broken JSON at line {error.lineno}, column {error.colno}: {error.msg}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{FOREIGN}: not UTF-8 text at byte {error.start}") from error
    except RecursionError as error:
        raise ValueError(f"{FOREIGN}: its JSON is nested too deeply") from error
    return from_spec(spec, trust)


def read_tower(text: str, trust: Sequence[str] = ()) -> Tower:
    """The tower of a notation, of a run folder, or of a spec file if ``text`` ends in ``.json``.

    ValueError or OSError, in one line.
    """
    path = Path(text)
    if ":" not in text and path.is_dir():  # a run folder
        path = path / "spec.json"
    elif not text.endswith(".json"):
        return parse(text)
    with explained("read", path):
        data = path.read_bytes()
    with located(text):
        return loads(data, trust)


def _plain(where: str, name: str, value: Any) -> Any:
    """A value as JSON data; ``where`` and ``name`` say whose it is."""
    if isinstance(value, Config):
        return _named(where, name, value)
    if isinstance(value, (tuple, list)):
        return [_plain(where, name, item) for item in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"float": repr(float(value))}
    if value is None or isinstance(value, (bool, int, str)):
        return value
    kinds = "a spec holds only numbers, words, lists and parts; keep this tower in Python"
    raise ValueError(f"{one_line(where)}: {name} is {catalog.article(type(value).__name__)}; {kinds}")


def _named(where: str, field: str, part: Config) -> dict[str, Any]:
    with located(f"{one_line(where)}: {field}"):
        if isinstance(part, Task) and part.origin:
            return {"name": part.origin, "split": part.split, "dtype": part.dtype}
        catalog.require_plain(type(part))
        name = catalog.name_of(type(part))
    inside = f"{where}: {field} {name}"
    return {"name": name} | {key: _plain(inside, key, value) for key, value in settings(part).items()}


def _envelope(spec: Any) -> tuple[object, list[object]]:
    """Task and levels of a spec whose envelope is right."""
    expected = f"{FOREIGN}: expected an object with {', '.join(FIELDS)}"
    require(isinstance(spec, dict), f"{expected}, got {_brief(spec)}")
    word, version = spec.get("format"), spec.get("version")
    require(word == FORMAT, f'{FOREIGN}: expected "format": "{FORMAT}", got {_brief(word)}')
    number = f"{FOREIGN}: version must be a whole number of at least 1, got {_brief(version)}"
    require(fits(version, Count), number)
    reads = f"this descent-tower reads up to version {VERSION}; upgrade descent-tower"
    require(version <= VERSION, f"this spec has version {version}, {reads}")
    for name in spec:
        near = closest(str(name), FIELDS)
        require(name in FIELDS, f"a spec has no field {name!r}{near}; it has {', '.join(FIELDS)}")
    for name in FIELDS:
        require(name in spec, f"a spec needs the field {name!r}, got only {', '.join(spec)}")
    require(isinstance(spec["levels"], list), f"levels must be a list of objects, got {_brief(spec['levels'])}")
    return spec["task"], spec["levels"]


def _level(number: int, data: Any) -> Level:
    with located(f"level {number}"):
        require(isinstance(data, dict), f"a level must be an object with its settings, got {_brief(data)}")
        level: Level = _build(Level, data)
    return level


def _part(name: str, data: Any, *kinds: str) -> Any:
    what = f"{name} must be {catalog.article(' or '.join(kinds))}, an object with its name"
    require(isinstance(data, dict) and isinstance(data.get("name"), str), f"{what}, got {_brief(data)}")
    cls, given = catalog.find(data["name"], *kinds), {key: value for key, value in data.items() if key != "name"}
    return catalog.adjusted(cls, given) if isinstance(cls, Task) else _build(cls, given)


def _build(cls: type, data: Mapping[str, object]) -> Any:
    known = {key: catalog.setting_of(cls, key) for key in data}
    given = {key: _value(key, data[key], setting.hint) if setting else data[key] for key, setting in known.items()}
    return catalog.make(cls, given)


def _value(name: str, value: object, hint: Any) -> Any:
    """JSON data as a value of a setting: objects are parts, or numbers that JSON lacks; lists are tuples."""
    if isinstance(value, list):
        kinds = catalog.items_of(next((one for one in alternatives(hint) if catalog.is_list(one)), Any), len(value))
        return tuple(_value(name, item, kind) for item, kind in zip(value, (*kinds, *(Any,) * len(value))))
    if not isinstance(value, dict):
        return value
    if set(value) == {"float"} and value["float"] in ("inf", "-inf", "nan"):
        return float(value["float"])
    kinds = catalog.kinds_in(hint)
    require(bool(kinds), f"{name} must be {catalog.describe(hint)}, got {_brief(value)}")
    return _part(name, value, *kinds)


def _brief(value: object) -> str:
    """Foreign data for a message: short and in one line."""
    text = one_line(json.dumps(value, skipkeys=True, default=lambda one: f"<{type(one).__name__}>"))
    return text if len(text) <= 60 else text[:57] + "..."
