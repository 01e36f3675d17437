"""The coordinatewise LSTM optimizer of "Learning to learn by gradient descent by gradient descent"
(Andrychowicz et al. 2016, arXiv 1606.04474, section 2.1 and appendix A).

One small LSTM, the same for all coordinates, each coordinate with a hidden state of its own, reads its
coordinate's gradient and writes its step:

    u = LogAndSign(g)                    (log|g| / p, sign g)   if |g| >= exp(-p),   else (-1, exp(p) g)
    h1, c1 = LSTM(u, h1, c1)             h2, c2 = LSTM(h1, h2, c2)  ...
    x <- x + scale * (h_last @ w + b)

The paper has p = 10 (its released code 5), two layers of 20 and a small output scale. Gates are plain matrix
products, in the order input, forget, cell, output: nn.LSTMCell has no vmap rule. The forget gate's bias starts
at 1 (Jozefowicz et al. 2015), a deviation; weights start uniform within 1/sqrt(hidden), as torch's do.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from levels import keys
from levels.layout import Layout
from levels.optimizer import Optimizer
from levels.part import require

LSTMState = tuple[tuple[Tensor, Tensor], ...]
"""(h, c) of each layer, ``[*batch, copies, n, hidden]``."""


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
            shapes[f"layer{layer}.input"] = (inputs, 4 * self.hidden)
            shapes[f"layer{layer}.hidden"] = (self.hidden, 4 * self.hidden)
            shapes[f"layer{layer}.bias"] = (4 * self.hidden,)
        shapes["out.weight"] = (self.hidden, 1)
        shapes["out.bias"] = (1,)
        return shapes

    def init_params(self, key: Tensor) -> Tensor:
        layout = self.layout
        bound = self.hidden**-0.5
        flat = (2 * keys.uniform(key, (layout.size,), layout.dtype) - 1) * bound
        views = layout.views(flat)
        for layer in range(self.layers):
            forget = torch.zeros(4 * self.hidden, dtype=layout.dtype, device=layout.device)
            forget[self.hidden : 2 * self.hidden] = 1.0
            views[f"layer{layer}.bias"] = forget.expand(*key.shape, -1)
        views["out.bias"] = torch.zeros_like(views["out.bias"])
        return layout.flat(views)

    def init_state(self, params: Tensor, x: Tensor) -> LSTMState:
        zeros = x.new_zeros(*x.shape, self.hidden)
        return tuple((zeros, zeros) for _ in range(self.layers))

    def update(self, params: Tensor, f: Tensor, g: Tensor, state: LSTMState, x: Tensor) -> tuple[Tensor, LSTMState]:
        views = self.layout.views(params)
        out = log_and_sign(g, self.p)  # [*batch, copies, n, 2]
        new_state = []
        for layer, (h, c) in enumerate(state):
            gates = _affine(out, views[f"layer{layer}.input"], views[f"layer{layer}.bias"])
            gates = gates + _affine(h, views[f"layer{layer}.hidden"])  # [*batch, copies, n, 4 * hidden]
            i, forget, cell, o = gates.chunk(4, dim=-1)
            c = forget.sigmoid() * c + i.sigmoid() * cell.tanh()
            out = o.sigmoid() * c.tanh()
            new_state.append((out, c))
        step = _affine(out, views["out.weight"], views["out.bias"]).squeeze(-1)
        return x + self.scale * step, tuple(new_state)


def log_and_sign(g: Tensor, p: float) -> Tensor:
    """The gradient as a size and a sign of comparable scale: ``[...]`` to ``[..., 2]`` (appendix A)."""
    magnitude = g.abs()
    large = magnitude >= math.exp(-p)
    size = torch.where(large, magnitude.clamp_min(math.exp(-p)).log() / p, -1.0)
    sign = torch.where(large, g.sign(), g * math.exp(p))
    return torch.stack((size, sign), dim=-1)


def _affine(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``inputs`` ``[*batch, copies, n, i]`` times ``weight`` ``[*batch, i, o]``, plus ``bias`` ``[*batch, o]``."""
    product = torch.matmul(inputs.flatten(-3, -2), weight)
    if bias is not None:
        product = product + bias[..., None, :]
    return product.reshape(*inputs.shape[:-1], product.shape[-1])
