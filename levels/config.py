"""Config: anything a tower is assembled from. Its fields are checked when it is built, and it writes itself down.

A part is a frozen dataclass with a name and typed fields (`levels.fields`). In a tower's notation it is
``name(field=value, ...)`` with the fields that differ from their defaults; `levels.reading` reads the same text back.
Where a field holds another part, that may be given as such a text: ``Level(optimizer="lstm(hidden=10)")``.
"""

import inspect
import typing
from abc import ABC
from collections.abc import Mapping
from functools import cache
from typing import Any, ClassVar, Self

from levels import catalog
from levels.fields import (
    alternatives,
    changed,
    closest,
    described,
    fields_of,
    fits,
    format_value,
    listed,
    positional,
    shown,
    title,
    typed_fields,
)
from levels.reading import located, read_part


class Config(ABC):  # noqa: B024, its kinds have abstract methods
    """Base of optimizers, tasks, objectives, gradient estimators and the like; ``name`` is the word in notation.

    Raises ValueError when a field's value does not fit its type, with the field, the range and the value.
    """

    name: ClassVar[str] = ""
    described: ClassVar[str] = ""  # what a user reads of a kind of part; by default the name of its class

    def __new__(cls, *args: Any, **given: Any) -> Self:
        _check_taken(cls, args, given)
        return super().__new__(cls)

    def __post_init__(self) -> None:
        who = f"{self.name}: " if self.name else ""
        for field, called, hint in typed_fields(type(self)):
            given = getattr(self, field)
            if isinstance(given, list) and tuple in (typing.get_origin(kind) or kind for kind in alternatives(hint)):
                given = tuple(given)
            with located(f"{who}{called}"):
                given = _read(given, hint, called)
            object.__setattr__(self, field, given)
            if not fits(given, hint):
                fix = f"; write {given.__name__}(...)" if isinstance(given, type) and issubclass(given, Config) else ""
                raise ValueError(f"{who}{called} must be {described(hint)}, got {shown(given)}{fix}")

    def __repr__(self) -> str:
        bare = positional(self)
        named = {key: value for key, value in changed(self).items() if key not in bare}
        values = ", ".join([*map(format_value, bare.values()), *([listed(named)] if named else [])])
        return f"{title(self)}({values})" if values else title(self)


def _read(given: Any, hint: Any, called: str) -> Any:
    """The value of a field, in which text is read where only a part fits."""
    if isinstance(given, tuple):
        kinds = catalog.items_of(next(filter(catalog.is_list, alternatives(hint)), Any), len(given))
        if len(kinds) == len(given):
            return tuple(_read(item, kind, called) for item, kind in zip(given, kinds))
        return given
    text = isinstance(given, str) and catalog.kinds_in(hint) and not fits(given, hint)
    return read_part(given, hint, called) if text else given


@cache
def _taken(cls: type) -> Mapping[str, inspect.Parameter]:
    """What the constructor of a part takes, by name.

    TypeError for a class that declares fields and is no dataclass, so that they would be no settings.
    """
    own = [name for name, hint in vars(cls).get("__annotations__", {}).items() if "ClassVar" not in str(hint)]
    if own and "__dataclass_params__" not in vars(cls) and "__init__" not in vars(cls):
        fix = f"write @dataclass(frozen=True, repr=False) above class {cls.__name__}"
        raise TypeError(f"{cls.__name__} declares {', '.join(own)}, which are no settings of it; {fix}")
    taken = inspect.signature(cls.__init__).parameters  # type: ignore[misc]
    return {name: each for name, each in taken.items() if name != "self"}


def _check_taken(cls: type[Config], args: tuple[Any, ...], given: Mapping[str, Any]) -> None:
    """TypeError, in one sentence, for settings that the constructor of a part does not take."""
    taken = _taken(cls)
    wrong = [name for name in given if name not in taken]
    bare = [name for name, each in taken.items() if each.kind is not each.KEYWORD_ONLY]
    if (not wrong and len(args) <= len(bare)) or any(each.kind == each.VAR_KEYWORD for each in taken.values()):
        return
    aside = {field.name for field in fields_of(cls) if "unwritten" in field.metadata}
    who, known = cls.name or cls.__name__.lower(), [name for name in taken if name not in aside]
    has = f"it has {', '.join(known)}" if known else "it has none"
    if wrong:
        raise TypeError(f"{who} has no setting {wrong[0]!r}{closest(wrong[0], known)}; {has}")
    takes = f"takes {', '.join(bare)} without a name" if bare else f"takes settings by name, as {known[0]}=..."
    raise TypeError(f"{who} {takes}, got {shown(args[len(bare)])}; {has}")
