"""An optimizer of your own: Lion (Chen et al. 2023, arXiv 2302.06675), with a learned step size. About 15 seconds.

    c <- beta1 m + (1 - beta1) g,     x <- x - lr (sign(c) + weight_decay x),     m <- beta2 m + (1 - beta2) g

A rule whose parameters are hyperparameters declares them as fields and writes two methods. It then works at any level:
below, Adam moves the four numbers of a Lion whose step size is far too small. You should see

    checks passed
    lion        : mean loss 95.1
    lion learned: mean loss 3.8

From the command line, in this folder: tower train "quadratic: lion.Lion@20 / adam(lr=0.1)"
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from levels import Adam, Hyper, HyperparamOptimizer, Level, Log, Logit, OptimizerTraits, Quadratic, hyper, keys
from levels.testing import check_optimizer
from recursion import Tower
from recursion.evaluation.deploy import run


@dataclass(frozen=True, repr=False)
class Lion(HyperparamOptimizer):
    """Evolved sign momentum. The sign has slope 0, so gradients reach ``lr`` and ``weight_decay``, not the betas."""

    name = "lion"

    lr: Hyper | float = hyper(1e-3, Log)
    beta1: Hyper | float = hyper(0.9, Logit)
    beta2: Hyper | float = hyper(0.99, Logit)
    weight_decay: Hyper | float = hyper(1e-4, Log)

    traits = OptimizerTraits(locality="elementwise")

    def init_state(self, theta: Tensor, x: Tensor, key: Tensor) -> Tensor:
        return torch.zeros_like(x)

    def update(self, theta: Tensor, x: Tensor, state: Tensor, f: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        h = self.read(theta)
        direction = (h["beta1"] * state + (1 - h["beta1"]) * g).sign()
        return x - h["lr"] * (direction + h["weight_decay"] * x), h["beta2"] * state + (1 - h["beta2"]) * g


if __name__ == "__main__":
    check_optimizer(Lion(), steps=12)
    print("checks passed")
    tower = Tower(Quadratic(), Level(optimizer=Lion(), unroll=20), Level(optimizer=Adam(lr=0.1)))
    start = tower.init(seed=0)
    *_, (state, _report) = tower.run(start, 100)
    for name, each in (("lion", start), ("lion learned", state)):
        losses = run(Lion(), tower.result(each), Quadratic().on("test"), keys.split(keys.seed(1), 64), 100)
        print(f"{name:12}: mean loss {losses[1:].mean():.1f}")
