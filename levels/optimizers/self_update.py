"""Own: the rule below moves the very parameters that it is made of.

    task: lstm@20 / own

    theta <- theta + scale * (U(theta, normalised g, state, theta) - theta)

``U(theta, ...)`` is the update of the optimizer below, and theta its own weights, so it reads the gradient of its own
meta-loss as it reads that of a task (Metz, Freeman, Maheswaranathan and Sohl-Dickstein 2021, arXiv 2101.07367, train
learned optimizers by learned optimizers, themselves among them). A rule that learned on tasks meets gradients of
another size here and needs steps of another size, hence ``norm`` and ``scale``. What keeps such a loop from running
away is a guard: `levels.optimizers.guarded`.

To differentiate through H self-updates, let them begin at a learned start: ``lstm@20 / start(own)@H / adam``.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, NamedTuple, Self

import torch
from torch import Tensor

from levels.hyper import HyperparamOptimizer, Hyper, Log, hyper
from levels.layout import Layout
from levels.base import Optimizer
from levels.config import require
from levels.base import Problem
from levels.tree import State, map_leaves


class OwnState(NamedTuple):
    """What the rule remembers of its own parameters, and how large their gradient last was."""

    rule: State
    size: Tensor  # [*batch, copies] root mean square


@dataclass(frozen=True, repr=False)
class SelfUpdate(HyperparamOptimizer):
    """``scale``: of the step, above 0. ``norm``: root mean square that gradients are brought to before the rule reads
    them, above 0; None to leave them as they are.

    It fits only a level laid over a level; ValueError over a task.
    """

    name = "own"

    scale: float | Hyper = hyper(0.1, Log)
    norm: float | None = 0.1

    _rule: ClassVar[Optimizer | None] = None  # set on what is bound

    def __post_init__(self) -> None:
        super().__post_init__()
        norm = self.norm
        good = norm is None or (isinstance(norm, (int, float)) and not isinstance(norm, bool) and norm > 0)
        require(good, f"own: norm must be a number above 0, or none, got {norm}")

    def bound(self, problem: Problem) -> Self:
        require(problem.rule is not None, f"{self} applies the optimizer below to itself; below is {problem}, a task")
        bound = copy.copy(self)
        object.__setattr__(bound, "_rule", problem.rule)
        return bound

    @property
    def differentiable(self) -> bool:  # type: ignore[override]
        """As the rule is."""
        return self._rule is None or self._rule.differentiable

    @property
    def reads_loss(self) -> bool:  # type: ignore[override]
        """As the rule does."""
        return self._rule is None or self._rule.reads_loss

    @property
    def compiles(self) -> bool:  # type: ignore[override]
        """As the rule does."""
        return self._rule is not None and self._rule.compiles

    def over(self, below: Layout) -> Self:
        what = f"{self} applies the optimizer below to itself, and it was laid over a layout alone"
        require(self._rule is not None, f"{what}; give it a level of its own")
        laid = super().over(below)
        needed, what = laid.rule.layout.size, f"{self}: {self._rule} over its own {below.size} parameters"
        fix = "use a rule whose parameters do not depend on what it updates, as lstm"
        require(needed == below.size, f"{what} would take {needed}, so it cannot be its own optimizer; {fix}")
        return laid

    @cached_property
    def rule(self) -> Optimizer:
        """The rule below, laid over its own parameters."""
        assert self._rule is not None
        return self._rule.over(self.below)

    def init_state(self, params: Tensor, x: Tensor) -> OwnState:
        state = map_leaves(lambda leaf: leaf.squeeze(x.dim() - 1), self.rule.init_state(x, x[..., None, :]))
        return OwnState(state, x.new_zeros(x.shape[:-1]))

    def step(self, h: dict[str, Tensor], g: Tensor, state: OwnState, x: Tensor) -> tuple[Tensor, OwnState]:
        raise AssertionError("own reads the loss too")

    def update(self, params: Tensor, f: Tensor, g: Tensor, state: OwnState, x: Tensor) -> tuple[Tensor, OwnState]:
        size = g.square().mean(-1).sqrt()
        if self.norm is not None:
            g = g * (self.norm / size.clamp_min(torch.finfo(g.dtype).tiny))[..., None]
        alone = map_leaves(lambda leaf: leaf.unsqueeze(x.dim() - 1), state.rule)
        moved, rule = self.rule.update(x, f[..., None], g[..., None, :], alone, x[..., None, :])
        step = self._read(params)["scale"] * (moved[..., 0, :] - x)
        return x + step, OwnState(map_leaves(lambda leaf: leaf.squeeze(x.dim() - 1), rule), size)

    def metrics(self, state: OwnState) -> dict[str, Tensor]:
        return {"self-gradient": state.size}
