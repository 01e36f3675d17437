"""Random quadratics (L2L 2016, section 3.1): f(x) = |W x - y|^2 with the entries of W and y standard normal.

Every key draws another W, y and start; the start is standard normal.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from levels import keys
from levels.base import ProblemTraits
from levels.fields import Count
from levels.layout import Layout
from levels.tasks.task import Task


class QuadraticState(NamedTuple):
    """The problem that a copy drew."""

    w: Tensor  # [*batch, n, n]
    y: Tensor  # [*batch, n]


@dataclass(frozen=True, repr=False)
class Quadratic(Task):
    """``dims``: number of parameters n."""

    name = "quadratic"

    dims: Count = 10

    traits = ProblemTraits(copies=64)

    @property
    def layout(self) -> Layout:
        return Layout.of({"x": (self.dims,)}, self.torch_dtype, self.device)

    def init(self, key: Tensor) -> Tensor:
        return keys.normal(self.own(key), (self.dims,), self.torch_dtype)

    def init_state(self, params: Tensor, key: Tensor) -> QuadraticState:
        draws = keys.normal(self.own(key), (self.dims + 1, self.dims), self.torch_dtype)
        return QuadraticState(draws[..., 1:, :], draws[..., 0, :])

    def value_and_grad(self, params: Tensor, state: QuadraticState) -> tuple[Tensor, Tensor, QuadraticState]:
        residual = torch.matmul(state.w, params[..., None]).squeeze(-1) - state.y
        grad = 2 * torch.matmul(residual[..., None, :], state.w).squeeze(-2)
        return residual.square().sum(-1), grad, state

    def variants(self) -> dict[str, Task]:
        return {f"{2 * self.dims} dims": replace(self, dims=2 * self.dims)}
