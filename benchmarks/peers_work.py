"""The work of W1 and W3, once for all sides: a tower ``task: lstm@20 / adam``, and where its peers begin.

One unit is one update of the LSTM's weights: a window of 20 updates of all copies, the first-order gradient of the
meta-loss (the sum of the losses after each update, its mean over copies), and one step of Adam (1e-3, 0.9, 0.999, eps
1e-8 beside the root). What a window leaves off with (parameters, hidden states, the last gradient) begins the next, and
nothing restarts; so a unit costs 20 gradients of the task and 20 LSTM updates on every side.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks.harness import Numbers
from levels import LSTM, Accumulated, Adam, FirstOrder, Level, LossTask, Quadratic, keys
from levels.layout import Layout
from levels.tasks.data.scikit import digits
from levels.tasks.nets import cross_entropy, dense_shapes, fresh, perceptron
from recursion import Tower
from recursion.accelerate import accelerate

UNROLL, HIDDEN, P, SCALE = 20, 20, 10.0, 0.1
LR, BETA1, BETA2, EPS = 1e-3, 0.9, 0.999, 1e-8
TOLERANCE = {"float64": 1e-9, "float32": 1e-3}
"""Over the largest entry of a list; float32 after two windows of which the second starts where the first led."""

Arrays = dict[str, np.ndarray]


class LearnedInit(NamedTuple):
    """Where every side begins; numpy."""

    weights: Arrays  # the LSTM's, by name: [inputs + hidden, 4 hidden], [4 hidden], .., [hidden, 1], [1]
    x: np.ndarray  # [copies, n]
    g: np.ndarray  # [copies, n] gradient at x
    data: Arrays  # the task's


@dataclass(frozen=True, repr=False)
class FixedPerceptron(LossTask):
    """An MLP 64-32-10 with tanh on the first 128 of scikit-learn's digits, the same ones at each step, in nats."""

    name = "fixed-perceptron"

    @property
    def layout(self) -> Layout:
        return Layout.of(dense_shapes((64, 32, 10)), self.torch_dtype)

    def init(self, key: Tensor) -> Tensor:
        return fresh(self.layout, self.own(key))

    def init_state(self, params: Tensor, key: Tensor) -> None:
        return None

    def loss(self, params: Tensor, state: None) -> tuple[Tensor, None]:
        images, labels = minibatch(self.torch_dtype)
        return cross_entropy(
            perceptron(self.layout.unravel(params), images, "tanh"), self._labels(params, labels)
        ), None

    def _labels(self, params: Tensor, labels: Tensor) -> Tensor:
        return labels.expand(*params.shape[:-1], len(labels))


@cache
def minibatch(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """128 images ``[128, 64]`` and their labels."""
    images, labels, _ = digits("train", dtype)
    return images[:128].contiguous(), labels[:128].contiguous()


@dataclass(frozen=True)
class Work:
    """``task``: ``quadratic`` or ``perceptron``; ``copies`` of it."""

    task: str
    copies: int

    def tower(self, dtype: str) -> Tower:
        """Ours."""
        task = Quadratic(dtype=dtype) if self.task == "quadratic" else FixedPerceptron(dtype=dtype)
        lstm = LSTM(hidden=HIDDEN, layers=2, scale=SCALE, p=P)
        adam = Adam(lr=LR, beta1=BETA1, beta2=BETA2, eps=EPS)
        gradient = FirstOrder() if self.task == "quadratic" else Accumulated()  # of a network, memory counts
        level = Level(optimizer=lstm, unroll=UNROLL, batch=self.copies, horizon=None, gradient=gradient)
        return Tower(task, level, Level(optimizer=adam, batch=1))

    def start(self, dtype: str) -> LearnedInit:
        """What `Tower.init` with seed 0 begins with, before the first window."""
        tower = self.tower(dtype)
        level = tower.bound[0]
        key = keys.split(keys.split(keys.seed(0), 2)[1], 1)
        theta = level.init(keys.split(key, 2)[..., 0])  # [1, m]
        carry = level.init_state(theta, keys.split(key, 2)[..., 1]).carry
        weights = {name: view[0].numpy() for name, view in level.layout.unravel(theta).items()}
        return LearnedInit(weights, carry.x[0].numpy(), carry.g[0].numpy(), self._data(dtype, carry.problem_state))

    def _data(self, dtype: str, problem_state: Any) -> Arrays:
        if self.task == "quadratic":
            return {"w": problem_state.w[0].numpy(), "y": problem_state.y[0].numpy()}
        images, labels = minibatch(torch.float64 if dtype == "float64" else torch.float32)
        return {"images": images.numpy(), "labels": labels.numpy()}


class Window(NamedTuple):
    """What a side tells of a window: the meta-loss, its gradient, and the weights that Adam then made; all numpy."""

    loss: float
    gradient: np.ndarray  # [m]
    weights: np.ndarray  # [m]


def as_numbers(dtype: str, windows: list[Window]) -> Numbers:
    """A proof: meta-loss and meta-gradient of the first two windows, and the weights after each."""
    found: Numbers = {}
    for number, window in enumerate(windows, 1):
        found[f"{dtype} meta-loss {number}"] = [window.loss]
        found[f"{dtype} meta-gradient {number}"] = window.gradient.tolist()
        found[f"{dtype} weights {number}"] = window.weights.tolist()
    return found


class Ours:
    """The tower; one `Tower.step` is Adam's step on the last window's gradient, then the next window."""

    def __init__(self, work: Work, *, fast: bool = False) -> None:
        self.work, self.fast = work, fast
        self.tower = self._tower("float32")
        self.state = self.tower.init(seed=0)
        self.facts = {"tower": repr(self.tower), "task gradients a step": int(self.tower.costs[-1]) * work.copies}

    def step(self) -> None:
        self.state, _ = self.tower.step(self.state)

    def _tower(self, dtype: str) -> Tower:
        tower = self.work.tower(dtype)
        return accelerate(tower) if self.fast else tower

    def prove(self) -> Numbers:
        return self._proof("float32") | self._proof("float64")

    def _proof(self, dtype: str) -> Numbers:
        tower, windows = self._tower(dtype), []
        state = tower.init(seed=0)
        for _ in range(2):
            loss, gradient = state.carry.f, state.carry.g
            state, _ = tower.step(state)
            windows.append(Window(float(loss), gradient[0].numpy(), state.carry.x[0].numpy()))
        return as_numbers(dtype, windows)
