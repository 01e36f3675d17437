"""LSTM cells for elementwise optimizers: a stack of layers, one step.

Each coordinate of each copy is a row with hidden states of its own; the copies of one optimizer share its weights. So
tensors are ``[groups, features, rows]``, one group for each theta: batched matrix products, and each gate in one piece
of memory. States are handed out as ``[*batch, copies, n, hidden]`` views of that.

Weights start uniform within 1/sqrt(hidden), as torch's do, with a forget gate's bias of 1 (Jozefowicz et al. 2015).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from levels import keys
from levels.layout import Layout

LSTMState = tuple[tuple[Tensor, Tensor], ...]
"""(h, c) of each layer, ``[*batch, copies, n, hidden]``."""


@dataclass(frozen=True)
class Cells:
    """``layers`` layers of ``hidden`` units over ``inputs`` inputs, and a linear output of one number a row."""

    inputs: int
    hidden: int
    layers: int

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of all weights; gates in torch's order: input, forget, cell, output."""
        shapes: dict[str, tuple[int, ...]] = {}
        for layer in range(self.layers):
            inputs = self.inputs if layer == 0 else self.hidden
            shapes[f"layer{layer}.weight"] = (inputs + self.hidden, 4 * self.hidden)
            shapes[f"layer{layer}.bias"] = (4 * self.hidden,)
        shapes["out.weight"] = (self.hidden, 1)
        shapes["out.bias"] = (1,)
        return shapes

    def init(self, layout: Layout, key: Tensor) -> dict[str, Tensor]:
        """Fresh weights ``[*batch, *shape]`` for the whole ``layout`` that they stand in, see the top."""
        weights = layout.unravel((2 * keys.uniform(key, (layout.size,), layout.dtype) - 1) * self.hidden**-0.5)
        forget = torch.zeros(4 * self.hidden, dtype=layout.dtype, device=layout.device)
        forget[self.hidden : 2 * self.hidden] = 1.0
        for layer in range(self.layers):
            weights[f"layer{layer}.bias"] = forget.expand(*key.shape, -1)
        weights["out.bias"] = torch.zeros_like(weights["out.bias"])
        return weights

    def init_state(self, x: Tensor) -> LSTMState:
        """Zeros for ``x`` ``[*batch, copies, n]``."""
        zeros = x.new_zeros(*x.shape, self.hidden)
        return tuple((zeros, zeros) for _ in range(self.layers))

    def step(self, weights: dict[str, Tensor], inputs: Tensor, state: LSTMState) -> tuple[Tensor, LSTMState]:
        """One step: outputs ``[groups, rows]`` and the next state.

        ``weights``: by name, ``[groups, *shape]``. ``inputs``: ``[groups, inputs, rows]``.
        """
        out, new = inputs, []
        for layer, (h, c) in enumerate(state):
            z = torch.cat((out, by_feature(h)), dim=-2)
            gates = torch.baddbmm(weights[f"layer{layer}.bias"][..., None], weights[f"layer{layer}.weight"].mT, z)
            i, forget, cell, o = gates.chunk(4, dim=-2)
            memory = torch.addcmul(forget.sigmoid() * by_feature(c), i.sigmoid(), cell.tanh())
            out = o.sigmoid() * memory.tanh()
            new.append((by_copy(out, h.shape), by_copy(memory, c.shape)))
        return torch.baddbmm(weights["out.bias"][..., None], weights["out.weight"].mT, out).squeeze(-2), tuple(new)


def by_feature(tensor: Tensor) -> Tensor:
    """``[*batch, copies, n, k]`` as ``[groups, k, rows]``; nothing is copied of what `by_copy` made."""
    return tensor.reshape(math.prod(tensor.shape[:-3]), -1, tensor.shape[-1]).mT


def by_copy(tensor: Tensor, shape: torch.Size) -> Tensor:
    """The inverse of `by_feature`, for the ``shape`` ``[*batch, copies, n, k]``."""
    return tensor.mT.view(shape)


def log_and_sign(g: Tensor, p: float, dim: int = -1) -> Tensor:
    """The gradient as a size and a sign of comparable scale, along a new dimension ``dim`` of 2 (L2L, appendix A)."""
    magnitude = g.abs()
    large = magnitude >= math.exp(-p)
    size = torch.where(large, magnitude.clamp_min(math.exp(-p)).log() / p, -1.0)
    sign = torch.where(large, g.sign(), g * math.exp(p))
    return torch.stack((size, sign), dim=dim)
