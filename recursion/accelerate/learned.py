"""Learned: twins of the LSTM and of RNNProp, whose cells run in C++ (`recursion.accelerate.cells_native`).

Forward, the twin of an optimizer calls C++ for an update of which no graph is recorded. Back, the sweep of a window
makes its states again from the first one, in the processor's cache, so a window keeps its gradients and nothing else.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from levels.autodiff import is_followed
from levels.base import Optimizer
from levels.optimizers.adam import AdamState, moments
from levels.optimizers.cells import LSTMState, by_feature
from levels.optimizers.lstm import LSTM
from levels.optimizers.rnnprop import EPS, RNNProp, RNNPropState
from levels.tree import State, leaves
from recursion.accelerate import cells_native
from recursion.accelerate.sweeps import SWEEPS, Read, Sweep


class Native(Optimizer):
    """An optimizer whose cells run in C++ where no graph is recorded; abstract, before the class of the optimizer."""

    def update(self, theta: Tensor, x: Tensor, state: Any, f: Tensor, g: Tensor) -> tuple[Tensor, Any]:
        if torch.is_grad_enabled() and any(map(is_followed, leaves((theta, x, state, g)))):
            return super().update(theta, x, state, f, g)  # type: ignore[safe-super]
        return SWEEPS[type(self)](self, theta).update(Read(x, state, f, g))


@dataclass(frozen=True, repr=False)
class NativeLSTM(Native, LSTM):
    """An `LSTM` in C++."""


class LSTMSweep(Sweep):
    """The sweep of an LSTM."""

    replays = True

    def __init__(self, optimizer: LSTM, theta: Tensor) -> None:
        self.optimizer, self.shape = optimizer, theta.shape
        self.weights = theta.reshape(-1, theta.shape[-1]).contiguous()  # [groups, m]

    def update(self, read: Read) -> tuple[Tensor, State]:
        rows = read.g.reshape(len(self.weights), -1)
        out, state = cells_native.forward(self.weights, rows, read.state, p=self.optimizer.p)
        return torch.add(read.x, out, alpha=self.optimizer.scale), state

    def vjp(self, reads: list[Read], cotangents: Tensor) -> Tensor:
        shape = len(reads), len(self.weights), -1
        grads = torch.stack([read.g for read in reads]).reshape(shape)
        dout = (self.optimizer.scale * cumulated(cotangents)).reshape(shape)
        state, p = by_features(reads[0].state), self.optimizer.p
        dweights, _ = cells_native.window_vjp(self.weights, grads, state, dout, p=p)
        return dweights.reshape(self.shape)


@dataclass(frozen=True, repr=False)
class NativeRNNProp(Native, RNNProp):
    """An `RNNProp` in C++."""


class RNNPropSweep(Sweep):
    """The sweep of an RNNProp. Its moments are made of data, so nothing is pulled back through them."""

    replays = True

    def __init__(self, optimizer: RNNProp, theta: Tensor) -> None:
        self.optimizer, self.shape = optimizer, theta.shape
        self.weights = theta.reshape(-1, theta.shape[-1])  # [groups, m]
        first = 3 * optimizer.hidden
        self.cell_weights = self.weights[:, first:].contiguous()
        self.matrix = self.weights[:, : 2 * optimizer.hidden].reshape(-1, 2, optimizer.hidden)  # [groups, 2, hidden]
        self.bias = self.weights[:, 2 * optimizer.hidden : first, None]

    def update(self, read: Read) -> tuple[Tensor, Any]:
        inputs, adam = self._inputs(read.g, read.state.adam)
        out, cells = cells_native.forward(self.cell_weights, self._first_layer(inputs), read.state.cells)
        return read.x - self.optimizer.scale * torch.tanh(out), RNNPropState(adam, cells)

    def vjp(self, reads: list[Read], cotangents: Tensor) -> Tensor:
        adam, read_inputs = reads[0].state.adam, []
        for read in reads:
            inputs, adam = self._inputs(read.g, adam)
            read_inputs.append(inputs)
        inputs = torch.stack(read_inputs)  # [T, groups, 2, rows]
        dout = (-self.optimizer.scale * cumulated(cotangents)).reshape(len(reads), len(self.weights), -1)
        state, u = by_features(reads[0].state.cells), self._first_layer(inputs)
        rest, du = cells_native.window_vjp(self.cell_weights, u, state, dout, bounded=True, above=True)
        assert du is not None
        du = du * torch.where(u > 0, 1.0, u + 1)  # of ELU: u + 1 is exp of its argument below 0
        total = torch.cat(((inputs @ du.mT).sum(0).flatten(1), du.sum((0, -1)), rest), dim=-1)
        return total.reshape(self.shape)

    def _inputs(self, g: Tensor, adam: AdamState) -> tuple[Tensor, AdamState]:
        """What the network reads, ``[groups, 2, rows]``, and the next moments."""
        m_hat, root, adam = moments(self.optimizer.beta1, self.optimizer.beta2, g, adam)
        return by_feature(torch.stack((m_hat / (root + EPS), g / (root + EPS)), dim=-1)), adam

    def _first_layer(self, inputs: Tensor) -> Tensor:
        """``[.., groups, hidden, rows]``."""
        return torch.nn.functional.elu(self.matrix.mT @ inputs + self.bias)


def cumulated(cotangents: Tensor) -> Tensor:
    """The cotangents of each x_t with those that come back from later ones, where x_{t+1} is x_t and a step."""
    return cotangents.flip(0).cumsum(0).flip(0)


def by_features(state: LSTMState) -> list[Tensor]:
    """h and c of each layer in turn, ``[groups, hidden, rows]``."""
    return [by_feature(leaf) for leaf in leaves(state)]


SWEEPS.update({NativeLSTM: LSTMSweep, NativeRNNProp: RNNPropSweep})
