"""A switch: one optimizer moves the parameters for a while, then another one goes on from there.

    task: lstm@20 / relay(adam(lr=3e-3), self, after=500)

trains an LSTM by Adam for 500 updates, and by itself from then on. The second begins where the first stopped, with a
fresh state. Trajectories begin as the first optimizer says; a learned start of the second one is not used.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from levels.base import Optimizer, OptimizerTraits
from levels.fields import Count
from levels.optimizers.wrap import Wrapper
from levels.tree import State, choose


class Progress(NamedTuple):
    """When to switch; leading dimensions ``[*batch, copies]``."""

    updates: Tensor  # int64, since the trajectory began
    key: Tensor  # int64, for the second optimizer's state


@dataclass(frozen=True, repr=False)
class Switch(Wrapper):
    """``first`` and ``second``: optimizers. ``after``: updates of the first."""

    name = "relay"
    several_starts = True

    first: Optimizer
    second: Optimizer
    after: Count = 100

    @property
    def traits(self) -> OptimizerTraits:
        """Evals are those of the second optimizer: a long run spends almost all of its updates there."""
        evals, learns_init = self.second.traits.evals, self.first.traits.learns_init
        return super().traits._replace(evals=evals, learns_init=learns_init)

    def init_x(self, theta: Tensor, key: Tensor) -> Tensor:
        return self.first.init_x(self.split_theta(theta)[1], key)

    def own_state(self, own_theta: Tensor, x: Tensor, key: Tensor) -> Progress:
        return Progress(torch.zeros_like(key), key)

    def update(self, theta: Tensor, x: Tensor, state: State, f: Tensor, g: Tensor) -> tuple[Tensor, State]:
        (_, ours, theirs), (own, first, second) = self.split_theta(theta), state
        over, begins = own.updates >= self.after, own.updates == self.after
        own = own._replace(updates=own.updates + 1)
        if not over.any():
            moved, first = self.first.update(ours, x, first, f, g)
            return moved, (own, first, second)
        if begins.any():
            second = choose(begins, self.second.init_state(theirs, x, own.key), second)
        later, new_second = self.second.update(theirs, x, second, f, g)
        if over.all():
            return later, (own, first, new_second)
        moved, new_first = self.first.update(ours, x, first, f, g)
        x = torch.where(over[..., None], later, moved)
        return x, (own, choose(over, first, new_first), choose(over, new_second, second))

    def result(self, state: tuple[Progress, State, State], x: Tensor) -> Tensor:
        own, first, second = state
        over = (own.updates > self.after)[..., None]
        return torch.where(over, self.second.result(second, x), self.first.result(first, x))
