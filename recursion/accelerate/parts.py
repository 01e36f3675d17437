"""Parts: which twin stands for which part, chosen once, by exact types.

The inner parts of a part come first, so twins stand inside wrappers and mixtures as well: ``scheduled(lstm)``,
``mix(first-order, pes)``. A part of a type that is in no table stays as it is; so does a subclass of one that is.
"""

import dataclasses
from collections.abc import Callable, Container
from typing import Any, TypeVar

from levels.base import Estimator, Optimizer, Problem
from levels.config import Config
from levels.gradients.accumulated import Accumulated
from levels.gradients.exact import Exact
from levels.gradients.first_order import FirstOrder
from levels.level import Level
from levels.optimizers.lstm import LSTM
from levels.optimizers.rnnprop import RNNProp
from recursion.accelerate import cells_native, closed_forms, native
from recursion.accelerate.followed import CompiledExact
from recursion.accelerate.learned import NativeLSTM, NativeRNNProp
from recursion.accelerate.traced import CompiledTask, is_traceable
from recursion.accelerate.windows import SweptAccumulated, SweptExact, SweptFirstOrder
from recursion.tower import Tower

P = TypeVar("P", bound=Config)

NATIVE: dict[type[Optimizer], type[Optimizer]] = {LSTM: NativeLSTM, RNNProp: NativeRNNProp}
"""Twins of optimizers, where there is a C++ compiler."""

ESTIMATORS: dict[tuple[type[Optimizer], type[Config]], type[Estimator]] = {
    **{(cls, FirstOrder): SweptFirstOrder for cls in (*closed_forms.RULES, *NATIVE.values())},
    **{(cls, Accumulated): SweptAccumulated for cls in NATIVE.values()},
}
"""Twins of estimators, by the optimizer (or its twin) whose windows they differentiate."""

EXACT: dict[type[Optimizer], type[Exact]] = {
    cls: SweptExact for cls, form in closed_forms.RULES.items() if not form.decoupled
}
"""Those of exact gradients over a compiled task, by the optimizer; a decoupled rule's sweep has no cotangent of g."""


def fast_level(level: Level, site: Problem, *, compiled: bool) -> Level:
    """A level with the twins of its parts. ``site``: the problem at the bottom, which has the dtype and the device.

    ``compiled``: whether twins may be built in C++.
    """
    optimizer, layout = level.optimizer, site.layout
    builds = compiled and native.suits(layout.device, layout.dtype) and holds(optimizer, NATIVE)
    if builds and native.is_built(cells_native.SOURCE):
        optimizer = replaced(optimizer, lambda part: _twin(part, NATIVE.get(type(part))))

    def estimator(part: Config) -> Config:
        if isinstance(site, CompiledTask) and type(part) is Exact:
            return EXACT.get(type(optimizer), CompiledExact)()
        return _twin(part, ESTIMATORS.get((type(optimizer), type(part))))

    return dataclasses.replace(level, optimizer=optimizer, gradient=replaced(level.gradient, estimator))


def fast_task(tower: Tower) -> Problem:
    """The task of a tower, compiled if exact gradients ask it on a processor and it is traceable; else as it is."""
    here = tower.top.layout.device.type == "cpu" and native.compiler() != ""
    exact = any(holds(level.gradient, {Exact}) for level in tower.levels[:-1])
    if not (here and exact and is_traceable(tower.task)):
        return tower.task
    together = [min(level.copies, level.gradient.copies) if type(level.gradient) is Accumulated else level.copies
                for level in reversed(tower.bound)]  # fmt: skip
    return CompiledTask(tower.task, tuple(together))


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


def holds(part: Config, kinds: Container[type]) -> bool:
    """Whether a part is one of some exact types, or holds one."""
    fast: list[bool] = []

    def look(inner: Config) -> Config:
        fast.append(type(inner) in kinds)
        return inner

    replaced(part, look)
    return any(fast)
