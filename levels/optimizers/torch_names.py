"""Names of torch optimizers: the classes of torch.optim in lower case, others by a dotted path."""

import inspect
import sys
from itertools import accumulate
from typing import Any, cast

import torch

from levels.fields import format_value, require
from levels.importing import imported

Kind = type[torch.optim.Optimizer]


def classes() -> dict[str, Kind]:
    """The classes of torch.optim by their names in lower case, sorted."""
    return dict(sorted((name.lower(), kind) for name, kind in vars(torch.optim).items() if _is_optimizer(kind)))


def find(given: str | type) -> Kind:
    """The class that a name or a path means. ValueError if there is none, or it is no optimizer."""
    kind: Any = given
    if isinstance(given, str) and "." in given:
        try:
            kind = imported(given)
        except ValueError as error:
            raise ValueError(f"torch: {error}") from error
    elif isinstance(given, str):
        known = ", ".join(classes())
        require(given.lower() in classes(), f"torch: torch.optim has no {given!r}; it has {known}")
        kind = classes()[given.lower()]
    require(_is_optimizer(kind), f"torch: {format_value(given)} is not a subclass of torch.optim.Optimizer")
    return cast(Kind, kind)


def name_of(kind: Kind) -> str | Kind:
    """The shortest name by which `find` finds a class again; the class itself if none does."""
    if classes().get(kind.__name__.lower()) is kind:
        return kind.__name__.lower()
    for home in accumulate(kind.__module__.split("."), "{}.{}".format):
        if getattr(sys.modules.get(home), kind.__name__, None) is kind:
            return f"{home}.{kind.__name__}"
    return kind


def defaults(kind: Kind) -> dict[str, Any]:
    """What a class's constructor takes beside the parameters, with its defaults."""
    return {one.name: one.default for one in _arguments(kind) if one.kind != one.VAR_KEYWORD}


def takes_any(kind: Kind) -> bool:
    """Whether a class's constructor takes settings of any name."""
    return any(one.kind == one.VAR_KEYWORD for one in _arguments(kind))


def _is_optimizer(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer) and kind is not torch.optim.Optimizer


def _arguments(kind: Kind) -> list[inspect.Parameter]:
    return list(inspect.signature(kind).parameters.values())[1:]
