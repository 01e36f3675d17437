"""A learned start: where the problem below begins is part of the level's parameters.

    x_0 = start,       x_t = rule.update(x_(t-1))

On a level that restarts after each window, with the last loss as its objective, this is MAML (Finn, Abbeel and Levine
2017, arXiv 1703.03400), first-order unless the level's gradient is exact:

    task: start(sgd(lr=0.1))@5[horizon=5, objective=last] / adam

With a step size per coordinate, ``start(sgd(lr=log(0.1, per=coordinate)))``, it is Meta-SGD (Li et al. 2017,
arXiv 1707.09835). The start itself begins at one random draw of the problem's own, the same
for all copies; what is stored is the offset from it, so an untrained start is a sound one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from levels import keys
from levels.layout import Layout
from levels.base import Optimizer, Pulled
from levels.optimizers.wrap import Wrapping
from levels.base import Problem
from levels.tree import State


@dataclass(frozen=True, repr=False)
class LearnedInit(Wrapping):
    """``rule``: the optimizer that moves on from the start. ``seed``: of the draw from which the offset counts."""

    name = "start"

    rule: Optimizer
    seed: int = 0

    _home: ClassVar[Problem | None] = None  # once it is bound: the problem on the split that its draw is from

    scope = "problem"  # where the start is of each coordinate is told by its place
    learns_start = True

    def bound(self, problem: Problem) -> "Start":
        bound = super().bound(problem)
        object.__setattr__(bound, "_home", problem.on("train"))
        return bound

    def own_shapes(self, below: Layout) -> dict[str, tuple[int, ...]]:
        return {"offset": (below.size,)}

    def own_params(self, like: Tensor) -> Tensor:
        return like.new_zeros(*like.shape[:-1], self.below.size)

    def holding(self, params: Tensor, x: Tensor, rule: State) -> State:
        return rule

    def held(self, state: State) -> State:
        return state

    def start(self, params: Tensor, fresh: Callable[[Tensor], Tensor], key: Tensor) -> Tensor:
        fresh = fresh if self._home is None else self._home.init
        draw = fresh(keys.seed(self.seed, device=key.device).expand_as(key))
        return draw + params[..., None, : self.below.size]

    def start_pullback(self, params: Tensor, dx: Tensor, begun: Tensor) -> Tensor:
        offset = torch.where(begun[..., None], dx, 0.0).sum(-2)
        return torch.nn.functional.pad(offset, (0, params.shape[-1] - self.below.size))

    def update(self, params: Tensor, f: Tensor, g: Tensor, state: State, x: Tensor) -> tuple[Tensor, State]:
        return self.laid_rule.update(self.rest(params), f, g, state, x)

    def linearized(
        self, params: Tensor, f: Tensor, g: Tensor, state: State, x: Tensor
    ) -> tuple[Tensor, State, Callable[[Tensor, list[Tensor | None] | None], Pulled]]:
        moved, new, pull = self.laid_rule.linearized(self.rest(params), f, g, state, x)

        def back(dx: Tensor, dstate: list[Tensor | None] | None) -> Pulled:
            slopes, dold, dx_old = pull(dx, dstate)
            return self.padded(slopes), dold, dx_old

        return moved, new, back
