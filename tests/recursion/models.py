"""A small network, its data and how it is trained, for exported optimizers."""

import torch
from torch import nn
from torch.nn import functional

from levels import LSTM, SGD, Layout, ModuleTask, keys
from levels.base import OptimizerTraits
from recursion.exported import Exported

SMALL = LSTM(hidden=5)
DATA = torch.randn(60, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LABELS = torch.randint(3, (60,), generator=torch.Generator().manual_seed(1))


def weights_of(optimizer, layout, seed=0):
    return optimizer.bind(layout).init(keys.seed(seed))


def exported(optimizer=SMALL, dtype=torch.float64, model=None):
    shapes = {"x": (1,)} if model is None else {name: tuple(p.shape) for name, p in model.named_parameters()}
    layout = Layout.of(shapes, dtype)
    return Exported.of(optimizer, weights_of(optimizer, layout), layout=None if model is None else layout)


def network(dtype=torch.float64, seed=0, width=6):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 3)).to(dtype)


def backward(model, rows=slice(0, 20)):
    model.zero_grad()
    loss = functional.cross_entropy(model(DATA[rows].to(next(model.parameters()).dtype)).double(), LABELS[rows])
    loss.backward()
    return loss


def train(model, optimizer, steps, first=0):
    for step in range(first, first + steps):
        backward(model, slice(3 * step % 40, 3 * step % 40 + 20))
        optimizer.step()


def ravel(model):
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


TASK = ModuleTask(
    make=network, loss_function=functional.cross_entropy, train=(DATA, LABELS), minibatch=16, dtype="float64"
)


class Reads(SGD):
    """Steps in proportion to the loss; keeps the last x, and swaps two tensors of its state."""

    name = "reads"
    traits = OptimizerTraits(reads_loss=True)

    def init_state(self, theta, x, key):
        return (x, torch.zeros_like(x), torch.ones_like(x))

    def update(self, theta, x, state, f, g):
        _last, one, two = state
        return x - 0.1 * f[..., None] * g, (x, two, one)
