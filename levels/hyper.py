"""Hyperparameters that can be learned: a number, the space in which it moves, and how finely it is shared.

A step size should move in its logarithm: it stays positive, and a step is a factor. So `Log`, `Logit` and `Linear` say
in which space, and ``shared_over`` (``per`` in notation) whether all coordinates share it, those of a tensor, or none.
"""

import dataclasses
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from levels.base import Optimizer
from levels.config import Config
from levels.fields import format_value, require, setting
from levels.layout import Layout


@dataclass(frozen=True, repr=False)
class Hyper(Config):
    """A hyperparameter that starts at ``start`` and is stored as ``unconstrain(start)``."""

    start: float
    shared_over: Literal["value", "tensor", "coordinate"] = setting("value", word="per")

    low: ClassVar[float] = -math.inf
    high: ClassVar[float] = math.inf

    def __post_init__(self) -> None:
        super().__post_init__()
        inside = self.low < self.start < self.high
        require(inside, f"{self.name}({self.start}) is outside ({self.low}, {self.high}), where it has no stored value")

    def unconstrain(self, value: float) -> float:
        """The number that is stored and learned."""
        return value

    def constrain(self, stored: Tensor) -> Tensor:
        """The number that the update rule reads, elementwise; the inverse of `unconstrain`."""
        return stored

    def shape(self, layout: Layout) -> tuple[int, ...]:
        """Shape of the stored numbers over parameters with this ``layout``."""
        return {"value": (), "tensor": (len(layout.entries),), "coordinate": (layout.size,)}[self.shared_over]

    def read(self, stored: Tensor, layout: Layout) -> Tensor:
        """Stored numbers ``[*batch, 1, k]`` as values that broadcast against ``[*batch, copies, n]``."""
        value = self.constrain(stored)
        return layout.spread(value) if self.shared_over == "tensor" else value


class Linear(Hyper):
    """Stored as it is; any number."""

    name = "linear"


class Log(Hyper):
    """Stored as its natural logarithm; above 0. Step sizes, epsilons, weight decays."""

    name = "log"
    low = 0.0

    def unconstrain(self, value: float) -> float:
        return math.log(value)

    def constrain(self, stored: Tensor) -> Tensor:
        return stored.exp()


class Logit(Hyper):
    """Stored as log(p / (1 - p)); between 0 and 1. Momenta and decay rates."""

    name = "logit"
    low, high = 0.0, 1.0

    def unconstrain(self, value: float) -> float:
        return math.log(value) - math.log1p(-value)

    def constrain(self, stored: Tensor) -> Tensor:
        return stored.sigmoid()


@dataclass(frozen=True, repr=False)
class Fixed(Hyper):
    """A constant: not stored, not learned. ``adam(beta1=fixed(0.9))`` leaves the rest to the level above."""

    name = "fixed"
    shared_over: Literal["value"] = setting("value", word="per")

    def constrain(self, stored: Tensor) -> Tensor:
        return stored.new_full((*stored.shape[:-1], 1), self.start)

    def shape(self, layout: Layout) -> tuple[int, ...]:
        return (0,)


def hyper(default: float | None, space: type[Hyper]) -> Any:
    """A dataclass field for a hyperparameter: a bare number given for it moves in ``space``; None leaves it out."""
    return dataclasses.field(default=default, metadata={"space": space})


@dataclass(frozen=True, repr=False)
class HyperparamOptimizer(Optimizer):
    """An optimizer whose only parameters are hyperparameters, declared as fields with `hyper`; abstract.

    A subclass writes `init_state` and `update`, which reads its numbers by ``h = self.read(theta)``.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.hypers  # refuses here what is outside its space

    @cached_property
    def hypers(self) -> dict[str, Hyper]:
        """The hyperparameters by field name; those left out (None) are not among them."""
        fields = [field for field in dataclasses.fields(self) if "space" in field.metadata]
        given = {field.name: self._moving(field, getattr(self, field.name)) for field in fields}
        return {name: hyper for name, hyper in given.items() if hyper is not None}

    def _moving(self, field: dataclasses.Field[Any], given: Any) -> Hyper | None:
        """What was given for a field, a bare number in the field's space. ValueError where it does not fit."""
        optional = "None" in str(field.type)
        if isinstance(given, Hyper) or (given is None and optional):
            return given
        space: type[Hyper] = field.metadata["space"]
        good = isinstance(given, (int, float)) and not isinstance(given, bool)
        require(good, f"{self.name}: {field.name} must be a number, got {format_value(given)}")
        within = "none to leave it out, or " * optional + f"linear({given}) to let it start there"
        fix = within if given == space.low else "a value in between"
        what = f"{self.name}: {field.name}={given} is outside ({space.low}, {space.high}); use {fix}"
        require(space.low < given < space.high, what)
        return space(float(given))

    def shapes(self, layout: Layout) -> dict[str, tuple[int, ...]]:
        return {name: hyper.shape(layout) for name, hyper in self.hypers.items()}

    def init(self, key: Tensor) -> Tensor:
        empty = torch.zeros(0, dtype=self.layout.dtype, device=self.layout.device)
        starts = [empty.new_full((size,), hyper.unconstrain(hyper.start))
                  for hyper, size in zip(self.hypers.values(), self.layout.sizes)]  # fmt: skip
        return torch.cat([empty, *starts]).repeat(*key.shape, 1)

    def read(self, theta: Tensor) -> dict[str, Tensor]:
        """The hyperparameters in ``theta`` ``[*batch, m]``; each broadcasts against ``x`` ``[*batch, copies, n]``."""
        parts = torch.split_with_sizes(theta.unsqueeze(-2), self.layout.sizes, -1)
        return {name: hyper.read(part, self.param_layout) for (name, hyper), part in zip(self.hypers.items(), parts)}
