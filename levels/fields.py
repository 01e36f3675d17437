"""Fields of parts: their types with ranges, whether a value has a type, and how values are written in notation.

hidden: Annotated[int, AtLeast(1)] = 20          or, as an alias,          hidden: Count = 20
"""

import contextlib
import dataclasses
import difflib
import itertools
import json
import math
import re
import sys
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal

MANY = 2**40  # more of anything is a mistake, and an overflow somewhere
SHORT = 80  # characters of a value in a message
WORD = re.compile(r"(?!(?:true|false|none|inf|nan)$)[A-Za-z_][A-Za-z0-9_.-]*")  # needs no quotes in notation


@dataclass(frozen=True)
class AtLeast:
    """A finite number of at least ``low`` and, if given, below ``under``."""

    low: float
    under: float = math.inf

    def holds(self, value: float) -> bool:
        return self.low <= value < self.under

    def __str__(self) -> str:
        return f"of at least {self.low:g}" + (f" and below {self.under:g}" if self.under < MANY else "")


@dataclass(frozen=True)
class Above:
    """A finite number above ``low`` and, if given, at most ``at_most``."""

    low: float
    at_most: float = sys.float_info.max

    def holds(self, value: float) -> bool:
        return self.low < value <= self.at_most

    def __str__(self) -> str:
        return f"above {self.low:g}" + (f" and at most {self.at_most:g}" if self.at_most < 1e300 else "")


@dataclass(frozen=True)
class Between:
    """A number strictly between ``low`` and ``high`` or, if ``inclusive``, from ``low`` to ``high``."""

    low: float
    high: float
    inclusive: bool = False

    def holds(self, value: float) -> bool:
        return self.low < value < self.high or (self.inclusive and value in (self.low, self.high))

    def __str__(self) -> str:
        return f"from {self.low:g} to {self.high:g}" if self.inclusive else f"between {self.low:g} and {self.high:g}"


Range = AtLeast | Above | Between
Count = Annotated[int, AtLeast(1, under=MANY)]
Whole = Annotated[int, AtLeast(0, under=MANY)]
Positive = Annotated[float, Above(0)]
NonNegative = Annotated[float, AtLeast(0)]
Probability = Annotated[float, Between(0, 1)]
DecayRate = Annotated[float, AtLeast(0, under=1)]
UnitInterval = Annotated[float, Between(0, 1, inclusive=True)]


def closest(name: str, known: Iterable[str]) -> str:
    """`` (did you mean adam?)``, or nothing if nothing is close."""
    plain = {one.lower(): one for one in known}
    near = difflib.get_close_matches(name.lower(), plain, 1)
    return f" (did you mean {plain[near[0]]}?)" if near else ""


def fields_of(cls: type) -> list[dataclasses.Field[Any]]:
    """The fields that the constructor of a part takes; none if it is no dataclass."""
    return [field for field in dataclasses.fields(cls) if field.init] if dataclasses.is_dataclass(cls) else []


def word(field: dataclasses.Field[Any]) -> str:
    """What notation calls a field."""
    return str(field.metadata.get("word", field.name))


def is_required(field: dataclasses.Field[Any]) -> bool:
    """Whether a field has no default."""
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


@cache
def typed_fields(cls: type) -> list[tuple[str, str, Any]]:
    """The fields of a part, their words in notation, and their types; but for fields that check themselves."""
    checked = (field for field in fields_of(cls) if not field.metadata.keys() & {"space", "free", "unwritten"})
    return [(field.name, word(field), hints_of(cls).get(field.name, Any)) for field in checked]


@cache
def hints_of(cls: type, ranges: bool = True) -> dict[str, Any]:
    """The types of a class's fields, but for annotations that only a type checker can resolve."""
    hints: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        for name, annotation in vars(base).get("__annotations__", {}).items():
            alone = type("Alone", (), {"__annotations__": {name: annotation}})
            with contextlib.suppress(NameError):
                hints |= typing.get_type_hints(alone, vars(sys.modules[base.__module__]), include_extras=ranges)
    return hints


def alternatives(hint: Any) -> list[Any]:
    """The members of a union, or the type itself."""
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return list(typing.get_args(hint)) if union else [hint]


def fits(value: Any, hint: Any) -> bool:
    """Whether a value has a type, with the ranges in it. What has no check (a callable, say) fits."""
    kinds, origin = alternatives(hint), typing.get_origin(hint)
    if len(kinds) > 1:
        return any(fits(value, kind) for kind in kinds)
    if origin is Annotated:
        inner, *ranges = typing.get_args(hint)
        return fits(value, inner) and all(limit.holds(value) for limit in ranges if isinstance(limit, Range))
    if origin is Literal:
        return any(value == one and type(value) is type(one) for one in typing.get_args(hint))
    if origin is tuple:
        inner = typing.get_args(hint)
        return isinstance(value, tuple) and (inner[-1:] != (...,) or all(fits(item, inner[0]) for item in value))
    if hint in (int, float):
        small = not isinstance(value, int) or abs(value) < (2**63 if hint is int else 2**1023)
        return isinstance(value, (int, hint)) and not isinstance(value, bool) and small
    return hint is Any or not isinstance(hint, type) or isinstance(value, hint)


