"""Part: anything a tower is assembled from, and how it writes itself down.

A part is a frozen dataclass with a name. Written in a tower's notation it is ``name(field=value, ...)`` with
the fields that differ from their defaults, and those without a default first, as ``log(0.01, per=tensor)``;
`recursion.notation` reads the same back.
"""

import dataclasses
import json
import re
from abc import ABC
from typing import Any, ClassVar

WORD = re.compile(r"(?!(?:true|false|none|inf|nan)$)[A-Za-z_][A-Za-z0-9_.-]*")  # what stands for itself in notation


class Config(ABC):
    """Base of optimizers, tasks, objectives, gradient estimators and the like; ``name`` is what notation calls it."""

    name: ClassVar[str]

    def __repr__(self) -> str:
        bare = positional(self)
        named = {key: value for key, value in changed(self).items() if key not in bare}
        values = [*map(format_value, bare.values()), *(f"{key}={notate(value)}" for key, value in named.items())]
        return f"{title(self)}({', '.join(values)})" if values else title(self)


def title(part: Config) -> str:
    """How notation finds the class: its name, or the dotted path of one at the top of a module outside this package."""
    cls = type(part)
    ours = cls.__module__.partition(".")[0] == __name__.partition(".")[0]
    return cls.name if ours or "." in cls.__qualname__ else f"{cls.__module__}.{cls.__name__}"


def free(hint: Any) -> Any:
    """A dataclass field for settings of any name: pairs of a name and a value of the type ``hint``.

    The class writes its own ``__init__``, which takes them as keyword arguments; notation writes them as settings.
    """
    return dataclasses.field(default=(), kw_only=True, metadata={"free": hint})


def unwritten(default: Any) -> Any:
    """A dataclass field that says where or how a part works here, not what it is: it is not written down with it."""
    return dataclasses.field(default=default, kw_only=True, metadata={"unwritten": True})


def settings(part: Config) -> dict[str, Any]:
    """All settings of a part that its constructor takes, by name: its fields, and the `free` ones in one of them."""
    found: dict[str, Any] = {}
    if not dataclasses.is_dataclass(part):
        return found
    for field in dataclasses.fields(part):
        if field.init and "unwritten" not in field.metadata:
            value = getattr(part, field.name)
            found |= dict(value) if "free" in field.metadata else {field.name: value}
    return found


def positional(part: Config) -> dict[str, Any]:
    """The leading fields without a default: written without their names."""
    found: dict[str, Any] = {}
    if not dataclasses.is_dataclass(part):
        return found
    for field in dataclasses.fields(part):
        if field.kw_only or not field.init:
            continue
        if field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING:
            break
        found[field.name] = getattr(part, field.name)
    return found


def changed(part: Config) -> dict[str, Any]:
    """The fields that differ from their defaults."""
    if not dataclasses.is_dataclass(part):
        return {}
    defaults = {}
    for field in dataclasses.fields(part):
        if field.default_factory is not dataclasses.MISSING:
            defaults[field.name] = field.default_factory()
        else:
            defaults[field.name] = field.default
    missing = dataclasses.MISSING
    return {key: value for key, value in settings(part).items() if format_value(value) != format_value(defaults.get(key, missing))}


def format_value(value: Any) -> str:
    """A value as notation writes it: numbers, words, ``none``, ``[a, b]``, parts; other strings as in JSON.

    What notation has no way to write (a tensor, a function) comes out as Python's repr if that is short, else as
    its type in angle brackets.
    """
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (tuple, list)):
        return "[" + ", ".join(format_value(item) for item in value) + "]"
    if isinstance(value, str):
        return value if WORD.fullmatch(value) else json.dumps(value)
    if isinstance(value, float):
        return repr(float(value))
    text = repr(value)
    long = "\n" in text or len(text) > 60
    return f"<{type(value).__name__}>" if long and not isinstance(value, Config) else text


def require(condition: bool, message: str) -> None:
    """Raise ValueError(message) unless ``condition``: for settings that a user got wrong."""
    if not condition:
        raise ValueError(message)
