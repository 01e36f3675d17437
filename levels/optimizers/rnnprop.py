"""RNNProp (Lv, Jiang and Li 2017, arXiv 1703.03120, section 4): an LSTM that reads what Adam reads, and whose step
is bounded.

    m <- beta1 * m + (1 - beta1) * g,    v <- beta2 * v + (1 - beta2) * g^2
    m_hat = m / (1 - beta1^t),    v_hat = v / (1 - beta2^t),    r = sqrt(v_hat) + 1e-8
    u = ELU((m_hat / r, g / r) @ w_in + b_in)
    h1, c1 = LSTM(u, h1, c1)             h2, c2 = LSTM(h1, h2, c2)  ...
    x <- x - scale * tanh(h_last @ w + b)

The inputs do not change when the loss is multiplied by a number, and no step is larger than ``scale``; so it lasts for
longer trajectories than the LSTM of 2016. The defaults are the paper's. Deviations: the 1e-8, which keeps a coordinate
without any gradient at input 0; the forget gate's bias starts at 1. Its random scaling is `levels.tasks.augmented`.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from levels.base import Optimizer, OptimizerTraits
from levels.fields import Count, DecayRate, Positive
from levels.layout import Layout
from levels.optimizers.adam import AdamState, moments, no_moments
from levels.optimizers.cells import Cells, LSTMState, by_feature
from levels.tree import State

EPS = 1e-8


class RNNPropState(NamedTuple):
    """Moments and hidden states of each copy."""

    adam: AdamState
    cells: LSTMState


@dataclass(frozen=True, repr=False)
class RNNProp(Optimizer):
    """``hidden`` units in each of ``layers`` layers and the one before them; ``scale`` of the step; ``beta1`` and
    ``beta2`` of the moments, at least 0 and below 1."""

    name = "rnnprop"

    hidden: Count = 20
    layers: Count = 2
    scale: Positive = 0.1
    beta1: DecayRate = 0.95
    beta2: DecayRate = 0.95

    traits = OptimizerTraits(locality="elementwise")

    @cached_property
    def cells(self) -> Cells:
        """The recurrent part of the network."""
        return Cells(self.hidden, self.hidden, self.layers)

    def shapes(self, layout: Layout) -> dict[str, tuple[int, ...]]:
        return {"in.weight": (2, self.hidden), "in.bias": (self.hidden,), **self.cells.shapes()}

    def init(self, key: Tensor) -> Tensor:
        tensors = self.cells.init(self.layout, key)
        tensors["in.weight"] = tensors["in.weight"] * (self.hidden / 2) ** 0.5  # within 1 / sqrt(its 2 inputs)
        tensors["in.bias"] = torch.zeros_like(tensors["in.bias"])
        return self.layout.ravel(tensors)

    def init_state(self, theta: Tensor, x: Tensor, key: Tensor) -> RNNPropState:
        return RNNPropState(no_moments(x), self.cells.init_state(x))

    def update(self, theta: Tensor, x: Tensor, state: State, f: Tensor, g: Tensor) -> tuple[Tensor, RNNPropState]:
        weights = self.layout.unravel(theta.reshape(-1, theta.shape[-1]))
        m_hat, root, adam = moments(self.beta1, self.beta2, g, state.adam)
        inputs = by_feature(torch.stack((m_hat / (root + EPS), g / (root + EPS)), dim=-1))  # [groups, 2, rows]
        u = torch.nn.functional.elu(weights["in.weight"].mT @ inputs + weights["in.bias"][..., None])
        out, cells = self.cells.step(weights, u, state.cells)
        return x - self.scale * torch.tanh(out.reshape(x.shape)), RNNPropState(adam, cells)
