"""Part: anything a tower is assembled from, and how it writes itself down.

A part is a frozen dataclass with a name. Written in a tower's notation it is ``name(field=value, ...)`` with
the fields that differ from their defaults; `recursion.notation` reads the same back.
"""

import dataclasses
from abc import ABC
from typing import Any, ClassVar


class Part(ABC):
    """Base of optimizers, tasks, objectives, gradient estimators and the like; ``name`` is what notation calls it."""

    name: ClassVar[str]

    def __repr__(self) -> str:
        written = ", ".join(f"{key}={notate(value)}" for key, value in changed(self).items())
        return f"{self.name}({written})" if written else self.name


def settings(part: Part) -> dict[str, Any]:
    """All fields of a part that its constructor takes, by name."""
    if not dataclasses.is_dataclass(part):
        return {}
    return {field.name: getattr(part, field.name) for field in dataclasses.fields(part) if field.init}


def changed(part: Part) -> dict[str, Any]:
    """The fields that differ from their defaults."""
    if not dataclasses.is_dataclass(part):
        return {}
    defaults = {}
    for field in dataclasses.fields(part):
        if field.default_factory is not dataclasses.MISSING:
            defaults[field.name] = field.default_factory()
        else:
            defaults[field.name] = field.default
    return {key: value for key, value in settings(part).items() if notate(value) != notate(defaults[key])}


def notate(value: Any) -> str:
    """A value as notation writes it: numbers, words, ``none``, ``[a, b]``, parts."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (tuple, list)):
        return "[" + ", ".join(notate(item) for item in value) + "]"
    if isinstance(value, str):
        return value
    return repr(value)


def require(condition: bool, message: str) -> None:
    """Raise ValueError(message) unless ``condition``: for settings that a user got wrong."""
    if not condition:
        raise ValueError(message)
