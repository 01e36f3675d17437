"""Accelerated towers: the same tower, with twins of its parts and, where all unrolls are 1, of its whole step."""

import math
from functools import cached_property

import torch

from levels.base import Carry
from recursion.accelerate import native
from recursion.accelerate.fused import Fused
from recursion.accelerate.parts import fast_level, fast_task
from recursion.accelerate.straight import advanced, is_straight
from recursion.accelerate.traced import is_traceable
from recursion.reports import Report
from recursion.tower import Tower, TowerState


class Accelerated(Tower):
    """A tower whose levels are twins. It prints, reports and saves as the plain one."""

    def __init__(self, tower: Tower, *, compiled: bool = True) -> None:
        task = fast_task(tower) if compiled else tower.task
        super().__init__(task, *(fast_level(level, task, compiled=compiled) for level in tower.levels))
        self.plain, self.task, self.levels = tower, tower.task, tower.levels
        self.straight = is_straight(self)
        self.compiles = compiled and compiles_whole(tower)

    @cached_property
    def fused(self) -> Fused | None:
        """The step compiled whole; None if it cannot be."""
        return Fused(self.top) if self.compiles else None

    def step(self, state: TowerState) -> tuple[TowerState, Report]:
        if not self.straight:
            return super().step(state)
        with torch.no_grad():
            answer = self._compiled(state) or self._advanced(state)
        if answer is None:
            return super().step(state)  # which raises, or finds that the sum alone was too large
        new = TowerState(state.theta, answer[0], state.step + 1)
        return new, Report(int(new.step), answer[1], [0] * len(self.levels))

    def _compiled(self, state: TowerState) -> tuple[Carry, list[float]] | None:
        packed = self.fused.pack(state.theta, state.carry) if self.fused else None
        answer = self.fused.advance(packed) if self.fused and packed else None
        return (self.fused.unpack(answer[0])[1], answer[1]) if self.fused and answer else None

    def _advanced(self, state: TowerState) -> tuple[Carry, list[float]] | None:
        carry, losses, total = advanced(self.top, state.theta, state.carry)
        *means, finite = torch.cat((losses, total[None])).tolist()
        return (carry, means) if math.isfinite(finite) else None


def compiles_whole(tower: Tower) -> bool:
    """Whether the whole step of a tower is compiled: where all unrolls are 1, on a processor, for a traceable task."""
    here = tower.top.layout.device.type == "cpu" and native.compiler() != ""
    return here and is_traceable(tower.task) and is_straight(tower)


def accelerate(tower: Tower, *, compiled: bool = True) -> Tower:
    """The same tower, faster: the same states to rounding, the same reports, ``repr`` and checkpoints.

    ``compiled``: whether to use a compiler: for LSTM cells (2 s), whole steps of towers of unroll 1, and what exact
    gradients ask of the task (up to a minute, at first use). Closed forms are used either way.
    """
    return Accelerated(tower, compiled=compiled)
