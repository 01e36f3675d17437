"""Small systems whose gradients are known in closed form, written as optimizers and tasks."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from levels import Layout, Optimizer, OptimizerTraits, Task, keys

SIZE, POSITIVE = 23, 10  # influence balancing, as Tallec and Ollivier set it up


@dataclass(frozen=True, repr=False)
class Drift(Optimizer):
    """x <- x + theta: after t updates x_0 + t theta, so losses of degree two stay so in theta."""

    name = "drift"
    traits = OptimizerTraits(differentiable=False)

    def shapes(self, layout):
        return {"theta": (layout.size,)}

    def init(self, key):
        return 0.1 * keys.normal(key, (self.param_layout.size,), self.param_layout.dtype)

    def init_state(self, theta, x, key):
        return None

    def update(self, theta, x, state, f, g):
        return x + theta[..., None, :], None


class Forget(Drift):
    """x <- theta: nothing of the past matters."""

    name = "forget"

    def update(self, theta, x, state, f, g):
        return theta[..., None, :].expand_as(x), None


class Balance(Drift):
    """Influence balancing (Tallec and Ollivier 2017, arXiv 1702.05043, section 5.1; PES 2021, section 5.1).

    x <- A x + theta b with A = 0.5 I + 0.5 superdiagonal; b is 1 in the first ten entries, -1 in the other thirteen.
    The first entry is soon pushed one way by theta, and later the other, more strongly: it settles at -6 theta.
    """

    name = "balance"
    traits = OptimizerTraits()

    def shapes(self, layout):
        return {"theta": (1,)}

    def init(self, key):
        return torch.full((*key.shape, 1), 0.5, dtype=self.param_layout.dtype)

    def update(self, theta, x, state, f, g):
        later = torch.nn.functional.pad(x[..., 1:], (0, 1))
        return (x + later) / 2 + theta[..., None, :] * push(x.dtype), None


def push(dtype: torch.dtype) -> Tensor:
    """``b`` of influence balancing, ``[23]``."""
    return torch.where(torch.arange(SIZE) < POSITIVE, 1.0, -1.0).to(dtype)


def settled(theta: float, dtype: torch.dtype) -> Tensor:
    """Where influence balancing comes to rest: x = A x + theta b, so x_i = x_(i+1) + 2 theta b_i; ``[23]``."""
    return 2 * theta * push(dtype).flip(0).cumsum(0).flip(0)


@dataclass(frozen=True, kw_only=True, repr=False)
class Plane(Task):
    """f(x) = c . x from zeros, with the entries of c given; every key names the same problem."""

    name = "plane"
    dtype: Literal["float32", "float64"] = "float64"
    slopes: tuple[float, ...] = (1.0, -2.0, 0.5, 3.0)

    @property
    def slope(self) -> Tensor:
        return torch.tensor(self.slopes, dtype=self.torch_dtype)

    @property
    def layout(self) -> Layout:
        return Layout.of({"x": (len(self.slopes),)}, self.torch_dtype)

    def init(self, key):
        return torch.zeros(*key.shape, len(self.slopes), dtype=self.torch_dtype)

    def init_state(self, params, key):
        return None

    def value_and_grad(self, params, state):
        return (params * self.slope).sum(-1), self.slope.expand_as(params), None


class Cliff(Plane):
    """A plane that ends where the first entry of x exceeds 1."""

    name = "cliff"

    def value_and_grad(self, params, state):
        f, g, state = super().value_and_grad(params, state)
        return f.where(params[..., 0] <= 1, torch.inf), g, state


@dataclass(frozen=True, kw_only=True, repr=False)
class Target(Plane):
    """f(x) = (x_1 - 1)^2 / 2, from where theta = 0.5 settles; every key names the same problem.

    Started from zeros, the first window would see all that there is to see, and nothing be cut off from it.
    """

    name = "target"
    slopes: tuple[float, ...] = (1.0,) * SIZE

    def init(self, key):
        return settled(0.5, self.torch_dtype).expand(*key.shape, SIZE)

    def value_and_grad(self, params, state):
        off = params[..., 0] - 1
        return off.square() / 2, torch.nn.functional.pad(off[..., None], (0, SIZE - 1)), None
