"""The coordinatewise LSTM optimizer of "Learning to learn by gradient descent by gradient descent"
(Andrychowicz et al. 2016, arXiv 1606.04474, section 2.1 and appendix A).

One small LSTM, the same for all coordinates, each coordinate with a hidden state of its own, reads its
coordinate's gradient and writes its step:

    u = LogAndSign(g)                    (log|g| / p, sign g)   if |g| >= exp(-p),   else (-1, exp(p) g)
    h1, c1 = LSTM(u, h1, c1)             h2, c2 = LSTM(h1, h2, c2)  ...
    x <- x + scale * (h_last @ w + b)

The paper has p = 10 (its released code 5), two layers of 20 and a small output scale. The forget gate's bias
starts at 1, a deviation; see `levels.optimizers.cells` for the cell, its start and its derivative.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor

from levels.layout import Layout
from levels.optimizer import Optimizer, Pulled
from levels.optimizers.cells import Cell, Cells, LSTMState, Views, by_feature, by_group, ungrouped
from levels.part import require


@dataclass(frozen=True, repr=False)
class LSTM(Optimizer):
    """``hidden`` units in each of ``layers`` layers; ``p`` of LogAndSign; ``scale`` of the step, above 0."""

    name = "lstm"
    scope = "coordinate"

    hidden: int = 20
    layers: int = 2
    scale: float = 0.1
    p: float = 10.0

    def __post_init__(self) -> None:
        for field in ("hidden", "layers"):
            value = getattr(self, field)
            good = isinstance(value, int) and not isinstance(value, bool) and value >= 1
            require(good, f"lstm: {field} must be a whole number of at least 1, got {value}")
        for field in ("scale", "p"):
            value = getattr(self, field)
            good = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < math.inf
            require(good, f"lstm: {field} must be a number above 0, got {value}")

    @cached_property
    def cells(self) -> Cells:
        """The network."""
        return Cells(2, self.hidden, self.layers)

    def shapes(self, below: Layout) -> dict[str, tuple[int, ...]]:
        return self.cells.shapes()

    def init_params(self, key: Tensor) -> Tensor:
        return self.layout.flat(self.cells.start(self.layout, key))

    def init_state(self, params: Tensor, x: Tensor) -> LSTMState:
        return self.cells.start_state(x)

    def update(self, params: Tensor, f: Tensor, g: Tensor, state: LSTMState, x: Tensor) -> tuple[Tensor, LSTMState]:
        _, out, cells = self._forward(params, g, state)
        return x + self.scale * out.reshape(x.shape), self.cells.advanced(cells, state)

    def linearized(
        self, params: Tensor, f: Tensor, g: Tensor, state: LSTMState, x: Tensor
    ) -> tuple[Tensor, LSTMState, Callable[[Tensor, list[Tensor | None] | None], Pulled]]:
        if not self.cells.keeps(g):
            return super().linearized(params, f, g, state, x)
        views, out, cells = self._forward(params, g, state)
        new = x + self.scale * out.reshape(x.shape), self.cells.advanced(cells, state)
        return *new, partial(self._backward, params, views, cells, state)

    def pullback(
        self,
        params: Tensor,
        f: Tensor,
        g: Tensor,
        state: LSTMState,
        x: Tensor,
        dx: Tensor,
        dstate: list[Tensor | None] | None,
    ) -> Pulled:
        views, _, cells = self._forward(params, g, state)
        return self._backward(params, views, cells, state, dx, dstate)

    def _forward(self, params: Tensor, g: Tensor, state: LSTMState) -> tuple[Views, Tensor, list[Cell]]:
        """The weights, the output ``[groups, 1, rows]``, and the cells."""
        views = self.cells.weights(self.layout, params)
        inputs = log_and_sign(by_group(g[..., None]).squeeze(-1), self.p, dim=-2)
        return views, *self.cells.forward(views, inputs, state)

    def _backward(
        self,
        params: Tensor,
        views: Views,
        cells: list[Cell],
        state: LSTMState,
        dx: Tensor,
        dstate: list[Tensor | None] | None,
    ) -> Pulled:
        dout = self.scale * by_feature(dx[..., None])
        slopes, dold, _ = self.cells.backward(views, cells, state, dout, dstate)
        return ungrouped(self.layout, slopes, params), dold, dx


def log_and_sign(g: Tensor, p: float, dim: int = -1) -> Tensor:
    """The gradient as a size and a sign of comparable scale, along a new dimension ``dim`` of 2 (appendix A)."""
    magnitude = g.abs()
    large = magnitude >= math.exp(-p)
    size = torch.where(large, magnitude.clamp_min(math.exp(-p)).log() / p, -1.0)
    sign = torch.where(large, g.sign(), g * math.exp(p))
    return torch.stack((size, sign), dim=dim)
