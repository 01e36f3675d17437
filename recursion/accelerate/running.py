"""Running: a tower and its state, for a caller that steps on and rarely looks at the state between.

    running = Running(accelerate(tower), state)
    for _ in range(1000):
        running, report = running.step()
    running.state

States and reports are those of `Tower.step`. Where the step is compiled whole (`recursion.accelerate.fused`), the
answer of one call is the input of the next one, and a tree of tensors is made of it only when ``state`` is read. Each
state is settled: what runs on from it equals, bit for bit, what runs on from the file that it was saved to.
"""

from __future__ import annotations

from copy import copy

import torch

from recursion.accelerate.fused import Packed
from recursion.accelerate.tower import Accelerated
from recursion.checkpoint import settled
from recursion.reports import Report
from recursion.tower import Tower, TowerState


class Running:
    """A tower, plain or accelerated, at one state; immutable."""

    def __init__(self, tower: Tower, state: TowerState) -> None:
        self.tower, self.done = tower, int(state.step)
        self.fused = tower.fused if isinstance(tower, Accelerated) else None
        self._state: TowerState | None = settled(state)
        self._packed: Packed | None = None

    def step(self) -> tuple[Running, Report]:
        """The tower after `Tower.step`, and its report. Raises as that does."""
        fused, packed = self.fused, self._packed
        if fused is not None and packed is None:
            packed = fused.pack(self.state.theta, self.state.carry)
        answer = None if fused is None or packed is None else fused.advance(packed)
        if answer is None:
            state, report = self.tower.step(self.state)
            return Running(self.tower, state), report
        after = copy(self)
        after.done, after._packed, after._state = self.done + 1, answer[0], None
        return after, Report(after.done, answer[1], [0] * len(self.tower.levels))

    @property
    def state(self) -> TowerState:
        """The state; each tensor in its own memory."""
        if self._state is None:
            assert self.fused is not None
            assert self._packed is not None
            self._state = settled(TowerState(*self.fused.unpack(self._packed), torch.tensor(self.done)))
        return self._state
