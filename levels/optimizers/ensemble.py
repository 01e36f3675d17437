"""An ensemble: several sets of parameters of one optimizer, whose updates are averaged.

    x <- mean over k of inner.update(theta_k, x, s_k, f, g)

All members read the same gradients, at the same ``x``; each has its own state. The parameters are those of the members,
one after the other, so an ensemble is trained like any other optimizer: ``task: ensemble(lstm, members=4)@20 / adam``.
The last generation of a search makes one.

Members are one more batch dimension, in front of the copies: one update of ``inner`` moves them all.
"""

from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from levels import keys
from levels.base import Optimizer, OptimizerTraits, Problem
from levels.fields import Count, require
from levels.layout import Layout
from levels.optimizers.wrap import Wrapper
from levels.tree import State, map_leaves


@dataclass(frozen=True, repr=False)
class Ensemble(Wrapper):
    """``inner``: the optimizer of each member. ``members``: K, sets of its parameters.

    State: leaves ``[*batch, copies, K, ...]``. Each member draws from a key of its own, so an optimizer that finds its
    copy's task by the key (a search, a guard with ``watch``) belongs around the ensemble. Result, penalty and metrics
    are means over members. Raises ValueError, when bound, if ``inner`` has a learned start.
    """

    name = "ensemble"

    inner: Optimizer
    members: Count = 4

    @property
    def traits(self) -> OptimizerTraits:
        traits = super().traits
        return traits._replace(evals=self.members * traits.evals)

    def bind(self, site: Problem | Layout) -> Self:
        what = f"ensemble: {self.inner} has a start of its own for each member"
        require(not self.inner.traits.learns_init, f"{what}; put the ensemble inside of the start")
        return super().bind(site)

    def shapes(self, layout: Layout) -> dict[str, tuple[int, ...]]:
        inner = self.inner.shapes(layout)
        return {f"{k}.{name}": shape for k in range(self.members) for name, shape in inner.items()}

    def split_theta(self, theta: Tensor) -> tuple[Tensor, ...]:
        """No parameters of its own, and those of the members, ``[*batch, K, m]``."""
        return theta[..., :0], theta.reshape(*theta.shape[:-1], self.members, self.inner.layout.size)

    def init(self, key: Tensor) -> Tensor:
        return self.inner.init(keys.split(key, self.members)).flatten(-2)

    def init_state(self, theta: Tensor, x: Tensor, key: Tensor) -> tuple[None, State]:
        each = keys.split(key, self.members).movedim(-1, -2)
        return None, self._swapped(self.inner.init_state(self.split_theta(theta)[1], self._each(x), each), x)

    def update(self, theta: Tensor, x: Tensor, state: State, f: Tensor, g: Tensor) -> tuple[Tensor, State]:
        f, inner = self._each(f[..., None])[..., 0], self._swapped(state[1], x)
        moved, new = self.inner.update(self.split_theta(theta)[1], self._each(x), inner, f, self._each(g))
        return moved.mean(-3), (None, self._swapped(new, x))

    def result(self, state: tuple[None, State], x: Tensor) -> Tensor:
        results = self.inner.result(state[1], x[..., None, :].expand(*x.shape[:-1], self.members, -1))
        same = (results == x[..., None, :]).all(-2)
        return torch.where(same, x, results.mean(-2))  # a mean of equal numbers may round

    def penalty(self, theta: Tensor) -> Tensor | None:
        penalty = super().penalty(theta)
        return None if penalty is None else penalty.mean(-1)

    def metrics(self, state: tuple[None, State]) -> dict[str, Tensor]:
        return {name: value.double().mean(-1) for name, value in self.inner.metrics(state[1]).items()}

    def _each(self, x: Tensor) -> Tensor:
        """``[*batch, copies, n]`` for each member alike, ``[*batch, K, copies, n]``."""
        return x[..., None, :, :].expand(*x.shape[:-2], self.members, -1, -1)

    def _swapped(self, state: Any, x: Tensor) -> Any:
        """A state ``[*batch, K, copies, ...]`` as ``[*batch, copies, K, ...]``, and back."""
        dims = x.dim() - 2
        return map_leaves(lambda leaf: leaf.transpose(dims, dims + 1), state)
