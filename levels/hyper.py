"""Hyperparameters that can be learned: a number, the space in which it moves, and how finely it is shared.

A step size of 0.01 that an optimizer above moves by gradient steps should move in its logarithm: it stays
positive and a step means a factor. `Log`, `Logit` and `Linear` say in which space; ``per`` says whether there
is one for the whole problem, one for each of its tensors, or one for each coordinate.
"""

import dataclasses
import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from levels.autodiff import Cotangents
from levels.layout import Layout
from levels.base import Optimizer, Pulled, forget
from levels.config import Config, format_value, require
from levels.tree import leaves


@dataclass(frozen=True, repr=False)
class Hyper(Config):
    """A hyperparameter that starts at ``start`` and is stored as ``raw(start)``; abstract.

    ``per``: ``value`` (one number), ``tensor`` (one for each tensor of the problem below) or ``coordinate``.
    """

    start: float
    per: Literal["value", "tensor", "coordinate"] = "value"

    def __post_init__(self) -> None:
        require(self.per in SHARING, f"{self.name}: per must be value, tensor or coordinate, got {self.per!r}")
        require(isinstance(self.start, (int, float)), f"{self.name}: start must be a number, got {self.start!r}")
        inside = self.low < self.start < self.high
        require(inside, f"{self.name}({self.start}) is outside ({self.low}, {self.high}), where it has no raw value")

    def __init_subclass__(cls, **settings: Any) -> None:
        super().__init_subclass__(**settings)
        forget(cls, Hyper, "value", "back")

    low: ClassVar[float] = -math.inf
    high: ClassVar[float] = math.inf

    @abstractmethod
    def unconstrain(self, value: float) -> float:
        """The number that is stored and learned."""

    @abstractmethod
    def value(self, raw: Tensor) -> Tensor:
        """The number that the update rule reads, elementwise; the inverse of `raw`."""

    def back(self, value: Tensor, slope: Tensor) -> Tensor:
        """The cotangent of the stored number, given that of its value. A space need not have it: see `HandMade`."""
        raise NotImplementedError

    def shape(self, below: Layout) -> tuple[int, ...]:
        """Shape of the stored numbers for a problem with the layout ``below``."""
        return {"value": (), "tensor": (len(below.entries),), "coordinate": (below.size,)}[self.per]

    def read(self, stored: Tensor, below: Layout) -> Tensor:
        """Stored numbers ``[*batch, *shape]`` as values that broadcast against ``[*batch, copies, n]``."""
        if self.per == "value":
            return self.value(stored)[..., None, None]
        value = self.value(stored)
        return (below.spread(value) if self.per == "tensor" else value)[..., None, :]


SHARING = ("value", "tensor", "coordinate")


class Linear(Hyper):
    """Stored as it is; any number."""

    name = "linear"

    def unconstrain(self, value: float) -> float:
        return value

    def value(self, raw: Tensor) -> Tensor:
        return raw

    def back(self, value: Tensor, slope: Tensor) -> Tensor:
        return slope


class Log(Hyper):
    """Stored as its natural logarithm; above 0. Step sizes, epsilons, weight decays."""

    name = "log"
    low = 0.0

    def unconstrain(self, value: float) -> float:
        return math.log(value)

    def value(self, raw: Tensor) -> Tensor:
        return raw.exp()

    def back(self, value: Tensor, slope: Tensor) -> Tensor:
        return value * slope


class Logit(Hyper):
    """Stored as log(p / (1 - p)); between 0 and 1. Momenta and decay rates."""

    name = "logit"
    low, high = 0.0, 1.0

    def unconstrain(self, value: float) -> float:
        return math.log(value) - math.log1p(-value)

    def value(self, raw: Tensor) -> Tensor:
        return raw.sigmoid()

    def back(self, value: Tensor, slope: Tensor) -> Tensor:
        return value * (1 - value) * slope


class Fixed(Hyper):
    """A constant: not stored, not learned. ``adam(beta1=fixed(0.9))`` leaves the rest to the level above."""

    name = "fixed"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.per == "value", f"fixed: one constant serves all coordinates; drop per={self.per}")

    def unconstrain(self, value: float) -> float:
        return value

    def value(self, raw: Tensor) -> Tensor:
        return raw.new_full(raw.shape[:-1], self.start)

    def shape(self, below: Layout) -> tuple[int, ...]:
        return (0,)


def hyper(default: float | None, space: type[Hyper]) -> Any:
    """A dataclass field for a hyperparameter: a bare number given for it moves in ``space``; None leaves it out."""
    return dataclasses.field(default=default, metadata={"space": space})


