"""Backpropagation with little memory: the gradient is accumulated over parts of a level's copies.

The graph of a window holds all that the updates compute, for all copies at once. For an LSTM over a network that is
nearly all of a run's memory. But copies never mix, and the meta-loss is their mean. So the window runs and is
differentiated for some copies, then for the next ones, as a minibatch is where it does not fit into memory:

    dL/dtheta  =  sum over parts    (copies in the part / all copies)  dL_part/dtheta

The sum is the gradient of `through`, to rounding, and nothing is computed twice. Memory is the graph of one part. The
price is that each operation works on fewer copies at a time.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from levels.base import Evals, LevelLike, LevelState
from levels.fields import Count
from levels.gradients.first_order import Backpropagation, FirstOrder
from levels.tree import leaves, map_leaves, with_leaves


@dataclass(frozen=True, repr=False)
class Accumulated(Backpropagation):
    """As ``lstm@20[gradient=accumulated]``, or ``accumulated(exact, copies=4)``.

    ``through``: ``first-order`` or ``exact``, whose gradient this is. ``copies``: how many copies of the problem have a
    graph at a time, at least 1, for each theta of a batch. An exact level above differentiates all parts together.
    """

    name = "accumulated"

    through: Backpropagation = FirstOrder()
    copies: Count = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "evaluate", self.through.evaluate)

    def evals(self, level: LevelLike) -> Evals:
        return self.through.evals(level)

    def check(self, level: LevelLike) -> None:
        self.through.check(level)

    def value_and_grad(self, level: LevelLike, theta: Tensor, state: LevelState) -> tuple[Tensor, Tensor, LevelState]:
        value, grad, ends = theta.new_zeros(theta.shape[:-1]), torch.zeros_like(theta), []
        dim, copies = theta.dim() - 1, state.carry.f.shape[-1]
        for part in zip(*(torch.split(leaf, self.copies, dim) for leaf in leaves(state.carry))):
            before = LevelState(with_leaves(state.carry, list(part)), None)
            part_value, part_grad, after = self.through.value_and_grad(level, theta, before)
            share = after.carry.f.shape[-1] / copies
            value, grad = value + share * part_value, grad + share * part_grad
            ends.append(after.carry)
        return value, grad, LevelState(map_leaves(lambda *parts: torch.cat(parts, dim), *ends), None)
