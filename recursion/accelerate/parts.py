"""Parts: which twin stands for which part, chosen once, by exact types.

The inner parts of a part come first, so twins stand inside wrappers and mixtures as well: ``scheduled(lstm)``,
``mix(first-order, pes)``. A part of a type that is in no table stays as it is; so does a subclass of one that is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

from levels.base import Estimator, Optimizer, Problem
from levels.config import Config
from levels.gradients.first_order import FirstOrder
from levels.level import Level
from levels.optimizers.lstm import LSTM
from levels.optimizers.rnnprop import RNNProp
from recursion.accelerate import cells_native, closed_forms, learned, native
from recursion.accelerate.learned import NativeLSTM, NativeRNNProp
from recursion.accelerate.sweeps import SWEEPS
from recursion.accelerate.windows import SweptFirstOrder

P = TypeVar("P", bound=Config)

NATIVE: dict[type[Optimizer], type[Optimizer]] = {LSTM: NativeLSTM, RNNProp: NativeRNNProp}
"""Twins of optimizers, where there is a C++ compiler."""

ESTIMATORS: dict[tuple[type[Optimizer], type[Estimator]], type[Estimator]] = {
    (rule, FirstOrder): SweptFirstOrder for rule in SWEEPS
}
"""Twins of estimators, by the optimizer (or its twin) whose windows they differentiate."""


def fast_level(level: Level, problem: Problem) -> Level:
    """A level with the twins of its parts; ``problem``: what the tower stands on, which says dtype and device."""
    layout = problem.layout
    builds = native.suits(layout.device, layout.dtype) and _holds(level.optimizer, NATIVE)
    optimizer = level.optimizer
    if builds and native.is_built(cells_native.SOURCE):
        optimizer = replaced(optimizer, lambda part: _twin(part, NATIVE.get(type(part))))
    gradient = replaced(level.gradient, lambda part: _twin(part, ESTIMATORS.get((type(optimizer), type(part)))))
    return dataclasses.replace(level, optimizer=optimizer, gradient=gradient)


def replaced(part: P, twin: Callable[[Any], Any]) -> P:
    """``part`` with ``twin`` of each part in its fields, inner ones first, and then of itself."""
    changes = {}
    for field in dataclasses.fields(part):  # type: ignore[arg-type]
        value = getattr(part, field.name)
        new = _replaced_in(value, twin) if field.init else value
        if new is not value:
            changes[field.name] = new
    return twin(dataclasses.replace(part, **changes) if changes else part)  # type: ignore[no-any-return,type-var]


def _replaced_in(value: Any, twin: Callable[[Any], Any]) -> Any:
    """A field's value, a part or a list of them, with their twins; the very same object where nothing changes."""
    if isinstance(value, Config) and dataclasses.is_dataclass(value) and not isinstance(value, Problem):
        return replaced(value, twin)
    if isinstance(value, tuple):
        new = tuple(_replaced_in(item, twin) for item in value)
        return new if any(a is not b for a, b in zip(new, value)) else value
    return value


def _twin(part: Config, kind: type[Config] | None) -> Config:
    """The part as its twin ``kind``, with the same settings; itself where there is none."""
    if kind is None:
        return part
    return kind(**{field.name: getattr(part, field.name) for field in dataclasses.fields(part) if field.init})  # type: ignore[arg-type]


def _holds(part: Config, kinds: Any) -> bool:
    """Whether a part is one of some exact types, or holds one."""
    found: list[bool] = []

    def look(inner: Config) -> Config:
        found.append(type(inner) in kinds)
        return inner

    replaced(part, look)
    return any(found)


__all__ = ["ESTIMATORS", "NATIVE", "closed_forms", "fast_level", "learned", "replaced"]
