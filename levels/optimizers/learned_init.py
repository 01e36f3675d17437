"""A learned start: where the problem below begins is part of the level's parameters.

    x_0 = draw + offset,       x_t = inner.update(x_(t-1))

On a level that restarts after each window, with the last loss as its objective, this is MAML (Finn, Abbeel and Levine
2017, arXiv 1703.03400), first-order unless the level's gradient is exact:

    task: start(sgd(lr=0.1))@5[horizon=5, objective=last] / adam

With a step size per coordinate, ``start(sgd(lr=log(0.1, per=coordinate)))``, it is Meta-SGD (Li et al. 2017,
arXiv 1707.09835). The draw is one start of the problem, the same for all copies and on all splits. The level stores
the offset from it, so a start that is not trained yet is a sound one.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Self

from torch import Tensor

from levels import keys
from levels.base import Optimizer, OptimizerTraits, Problem
from levels.fields import require
from levels.layout import Layout
from levels.optimizers.wrap import Wrapper


@dataclass(frozen=True, repr=False)
class LearnedInit(Wrapper):
    """``inner``: the optimizer that moves on from the start. ``seed``: of the draw from which the offset counts.

    Raises ValueError, when bound, if ``inner`` has a learned start too.
    """

    name = "start"

    inner: Optimizer
    seed: int = 0

    @property
    def traits(self) -> OptimizerTraits:
        """Each coordinate has an offset of its own, so no part of the problem may be updated alone."""
        return super().traits._replace(learns_init=True, locality="global")

    def bind(self, site: Problem | Layout) -> Self:
        twice = self.inner.traits.learns_init
        require(not twice, f"start: {self.inner} has a learned start already; keep one of them")
        return super().bind(site)

    def own_shapes(self, layout: Layout) -> dict[str, tuple[int, ...]]:
        return {"offset": (layout.size,)}

    def init_x(self, theta: Tensor, key: Tensor) -> Tensor:
        draw = self._home.init(keys.seed(self.seed, device=key.device).expand_as(key))
        return draw + self.split_theta(theta)[0][..., None, :]

    @cached_property
    def _home(self) -> Problem:
        """The problem on the split that its draw is from."""
        assert isinstance(self.site, Problem), "over a layout alone there is no problem that draws a start"
        return self.site.on("train")
