"""An ensemble: several sets of parameters of one rule, whose updates are averaged.

    x <- mean over k of rule.update(theta_k, f, g, s_k, x)

All members read the same gradients, at the same ``x``; each has its own state. Its parameters are those of the members,
one after the other, so it is trained like any other optimizer: ``task: ensemble(lstm, members=4)@20 / adam``. The last
generation of a search makes one (`recursion.ensembles`).
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from levels import keys
from levels.layout import Layout
from levels.base import Optimizer, Pulled
from levels.optimizers.wrap import Around
from levels.config import format_value, require
from levels.tree import State, map_leaves


@dataclass(frozen=True, repr=False)
class Ensemble(Around):
    """``rule``: the optimizer of each member. ``members``: sets of its parameters, at least 1."""

    name = "ensemble"

    rule: Optimizer
    members: int = 4

    def __post_init__(self) -> None:
        require(isinstance(self.rule, Optimizer), f"ensemble: rule must be an optimizer, got {self.rule!r}")
        good = isinstance(self.members, int) and not isinstance(self.members, bool) and self.members >= 1
        require(good, f"ensemble: members must be a whole number of at least 1, got {notate(self.members)}")
        fix = "put the ensemble inside of the start"
        require(not self.rule.learns_start, f"ensemble: {self.rule} has a start of its own for each member; {fix}")

    @property
    def asking(self) -> int | Fraction:  # type: ignore[override]
        """What each member asks."""
        return self.members * self.rule.asking

    def shapes(self, below: Layout) -> dict[str, tuple[int, ...]]:
        rule = self.rule.shapes(below)
        return {f"{k}.{name}": shape for k in range(self.members) for name, shape in rule.items()}

    def init(self, key: Tensor) -> Tensor:
        return self.laid_rule.init(keys.split(key, self.members)).flatten(-2)

    def penalty(self, params: Tensor) -> tuple[Tensor, Tensor] | None:
        """The mean of the members' charges."""
        penalty = self.laid_rule.penalty(self._apart(params))
        return None if penalty is None else (penalty[0].mean(-1), penalty[1].flatten(-2) / self.members)

    def init_state(self, params: Tensor, x: Tensor) -> State:
        return self._by_copy(self.laid_rule.init_state(self._apart(params), self._each(x)), x)

    def begin_state(self, params: Tensor, x: Tensor, key: Tensor) -> State:
        each = keys.split(key, self.members).movedim(-1, -2)
        return self._by_copy(self.laid_rule.begin_state(self._apart(params), self._each(x), each), x)

    def update(self, params: Tensor, f: Tensor, g: Tensor, state: State, x: Tensor) -> tuple[Tensor, State]:
        moved, new = self.laid_rule.update(*self._read(params, f, g, state, x))
        return moved.mean(-3), self._by_copy(new, x)

    def pullback(
        self,
        params: Tensor,
        f: Tensor,
        g: Tensor,
        state: State,
        x: Tensor,
        dx: Tensor,
        dstate: list[Tensor | None] | None,
    ) -> Pulled:
        slopes = None if dstate is None else [None if leaf is None else self._by_member(leaf, x) for leaf in dstate]
        dparams, dold, dx_old = self.laid_rule.pullback(
            *self._read(params, f, g, state, x), self._each(dx / self.members), slopes
        )
        dold = [None if leaf is None else self._by_copy(leaf, x) for leaf in dold]
        return dparams.flatten(-2), dold, dx_old.sum(-3)

    def _read(
        self, params: Tensor, f: Tensor, g: Tensor, state: State, x: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, State, Tensor]:
        """What an update of all members reads: they are one more batch dimension, before the copies."""
        f = f[..., None, :].expand(*f.shape[:-1], self.members, -1)
        return self._apart(params), f, self._each(g), self._by_member(state, x), self._each(x)

    def _apart(self, params: Tensor) -> Tensor:
        """``[*batch, K * m]`` as ``[*batch, K, m]``."""
        return params.reshape(*params.shape[:-1], self.members, self.laid_rule.layout.size)

    def _each(self, x: Tensor) -> Tensor:
        """``[*batch, copies, n]`` for each member alike, ``[*batch, K, copies, n]``."""
        return x[..., None, :, :].expand(*x.shape[:-2], self.members, -1, -1)

    def _by_copy(self, state: Any, x: Tensor) -> Any:
        """A state ``[*batch, K, copies, ...]`` as ``[*batch, copies, K, ...]``."""
        dims = x.dim() - 2
        return map_leaves(lambda leaf: leaf.movedim(dims, dims + 1), state)

    def _by_member(self, state: Any, x: Tensor) -> Any:
        """The inverse of `_by_copy`."""
        return self._by_copy(state, x)


def joined(members: Tensor) -> Tensor:
    """Parameters ``[..., K, m]`` of a rule as those of an ensemble, ``[..., K * m]``."""
    return torch.flatten(members, -2)
