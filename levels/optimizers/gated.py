"""A gate on how much of an optimizer's update the level below takes.

    x <- x + o * (rule.update(x) - x),      o = clip(1.2 * sigmoid(gate) - 0.1, 0, 1)

The sigmoid is stretched beyond [0, 1] and clipped (Louizos, Welling and Kingma 2018, "Learning sparse neural networks
through L0 regularization", arXiv 1712.01312, equations 11 to 13 with gamma = -0.1 and zeta = 1.1; without the noise),
so a gate can be exactly 0 or exactly 1: then nothing moves, or all is as the rule says, bit for bit. ``gate`` is one
parameter more, moved like the others by the level above, or by name by an optimizer of its own:

    task: sgd@1 / gated(sgd, price=1e-3)@1 / by-name(["*gate", "*"], [adam(lr=0.1), sgd])

The clip has no slope: what only follows its gradient, stays closed once it is closed, and open once it is open. A
closed gate stops the update and not the rule: its state advances on the gradients that it reads, so that a gate that
opens again finds the momentum of these days. `recursion.depth` builds towers of gated levels and reads them off.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from levels.hyper import Fixed
from levels.layout import Layout
from levels.base import Optimizer, Pulled
from levels.optimizers.wrap import Wrapping
from levels.config import format_value, require
from levels.tree import State, leaves

LOW, HIGH = -0.1, 1.1  # what the sigmoid is stretched to


class GatedState(NamedTuple):
    """The rule's state, and how far the gate was open when it last advanced."""

    rule: State
    gate: Tensor  # [*batch, copies] from 0 to 1; nothing reads it but `Gated.notes`


@dataclass(frozen=True, repr=False)
class Gated(Wrapping):
    """``rule``: the optimizer behind the gate. ``gate``: how far it is open at first, between 0 and 1; ``fixed(0.3)``
    if it is to stay there, from 0 to 1. ``price``: what a fully open gate costs a window, at least 0, in units of the
    level's meta-loss.
    """

    name = "gated"

    rule: Optimizer
    gate: Fixed | float = 0.5
    price: float = 0.0

    def __post_init__(self) -> None:
        gate, price = self.gate, self.price
        good = 0 <= gate.start <= 1 if isinstance(gate, Fixed) else _number(gate) and 0 < gate < 1
        fix = "fixed(0) and fixed(1) are closed and open for good"
        require(good, f"gated: gate must be a number between 0 and 1, got {notate(gate)}; {fix}")
        require(_number(price) and 0 <= price < math.inf, f"gated: price must be 0 or more, got {notate(price)}")

    def own_shapes(self, below: Layout) -> dict[str, tuple[int, ...]]:
        return {} if isinstance(self.gate, Fixed) else {"gate": ()}

    def own_params(self, like: Tensor) -> Tensor:
        start = 0.5 if isinstance(self.gate, Fixed) else self.gate
        return like.new_full((*like.shape[:-1], 1), _logit(start))

    def holding(self, params: Tensor, x: Tensor, rule: State) -> GatedState:
        return GatedState(rule, self.open(params)[..., None].expand(x.shape[:-1]))

    def held(self, state: GatedState) -> State:
        return state.rule

    def penalty(self, params: Tensor) -> tuple[Tensor, Tensor] | None:
        theirs = super().penalty(params)
        if self.price == 0:
            return theirs
        slope = self.price * self._slope(params)[..., None][..., : self.own_size]
        value, slopes = self.price * self.open(params), torch.cat((slope, torch.zeros_like(self.rest(params))), dim=-1)
        return (value, slopes) if theirs is None else (value + theirs[0], slopes + theirs[1])

    def result(self, state: GatedState, x: Tensor) -> Tensor:
        return torch.where(state.gate[..., None] == 0, x, super().result(state, x))

    def metrics(self, state: GatedState) -> dict[str, Tensor]:
        return {**super().metrics(state), "gate": state.gate}

    def update(self, params: Tensor, f: Tensor, g: Tensor, state: GatedState, x: Tensor) -> tuple[Tensor, GatedState]:
        moved, rule = self.laid_rule.update(self.rest(params), f, g, state.rule, x)
        return self._mixed(params, x, moved), self.holding(params, x, rule)

    def linearized(
        self, params: Tensor, f: Tensor, g: Tensor, state: GatedState, x: Tensor
    ) -> tuple[Tensor, GatedState, Callable[[Tensor, list[Tensor | None] | None], Pulled]]:
        moved, rule, pull = self.laid_rule.linearized(self.rest(params), f, g, state.rule, x)
        last = len(leaves(rule))  # where the gate is among the tensors of the state

        def back(dx: Tensor, dstate: list[Tensor | None] | None) -> Pulled:
            opened = self.open(params)[..., None, None]
            drest, dold, dx_old = pull(opened * dx, dstate[:last] if dstate else None)
            along = torch.where(opened == 0, 0.0, (moved - x) * dx).sum((-2, -1))  # a closed gate never reads the move
            dheld = dstate[last] if dstate else None
            along = along if dheld is None else along + dheld.sum(-1)
            dgate = (self._slope(params) * along)[..., None][..., : self.own_size]
            return torch.cat((dgate, drest), dim=-1), [*dold, None], dx_old + (1 - opened) * dx

        return self._mixed(params, x, moved), self.holding(params, x, rule), back

    def open(self, params: Tensor) -> Tensor:
        """How far the gates of parameters ``[*batch, m]`` are open, from 0 to 1: ``[*batch]``."""
        if isinstance(self.gate, Fixed):
            return params.new_full(params.shape[:-1], self.gate.start)
        return (LOW + (HIGH - LOW) * params[..., 0].sigmoid()).clamp(0, 1)

    def _slope(self, params: Tensor) -> Tensor:
        """The derivative of `open` in the stored number ``[*batch]``; 0 where it is clipped, or fixed."""
        if isinstance(self.gate, Fixed):
            return params.new_zeros(params.shape[:-1])
        part = params[..., 0].sigmoid()
        wide = LOW + (HIGH - LOW) * part
        return torch.where((wide > 0) & (wide < 1), (HIGH - LOW) * part * (1 - part), 0.0)

    def _mixed(self, params: Tensor, x: Tensor, moved: Tensor) -> Tensor:
        """From ``x`` as far towards ``moved`` as the gate is open; either of them itself at the ends."""
        opened = self.open(params)[..., None, None]
        between = torch.where(opened == 1, moved, x + opened * (moved - x))
        return torch.where(opened == 0, x, between)


def _logit(gate: float) -> float:
    """The stored number of a gate that is open so far."""
    part = (gate - LOW) / (HIGH - LOW)
    return math.log(part) - math.log1p(-part)


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
