"""The coordinatewise LSTM optimizer of "Learning to learn by gradient descent by gradient descent"
(Andrychowicz et al. 2016, arXiv 1606.04474, section 2.1 and appendix A).

One small LSTM, the same for all coordinates, each coordinate with a hidden state of its own, reads its
coordinate's gradient and writes its step:

    u = LogAndSign(g)                    (log|g| / p, sign g)   if |g| >= exp(-p),   else (-1, exp(p) g)
    h1, c1 = LSTM(u, h1, c1)             h2, c2 = LSTM(h1, h2, c2)  ...
    x <- x + scale * (h_last @ w + b)

The paper has p = 10 (its released code 5), two layers of 20 and a small output scale. The forget gate's bias
starts at 1 (Jozefowicz et al. 2015), a deviation; weights start uniform within 1/sqrt(hidden), as torch's do.

The cell is plain matrix products. tanh(a) is taken as 2 sigmoid(2a) - 1, so that one sigmoid serves all four gates,
and the pullback is written out: both are several times faster than what autograd makes of separate gates.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from levels import keys
from levels.layout import Layout
from levels.optimizer import Optimizer
from levels.part import require

LSTMState = tuple[tuple[Tensor, Tensor], ...]
"""(h, c) of each layer, ``[*batch, copies, n, hidden]``."""


class Cell(NamedTuple):
    """One layer of one step, with what its derivative needs; all ``[groups, rows, ...]``, see `LSTM._rows`."""

    z: Tensor  # [.., inputs + hidden] what the gates read
    gates: Tensor  # [.., 4 * hidden] sigmoids: input, forget, cell (of twice its argument), output
    c_old: Tensor
    tanh_c: Tensor
    h: Tensor
    c: Tensor


@dataclass(frozen=True, repr=False)
class LSTM(Optimizer):
    """``hidden`` units in each of ``layers`` layers; ``p`` of LogAndSign; ``scale`` of the step, above 0."""

    name = "lstm"

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

    def shapes(self, below: Layout) -> dict[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {}
        for layer in range(self.layers):
            inputs = 2 if layer == 0 else self.hidden
            shapes[f"layer{layer}.weight"] = (inputs + self.hidden, 4 * self.hidden)
            shapes[f"layer{layer}.bias"] = (4 * self.hidden,)
        shapes["out.weight"] = (self.hidden, 1)
        shapes["out.bias"] = (1,)
        return shapes

    def init_params(self, key: Tensor) -> Tensor:
        layout = self.layout
        bound = self.hidden**-0.5
        views = layout.views((2 * keys.uniform(key, (layout.size,), layout.dtype) - 1) * bound)
        forget = torch.zeros(4 * self.hidden, dtype=layout.dtype, device=layout.device)
        forget[self.hidden : 2 * self.hidden] = 1.0
        for layer in range(self.layers):
            views[f"layer{layer}.bias"] = forget.expand(*key.shape, -1)
        views["out.bias"] = torch.zeros_like(views["out.bias"])
        return layout.flat(views)

    def init_state(self, params: Tensor, x: Tensor) -> LSTMState:
        zeros = x.new_zeros(*x.shape, self.hidden)
        return tuple((zeros, zeros) for _ in range(self.layers))

    def update(self, params: Tensor, f: Tensor, g: Tensor, state: LSTMState, x: Tensor) -> tuple[Tensor, LSTMState]:
        views = self._weights(params)
        cells = self._cells(views, g, state)
        out = torch.baddbmm(views["out.bias"], cells[-1].h, views["out.weight"])
        new_state = tuple((cell.h.reshape(h.shape), cell.c.reshape(c.shape)) for cell, (h, c) in zip(cells, state))
        return x + self.scale * out.reshape(x.shape), new_state

    def pullback(
        self,
        params: Tensor,
        f: Tensor,
        g: Tensor,
        state: LSTMState,
        x: Tensor,
        dx: Tensor,
        dstate: list[Tensor | None] | None,
    ) -> tuple[Tensor, list[Tensor | None], Tensor]:
        views = self._weights(params)
        cells = self._cells(views, g, state)
        slopes: dict[str, Tensor] = {}
        dout = self.scale * self._rows(dx[..., None])
        slopes["out.weight"] = cells[-1].h.mT @ dout
        slopes["out.bias"] = dout.sum(-2)
        dh = dout * views["out.weight"].mT  # [groups, rows, hidden]
        dold: list[Tensor | None] = []
        for layer in reversed(range(self.layers)):
            dh_next, dc_next = dstate[2 * layer : 2 * layer + 2] if dstate else (None, None)
            dgates, dc = _cell_slopes(cells[layer], dh, dh_next, dc_next)
            slopes[f"layer{layer}.weight"] = cells[layer].z.mT @ dgates
            slopes[f"layer{layer}.bias"] = dgates.sum(-2)
            dz = dgates @ views[f"layer{layer}.weight"].mT
            dh = dz[..., : -self.hidden]
            dold = [dz[..., -self.hidden :].reshape(state[layer][0].shape), dc.reshape(state[layer][1].shape), *dold]
        for layer in range(self.layers):
            for name in (f"layer{layer}.weight", f"layer{layer}.bias"):
                slopes[name][..., 2 * self.hidden : 3 * self.hidden] *= 2
        flat = {name: slopes[name].reshape(*params.shape[:-1], *shape) for name, shape in self.layout.entries}
        return self.layout.flat(flat), dold, dx

    def _weights(self, params: Tensor) -> dict[str, Tensor]:
        """Weights ``[groups, i, o]`` and biases ``[groups, 1, o]``; the cell gate's are doubled, see the top."""
        views = self.layout.views(params.reshape(-1, params.shape[-1]))
        double = params.new_ones(4 * self.hidden)
        double[2 * self.hidden : 3 * self.hidden] = 2.0
        for layer in range(self.layers):
            views[f"layer{layer}.weight"] = views[f"layer{layer}.weight"] * double
            views[f"layer{layer}.bias"] = (views[f"layer{layer}.bias"] * double)[:, None]
        views["out.bias"] = views["out.bias"][:, None]
        return views

    def _cells(self, views: dict[str, Tensor], g: Tensor, state: LSTMState) -> list[Cell]:
        cells: list[Cell] = []
        out = self._rows(log_and_sign(g, self.p))
        for layer, (h, c) in enumerate(state):
            z = torch.cat((out, self._rows(h)), dim=-1)
            gates = torch.baddbmm(views[f"layer{layer}.bias"], z, views[f"layer{layer}.weight"]).sigmoid()
            i, forget, cell, o = gates.chunk(4, dim=-1)
            c_old = self._rows(c)
            c_new = forget * c_old + i * (2 * cell - 1)
            tanh_c = 2 * torch.sigmoid(2 * c_new) - 1
            out = o * tanh_c
            cells.append(Cell(z, gates, c_old, tanh_c, out, c_new))
        return cells

    def _rows(self, tensor: Tensor) -> Tensor:
        """``[*batch, copies, n, k]`` as ``[groups, rows, k]``: one group for each set of weights, for bmm."""
        groups = math.prod(tensor.shape[:-3])
        return tensor.reshape(groups, -1, tensor.shape[-1])


