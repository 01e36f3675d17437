"""RNNProp (Lv, Jiang and Li 2017, arXiv 1703.03120, section 4): an LSTM that reads what Adam reads, and whose step
is bounded.

    m <- beta1 * m + (1 - beta1) * g,    v <- beta2 * v + (1 - beta2) * g^2
    m_hat = m / (1 - beta1^t),    v_hat = v / (1 - beta2^t),    r = sqrt(v_hat) + 1e-8
    u = ELU((m_hat / r, g / r) @ w_in + b_in)
    h1, c1 = LSTM(u, h1, c1)             h2, c2 = LSTM(h1, h2, c2)  ...
    x <- x - scale * tanh(h_last @ w + b)

The inputs do not change when the loss is multiplied by a number, and no step is larger than ``scale``; so it lasts
for longer trajectories than the LSTM of 2016. As in the paper: beta1 = beta2 = 0.95, both fixed; two layers of 20
behind a fully connected one of 20; scale 0.1. Deviations: the 1e-8, absent in the paper, keeps a coordinate without
any gradient at input 0; the forget gate's bias starts at 1. The paper's random scaling of problems is a task's work.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from levels.autodiff import differentiated
from levels.layout import Layout
from levels.base import Optimizer, totals
from levels.optimizers.adam import AdamState, moments, no_moments
from levels.optimizers.cells import Cells, LSTMState, Views, by_copy, by_feature, opened, spans, ungrouped
from levels.config import require
from levels.base import Step

EPS = 1e-8


class RNNPropState(NamedTuple):
    """Moments and hidden states of each copy."""

    adam: AdamState
    cells: LSTMState


class Read(NamedTuple):
    """What the cells read in one step, with what its derivative needs."""

    adam: AdamState
    m_tilde: Tensor  # [*batch, copies, n]
    root: Tensor  # [*batch, copies, n] of v_hat
    inputs: Tensor  # [groups, 2, rows]
    u: Tensor  # [groups, hidden, rows]


@dataclass(frozen=True, repr=False)
class RNNProp(Optimizer):
    """``hidden`` units in each of ``layers`` layers and the one before them; ``scale`` of the step, above 0; ``beta1``
    and ``beta2`` of the moments, at least 0 and below 1."""

    name = "rnnprop"
    scope = "coordinate"
    compiles = True

    hidden: int = 20
    layers: int = 2
    scale: float = 0.1
    beta1: float = 0.95
    beta2: float = 0.95

    def __post_init__(self) -> None:
        for field in ("hidden", "layers"):
            value = getattr(self, field)
            good = isinstance(value, int) and not isinstance(value, bool) and value >= 1
            require(good, f"rnnprop: {field} must be a whole number of at least 1, got {value}")
        good = isinstance(self.scale, (int, float)) and not isinstance(self.scale, bool) and 0 < self.scale < math.inf
        require(good, f"rnnprop: scale must be a number above 0, got {self.scale}")
        for field in ("beta1", "beta2"):
            value = getattr(self, field)
            good = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1
            require(good, f"rnnprop: {field} must be a number of at least 0 and below 1, got {value}")

    @cached_property
    def cells(self) -> Cells:
        """The recurrent part of the network."""
        return Cells(self.hidden, self.hidden, self.layers)

    def shapes(self, below: Layout) -> dict[str, tuple[int, ...]]:
        return {"in.weight": (2, self.hidden), "in.bias": (self.hidden,), **self.cells.shapes()}

    def init(self, key: Tensor) -> Tensor:
        views = self.cells.start(self.layout, key)
        views["in.weight"] = views["in.weight"] * (self.hidden / 2) ** 0.5  # within 1 / sqrt(its 2 inputs)
        views["in.bias"] = torch.zeros_like(views["in.bias"])
        return self.layout.ravel(views)

    def init_state(self, params: Tensor, x: Tensor) -> RNNPropState:
        return RNNPropState(no_moments(x), self.cells.start_state(x))

    def update(
        self, params: Tensor, f: Tensor, g: Tensor, state: RNNPropState, x: Tensor
    ) -> tuple[Tensor, RNNPropState]:
        weights = params.reshape(-1, params.shape[-1])
        read = self._read(self.layout.unravel(weights), g, state)
        out, cells = self.cells.move(self._cell_weights(weights), read.u, state.cells)
        return x - self.scale * torch.tanh(out), RNNPropState(read.adam, cells)

    def pullback(
        self,
        params: Tensor,
        f: Tensor,
        g: Tensor,
        state: RNNPropState,
        x: Tensor,
        dx: Tensor,
        dstate: list[Tensor | None] | None,
    ) -> tuple[Tensor, list[Tensor | None], Tensor]:
        views = self.cells.weights(self.layout, params)
        read = self._read(views, g, state)
        out, run = self.cells.forward(views, read.u, opened(state.cells))
        later = dstate or [None] * (3 + 2 * self.layers)
        dout = -self.scale * by_feature(dx[..., None]) * (1 - torch.tanh(out).square())
        new = [None if leaf is None else by_feature(leaf) for leaf in later[3:]]
        slopes, dold, du = self.cells.backward(views, run, dout, new)
        du = du * torch.where(read.u > 0, 1.0, read.u + 1)  # of ELU: u + 1 is exp of its argument below 0
        slopes["in.weight"], slopes["in.bias"] = read.inputs @ du.mT, du.sum(-1)
        dinputs = by_copy(views["in.weight"] @ du, x.shape)
        dm, dv = self._moment_slopes(read, g, dinputs, later[0], later[1])
        cells = (by_copy(leaf, x.shape) for leaf in dold)
        return ungrouped(self.layout, slopes, params), [dm, dv, None, *cells], dx

    def replays(self, g: Tensor) -> bool:
        return not differentiated()

    def sweep(
        self, params: Tensor, steps: list[Step], slope: Callable[[int], Tensor | None]
    ) -> tuple[Tensor | None, Tensor | None]:
        """As `Optimizer.sweep`: the moments are made of data, so nothing is pulled back through them."""
        if differentiated():
            return super().sweep(params, steps, slope)
        dxs = totals(slope, len(steps))
        if not dxs:
            return None, None
        weights = params.reshape(-1, params.shape[-1])
        inputs = self._window_inputs(steps[: len(dxs)])
        dout = -self.scale * torch.stack(dxs).reshape(len(dxs), len(weights), -1)
        state, parts = opened(steps[0].state.cells), []
        for span in spans(dout.shape[-1], len(weights), len(dxs)):
            old = [leaf[..., span] for leaf in state]
            parts.append(self._swept(weights, inputs[..., span], old, dout[..., span]))
        return torch.stack(parts).sum(0).reshape(params.shape), dxs[0]

    def _window_inputs(self, steps: list[Step]) -> Tensor:
        """What the network reads in each step, ``[steps, groups, 2, rows]``."""
        found, adam = [], steps[0].state.adam
        for step in steps:
            *_, inputs, adam = self._inputs(step.g, adam)
            found.append(inputs)
        return torch.stack(found)

    def _swept(self, weights: Tensor, inputs: Tensor, state: list[Tensor], dout: Tensor) -> Tensor:
        """The cotangent ``[groups, m]`` of all weights, for some rows over the whole window."""
        u = self._first_layer(self.layout.unravel(weights), inputs)
        rest, du = self.cells.sweep(self._cell_weights(weights), u, state, dout, bounded=True, above=True)
        assert du is not None
        du = du * torch.where(u > 0, 1.0, u + 1)  # of ELU: u + 1 is exp of its argument below 0
        return torch.cat(((inputs @ du.mT).sum(0).flatten(1), du.sum((0, -1)), rest), dim=-1)

    def _cell_weights(self, weights: Tensor) -> Tensor:
        """Those of the recurrent part and the output, ``[groups, ...]``: all but the first two tensors."""
        return weights[..., 3 * self.hidden :]

    def _first_layer(self, views: Views, inputs: Tensor) -> Tensor:
        """``u`` ``[.., groups, hidden, rows]``."""
        return torch.nn.functional.elu(views["in.weight"].mT @ inputs + views["in.bias"][..., None])

    def _inputs(self, g: Tensor, adam: AdamState) -> tuple[Tensor, Tensor, Tensor, AdamState]:
        """``m_hat / r``, the root of ``v_hat``, what the network reads ``[groups, 2, rows]``, and the new moments."""
        m_hat, root, adam = moments(self.beta1, self.beta2, g, adam)
        m_tilde = m_hat / (root + EPS)
        return m_tilde, root, by_feature(torch.stack((m_tilde, g / (root + EPS)), dim=-1)), adam

    def _read(self, views: Views, g: Tensor, state: RNNPropState) -> Read:
        m_tilde, root, inputs, adam = self._inputs(g, state.adam)
        return Read(adam, m_tilde, root, inputs, self._first_layer(views, inputs))

    def _moment_slopes(
        self, read: Read, g: Tensor, dinputs: Tensor, dm: Tensor | None, dv: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Cotangents of the old m and v; ``dm`` and ``dv`` are those of the new ones, None for zero."""
        t, divisor = read.adam.t[..., None].to(g.dtype), read.root + EPS
        dm_tilde, dg_tilde = dinputs.unbind(-1)
        droot = -(dm_tilde * read.m_tilde + dg_tilde * g / divisor) / divisor
        new_m = dm_tilde / divisor / (1 - self.beta1**t)
        new_v = droot / (2 * read.root) / (1 - self.beta2**t)
        return (
            self.beta1 * (new_m if dm is None else new_m + dm),
            self.beta2 * (new_v if dv is None else new_v + dv),
        )
