"""Hand-made optimizers with a tuned step size: what a researcher without a learned optimizer would use.

Every step size of a logarithmic grid runs on the same validation problems. Each measure chooses the step size with the
lowest mean over problems; a step size with which any problem diverges loses. If the best step size lies at an edge, the
grid grows in that direction.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from levels import keys
from levels.hyper import HyperparamOptimizer
from levels.optimizers.adam import Adam
from levels.optimizers.rmsprop import RMSprop
from levels.optimizers.sgd import SGD
from levels.tasks.task import Task
from recursion.evaluation.deploy import run

BASELINES: dict[str, HyperparamOptimizer] = {
    "sgd": SGD(),
    "nag": SGD(momentum=0.9, nesterov=True),
    "rmsprop": RMSprop(),
    "adam": Adam(),
}
PER_DECADE = 4
GRID = (-4 * PER_DECADE, 1 * PER_DECADE)  # lowest and highest exponent, in steps of a factor 10^(1/4): 1e-4 to 10
EXTENSIONS = 4  # decades by which the grid may grow


def final_loss(losses: Tensor) -> Tensor:
    """The loss after the last step: ``[steps + 1, ...]`` to ``[...]``."""
    return losses[-1]


def mean_loss(losses: Tensor) -> Tensor:
    """The mean of the losses after each step, without the loss at the start: ``[steps + 1, ...]`` to ``[...]``."""
    return losses[1:].mean(0)


MEASURES: dict[str, Callable[[Tensor], Tensor]] = {"final": final_loss, "mean": mean_loss}


class Tuned(NamedTuple):
    """The result of tuning."""

    step_sizes: dict[str, float]  # by measure
    params: Tensor  # [measures, m] of the optimizer, in the order of MEASURES
    scores: dict[str, dict[float, float]]  # by measure: step size -> mean over the validation problems
    base_steps: int


def tune(optimizer: HyperparamOptimizer, task: Task, key: Tensor, steps: int) -> Tuned:
    """The best step sizes for ``steps`` steps on the validation problems named by ``key`` ``[P]``.

    ``optimizer`` has a field ``lr``; its other fields stay. ``task`` may be of any split: its validation split is used.
    Costs at least 21 * P * (steps + 1) base steps.
    """
    task = task.on("validation")
    low, high = GRID
    scores: dict[str, dict[int, float]] = {measure: {} for measure in MEASURES}
    wanted, spent, best = list(range(low, high + 1)), 0, dict[str, int]()
    for _ in range(1 + EXTENSIONS):
        if wanted:
            losses = run(optimizer, _params(optimizer, task, wanted), task, key, steps)
            spent += losses.numel()
            for measure, values in scores.items():
                values.update(zip(wanted, MEASURES[measure](losses).mean(-1).tolist(), strict=True))
            best = {measure: _best(values) for measure, values in scores.items()}
            low, high = min(scores["final"]), max(scores["final"])
            wanted = list(range(low - PER_DECADE, low)) if low in best.values() else []
            wanted += list(range(high + 1, high + 1 + PER_DECADE)) if high in best.values() else []
    sizes = {measure: _step_size(exponent) for measure, exponent in best.items()}
    tried = {measure: {_step_size(e): v for e, v in sorted(values.items())} for measure, values in scores.items()}
    return Tuned(sizes, _params(optimizer, task, list(best.values())), tried, spent)


def _params(optimizer: HyperparamOptimizer, task: Task, exponents: list[int]) -> Tensor:
    """Parameters ``[S, m]`` of the optimizer with these step sizes."""
    key = keys.seed(0, device=task.layout.device)
    with_sizes = (dataclasses.replace(optimizer, lr=_step_size(e)) for e in exponents)  # type: ignore[call-arg]
    return torch.stack([each.bind(task.layout).init(key) for each in with_sizes])


def _best(values: dict[int, float]) -> int:
    """The exponent with the lowest score; of equal ones, as where all diverge, the smallest step size."""
    return min(sorted(values), key=lambda exponent: values[exponent] if math.isfinite(values[exponent]) else math.inf)


def _step_size(exponent: int) -> float:
    return float(10.0 ** (exponent / PER_DECADE))
