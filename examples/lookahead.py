"""A wrapper of your own: Lookahead (Zhang et al. 2019, arXiv 1907.08610), with a learned alpha. About 20 seconds.

    every k updates:     slow <- slow + alpha (x - slow),     x <- slow

A wrapper says what it adds: parameters, state, and how the inner optimizer's move becomes the next x. Learned starts,
penalties and metrics of the inner optimizer pass through by themselves. You should see the checks pass, and

    alpha 0.50 becomes 0.84

From the command line, in this folder: tower train "quadratic: lookahead.Lookahead(adam)@20 / adam"
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from levels import Adam, Layout, Level, Optimizer, Quadratic
from levels.fields import Count, Probability
from levels.optimizers.wrap import Wrapper, towards
from levels.testing import check_optimizer
from recursion import Tower

Slow = tuple[Tensor, Tensor]  # slow weights [*batch, copies, n], updates so far [*batch, copies]


@dataclass(frozen=True, repr=False)
class Lookahead(Wrapper):
    """``inner``: the fast optimizer. ``every``: its updates to one of the slow weights. ``alpha``: at first."""

    name = "lookahead"

    inner: Optimizer
    every: Count = 5
    alpha: Probability = 0.5

    def own_shapes(self, layout: Layout) -> dict[str, tuple[int, ...]]:
        return {"alpha": ()}

    def own_init(self, key: Tensor) -> Tensor:
        return super().own_init(key) + math.log(self.alpha / (1 - self.alpha))

    def own_state(self, own_theta: Tensor, x: Tensor, key: Tensor) -> Slow:
        return x, torch.zeros_like(key)

    def combine(self, own_theta: Tensor, x: Tensor, moves: list[Tensor], own: Slow, f: Tensor, g: Tensor):
        (slow, count), (fast,) = own, moves
        is_time = ((count + 1) % self.every == 0)[..., None]
        slow = torch.where(is_time, towards(slow, fast, own_theta.sigmoid()[..., None]), slow)
        return torch.where(is_time, slow, fast), (slow, count + 1)


if __name__ == "__main__":
    check_optimizer(Lookahead(Adam(), every=2))
    print("checks passed")
    tower = Tower(Quadratic(), Level(optimizer=Lookahead(Adam(lr=0.3)), unroll=20), Level(optimizer=Adam(lr=0.05)))
    *_, (state, _report) = tower.run(tower.init(seed=0), 100)
    print(f"alpha 0.50 becomes {tower.result(state)[0, 0].sigmoid():.2f}")
