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
from typing import Any, ClassVar

import torch
from torch import Tensor

from levels import keys
from levels.layout import Layout
from levels.optimizer import Optimizer
from levels.problem import Problem


@dataclass(frozen=True, repr=False)
class Start(Optimizer):
    """``rule``: the optimizer that moves on from the start. ``seed``: of the draw from which the offset counts."""

    name = "start"

    rule: Optimizer
    seed: int = 0

    _home: ClassVar[Problem | None] = None  # once it is bound: the problem on the split that its draw is from

    def bound(self, problem: Problem) -> "Start":
        bound = Start(self.rule.bound(problem), self.seed)
        object.__setattr__(bound, "_home", problem.on("train"))
        return bound

    @property
    def differentiable(self) -> bool:  # type: ignore[override]
        """As the rule is."""
        return self.rule.differentiable

    @property
    def reads_loss(self) -> bool:  # type: ignore[override]
        """As the rule does."""
        return self.rule.reads_loss

    @property
    def compiles(self) -> bool:  # type: ignore[override]
        """As the rule does."""
        return self.rule.compiles

    def shapes(self, below: Layout) -> dict[str, tuple[int, ...]]:
        rule = {f"rule.{name}": shape for name, shape in self.rule.shapes(below).items()}
        return {"offset": (below.size,), **rule}

    def init_params(self, key: Tensor) -> Tensor:
        rule = self._rule().init_params(key)
        return torch.cat((rule.new_zeros(*key.shape, self.below.size), rule), dim=-1)

    def start(self, params: Tensor, fresh: Callable[[Tensor], Tensor], key: Tensor) -> Tensor:
        fresh = fresh if self._home is None else self._home.init_params
        draw = fresh(keys.seed(self.seed, device=key.device).expand_as(key))
        return draw + params[..., None, : self.below.size]

    def start_pullback(self, params: Tensor, dx: Tensor, begun: Tensor) -> Tensor:
        offset = torch.where(begun[..., None], dx, 0.0).sum(-2)
        return torch.nn.functional.pad(offset, (0, params.shape[-1] - self.below.size))

    def init_state(self, params: Tensor, x: Tensor) -> Any:
        return self._rule().init_state(params[..., self.below.size :], x)

    def begin_state(self, params: Tensor, x: Tensor, key: Tensor) -> Any:
        return self._rule().begin_state(params[..., self.below.size :], x, key)

    def update(self, params: Tensor, f: Tensor, g: Tensor, state: Any, x: Tensor) -> tuple[Tensor, Any]:
        return self._rule().update(params[..., self.below.size :], f, g, state, x)

    def pullback(
        self,
        params: Tensor,
        f: Tensor,
        g: Tensor,
        state: Any,
        x: Tensor,
        dx: Tensor,
        dstate: list[Tensor | None] | None,
    ) -> tuple[Tensor, list[Tensor | None], Tensor]:
        n = self.below.size
        dparams, dstate_old, dx_old = self._rule().pullback(params[..., n:], f, g, state, x, dx, dstate)
        return torch.nn.functional.pad(dparams, (n, 0)), dstate_old, dx_old

    def _rule(self) -> Optimizer:
        return self.rule.over(self.below)
