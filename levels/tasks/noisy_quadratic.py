"""Noisy quadratics (Wu et al. 2018, "Understanding short-horizon bias", arXiv 1803.02021, section 2).

    f(x) = 1/2 sum_i h_i (x_i - c_i)^2,    c_i ~ N(0, sigma^2) drawn anew at every step

What SGD does to mean m and variance v of each coordinate is known in closed form, and so is the loss to expect:

    m <- (1 - lr h) m,    v <- (1 - lr h)^2 v + (lr h sigma)^2,    E f = 1/2 sum_i h_i (m_i^2 + v_i + sigma^2)

so the best schedule of step sizes for any horizon can be computed. The paper leaves the spectrum open; here the h_i are
spaced evenly in the logarithm. Starts are standard normal.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from levels import keys
from levels.base import ProblemTraits
from levels.fields import Count, NonNegative, Positive, require
from levels.layout import Layout
from levels.tasks.nets import Cursor
from levels.tasks.task import Task


class Moments(NamedTuple):
    """Mean and variance of every coordinate over all runs."""

    mean: Tensor  # [*batch, n]
    variance: Tensor  # [*batch, n]


@dataclass(frozen=True, repr=False)
class NoisyQuadratic(Task):
    """``dims``: parameters, at least 1. ``low``, ``high``: least and largest curvature, above 0; a single parameter has
    ``high``. ``noise``: sigma, the deviation of the minimum from step to step, 0 or more.
    """

    name = "noisy-quadratic"
    has_data = True

    dims: Count = 20
    low: Positive = 0.01
    high: Positive = 1.0
    noise: NonNegative = 0.3

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.low <= self.high, f"{self.name}: low must be at most high, got {self.low} and {self.high}")

    traits = ProblemTraits(copies=64)

    @property
    def layout(self) -> Layout:
        return Layout.of({"x": (self.dims,)}, self.torch_dtype, self.device)

    @property
    def curvature(self) -> Tensor:
        """``h`` ``[n]``, largest first."""
        place = torch.arange(self.dims, dtype=self.torch_dtype, device=self.device) / max(1, self.dims - 1)
        return self.high * (self.low / self.high) ** place

    def init(self, key: Tensor) -> Tensor:
        return keys.normal(self.own(key), (self.dims,), self.torch_dtype)

    def init_state(self, params: Tensor, key: Tensor) -> Cursor:
        return Cursor.start(self.own(key))

    def value_and_grad(self, params: Tensor, state: Cursor) -> tuple[Tensor, Tensor, Cursor]:
        off = params - self.noise * keys.normal(keys.fold_in(state.key, state.step), (self.dims,), self.torch_dtype)
        grad = self.curvature * off
        return (grad * off).sum(-1) / 2, grad, state.next()

    def expected_loss(self, moments: Moments) -> Tensor:
        """E f ``[*batch]`` over runs with these moments and over the noise of the step."""
        spread = moments.mean.square() + moments.variance + self.noise**2
        return (self.curvature * spread).sum(-1) / 2

    def expected_sgd(self, moments: Moments, lr: float | Tensor) -> Moments:
        """Moments after one step of SGD with the step size ``lr`` (a number, or ``[*batch, 1]``)."""
        rate = lr * self.curvature
        return Moments((1 - rate) * moments.mean, (1 - rate) ** 2 * moments.variance + (rate * self.noise) ** 2)

    def variants(self) -> dict[str, Task]:
        return {
            f"{2 * self.dims} dims": replace(self, dims=2 * self.dims),
            "curvature down to a tenth": replace(self, low=self.low / 10),
        }
