"""A learned optimizer that updates its own parameters: the optimizer of the level below moves the very theta that it
is made of.

    task: lstm@20 / own

    theta <- theta + scale * (U(theta, theta, state, f, normalised g) - theta)

``U(theta, x, ...)`` is the update of the optimizer below, here with x = theta, so it reads the gradient of its own
meta-loss as it reads that of a task (Metz, Freeman, Maheswaranathan and Sohl-Dickstein 2021, arXiv 2101.07367, train
learned optimizers by learned optimizers, themselves among them). It was trained on gradients of another size, hence
``norm`` and ``scale``. Nothing here keeps such a loop stable; `levels.optimizers.guarded` does.

To differentiate through H self-updates, give them a learned start: ``lstm@20 / start(own)@H / adam``.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from levels.base import Optimizer, OptimizerTraits, Problem, is_level
from levels.fields import Positive, require
from levels.hyper import Hyper, HyperparamOptimizer, Log, hyper
from levels.layout import Layout
from levels.optimizers.partition import asked
from levels.tree import State, map_leaves


class SelfUpdateState(NamedTuple):
    """The state of the optimizer below over its own parameters, and the size of their last gradient."""

    inner: State
    size: Tensor  # [*batch, copies] root mean square


@dataclass(frozen=True, repr=False)
class SelfUpdate(HyperparamOptimizer):
    """``scale``: of the step, above 0. ``norm``: gradients are rescaled to this root mean square; None: they are not.

    Raises ValueError, when bound, over a problem that is no level, or where the optimizer below would need another
    number of parameters to update its own.
    """

    name = "own"

    scale: Hyper | float = hyper(0.1, Log)
    norm: Positive | None = 0.1

    @property
    def traits(self) -> OptimizerTraits:
        if self.site is None:
            return OptimizerTraits(reads_loss=True)
        inner = self.inner.traits
        return OptimizerTraits(differentiable=inner.differentiable, reads_loss=inner.reads_loss)

    def bind(self, site: Problem | Layout) -> Self:
        bound = super().bind(site)
        purpose = "applies the optimizer below to itself"
        level = asked(bound, purpose)
        require(is_level(level), f"{self} {purpose}; below is {level}, a task")
        inner, size = bound.inner, level.layout.size
        what = f"{self}: {inner} over its own {size} parameters would take {inner.layout.size}"
        fix = "use an optimizer whose parameters do not depend on what it updates, as lstm"
        require(inner.layout.size == size, f"{what}, so it cannot be its own optimizer; {fix}")
        return bound

    @cached_property
    def inner(self) -> Optimizer:
        """The optimizer of the level below, bound to its own parameters."""
        level: Any = self.site
        inner: Optimizer = level.optimizer.bind(level.layout)
        return inner

    def init_state(self, theta: Tensor, x: Tensor, key: Tensor) -> SelfUpdateState:
        state = self.inner.init_state(x, x[..., None, :], key[..., None])
        return SelfUpdateState(_one(state, x), x.new_zeros(x.shape[:-1]))

    def update(self, theta: Tensor, x: Tensor, state: State, f: Tensor, g: Tensor) -> tuple[Tensor, SelfUpdateState]:
        size = g.square().mean(-1).sqrt()
        if self.norm is not None:
            g = g * (self.norm / size.clamp_min(torch.finfo(g.dtype).tiny))[..., None]
        alone = map_leaves(lambda leaf: leaf.unsqueeze(x.dim() - 1), state.inner)
        moved, inner = self.inner.update(x, x[..., None, :], alone, f[..., None], g[..., None, :])
        step = self.read(theta)["scale"] * (moved[..., 0, :] - x)
        return x + step, SelfUpdateState(_one(inner, x), size)

    def metrics(self, state: SelfUpdateState) -> dict[str, Tensor]:
        return {"self-gradient": state.size}


def _one(state: State, x: Tensor) -> State:
    """A state ``[*batch, copies, 1, ...]`` without the dimension of the one copy."""
    return map_leaves(lambda leaf: leaf.squeeze(x.dim() - 1), state)
