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
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from levels.hyper import Fixed
from levels.layout import Layout
from levels.optimizer import Optimizer, Pulled, Scope
from levels.part import notate, require
from levels.problem import Problem
from levels.tree import State, leaves

LOW, HIGH = -0.1, 1.1  # what the sigmoid is stretched to


class GatedState(NamedTuple):
    """The rule's state, and how far the gate was open when it last advanced."""

    rule: State
    gate: Tensor  # [*batch, copies] from 0 to 1; nothing reads it but `Gated.notes`


@dataclass(frozen=True, repr=False)
class Gated(Optimizer):
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

    @property
    def differentiable(self) -> bool:  # type: ignore[override]
        """As the rule is."""
        return self.rule.differentiable

    @property
    def scope(self) -> Scope:  # type: ignore[override]
        """As the rule's: the gate is the same for all."""
        return self.rule.scope

    @property
    def reads_loss(self) -> bool:  # type: ignore[override]
        """As the rule does."""
        return self.rule.reads_loss

    @property
    def reads_gradient(self) -> bool:  # type: ignore[override]
        """As the rule does."""
        return self.rule.reads_gradient

    @property
    def asking(self) -> int | Fraction:  # type: ignore[override]
        """As the rule does."""
        return self.rule.asking

    @property
    def compiles(self) -> bool:  # type: ignore[override]
        """As the rule does."""
        return self.rule.compiles

    @property
    def learns_start(self) -> bool:
        """As the rule does."""
        return self.rule.learns_start

    def bound(self, problem: Problem) -> Gated:
        return replace(self, rule=self.rule.bound(problem))

    def shapes(self, below: Layout) -> dict[str, tuple[int, ...]]:
        rule = {f"rule.{name}": shape for name, shape in self.rule.shapes(below).items()}
        return rule if isinstance(self.gate, Fixed) else {"gate": (), **rule}

    def init_params(self, key: Tensor) -> Tensor:
        rule = self._laid_rule.init_params(key)
        if isinstance(self.gate, Fixed):
            return rule
        return torch.cat((rule.new_full((*key.shape, 1), _logit(self.gate)), rule), dim=-1)

    def start(self, params: Tensor, fresh: Callable[[Tensor], Tensor], key: Tensor) -> Tensor:
        return self._laid_rule.start(self._rest(params), fresh, key)

    def start_pullback(self, params: Tensor, dx: Tensor, begun: Tensor) -> Tensor | None:
        dparams = self._laid_rule.start_pullback(self._rest(params), dx, begun)
        return None if dparams is None else torch.nn.functional.pad(dparams, (self._own, 0))

    def init_state(self, params: Tensor, x: Tensor) -> GatedState:
        return self._held(params, x, self._laid_rule.init_state(self._rest(params), x))

    def begin_state(self, params: Tensor, x: Tensor, key: Tensor) -> GatedState:
        return self._held(params, x, self._laid_rule.begin_state(self._rest(params), x, key))

    def charge(self, params: Tensor) -> tuple[Tensor, Tensor] | None:
        theirs = self._laid_rule.charge(self._rest(params))
        if self.price == 0:
            return None if theirs is None else (theirs[0], torch.nn.functional.pad(theirs[1], (self._own, 0)))
        value, slope = self.price * self.open(params), self.price * self._slope(params)[..., None][..., : self._own]
        rest = torch.zeros_like(self._rest(params)) if theirs is None else theirs[1]
        return value if theirs is None else value + theirs[0], torch.cat((slope, rest), dim=-1)

    def outcome(self, state: GatedState, x: Tensor) -> Tensor:
        return torch.where(state.gate[..., None] == 0, x, self._laid_rule.outcome(state.rule, x))

    def notes(self, state: GatedState) -> dict[str, Tensor]:
        return {**self._laid_rule.notes(state.rule), "gate": state.gate}

    def update(self, params: Tensor, f: Tensor, g: Tensor, state: GatedState, x: Tensor) -> tuple[Tensor, GatedState]:
        moved, rule = self._laid_rule.update(self._rest(params), f, g, state.rule, x)
        return self._mixed(params, x, moved), self._held(params, x, rule)

    def linearized(
        self, params: Tensor, f: Tensor, g: Tensor, state: GatedState, x: Tensor
    ) -> tuple[Tensor, GatedState, Callable[[Tensor, list[Tensor | None] | None], Pulled]]:
        moved, rule, pull = self._laid_rule.linearized(self._rest(params), f, g, state.rule, x)
        last = len(leaves(rule))  # where the gate is among the tensors of the state

        def back(dx: Tensor, dstate: list[Tensor | None] | None) -> Pulled:
            opened = self.open(params)[..., None, None]
            drest, dold, dx_old = pull(opened * dx, dstate[:last] if dstate else None)
            along = torch.where(opened == 0, 0.0, (moved - x) * dx).sum((-2, -1))  # a closed gate never reads the move
            dheld = dstate[last] if dstate else None
            along = along if dheld is None else along + dheld.sum(-1)
            dgate = (self._slope(params) * along)[..., None][..., : self._own]
            return torch.cat((dgate, drest), dim=-1), [*dold, None], dx_old + (1 - opened) * dx

        return self._mixed(params, x, moved), self._held(params, x, rule), back

    def pullback(
        self,
        params: Tensor,
        f: Tensor,
        g: Tensor,
        state: GatedState,
        x: Tensor,
        dx: Tensor,
        dstate: list[Tensor | None] | None,
    ) -> Pulled:
        return self.linearized(params, f, g, state, x)[2](dx, dstate)

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

    def _held(self, params: Tensor, x: Tensor, rule: State) -> GatedState:
        return GatedState(rule, self.open(params)[..., None].expand(x.shape[:-1]))

    def _rest(self, params: Tensor) -> Tensor:
        """The rule's parameters among all."""
        return params[..., self._own :]

    @property
    def _own(self) -> int:
        """How many parameters the gate has."""
        return 0 if isinstance(self.gate, Fixed) else 1

    @cached_property
    def _laid_rule(self) -> Optimizer:
        return self.rule.over(self.below)


def _logit(gate: float) -> float:
    """The stored number of a gate that is open so far."""
    part = (gate - LOW) / (HIGH - LOW)
    return math.log(part) - math.log1p(-part)


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
