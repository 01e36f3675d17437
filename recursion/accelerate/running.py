"""Running: a tower and where it stands, for those who step on and rarely look at the state between.

    running = tower.running(state)
    for _ in range(1000):
        running, report = running.step()
    running.state

The numbers are those of `Tower.step`. Where a step is compiled whole (`recursion.fused`), what one call answers is what
the next one takes, and a tree of tensors is made of it only when ``state`` is read.

Each state is settled: what runs on from it equals, bit for bit, what runs on from the file that it was saved to.
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from levels.compiled import compiling, is_compiling
from recursion.checkpoint import settled
from recursion.tower import Report, TowerState

if TYPE_CHECKING:
    from recursion.fused import Packed
    from recursion.tower import Tower


class Running:
    """A tower at one state; nothing changes it. Made by `Tower.running`."""

    def __init__(self, tower: Tower, done: int, held: TowerState | Packed) -> None:
        self.tower = tower
        self.done = done
        self._held = held

    def step(self) -> tuple[Running, Report]:
        """Where the tower stands after `Tower.step`, and its report. Raises as that does."""
        packed = self._packed if is_compiling() else None
        if packed is not None:
            with torch.no_grad():
                answer = self.tower.packed.advance(packed)
            if answer is not None:
                after = Running(self.tower, self.done + 1, answer[0])
                return after, self.tower.report(after.done, answer[1], lambda: after.state)
        with nullcontext() if packed is None else compiling(False):  # nothing more is compiled for what is not finite
            state, report = self.tower.step(self.state)
        return Running(self.tower, report.step, settled(state)), report

    @cached_property
    def state(self) -> TowerState:
        """The state; each tensor in its own memory."""
        if isinstance(self._held, TowerState):
            return self._held
        params, carry = self.tower.packed.unpack(self._held)
        return settled(TowerState(params, carry, torch.tensor(self.done)))

    @cached_property
    def _packed(self) -> Packed | None:
        """The state for a compiled step; None if there is none for it."""
        if isinstance(self._held, TowerState):
            return self.tower.packed.pack(self._held.params, self._held.carry)
        return self._held
