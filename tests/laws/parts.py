"""What the laws are tried on: levels and towers in notation, and rules and tasks of every kind."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from oracle import compare, naive
from torch import Tensor

from levels import SGD, Layout, Level, LossTask, NoisyQuadratic, Optimizer, Quadratic, keys
from levels.base import OptimizerTraits, ProblemTraits
from levels.tree import map_leaves
from recursion.notation import parse

QUADRATIC, SMALL = "quadratic(3, dtype=float64): ", "quadratic(2, dtype=float64): "
DIGITS = "digits-mlp(hidden=[3], minibatch=8, dtype=float64): "
MOMENTUM = "sgd(0.01, momentum=0.9)"
LSTM, TINY = "lstm(hidden=2, layers=1)", "lstm(hidden=1, layers=1)"
RULES = [
    "sgd(linear(0.01), weight_decay=0.1)",
    "sgd(log(0.01, per=coordinate), momentum=logit(0.8, per=tensor), weight_decay=0.1, nesterov=true)",
    MOMENTUM,
    "adam(log(0.1, per=tensor), beta1=logit(0.8, per=coordinate), eps=1e-3)",
    "rmsprop(0.02, decay=0.9)",
]
OBJECTIVES = ["sum", "last", "mean-log", "discounted(0.7)"]


def levels_of(text: str) -> tuple[Any, list[Level]]:
    """A task, and all levels that stand in ``text``; where it does not say, without a horizon and with one copy."""
    tower = parse(f"{text} / sgd")
    auto = {"horizon": None, "batch": 1}
    return tower.task, [
        replace(level, **{name: value for name, value in auto.items() if getattr(level, name) == "auto"})
        for level in tower.levels[:-1]
    ]


def stacked(task: Any, levels: list[Level]) -> Level:
    """The last of the levels, on all others and the task."""
    for level in levels:
        task = level.over(task)
    return task


def built(text: str, **settings: Any) -> Level:
    """The last level of ``text`` on all others, with these settings changed."""
    task, levels = levels_of(text)
    return stacked(task, [*levels[:-1], replace(levels[-1], **settings)])


def worst(text: str, windows: int, **how: Any) -> float:
    """The largest error of a tower's levels against their oracle; see `compare`."""
    task, levels = levels_of(text)
    return compare(stacked(task, levels), naive(task, *levels), windows, **how)


def rule_of(text: str) -> Optimizer:
    """An optimizer from notation, not bound."""
    return parse(f"quadratic: {text}").top.optimizer


def begun(level: Level, seed: int = 0, *batch: int) -> tuple[Tensor, Any]:
    """Parameters ``[*batch, m]`` and a state of a level."""
    key = keys.split(keys.seed(seed), math.prod(batch)).reshape(batch) if batch else keys.seed(seed)
    params = level.init(key)
    return params, level.init_state(params, key)


class Answer(NamedTuple):
    """What a level is asked at, and what it answers."""

    params: Tensor
    before: Any
    value: Tensor
    grad: Tensor
    state: Any


def answers(level: Level, windows: int, seed: int = 0, *batch: int, move: float = 0.0) -> Iterator[Answer]:
    """One window after the other, its parameters moving along the gradient in between."""
    params, state = begun(level, seed, *batch)
    for _ in range(windows):
        answer = Answer(params, state, *level.value_and_grad(params, state))
        yield answer
        params, state = params - move * answer.grad / answer.grad.norm(), answer.state


def repeated(state: Any, count: int) -> Any:
    """A state with ``count`` copies of itself along a new leading dimension."""
    return map_leaves(lambda leaf: leaf.expand(count, *leaf.shape), state)


def slopes(function: Callable[[Tensor], Tensor], at: Tensor, h: float = 1e-4) -> Tensor:
    """Gradient by the five-point rule, error of order h^4, of a function that takes ``[k, *at.shape]`` to ``[k]``."""
    steps = h * torch.eye(at.numel(), dtype=at.dtype).reshape(-1, *at.shape)
    near = function(at + steps) - function(at - steps)
    far = function(at + 2 * steps) - function(at - 2 * steps)
    return ((8 * near - far) / (12 * h)).reshape(at.shape)


# Optimizers.


@dataclass(frozen=True, repr=False)
class Polyak(Optimizer):
    """Steps as long as the loss, and the gradient's length, say: x <- x - scale f g / (1 + |g|^2)."""

    name = "polyak"
    traits = OptimizerTraits(reads_loss=True)

    def shapes(self, layout):
        return {"scale": ()}

    def init(self, key):
        return torch.full((*key.shape, 1), 0.3, dtype=torch.float64)

    def init_state(self, theta, x, key):
        return None

    def update(self, theta, x, state, f, g):
        return x - theta[..., None] * f[..., None] * g / (1 + (g * g).sum(-1, keepdim=True)), None


