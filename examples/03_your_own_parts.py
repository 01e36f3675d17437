"""An optimizer and a network of your own, checked and stacked three levels high. About 40 seconds.

A sign-momentum rule, written below, trains an LSTM, which trains an LSTM, which trains a small tanh network given as
an ordinary nn.Module, on the wine data of scikit-learn. Both parts pass the public conformance checks first. You
should see about

    checks passed
    untrained trainer: loss after 40 steps 1.158
    trained trainer  : loss after 40 steps 0.032
"""

from dataclasses import dataclass

import torch
from sklearn.datasets import load_wine
from torch import Tensor, nn

from levels import LSTM, Hyper, HyperparamOptimizer, Level, Log, Logit, ModuleTask, hyper, keys
from levels.testing import check_optimizer, check_problem
from recursion import Tower
from recursion.evaluation.deploy import run


@dataclass(frozen=True, repr=False)
class Signum(HyperparamOptimizer):
    """b <- momentum b + (1 - momentum) g, x <- x - lr tanh(b / tau): Signum (Bernstein et al. 2018), made smooth."""

    name = "signum"

    lr: Hyper | float = hyper(3e-3, Log)
    momentum: Hyper | float = hyper(0.9, Logit)
    tau: Hyper | float = hyper(1e-3, Log)

    def init_state(self, theta: Tensor, x: Tensor, key: Tensor) -> Tensor:
        return torch.zeros_like(x)

    def update(self, theta: Tensor, x: Tensor, state: Tensor, f: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        h = self.read(theta)
        buffer = h["momentum"] * state + (1 - h["momentum"]) * g
        return x - h["lr"] * torch.tanh(buffer / h["tau"]), buffer


def wine() -> ModuleTask:
    """178 wines of 3 kinds, 13 measurements each; every third wine goes to another split."""
    data = load_wine()
    inputs = torch.tensor((data.data - data.data.mean(0)) / data.data.std(0), dtype=torch.float32)
    labels = torch.tensor(data.target)
    parts = [(inputs[i::3], labels[i::3]) for i in range(3)]
    return ModuleTask(
        make=lambda: nn.Sequential(nn.Linear(13, 8), nn.Tanh(), nn.Linear(8, 3)),
        loss_function=nn.functional.cross_entropy,
        train=parts[0],
        validation=parts[1],
        test=parts[2],
        minibatch=32,
    )


def final_loss(tower: Tower, trainer: Tensor) -> float:
    """Train a fresh LSTM for 25 windows with a trainer ``[m]``, then a network that neither has seen, 40 steps."""
    below = tower.under()
    state = below.init(seed=1, theta=trainer)
    for state, _report in below.run(state, 5):
        pass
    losses = run(LSTM(), state.carry.x, tower.task.on("test"), keys.split(keys.seed(2), 16), 40)
    return float(losses[-1].mean())


if __name__ == "__main__":
    task = wine()
    check_problem(task)
    check_optimizer(Signum())
    print("checks passed")
    tower = Tower(
        task,
        Level(optimizer=LSTM(), unroll=10, batch=4, clip=1.0),
        Level(optimizer=LSTM(), unroll=5, clip=1.0),
        Level(optimizer=Signum()),
    )
    state = tower.init(seed=0)
    print(f"untrained trainer: loss after 40 steps {final_loss(tower, state.carry.x[0]):.3f}")
    for state, _report in tower.run(state, 40):
        pass
    print(f"trained trainer  : loss after 40 steps {final_loss(tower, state.carry.x[0]):.3f}")
