"""The coordinatewise LSTM optimizer of "Learning to learn by gradient descent by gradient descent"
(Andrychowicz et al. 2016, arXiv 1606.04474, section 2.1 and appendix A).

One small LSTM for all coordinates, each with a hidden state of its own, reads the coordinate's gradient and steps it:

    u = LogAndSign(g)                    (log|g| / p, sign g)   if |g| >= exp(-p),   else (-1, exp(p) g)
    h1, c1 = LSTM(u, h1, c1)             h2, c2 = LSTM(h1, h2, c2)  ...
    x <- x + scale * (h_last @ w + b)

The paper has p = 10 (its released code 5), two layers of 20 and a small output scale. The forget gate's bias starts at
1, a deviation; see `levels.optimizers.cells`.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from levels.base import Optimizer, OptimizerTraits
from levels.fields import Count, Positive
from levels.layout import Layout
from levels.optimizers.cells import Cells, LSTMState, log_and_sign


@dataclass(frozen=True, repr=False)
class LSTM(Optimizer):
    """``hidden`` units in each of ``layers`` layers; ``p`` of LogAndSign; ``scale`` of the step."""

    name = "lstm"

    hidden: Count = 20
    layers: Count = 2
    scale: Positive = 0.1
    p: Positive = 10.0

    traits = OptimizerTraits(locality="elementwise")

    @cached_property
    def cells(self) -> Cells:
        """The network."""
        return Cells(2, self.hidden, self.layers)

    def shapes(self, layout: Layout) -> dict[str, tuple[int, ...]]:
        return self.cells.shapes()

    def init(self, key: Tensor) -> Tensor:
        return self.layout.ravel(self.cells.init(self.layout, key))

    def init_state(self, theta: Tensor, x: Tensor, key: Tensor) -> LSTMState:
        return self.cells.init_state(x)

    def update(self, theta: Tensor, x: Tensor, state: LSTMState, f: Tensor, g: Tensor) -> tuple[Tensor, LSTMState]:
        groups = theta.reshape(-1, theta.shape[-1])
        weights, inputs = self.layout.unravel(groups), log_and_sign(g.reshape(len(groups), -1), self.p, dim=-2)
        out, new = self.cells.step(weights, inputs, state)
        return torch.add(x, out.reshape(x.shape), alpha=self.scale), new
