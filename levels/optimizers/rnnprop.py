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
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from levels.layout import Layout
from levels.optimizer import Optimizer
from levels.optimizers.adam import AdamState, moments, no_moments
from levels.optimizers.cells import Cell, Cells, LSTMState, Views, by_copy, by_feature, closed, opened, ungrouped
from levels.part import require

EPS = 1e-8


class RNNPropState(NamedTuple):
    """Moments and hidden states of each copy."""

    adam: AdamState
    cells: LSTMState


class Pass(NamedTuple):
    """One step forward, with what its derivative needs; ``[groups, ..., rows]`` but for the first three."""

    adam: AdamState
    m_tilde: Tensor  # [*batch, copies, n]
    root: Tensor  # [*batch, copies, n] of v_hat
    inputs: Tensor
    u: Tensor
    cells: list[Cell]
    out: Tensor


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

    def init_params(self, key: Tensor) -> Tensor:
        views = self.cells.start(self.layout, key)
        views["in.weight"] = views["in.weight"] * (self.hidden / 2) ** 0.5  # within 1 / sqrt(its 2 inputs)
        views["in.bias"] = torch.zeros_like(views["in.bias"])
        return self.layout.flat(views)

    def init_state(self, params: Tensor, x: Tensor) -> RNNPropState:
        return RNNPropState(no_moments(x), self.cells.start_state(x))

    def update(
        self, params: Tensor, f: Tensor, g: Tensor, state: RNNPropState, x: Tensor
    ) -> tuple[Tensor, RNNPropState]:
        run = self._forward(self.cells.weights(self.layout, params), g, state)
        new = RNNPropState(run.adam, closed([leaf for cell in run.cells for leaf in (cell.h, cell.c)], x.shape))
        return x - self.scale * torch.tanh(run.out).reshape(x.shape), new

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
        run = self._forward(views, g, state)
        later = dstate or [None] * (3 + 2 * self.layers)
        dout = -self.scale * by_feature(dx[..., None]) * (1 - torch.tanh(run.out).square())
        new = [None if leaf is None else by_feature(leaf) for leaf in later[3:]]
        slopes, dold, du = self.cells.backward(views, run.cells, dout, new)
        du = du * torch.where(run.u > 0, 1.0, run.u + 1)  # of ELU: u + 1 is exp of its argument below 0
        slopes["in.weight"], slopes["in.bias"] = run.inputs @ du.mT, du.sum(-1)
        dinputs = by_copy(views["in.weight"] @ du, x.shape)
        dm, dv = self._moment_slopes(run, g, dinputs, later[0], later[1])
        cells = (by_copy(leaf, x.shape) for leaf in dold)
        return ungrouped(self.layout, slopes, params), [dm, dv, None, *cells], dx

    def _forward(self, views: Views, g: Tensor, state: RNNPropState) -> Pass:
        m_hat, root, adam = moments(self.beta1, self.beta2, g, state.adam)
        m_tilde = m_hat / (root + EPS)
        inputs = by_feature(torch.stack((m_tilde, g / (root + EPS)), dim=-1))
        u = torch.nn.functional.elu(torch.baddbmm(views["in.bias"][..., None], views["in.weight"].mT, inputs))
        out, cells = self.cells.forward(views, u, opened(state.cells))
        return Pass(adam, m_tilde, root, inputs, u, cells, out)

    def _moment_slopes(
        self, run: Pass, g: Tensor, dinputs: Tensor, dm: Tensor | None, dv: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Cotangents of the old m and v; ``dm`` and ``dv`` are those of the new ones, None for zero."""
        t, divisor = run.adam.t[..., None].to(g.dtype), run.root + EPS
        dm_tilde, dg_tilde = dinputs.unbind(-1)
        droot = -(dm_tilde * run.m_tilde + dg_tilde * g / divisor) / divisor
        new_m = dm_tilde / divisor / (1 - self.beta1**t)
        new_v = droot / (2 * run.root) / (1 - self.beta2**t)
        return (
            self.beta1 * (new_m if dm is None else new_m + dm),
            self.beta2 * (new_v if dv is None else new_v + dv),
        )