def described(hint: Any) -> str:
    """What a user reads of a type: ``a whole number of at least 1, or none``."""
    kinds, origin = alternatives(hint), typing.get_origin(hint)
    if len(kinds) > 1:
        words = [described(kind) for kind in kinds if kind is not type(None)]
        words = [*words[:-1], f"or {words[-1]}"] if len(words) > 1 else words
        return ", ".join(words) + (", or none" if type(None) in kinds else "")
    if origin is Annotated:
        inner, *ranges = typing.get_args(hint)
        return " ".join([described(inner), *(str(limit) for limit in ranges if isinstance(limit, Range))])
    if origin is Literal:
        return "one of " * (len(typing.get_args(hint)) > 1) + ", ".join(map(str, typing.get_args(hint)))
    if origin is tuple:
        return "a list, each " + described(typing.get_args(hint)[0])
    plain = {float: "a number", int: "a whole number", bool: "true or false", str: "a word"}
    name = getattr(hint, "__name__", str(hint))
    return plain.get(hint) or getattr(hint, "described", "") or ("an " if name[0] in "AEIO" else "a ") + name


def listed(settings: Mapping[str, Any]) -> str:
    """Settings in notation: ``lr=0.1, momentum=0.9``."""
    return ", ".join(f"{word}={format_value(value)}" for word, value in settings.items())


def title(part: Any) -> str:
    """The word for a class in notation: its name, or the dotted path of one at the top of a module elsewhere."""
    cls = type(part)
    ours = cls.__module__.partition(".")[0] in ("levels", "recursion")
    return cls.name if ours or "." in cls.__qualname__ else f"{cls.__module__}.{cls.__name__}"


def free(hint: Any) -> Any:
    """A dataclass field for settings of any name: pairs of a name and a value of the type ``hint``.

    The class writes its own ``__init__``, which takes them as keyword arguments; notation writes them as settings.
    """
    return dataclasses.field(default=(), kw_only=True, metadata={"free": hint})


def setting(default: Any, *, word: str) -> Any:
    """A dataclass field that notation calls by another ``word`` than Python."""
    return dataclasses.field(default=default, metadata={"word": word})


def unwritten(default: Any) -> Any:
    """A dataclass field that says where a part works, not what it is: not compared and not written down."""
    return dataclasses.field(default=default, kw_only=True, compare=False, metadata={"unwritten": True})


def settings(part: Any) -> dict[str, Any]:
    """All settings that the constructor of a part takes, by name: its fields, and the `free` ones in one of them."""
    given: dict[str, Any] = {}
    for field in fields_of(type(part)):
        value = getattr(part, field.name)
        if "unwritten" not in field.metadata:
            given |= dict(value) if "free" in field.metadata else {word(field): value}
    return given


def positional(part: Any) -> dict[str, Any]:
    """The leading fields without a default: written without their names."""
    fields = (field for field in fields_of(type(part)) if not field.kw_only)
    return {field.name: getattr(part, field.name) for field in itertools.takewhile(is_required, fields)}


def changed(part: Any) -> dict[str, Any]:
    """The settings that differ from their defaults."""
    defaults = {}
    for field in fields_of(type(part)):
        make = field.default_factory
        defaults[word(field)] = format_value(field.default if make is dataclasses.MISSING else make())
    return {name: value for name, value in settings(part).items() if format_value(value) != defaults.get(name)}


def format_value(value: Any) -> str:
    """A value in notation: numbers, words, ``none``, ``[a, b]``, parts; other strings as in JSON.

    A value without a notation (a tensor, a function) is Python's repr if that is short, else its type in brackets.
    """
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (tuple, list)):
        return "[" + ", ".join(format_value(item) for item in value) + "]"
    if isinstance(value, str):
        return value if WORD.fullmatch(value) else json.dumps(value)
    if isinstance(value, float):
        return repr(float(value))
    if isinstance(value, types.FunctionType):
        return f"<{value.__name__.strip('<>')}>"
    text = repr(value)
    long = "\n" in text or len(text) > 60
    return f"<{type(value).__name__}>" if long and not hasattr(value, "described") else text


def shown(value: Any) -> str:
    """A value for a message: as in notation, but short and printable."""
    if isinstance(value, int) and abs(value) >= MANY:
        return f"about 2^{value.bit_length()}, which is more than 2^40"
    return clear(format_value(value), SHORT)


def clear(text: str, most: int = 1000) -> str:
    """A text for a message: one line, without signs that a terminal obeys, cut in its middle where it is long."""
    line = " ".join(text.split())
    line = line if line.isprintable() else "".join(one if one.isprintable() else repr(one)[1:-1] for one in line)
    return line if len(line) <= most else f"{line[: most // 2]}[...]{line[-most // 2 :]}"


def require(condition: bool, message: str) -> None:
    """Raise ValueError(message) unless ``condition``: for settings that a user got wrong."""
    if not condition:
        raise ValueError(message)
