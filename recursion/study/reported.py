"""Reported: losses on the problems of an ablation as the rows of its store."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from torch import Tensor

from levels.optimizer import Optimizer
from recursion.baselines import final_loss, mean_loss
from recursion.deploy import run
from recursion.study.bench import SPLITS, Bench
from recursion.study.ledger import Row, row
from recursion.study.problems import known, problems


def reported(stage: str, name: str, optimizer: Optimizer, params: Tensor, bench: Bench) -> list[Row]:
    """Results on all three splits, and the curve of what was chosen."""
    rows: list[Row] = []
    for split in SPLITS:
        losses = bench.use(name, "reporting", split, optimizer, params)
        rows += results(stage, split, losses)
        if (stage, split) == ("chosen", "report"):
            rows += curve(stage, split, losses)
    return rows


def use_rows(optimizer: Optimizer, params: Tensor, bench: Bench) -> list[Row]:
    """What a step of use costs."""
    task, one = bench.task.on("test"), bench.key("report")[:1]
    seconds = bench.seconds_of_step(lambda steps: run(optimizer, params[:1], task, one, steps))
    return [row("use", "work of a step", bench.work(optimizer)), row("use", "seconds of a step", seconds)]


def known_rows(bench: Bench, met: set[bytes]) -> tuple[list[Row], dict[str, Any]]:
    """Whether reported problems were trained or selected on."""
    met = met | set(problems(bench.task.on("validation"), bench.key("select")))
    found = known(bench.task, bench.key("report"), met)
    rows = [row("reporting", "problems trained on", found.problems, split="report")]
    facts = {"examples reported": found.of, "of these known before": found.examples, "problems met": len(met)}
    return rows, facts


def results(stage: str, split: str, losses: Tensor) -> list[Row]:
    """Mean and final loss of each problem, from losses ``[steps + 1, S, P]``: means over the S settings."""
    found = []
    for name, reduce in (("mean loss", mean_loss), ("final loss", final_loss)):
        values = _plain(reduce(losses).double().mean(0))
        found += [row(stage, name, value, split=split, problem=i) for i, value in enumerate(values)]
    return found


def curve(stage: str, split: str, losses: Tensor) -> list[Row]:
    """Median and quartiles over problems (and settings) at each step."""
    quartiles = np.quantile(losses.double().numpy(), (0.25, 0.5, 0.75), axis=(1, 2), method="inverted_cdf")
    names = ("lower quartile", "median loss", "upper quartile")
    return [
        row(stage, name, value, split=split, step=step)
        for name, values in zip(names, quartiles)
        for step, value in enumerate(values.tolist())
    ]


def score(losses: Tensor) -> float:
    """What snapshots are compared by: the mean loss over all problems; inf if any is not finite."""
    return _plain(mean_loss(losses).double().mean()[None])[0]


def _plain(values: Tensor) -> list[float]:
    return [value if math.isfinite(value) else math.inf for value in values.tolist()]