class HyperparamOptimizer(Optimizer):
    """A rule whose only parameters are hyperparameters, declared as fields with `hyper`; abstract.

    A rule implements `init_state` and `step`; parameters, layouts and reading are done here. It may write out the
    derivative of a step too (`step_pullback`), which is several times faster than to ask autograd for it; a subclass
    that rewrites `step` does not inherit it.
    """

    hand_made = True

    def __init_subclass__(cls, **settings: Any) -> None:
        super().__init_subclass__(**settings)
        forget(cls, HyperparamOptimizer, "step", "step_pullback")
        forget(cls, HyperparamOptimizer, "step", "full_pullback")

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            given, space = getattr(self, field.name), field.metadata.get("space")
            if space is None or given is None or isinstance(given, Hyper):
                continue
            good = isinstance(given, (int, float)) and not isinstance(given, bool)
            require(good, f"{self.name}: {field.name} must be a number, got {notate(given)}")
            require(space.low < given < space.high, self._outside(field.name, given, space))

    @cached_property
    def hypers(self) -> dict[str, Hyper]:
        """The hyperparameters that this optimizer has, by field name; those left out (None) are not among them."""
        found = {}
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            given, space = getattr(self, field.name), field.metadata.get("space")
            if space is not None and given is not None:
                found[field.name] = given if isinstance(given, Hyper) else space(float(given))
        return found

    @abstractmethod
    def step(self, h: dict[str, Tensor], g: Tensor, state: Any, x: Tensor) -> tuple[Tensor, Any]:
        """`update` with the hyperparameters read: ``h[field]`` broadcasts against ``x`` ``[*batch, copies, n]``."""

    def step_pullback(
        self, h: dict[str, Tensor], g: Tensor, state: Any, x: Tensor, dx: Tensor, dstate: list[Tensor | None]
    ) -> tuple[dict[str, Tensor], list[Tensor | None], Tensor]:
        """The vector-Jacobian product of `step`, ``g`` being data. A rule need not have it: then autograd is asked.

        ``dx`` ``[*batch, copies, n]`` and ``dstate`` (one for each tensor of the state, None for zero) are the
        cotangents of what `step` returned. Returns those of ``h``, at least of those `learned` and each as it is at
        every coordinate, ``[*batch, copies, n]``; of the state; and of ``x``.
        """
        raise NotImplementedError

    def full_pullback(
        self, h: dict[str, Tensor], g: Tensor, state: Any, x: Tensor, dx: Tensor, dstate: list[Tensor | None]
    ) -> tuple[dict[str, Tensor], list[Tensor | None], Tensor, Tensor]:
        """As `step_pullback`, ``g`` not being data: its cotangent ``[*batch, copies, n]`` comes last. Exact gradients
        ask for it; a rule need not have it either.
        """
        raise NotImplementedError

    def pull_all(self, params: Tensor) -> Callable[..., Cotangents]:
        """As in `Optimizer`, by what is written out; ``params`` are read once."""
        kind = type(self)
        if not self._written_out or kind.full_pullback is HyperparamOptimizer.full_pullback or kind.update is not HyperparamOptimizer.update:
            return super().pull_all(params)
        h = self._read(params)

        def pull(
            f: Tensor, g: Tensor, state: Any, x: Tensor, dx: Tensor, dstate: list[Tensor | None] | None
        ) -> Cotangents:
            dh, dold, dx, dg = self.full_pullback(h, g, state, x, dx, dstate or [None] * len(leaves(state)))
            return Cotangents(self._stored(params, h, dh), torch.zeros_like(f), dg, dold, dx)

        return pull

    @cached_property
    def learned(self) -> dict[str, Hyper]:
        """The hyperparameters that are stored: all but the fixed ones."""
        return {name: hyper for name, hyper in self.hypers.items() if not isinstance(hyper, Fixed)}

    def shapes(self, below: Layout) -> dict[str, tuple[int, ...]]:
        return {name: hyper.shape(below) for name, hyper in self.hypers.items()}

    def init(self, key: Tensor) -> Tensor:
        layout = self.layout
        parts = [torch.full((size,), hyper.unconstrain(hyper.start), dtype=layout.dtype, device=layout.device)
                 for hyper, size in zip(self.hypers.values(), layout.sizes)]  # fmt: skip
        nothing = torch.zeros(0, dtype=layout.dtype, device=layout.device)
        return torch.cat([nothing, *parts]).repeat(*key.shape, 1)

    def update(self, params: Tensor, f: Tensor, g: Tensor, state: Any, x: Tensor) -> tuple[Tensor, Any]:
        return self.step(self._read(params), g, state, x)

    def linearized(
        self, params: Tensor, f: Tensor, g: Tensor, state: Any, x: Tensor
    ) -> tuple[Tensor, Any, Callable[[Tensor, list[Tensor | None] | None], Pulled]]:
        if not (self._written_out and self._single):  # numbers for each coordinate are read again, not kept
            return super().linearized(params, f, g, state, x)
        h = self._read(params)
        return *self.step(h, g, state, x), partial(self._pull, params, h, g, state, x)

    def updating(self, params: Tensor) -> Callable[..., tuple[Tensor, Any]]:
        if type(self).update is not HyperparamOptimizer.update:
            return super().updating(params)
        h = self._read(params)
        return lambda _, g, state, x: self.step(h, g, state, x)

    def linearizing(self, params: Tensor) -> Callable[..., tuple[Tensor, Any, Callable[..., Pulled]]]:
        if not self._written_out or type(self).linearized is not HyperparamOptimizer.linearized:
            return super().linearizing(params)
        h = self._read(params)
        return lambda _, g, state, x: (*self.step(h, g, state, x), partial(self._pull, params, h, g, state, x))

    def pullback(
        self,
        params: Tensor,
        f: Tensor,
        g: Tensor,
        state: Any,
        x: Tensor,
        dx: Tensor,
        dstate: list[Tensor | None] | None,
    ) -> Pulled:
        if not self._written_out:
            return super().pullback(params, f, g, state, x, dx, dstate)
        return self._pull(params, self._read(params), g, state, x, dx, dstate)

    @cached_property
    def _written_out(self) -> bool:
        """Whether the derivatives of the step and of all numbers in it are written out."""
        rule = type(self).step_pullback is not HyperparamOptimizer.step_pullback
        return rule and all(type(hyper).back is not Hyper.back for hyper in self.learned.values())

    def _pull(
        self,
        params: Tensor,
        h: dict[str, Tensor],
        g: Tensor,
        state: Any,
        x: Tensor,
        dx: Tensor,
        dstate: list[Tensor | None] | None,
    ) -> Pulled:
        """`pullback` with the hyperparameters read, by what is written out."""
        dh, dold, dx = self.step_pullback(h, g, state, x, dx, dstate or [None] * len(leaves(state)))
        return self._stored(params, h, dh), dold, dx

    def _stored(self, params: Tensor, h: dict[str, Tensor], dh: dict[str, Tensor]) -> Tensor:
        """Cotangents of hyperparameters as those of the parameters ``[*batch, m]``."""
        parts = [
            self._shared(hyper, hyper.back(h[name], dh[name])) if name in dh else self._unread(hyper, params)
            for name, hyper in self.learned.items()
        ]
        if len(parts) == 1:
            return parts[0]
        return torch.cat(parts, -1) if parts else torch.zeros_like(params)

    def _unread(self, hyper: Hyper, params: Tensor) -> Tensor:
        """The cotangent of a number that the rule never reads."""
        return params.new_zeros(*params.shape[:-1], math.prod(hyper.shape(self.below)))

    def _read(self, params: Tensor) -> dict[str, Tensor]:
        """The hyperparameters of parameters ``[*batch, m]``, as `step` takes them."""
        if self._single and params.shape[-1] == len(self.learned):
            numbers = params[..., None, None].unbind(-3) if len(self.learned) > 1 else [params[..., None]]
            values = {name: hyper.value(raw) for (name, hyper), raw in zip(self.learned.items(), numbers)}
            return self._constants | values
        stored = self.layout.unravel(params)
        return {name: hyper.read(stored[name], self.below) for name, hyper in self.hypers.items()}

    @cached_property
    def _single(self) -> bool:
        """Whether each hyperparameter that is learned is one number."""
        return bool(self.learned) and all(hyper.shape(self.below) == () for hyper in self.learned.values())

    @cached_property
    def _constants(self) -> dict[str, Tensor]:
        """The hyperparameters that are not learned, ``[1, 1]``."""
        like = torch.empty(1, 1, dtype=self.layout.dtype, device=self.layout.device)
        return {
            name: torch.full_like(like, hyper.start) for name, hyper in self.hypers.items() if name not in self.learned
        }

    def _shared(self, hyper: Hyper, slope: Tensor) -> Tensor:
        """Derivatives at every coordinate ``[*batch, copies, n]``, summed over those that share a number."""
        if hyper.per == "value":
            return slope.sum((-2, -1))[..., None] if slope.shape[-2:] != (1, 1) else slope[..., 0]
        slope = slope.expand(*slope.shape[:-1], self.below.size).sum(-2)
        if hyper.per == "coordinate":
            return slope
        return torch.stack([part.sum(-1) for part in slope.split_with_sizes(self.below.sizes, -1)], -1)

    def _outside(self, field: str, given: float, space: type[Hyper]) -> str:
        fix = (
            f"none to leave it out, or linear({given}) to let it start there"
            if given == space.low
            else "a value in between"
        )
        return f"{self.name}: {field}={given} is outside ({space.low}, {space.high}); use {fix}"
