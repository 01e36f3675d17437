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
from functools import cached_property

import torch
from torch import Tensor

from levels import native
from levels.autodiff import differentiated
from levels.layout import Layout
from levels.base import Optimizer, Pulled, totals
from levels.optimizers.cells import (
    Cell,
    Cells,
    LSTMState,
    Views,
    by_copy,
    by_feature,
    closed,
    joined,
    log_and_sign,
    opened,
    spans,
    ungrouped,
)
from levels.config import require
from levels.base import Step


@dataclass(frozen=True, repr=False)
class LSTM(Optimizer):
    """``hidden`` units in each of ``layers`` layers; ``p`` of LogAndSign; ``scale`` of the step, above 0."""

    name = "lstm"
    scope = "coordinate"
    compiles = True

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

    def init(self, key: Tensor) -> Tensor:
        return self.layout.ravel(self.cells.start(self.layout, key))

    def init_state(self, params: Tensor, x: Tensor) -> LSTMState:
        return self.cells.start_state(x)

    def update(self, params: Tensor, f: Tensor, g: Tensor, state: LSTMState, x: Tensor) -> tuple[Tensor, LSTMState]:
        weights = params.reshape(-1, params.shape[-1])
        out, new = self.cells.move(weights, g.reshape(len(weights), -1), state, p=self.p)
        return torch.add(x, out, alpha=self.scale), new

    def linearized(
        self, params: Tensor, f: Tensor, g: Tensor, state: LSTMState, x: Tensor
    ) -> tuple[Tensor, LSTMState, Callable[[Tensor, list[Tensor | None] | None], Pulled]]:
        if not self.cells.keeps(g):
            return super().linearized(params, f, g, state, x)
        views, rows, old = self._opened(params, g, state)
        out, cells = self._forward(views, rows, old, slice(None))

        def pull(dx: Tensor, dstate: list[Tensor | None] | None) -> Pulled:
            slopes, dold = self._backward(views, cells, dx, dstate, slice(None))
            return ungrouped(self.layout, slopes, params), [by_copy(leaf, dx.shape) for leaf in dold], dx

        return *self._moved(x, [out], [cells]), pull

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
        views, rows, old = self._opened(params, g, state)
        total, parts = torch.zeros_like(params), []
        for span in spans(rows.shape[-1], len(rows)):
            _, cells = self._forward(views, rows, old, span)
            slopes, dold = self._backward(views, cells, dx, dstate, span)
            total = total + ungrouped(self.layout, slopes, params)
            parts.append(dold)
        return total, [by_copy(joined(leaf), dx.shape) for leaf in zip(*parts)], dx

    def replays(self, g: Tensor) -> bool:
        return native.serves(g) or not (differentiated() or self.cells.keeps(g))

    def sweep(
        self, params: Tensor, steps: list[Step], slope: Callable[[int], Tensor | None]
    ) -> tuple[Tensor | None, Tensor | None]:
        if differentiated() or steps[0].pull:
            return super().sweep(params, steps, slope)
        dxs = totals(slope, len(steps))
        if not dxs:
            return None, None
        weights = params.reshape(-1, params.shape[-1])
        shape = len(dxs), len(weights), -1
        grads = torch.stack([step.g for step in steps[: len(dxs)]]).reshape(shape)
        dout = self.scale * torch.stack(dxs).reshape(shape)
        dweights, _ = self.cells.sweep(weights, grads, opened(steps[0].state), dout, p=self.p)
        return dweights.reshape(params.shape), dxs[0]

    def _opened(self, params: Tensor, g: Tensor, state: LSTMState) -> tuple[Views, Tensor, list[Tensor]]:
        """The weights, the gradient ``[groups, rows]`` and the state, by feature."""
        return self.cells.weights(self.layout, params), by_feature(g[..., None]).squeeze(-2), opened(state)

    def _forward(self, views: Views, rows: Tensor, old: list[Tensor], span: slice) -> tuple[Tensor, list[Cell]]:
        """The output ``[groups, 1, span]`` of some rows, and their cells."""
        inputs = log_and_sign(rows[..., span], self.p, dim=-2)
        return self.cells.forward(views, inputs, [leaf[..., span] for leaf in old])

    def _backward(
        self, views: Views, cells: list[Cell], dx: Tensor, dstate: list[Tensor | None] | None, span: slice
    ) -> tuple[Views, list[Tensor]]:
        """Cotangents of the weights and of the old state of some rows."""
        dout = self.scale * by_feature(dx[..., None])[..., span]
        new = [None if leaf is None else by_feature(leaf)[..., span] for leaf in dstate or [None] * 2 * self.layers]
        return self.cells.backward(views, cells, dout, new)[:2]

    def _moved(self, x: Tensor, outs: list[Tensor], cells: list[list[Cell]]) -> tuple[Tensor, LSTMState]:
        """The next ``x`` and the next state, from all spans."""
        pieces = zip(*([leaf for cell in part for leaf in (cell.h, cell.c)] for part in cells))
        out = joined(outs).reshape(x.shape)
        return torch.add(x, out, alpha=self.scale), closed([joined(piece) for piece in pieces], x.shape)
