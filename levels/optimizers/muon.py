"""Muon: orthogonalised momentum for matrices (Jordan et al. 2024, kellerjordan.github.io/posts/muon).

    m <- momentum * m + (1 - momentum) * g
    d  = g + momentum * (m - g)  with ``nesterov``,  else m
    X  = d / max(|d|, 1e-7);    ``iterations`` times  X <- 3.4445 X - 4.775 (X X^T) X + 2.0315 (X X^T)^2 X
    x <- x - lr * weight_decay * x
    x <- x - lr * sqrt(max(1, rows / columns)) * X

The polynomial (Newton and Schulz's iteration, tuned) drives every singular value towards 1, between about 0.7 and 1.2.
A tensor of more than two dimensions is a matrix of its first by all others, as for convolutions. Vectors and scalars
have nothing to orthogonalise: they go by Adam with a step size of ``vectors * lr``, beta1 ``momentum`` and ``beta2``,
decayed in the same way.

Matrices move as in torch.optim.Muon, whose defaults these are, with one deviation: torch orthogonalises in bfloat16,
this does so in the dtype of the problem, so that it can be differentiated.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from levels.base import OptimizerTraits
from levels.fields import Count
from levels.hyper import Hyper, HyperparamOptimizer, Log, Logit, hyper
from levels.optimizers.adam import AdamState, moments, no_moments


@dataclass(frozen=True, repr=False)
class Muon(HyperparamOptimizer):
    """``lr``, ``weight_decay`` and ``vectors`` move in log space, ``momentum`` and ``beta2`` in logit space.

    Over matrices alone nothing reads ``vectors`` and ``beta2``. ``iterations``: of the polynomial, at least 1.
    """

    name = "muon"

    lr: Hyper | float = hyper(1e-3, Log)
    momentum: Hyper | float = hyper(0.95, Logit)
    weight_decay: Hyper | float | None = hyper(0.1, Log)
    vectors: Hyper | float = hyper(1.0, Log)
    beta2: Hyper | float = hyper(0.999, Logit)
    nesterov: bool = True
    iterations: Count = 5

    traits = OptimizerTraits(locality="per_tensor")

    @cached_property
    def of_matrices(self) -> Tensor:
        """Which coordinates belong to matrices: bool ``[n]``."""
        shapes, device = (shape for _, shape in self.param_layout.entries), self.param_layout.device
        return torch.cat([torch.full((math.prod(shape),), len(shape) > 1, device=device) for shape in shapes])

    def init_state(self, theta: Tensor, x: Tensor, key: Tensor) -> AdamState:
        return no_moments(x)

    def update(self, theta: Tensor, x: Tensor, state: AdamState, f: Tensor, g: Tensor) -> tuple[Tensor, AdamState]:
        h = self.read(theta)
        m_hat, root, state = moments(h["momentum"], h["beta2"], g, state)
        directions = self.param_layout.unravel(m_hat / (root + 1e-8))
        steady = self.param_layout.unravel(g + h["momentum"] * (state.m - g) if self.nesterov else state.m)
        for name, shape in self.param_layout.entries:
            if len(shape) > 1:
                directions[name] = self._direction(steady[name].flatten(x.dim())).reshape(directions[name].shape)
        rate = h["lr"] * torch.where(self.of_matrices, 1.0, h["vectors"])
        if "weight_decay" in h:
            x = x * (1 - rate * h["weight_decay"])
        return x - rate * self.param_layout.ravel(directions), state

    def _direction(self, matrix: Tensor) -> Tensor:
        """The step of matrices ``[..., rows, columns]`` at step size 1."""
        rows, columns = matrix.shape[-2:]
        if rows > columns:
            return orthogonalised(matrix.mT, self.iterations).mT * math.sqrt(rows / columns)
        return orthogonalised(matrix, self.iterations)


def orthogonalised(matrix: Tensor, iterations: int) -> Tensor:
    """Matrices ``[..., rows, columns]``, rows at most columns, with singular values near 1; all 0 stays 0."""
    x: Tensor = matrix / torch.linalg.matrix_norm(matrix, keepdim=True).clamp_min(1e-7)
    for _ in range(iterations):
        square = x @ x.mT
        x = 3.4445 * x + (-4.775 * square + 2.0315 * square @ square) @ x
    return x
