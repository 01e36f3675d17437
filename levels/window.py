"""What windows are made of: what one hands to the next, and what is kept of one that was run.

Estimators read these; only `levels.laid` makes them.
"""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from levels.base import Pulled
from levels.tree import State

DUE = -1  # the age of a copy that is to restart whatever the horizon


class Carry(NamedTuple):
    """What a window hands to the next one; constants for every derivative. Leading dimensions ``[*batch, copies]``."""

    x: Tensor  # [*batch, copies, n] parameters of the problem below
    state: State  # the optimizer's
    f: Tensor  # [*batch, copies] value at x
    g: Tensor  # [*batch, copies, n] gradient at x
    below: State  # the problem's
    age: Tensor  # int64, updates since the trajectory began; DUE: restart before the next window
    key: Tensor  # int64
    skipped: Tensor  # int64, windows in which the copy was skipped


class Step(NamedTuple):
    """What one update of a window read: ``[*batch, copies, ...]``."""

    f: Tensor
    g: Tensor
    state: State  # None where the optimizer makes it again, see `Optimizer.replays`
    x: Tensor
    pull: Callable[[Tensor, list[Tensor | None] | None], Pulled] | None = None  # of the update, if it was wanted


class Window(NamedTuple):
    """A window that was run: what update t read, and what counts at the parameters that it led to (`Problem.judge`)."""

    steps: list[Step]  # T
    losses: Tensor  # [T, *batch, copies]
    grads: list[Tensor]  # T of [*batch, copies, n]
    x: Tensor  # [*batch, copies, n] where it ended
    age: Tensor  # int64 [*batch, copies] where it began; DUE for copies that stood still
    asked: list[State]  # T states with which the problem was asked; empty unless wanted
    stood: Tensor | None = None  # [*batch, copies] whether the copy was skipped and stood still; None: no copy did

    @property
    def begun(self) -> Tensor:
        """Whether the copy's trajectory began with this window: ``[*batch, copies]``."""
        return self.age == 0
