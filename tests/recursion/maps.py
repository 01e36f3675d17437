"""Systems whose growth rates are known in closed form, and how they are probed."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from towers import after

from levels import SGD, FirstOrder, Layout, Level, Task, keys
from levels.base import Optimizer
from recursion import Tower
from recursion.analysis.probe import probe
from recursion.notation import parse


@dataclass(frozen=True, kw_only=True, repr=False)
class Bowl(Task):
    """f(x) = sum_i h_i x_i^2 / 2, so the gradient is h x; started away from 0, or ``at`` one point."""

    name: ClassVar[str] = "bowl"
    dtype: str = "float64"
    curvatures: tuple[float, ...] = (2.0, 0.5)
    at: float | None = None

    @property
    def layout(self):
        return Layout.of({"x": (len(self.curvatures),)}, self.torch_dtype)

    def init(self, key):
        drawn = keys.uniform(self.own(key), (len(self.curvatures),), self.torch_dtype) * 0.8 + 0.1
        return drawn if self.at is None else torch.full_like(drawn, self.at)

    def init_state(self, params, key):
        return None

    def value_and_grad(self, params, state):
        h = torch.tensor(self.curvatures, dtype=params.dtype)
        return (h * params.square()).sum(-1) / 2, h * params, None


@dataclass(frozen=True, repr=False)
class Map(Optimizer):
    """A map of x with one parameter, its ``r``; abstract."""

    r: float = 4.0

    def shapes(self, layout):
        return {"r": (1,)}

    def init(self, key):
        return torch.full((*key.shape, 1), self.r, dtype=self.param_layout.dtype)

    def init_state(self, theta, x, key):
        return None

    def update(self, theta, x, state, f, g):
        return self.next(theta[..., None, :], g, x), None


class Logistic(Map):  # at r = 4 the exponent is ln 2 (Ulam and von Neumann 1947)
    name, next = "logistic-map", staticmethod(lambda r, g, x: r * x * (1 - x))


class ByGradient(Map):  # the same map over f = x^2 / 2, but all that it knows of x comes by the gradient
    name, next = "by-gradient", staticmethod(lambda r, g, x: x + (r * g * (1 - g) - g))


class Forgets(Map):  # no perturbation survives
    name, next = "forgets", staticmethod(lambda r, g, x: (r / 10).expand_as(x))


class Drifts(Map):
    name, next = "drifts", staticmethod(lambda r, g, x: x + r)


class Hidden(Map):
    """A logistic map in the state, which moves x."""

    name = "hidden"

    def init_state(self, theta, x, key):
        return x

    def update(self, theta, x, state, f, g):
        return x + state / 1000, self.r * state * (1 - state)


class Fading(Hidden):
    """x <- x / 2 + sqrt(s), s <- s / 100: s has a root unless a perturbation takes it below 0."""

    name = "fading"

    def update(self, theta, x, state, f, g):
        assert bool((state >= 0).all())
        return x / 2 + state.sqrt(), state / 100


def run(task, *levels, steps=2, **settings):
    tower = Tower(task, *levels)
    return probe(tower, after(tower, steps), **settings)


def probe_of(text, steps=2, **settings):
    tower = parse(text)
    return probe(tower, after(tower, steps), **settings)


def chaotic(gradient=None, optimizer=None, unroll=20, horizon=None, dtype="float64", windows=2, **more):
    """A map with 64 copies, probed from its start."""
    level = Level(optimizer=optimizer or Logistic(), unroll=unroll, horizon=horizon or 5 * unroll, batch=64,
                  gradient=gradient or FirstOrder(), **more)  # fmt: skip
    return run(Bowl(curvatures=(1.0,), dtype=dtype), level, Level(optimizer=SGD(lr=1e-12)), steps=0, windows=windows)
