"""Sweeps: a window of one optimizer, forward and back, without a graph. What a twin of an estimator is made of.

A `Sweep` is an optimizer at known parameters theta. They are read once, not once an update. It says how an update goes
on, and pulls the cotangents of all x_t of a window back to theta:

    dx    <-  dx + w_t g_t
    dtheta, dstate, dx  <-  vector-Jacobian product of update t at (dx, dstate),        dtheta summed over t

with ``f`` and ``g`` as data. Exact gradients add ``H dg`` to dx: the Hessian at x, and the cotangent of g. `SWEEPS`
names the sweep of each optimizer by its exact type: a subclass has none, for its update may be another one.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from levels.base import Optimizer
from levels.tree import State


class Read(NamedTuple):
    """What one update read."""

    x: Tensor  # [*batch, copies, n]
    state: State  # None where a sweep needs that of the first update alone
    f: Tensor  # [*batch, copies]
    g: Tensor  # [*batch, copies, n]
    hvp: Callable[[Tensor], Tensor] | None = None  # the Hessian at x times a vector, where g is not data


class Sweep(ABC):
    """An optimizer at parameters theta ``[*batch, m]``; abstract."""

    replays: bool = False  # whether `vjp` needs the state of the first update alone

    @abstractmethod
    def update(self, read: Read) -> tuple[Tensor, State]:
        """The next ``x`` and the next state, as `Optimizer.update` gives them."""

    @abstractmethod
    def vjp(self, reads: list[Read], cotangents: Tensor) -> Tensor:
        """The cotangent ``[*batch, m]`` of theta; ``cotangents`` ``[T, *batch, copies, n]`` are those of each x_t."""


SWEEPS: dict[type[Optimizer], Callable[[Any, Tensor], Sweep]] = {}
"""Filled by `recursion.accelerate.closed_forms` and `recursion.accelerate.learned`."""
