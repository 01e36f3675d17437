"""What the tests of exact gradients are made of: levels, and rules and tasks of every kind."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from levels import (
    LSTM,
    SGD,
    DigitsMLP,
    Exact,
    FirstOrder,
    Layout,
    Level,
    LevelState,
    Optimizer,
    OptimizerTraits,
    ProblemTraits,
    Quadratic,
    Task,
    keys,
)
from levels.tasks.quadratic import QuadraticState

MOMENTUM = SGD(0.01, momentum=0.9)


def quadratic(dims: int = 3) -> Quadratic:
    return Quadratic(dims=dims, dtype="float64")


def digits() -> DigitsMLP:
    return DigitsMLP(hidden=(3,), minibatch=8, dtype="float64")


def lstm(hidden: int = 2, layers: int = 1) -> LSTM:
    return LSTM(hidden=hidden, layers=layers)


def level(optimizer: object, unroll: int, **settings: object) -> Level:
    return Level(optimizer=optimizer, unroll=unroll, **{"horizon": None, "batch": 1, "gradient": Exact(), **settings})


def first(optimizer: object, unroll: int, **settings: object) -> Level:
    return level(optimizer, unroll, gradient=FirstOrder(), **settings)


def stacked(task: Task, levels: tuple[Level, ...]):
    problem = task
    for part in levels:
        problem = part.over(problem)
    return problem


def second_window(task: Task, *levels: Level) -> tuple[Level, Tensor, LevelState]:
    """A level on its second window: parameters ``[1, m]`` and a fixed carry."""
    laid, key = stacked(task, levels), keys.split(keys.seed(5), 1)
    params = laid.init(key)
    return laid, params, laid.value_and_grad(params, laid.init_state(params, key))[2]


@dataclass(frozen=True, repr=False)
class Polyak(Optimizer):
    """Steps as long as the loss, and the gradient's length, say: x <- x - scale f g / (1 + |g|^2)."""

    name = "polyak"

    @property
    def traits(self) -> OptimizerTraits:
        return OptimizerTraits(reads_loss=True)

    def shapes(self, below: Layout) -> dict[str, tuple[int, ...]]:
        return {"scale": ()}

    def init(self, key: Tensor) -> Tensor:
        return torch.full((*key.shape, 1), 0.3, dtype=torch.float64)

    def init_state(self, theta: Tensor, x: Tensor, key: Tensor) -> None:
        return None

    def update(self, theta: Tensor, x: Tensor, state: None, f: Tensor, g: Tensor) -> tuple[Tensor, None]:
        return x - theta[..., None] * f[..., None] * g / (1 + (g * g).sum(-1, keepdim=True)), None


@dataclass(frozen=True, repr=False)
class Anchored(Polyak):
    """Also drawn back to an anchor that it learns in part, and that starts where trajectories do."""

    name = "anchored"

    @property
    def traits(self) -> OptimizerTraits:
        return OptimizerTraits(reads_loss=True, learns_init=True)

    def shapes(self, below: Layout) -> dict[str, tuple[int, ...]]:
        return {"scale": (), "pull": ()}

    def init(self, key: Tensor) -> Tensor:
        return torch.tensor([0.3, 0.5], dtype=torch.float64).repeat(*key.shape, 1)

    def init_state(self, theta: Tensor, x: Tensor, key: Tensor) -> Tensor:
        return x * theta[..., None, 1:]

    def update(self, theta: Tensor, x: Tensor, state: Tensor, f: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        new, _ = super().update(theta[..., :1], x, None, f, g)
        return new + 0.1 * (state - x), 0.9 * state + 0.1 * x


class BlackBox(SGD):
    """Says that it cannot be differentiated."""

    name = "black-box"

    @property
    def traits(self) -> OptimizerTraits:
        return OptimizerTraits(differentiable=False)


class Numpy(SGD):
    """Leaves torch on the way, and does not say so."""

    name = "numpy"

    def update(self, theta: Tensor, x: Tensor, state: None, f: Tensor, g: Tensor) -> tuple[Tensor, None]:
        return x - self.read(theta)["lr"] * torch.from_numpy(np.sign(g.numpy())), None


@dataclass(frozen=True, kw_only=True, repr=False)
class Bowl(Quadratic):
    """A quadratic in float64."""

    name = "bowl"
    dims: int = 3
    dtype: Literal["float32", "float64"] = "float64"


class Detached(Bowl):
    """Asks autograd by itself, of a detached leaf."""

    def value_and_grad(self, params: Tensor, state: QuadraticState) -> tuple[Tensor, Tensor, QuadraticState]:
        with torch.enable_grad():
            leaf = params.detach().requires_grad_()
            f, *_ = super().value_and_grad(leaf, state)
            return f.detach(), torch.autograd.grad(f.sum(), leaf)[0], state


class Stored(Bowl):
    """Hands back a gradient that has lost where it came from."""

    def value_and_grad(self, params: Tensor, state: QuadraticState) -> tuple[Tensor, Tensor, QuadraticState]:
        f, g, state = super().value_and_grad(params, state)
        return f, g.detach(), state


class Cut(Bowl):
    """Hands back a value that has lost where it came from."""

    def value_and_grad(self, params: Tensor, state: QuadraticState) -> tuple[Tensor, Tensor, QuadraticState]:
        f, g, state = super().value_and_grad(params, state)
        return f.detach(), g, state


class Once(Bowl):
    """Says that its gradient cannot be differentiated."""

    @property
    def traits(self) -> ProblemTraits:
        return ProblemTraits(differentiable=False)


class Counting(Quadratic):
    """Notes each time that it is asked."""

    calls: ClassVar[list[int]] = []

    def value_and_grad(self, params: Tensor, state: QuadraticState) -> tuple[Tensor, Tensor, QuadraticState]:
        self.calls.append(1)
        return super().value_and_grad(params, state)