def log_and_sign(g: Tensor, p: float) -> Tensor:
    """The gradient as a size and a sign of comparable scale: ``[...]`` to ``[..., 2]`` (appendix A)."""
    magnitude = g.abs()
    large = magnitude >= math.exp(-p)
    size = torch.where(large, magnitude.clamp_min(math.exp(-p)).log() / p, -1.0)
    sign = torch.where(large, g.sign(), g * math.exp(p))
    return torch.stack((size, sign), dim=-1)


def _cell_slopes(cell: Cell, dh: Tensor, dh_next: Tensor | None, dc_next: Tensor | None) -> tuple[Tensor, Tensor]:
    """Cotangents of the gates' arguments and of ``c_old``, given those of h (from above and from later) and c."""
    i, forget, half, o = cell.gates.chunk(4, dim=-1)
    if dh_next is not None:
        dh = dh + dh_next.reshape(dh.shape)
    dc = dh * o * (1 - cell.tanh_c * cell.tanh_c)
    if dc_next is not None:
        dc = dc + dc_next.reshape(dc.shape)
    slopes = torch.cat((dc * (2 * half - 1), dc * cell.c_old, 2 * dc * i, dh * cell.tanh_c), dim=-1)
    return slopes * (cell.gates * (1 - cell.gates)), dc * forget
