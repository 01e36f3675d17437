"""Small systems whose gradients are known in closed form, written as optimizers and tasks."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from levels import Layout, Optimizer, OptimizerTraits, Task, keys

SIZE, POSITIVE = 23, 10  # influence balancing, as Tallec and Ollivier set it up


class Stateless(Optimizer):
    """A rule that remembers nothing and cannot be differentiated unless it says so; abstract."""

    @property
    def traits(self) -> OptimizerTraits:
        return OptimizerTraits(differentiable=False)

    def init_state(self, theta: Tensor, x: Tensor, key: Tensor) -> None:
        return None


@dataclass(frozen=True, repr=False)
class Drift(Stateless):
    """x <- x + theta: after t updates x_0 + t theta, so losses of degree two stay so in theta."""

    name: ClassVar[str] = "drift"

    def shapes(self, below: Layout) -> dict[str, tuple[int, ...]]:
        return {"theta": (below.size,)}

    def init(self, key: Tensor) -> Tensor:
        return 0.1 * keys.normal(key, (self.param_layout.size,), self.param_layout.dtype)

    def update(self, theta: Tensor, x: Tensor, state: None, f: Tensor, g: Tensor) -> tuple[Tensor, None]:
        return x + theta[..., None, :], None


@dataclass(frozen=True, repr=False)
class Forget(Drift):
    """x <- theta: nothing of the past matters."""

    name: ClassVar[str] = "forget"

    def update(self, theta: Tensor, x: Tensor, state: None, f: Tensor, g: Tensor) -> tuple[Tensor, None]:
        return theta[..., None, :].expand_as(x), None


@dataclass(frozen=True, repr=False)
class Balance(Stateless):
    """Influence balancing (Tallec and Ollivier 2017, arXiv 1702.05043, section 5.1; PES 2021, section 5.1).

    x <- A x + theta b with A = 0.5 I + 0.5 superdiagonal; b is 1 in the first ten entries, -1 in the other thirteen.
    The first entry is soon pushed one way by theta, and later the other, more strongly: it settles at -6 theta.
    """

    name: ClassVar[str] = "balance"

    @property
    def traits(self) -> OptimizerTraits:
        return OptimizerTraits()

    def shapes(self, below: Layout) -> dict[str, tuple[int, ...]]:
        return {"theta": (1,)}

    def init(self, key: Tensor) -> Tensor:
        return torch.full((*key.shape, 1), 0.5, dtype=self.param_layout.dtype)

    def update(self, theta: Tensor, x: Tensor, state: None, f: Tensor, g: Tensor) -> tuple[Tensor, None]:
        later = torch.nn.functional.pad(x[..., 1:], (0, 1))
        return (x + later) / 2 + theta[..., None, :] * push(x.dtype), None


def push(dtype: torch.dtype) -> Tensor:
    """``b`` of influence balancing, ``[23]``."""
    return torch.where(torch.arange(SIZE) < POSITIVE, 1.0, -1.0).to(dtype)


def settled(theta: float, dtype: torch.dtype) -> Tensor:
    """Where influence balancing comes to rest: x = A x + theta b, so x_i = x_(i+1) + 2 theta b_i; ``[23]``."""
    return 2 * theta * push(dtype).flip(0).cumsum(0).flip(0)


@dataclass(frozen=True, kw_only=True, repr=False)
class Target(Task):
    """f(x) = (x_1 - 1)^2 / 2, from where theta = 0.5 settles; every key names the same problem.

    Started from zeros, the first window would see all that there is to see, and nothing be cut off from it.
    """

    name: ClassVar[str] = "target"
    dtype: Literal["float32", "float64"] = "float64"

    @property
    def layout(self) -> Layout:
        return Layout.of({"x": (SIZE,)}, self.torch_dtype)

    def init(self, key: Tensor) -> Tensor:
        return settled(0.5, self.torch_dtype).expand(*key.shape, SIZE)

    def init_state(self, params: Tensor, key: Tensor) -> None:
        return None

    def value_and_grad(self, params: Tensor, state: None) -> tuple[Tensor, Tensor, None]:
        off = params[..., 0] - 1
        return off.square() / 2, torch.nn.functional.pad(off[..., None], (0, SIZE - 1)), None


@dataclass(frozen=True, kw_only=True, repr=False)
class Plane(Task):
    """f(x) = c . x from zeros, with the entries of c given; every key names the same problem."""

    name: ClassVar[str] = "plane"
    dtype: Literal["float32", "float64"] = "float64"
    slopes: tuple[float, ...] = (1.0, -2.0, 0.5, 3.0)

    @property
    def layout(self) -> Layout:
        return Layout.of({"x": (len(self.slopes),)}, self.torch_dtype)

    def init(self, key: Tensor) -> Tensor:
        return torch.zeros(*key.shape, len(self.slopes), dtype=self.torch_dtype)

    def init_state(self, params: Tensor, key: Tensor) -> None:
        return None

    def value_and_grad(self, params: Tensor, state: None) -> tuple[Tensor, Tensor, None]:
        slope = torch.tensor(self.slopes, dtype=self.torch_dtype)
        return (params * slope).sum(-1), slope.expand_as(params), None
