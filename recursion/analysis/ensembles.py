"""The last generation of a search, put together: three ensembles against the best single member.

    compared = compare(tower, states)          # tower: task: lstm@20 / ga
    compared.ensembles[0].verdict["mean"]

- *weights*: one optimizer with the mean of the members' parameters.
- *updates*: one network, moved by the mean of the members' updates (`levels.optimizers.ensemble`), each computed.
- *predictions*: the mean probabilities of networks that the members train, from the same start on the same minibatches,
  with a gradient each. Only tasks that predict have it (`levels.tasks.predicting`).

All run on the same held-out problems with the same minibatches, so differences are paired.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from levels import keys
from levels.base import Optimizer
from levels.fields import require
from levels.optimizers.ensemble import Ensemble
from levels.optimizers.search import Population, Search
from levels.tasks.nets import cross_entropy
from levels.tasks.predicting import Predicting
from levels.tasks.task import Task
from recursion.evaluation.baselines import MEASURES
from recursion.evaluation.deploy import CHUNK, run, walk
from recursion.evaluation.scenarios import held_out
from recursion.evaluation.statistics import Estimate, difference, estimate
from recursion.tower import Tower, TowerState

MEMBER = "best member"
WORDS = {-1: f"lower than the {MEMBER}", 0: f"no difference from the {MEMBER} shown", 1: f"higher than the {MEMBER}"}


@dataclass(frozen=True, kw_only=True)
class Ensembled:
    """One ensemble, or the best member, over all problems (and training seeds); each field by measure."""

    name: str
    means: dict[str, Estimate]
    diverged: int  # runs in which some loss was not finite
    difference: dict[str, Estimate]  # less that of the best member, by problem
    verdict: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Compared:
    """All of a comparison."""

    tower: str
    task: str
    members: tuple[int, ...]  # put together, for each population
    best: Ensembled
    ensembles: tuple[Ensembled, ...]
    refused: dict[str, str]  # ensembles that the task does not allow, and why
    base_steps: int  # task gradients spent on it


def last_generation(tower: Tower, state: TowerState, *, members: int | None = None) -> list[Tensor]:
    """Members ``[K, m]`` of each population of the topmost level, as last evaluated, the lowest loss first.

    The best ``members``, or all, of those with a finite loss. Raises ValueError unless the tower is an optimizer under
    a search that has evaluated a generation.
    """
    who = f"{tower}: its last generation"
    require(isinstance(tower.top.optimizer, Search), f"{who} is asked for, and its topmost level has no population")
    require(tower.depth == 2, f"{who} must be of optimizers of the task, so of a tower of depth 2, got {tower.depth}")
    require(members is None or members >= 1, f"members must be at least 1, got {members}")
    population: Population = state.carry.state
    require(bool((population.generation > 0).all()), f"{who} is asked for, and it has judged none yet; train it first")
    chosen = []
    for own, losses in zip(population.members, population.losses):
        order = losses.argsort(stable=True)[: int(torch.isfinite(losses).sum())]
        require(len(order) > 0, f"{who} has no member whose trial was finite; train it again with a smaller sigma")
        chosen.append(own[order[:members]])
    return chosen


def compare(
    tower: Tower, states: Sequence[TowerState], *, on: Task | None = None, seed: int = 0, problems: int = 64,
    steps: int = 100, members: int | None = None,
) -> Compared:  # fmt: skip
    """The ensembles of the last generation against its best member on held-out problems.

    ``states``: of this tower after training, one for each training seed; populations within a state are averaged.
    ``on``: another family than the tower's. ``members``: as in `last_generation`. ValueError for what does not fit.
    """
    task = held_out("compare", tower, states, on, problems=problems, steps=steps).on("test")
    optimizer = tower.levels[0].optimizer
    groups = [last_generation(tower, state, members=members) for state in states]
    key = keys.split(keys.seed(seed, device=task.layout.device), problems)
    runs = {MEMBER: best_member, "weights": mean_weights, "updates": mean_updates, "predictions": mean_predictions}
    refused = {} if (why := no_predictions(task)) is None else {"predictions": why}
    sizes = [len(own) for group in groups for own in group]
    losses, spent = {}, 0
    for name, put in runs.items():
        if name not in refused:
            each = [torch.stack([put(optimizer, own, task, key, steps) for own in group]).mean(0) for group in groups]
            losses[name] = torch.stack(each, 1)  # [steps + 1, seeds, problems]
            spent += each[0].numel() * sum(size if name == "predictions" else 1 for size in sizes)
    best, *others = (_ensembled(name, own, losses[MEMBER], seed) for name, own in losses.items())
    return Compared(tower=repr(tower), task=repr(task), members=tuple(sizes), best=best, ensembles=tuple(others),
                    refused=refused, base_steps=spent)  # fmt: skip


def best_member(optimizer: Optimizer, members: Tensor, task: Task, key: Tensor, steps: int) -> Tensor:
    """Losses ``[steps + 1, P]`` of the first of ``members`` ``[K, m]`` on the problems of keys ``[P]``."""
    return run(optimizer, members[:1], task, key, steps)[:, 0]


def mean_weights(optimizer: Optimizer, members: Tensor, task: Task, key: Tensor, steps: int) -> Tensor:
    """Losses ``[steps + 1, P]`` of one optimizer with the mean of their parameters."""
    return run(optimizer, members.mean(0, keepdim=True), task, key, steps)[:, 0]


def mean_updates(optimizer: Optimizer, members: Tensor, task: Task, key: Tensor, steps: int) -> Tensor:
    """Losses ``[steps + 1, P]`` of one network, moved by the mean of their updates."""
    ensemble, params = Ensemble(optimizer, len(members)), members.flatten()[None]
    return torch.cat([run(ensemble, params, task, part, steps)[:, 0] for part in _parts(key, members, task)], -1)


@torch.no_grad()
def mean_predictions(optimizer: Optimizer, members: Tensor, task: Task, key: Tensor, steps: int) -> Tensor:
    """Losses ``[steps + 1, P]`` of the mean predictions of networks, one a member. ValueError if the task has none."""
    why = no_predictions(task)
    require(why is None, str(why))
    assert isinstance(task, Predicting)
    bound, rows = optimizer.bind(task), []
    for part in _parts(key, members, task):
        points = walk(bound, members, task, part, steps)
        rows.append(torch.stack([_together(task, point.x, point.problem_state) for point in points]))
    losses = torch.cat(rows, -1)
    return losses.masked_fill(losses.isnan(), torch.inf)


def no_predictions(task: Task) -> str | None:
    """Why the predictions of networks cannot be averaged on ``task``; None if they can."""
    fix = "use a task on labelled data, as digits-mlp"
    return None if isinstance(task, Predicting) else f"{task} makes no predictions that could be averaged; {fix}"


def _together(task: Predicting, x: Tensor, state: Any) -> Tensor:
    """The loss ``[P]`` of the mean probabilities of networks ``[K, P, n]``, all on the same minibatches."""
    inputs, labels = task.examples(state)
    logs = task.predict(x, inputs).log_softmax(-1)
    return cross_entropy(logs.logsumexp(0) - math.log(len(x)), labels[0])


def _parts(key: Tensor, members: Tensor, task: Task) -> tuple[Tensor, ...]:
    """Some keys at a time, so that members times problems times parameters stay small."""
    return torch.split(key, max(1, CHUNK // (len(members) * task.layout.size)))


def _ensembled(name: str, losses: Tensor, best: Tensor, seed: int) -> Ensembled:
    """``losses`` and ``best``: ``[steps + 1, seeds, P]``."""
    ours, theirs = (
        {measure: np.asarray(of(each).double().cpu().numpy()) for measure, of in MEASURES.items()}
        for each in (losses, best)
    )
    gaps = {measure: estimate(difference(own, theirs[measure]), seed=seed) for measure, own in ours.items()}
    means = {measure: estimate(own, seed=seed) for measure, own in ours.items()}
    verdict, diverged = {measure: WORDS[gap.sign] for measure, gap in gaps.items()}, ~torch.isfinite(losses).all(0)
    return Ensembled(name=name, means=means, diverged=int(diverged.sum()), difference=gaps, verdict=verdict)