@dataclass(frozen=True, repr=False)
class Anchored(Polyak):
    """Also drawn back to an anchor that it learns in part, and that starts where trajectories do."""

    name = "anchored"
    traits = OptimizerTraits(reads_loss=True, learns_init=True)

    def shapes(self, layout):
        return {"scale": (), "pull": ()}

    def init(self, key):
        return torch.tensor([0.3, 0.5], dtype=torch.float64).repeat(*key.shape, 1)

    def init_state(self, theta, x, key):
        return x * theta[..., None, 1:]

    def update(self, theta, x, state, f, g):
        new, _ = super().update(theta[..., :1], x, None, f, g)
        return new + 0.1 * (state - x), 0.9 * state + 0.1 * x


class BlackBox(SGD):
    """Says that it cannot be differentiated."""

    name = "black-box"
    traits = OptimizerTraits(differentiable=False)


class Numpy(SGD):
    """Leaves torch on the way, and does not say so."""

    name = "numpy"

    def update(self, theta, x, state, f, g):
        return x - self.read(theta)["lr"] * torch.from_numpy(np.sign(g.numpy())), None


# Tasks.


@dataclass(frozen=True, kw_only=True, repr=False)
class Bowl(Quadratic):
    """A quadratic in float64."""

    name = "bowl"
    dims: int = 3
    dtype: Literal["float32", "float64"] = "float64"


class Detached(Bowl):
    """Answers constants."""

    def value_and_grad(self, params, state):
        return super().value_and_grad(params.detach(), state)


class Stored(Bowl):
    """Hands back a gradient that has lost where it came from."""

    def value_and_grad(self, params, state):
        f, g, state = super().value_and_grad(params, state)
        return f, g.detach(), state


class Cut(Bowl):
    """Hands back a value that has lost where it came from."""

    def value_and_grad(self, params, state):
        f, g, state = super().value_and_grad(params, state)
        return f.detach(), g, state


class Once(Bowl):
    """Says that its gradient cannot be differentiated."""

    traits = ProblemTraits(differentiable=False)


class Tallied(NoisyQuadratic):
    """Notes for how many copies it is asked, each time."""

    name = "tallied"
    asked: ClassVar[list[int]] = []

    def value_and_grad(self, params, state):
        self.asked.append(math.prod(params.shape[:-1]))
        return super().value_and_grad(params, state)

    @classmethod
    def take(cls) -> tuple[int, int]:
        """Calls and copies since the last time."""
        taken = len(cls.asked), sum(cls.asked)
        cls.asked.clear()
        return taken


@dataclass(frozen=True, kw_only=True, repr=False)
class Slope(LossTask):
    """f(x) = a + c . x with c drawn from the key: the gradient is the same everywhere."""

    name = "slope"
    dtype: Literal["float32", "float64"] = "float64"
    layout: ClassVar[Layout] = Layout.of({"w": (2, 2), "b": (1,)}, torch.float64)

    def init(self, key):
        return keys.normal(self.own(key), (5,), torch.float64)

    def init_state(self, params, key):
        return keys.normal(self.own(key), (5,), torch.float64)

    def loss(self, params, state):
        return 50.0 + (params * state).sum(-1), state


class Doomed(NamedTuple):
    """A quadratic, how often this copy was evaluated, and whether it dies."""

    problem_state: Any
    calls: Tensor
    dies: Tensor


@dataclass(frozen=True, repr=False)
class Dying(Quadratic):
    """A quadratic whose copies with a key divisible by three answer infinity at evaluation ``fatal``, from 1."""

    name = "dying"
    fatal: int = 3

    def init_state(self, params, key):
        return Doomed(super().init_state(params, key), torch.zeros_like(key), key % 3 == 0)

    def value_and_grad(self, params, state):
        f, g, problem_state = super().value_and_grad(params, state.problem_state)
        dead = state.dies & (state.calls + 1 == self.fatal)
        return *self.spoiled(f, g, dead), Doomed(problem_state, state.calls + 1, state.dies)

    def spoiled(self, f, g, dead):
        """What copies in the mask ``dead`` answer."""
        return f.where(~dead, math.inf), g.where(~dead[..., None], math.nan)


class Poisoned(Dying):
    """What kills a copy poisons its derivatives too."""

    name = "poisoned"

    def spoiled(self, f, g, dead):
        poison = torch.where(dead, math.nan, 1.0).to(f.dtype)
        return f * poison, g * poison[..., None]


class Flash(Dying):
    """Only one loss of those that die is not finite: nothing of it is left at the end of a window."""

    name = "flash"

    def spoiled(self, f, g, dead):
        return f.where(~dead, math.inf), g
