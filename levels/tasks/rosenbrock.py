"""Rosenbrock's valley (Rosenbrock 1960), in any number of dimensions:

    f(x) = sum_i 100 (x_{i+1} - x_i^2)^2 + (1 - x_i)^2,    i = 1..n-1

Its minimum is 0, at (1, ..., 1). Every key draws another start, uniform in [-2, 2) in each coordinate.
"""

from dataclasses import dataclass, replace
from typing import Annotated

import torch
from torch import Tensor

from levels import keys
from levels.base import ProblemTraits
from levels.fields import AtLeast
from levels.layout import Layout
from levels.tasks.task import Task


@dataclass(frozen=True, repr=False)
class Rosenbrock(Task):
    """``dims``: number of parameters, at least 2."""

    name = "rosenbrock"

    dims: Annotated[int, AtLeast(2)] = 2

    traits = ProblemTraits(copies=64)

    @property
    def layout(self) -> Layout:
        return Layout.of({"x": (self.dims,)}, self.torch_dtype, self.device)

    def init(self, key: Tensor) -> Tensor:
        return 4 * keys.uniform(self.own(key), (self.dims,), self.torch_dtype) - 2

    def init_state(self, params: Tensor, key: Tensor) -> None:
        return None

    def value_and_grad(self, params: Tensor, state: None) -> tuple[Tensor, Tensor, None]:
        x, following = params[..., :-1], params[..., 1:]
        off, left = following - x.square(), 1 - x
        value = (100 * off.square() + left.square()).sum(-1)
        none = torch.zeros_like(params[..., :1])
        grad = torch.cat((-400 * x * off - 2 * left, none), -1) + torch.cat((none, 200 * off), -1)
        return value, grad, None

    def variants(self) -> dict[str, Task]:
        return {f"{2 * self.dims} dims": replace(self, dims=2 * self.dims)}
