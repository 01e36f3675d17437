"""What a study found, as pandas tables and by cell.

    results = load("runs/depths")
    results.rows.query("stage == 'chosen' and split == 'report' and measure == 'mean loss'")

A training that diverged has no measurements but is not missing: its losses count as infinite on every problem. A run
that failed for another reason (memory, a disk, a bug), or is not done, is missing, and the report says so.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from recursion.study import records
from recursion.study.request import BASELINE, SPENT, Request

ABOUT = ("version", "torch", "python", "machine", "threads", "started", "seconds")  # a run's surroundings
ABSENT: dict[str, Any] = {"split": "", "level": -1, "problem": -1, "step": -1, "value": float("inf")}
PLACES = {"seed": "int64", "level": "int64", "problem": "int64", "step": "int64", "value": "float64"}
PRIMARY = "mean loss"  # snapshots are chosen by it
MEASURES = (PRIMARY, "final loss")
SPLITS = ("train", "select", "report")
UNITS = ("base steps", "task gradients", "seconds")  # of cost
DIVERGED = "not finite"  # `levels.faults.NonFiniteError` says so


class Results:
    """``runs``: one row a run, in the request's order. ``rows``: one row a measurement of the runs that are done.

    ``runs`` has the columns run, cell, kind, depth, factors, tower, seed, status (waiting, running, done, failed), why,
    facts, diverged, and the surroundings. ``rows`` has run, cell, seed, stage, split, level, problem, step, measure,
    value; -1 or "" where one of them does not apply, and inf for a value that is no number. ``cells``: in the order of
    the request, the tuned baseline last.
    """

    def __init__(self, folder: Path, trust: Sequence[str] = ()) -> None:
        study = records.read(folder)
        self.request, self.argv, self.when = Request.from_json(study["request"], trust), study["argv"], study["when"]
        runs, rows = [], []
        for run in self.request.runs():
            result = records.result_of(folder, run)
            data = {name: getattr(run, name) for name in ("cell", "kind", "depth", "factors", "tower", "seed")}
            data |= {name: result[name] for name in ("status", "why", "facts")}
            runs.append({"run": run.id} | data | {name: result["about"].get(name) for name in ABOUT})
            rows += [(run.id, run.cell, run.seed, *row) for row in result["rows"]]
        columns = ["run", "cell", "seed", "stage", "split", "level", "problem", "step", "measure", "value"]
        self.rows = pd.DataFrame(rows, columns=columns).fillna(ABSENT).astype(PLACES)
        self.parts = dict(tuple(self.rows.groupby(["stage", "split", "measure"])))
        table = pd.DataFrame(runs).astype({"depth": "Int64"})
        diverged = (table.status == "failed") & table.why.str.contains(DIVERGED, regex=False)
        self.runs = table.assign(diverged=diverged)
        cells = [Cell(self, runs.sort_values("seed")) for _, runs in self.runs.groupby("cell", sort=False)]
        self.cells = sorted(cells, key=lambda cell: cell.is_baseline)
        self.baseline = next((cell for cell in cells if cell.is_baseline), None)

    def repeatable(self) -> list[tuple[Any, ...]]:
        """All that the same request finds wherever it is repeated: all but seconds, bytes and surroundings."""
        facts = self.runs["facts"].map(lambda facts: json.dumps(facts, sort_keys=True))
        runs = self.runs[["run", "status", "why"]].assign(facts=facts)
        rows = self.rows[~self.rows["measure"].str.contains("seconds|bytes")]
        return [*runs.itertuples(index=False, name=None), *rows.itertuples(index=False, name=None)]


class Cell:
    """Runs that differ only in their seed, and what they measured.

    ``runs``: their rows of `Results.runs`, by seed; those that are ``done`` have measurements, the training of those
    that ``diverged`` met numbers that are not finite. ``factors``: depth and grid values as typed; empty for the tuned
    baseline, whose ``depth`` is 0. ``on_grid``: of step sizes, which `sensitivity` reports. ``trained_on``: of each run
    that was checked, how many reported problems it was trained on.
    """

    def __init__(self, data: Results, runs: pd.DataFrame) -> None:
        self.data, self.runs, one = data, runs, runs.iloc[0]
        self.label, self.kind, self.factors, self.tower = one.cell, one.kind, one.factors, one.tower
        self.depth = 0 if pd.isna(one.depth) else int(one.depth)
        self.is_baseline, self.on_grid = self.label == BASELINE, any(map(is_step_size, self.factors))
        self.done, self.diverged = runs[runs.status == "done"], runs[runs.diverged]
        self.trained_on = self.part("reporting", "report", "problems trained on").value

    def part(self, stage: str, split: str, measure: str) -> pd.DataFrame:
        """The rows that are about one thing."""
        rows = self.data.parts.get((stage, split, measure), self.data.rows[:0])
        return rows[rows.cell == self.label]

    def losses(self, stage: str, split: str, measure: str = PRIMARY) -> pd.DataFrame:
        """A row a seed and a column a problem; infinite for a run that diverged. Empty where nothing is measured."""
        problems = self.data.parts.get((stage, split, measure), self.data.rows[:0]).problem.unique()
        wide = self.part(stage, split, measure).pivot(index="seed", columns="problem", values="value")
        wide = wide.reindex(columns=problems).dropna()
        return wide.reindex(wide.index.union(self.diverged.seed), fill_value=np.inf)

    def curves(self, measure: str) -> pd.DataFrame:
        """A row a seed and a column a step of a use on report problems, the start first."""
        rows = self.part("chosen", "report", measure)
        return rows.pivot(index="seed", columns="step", values="value").dropna()

    def use(self, measure: str) -> pd.Series:
        """What each seed measured once of a use."""
        return self.part("use", "", measure).set_index("seed").value

    def costs(self, by: str = "seed", stages: tuple[str, ...] = SPENT) -> pd.DataFrame:
        """What these stages cost, a row a ``seed`` or a ``stage`` and a column a unit, and ``optimizer work``."""
        rows = self.data.rows[(self.data.rows.cell == self.label) & self.data.rows.stage.isin(stages)]
        rows = rows[(rows.measure != UNITS[2]) | (rows.level < 0)]  # each level's seconds are part of the process's
        sums = rows.pivot_table(index=by, columns="measure", values="value", aggfunc="sum")
        sums = sums.reindex(columns=[*UNITS[1:], "optimizer work"]).fillna(0.0)
        return sums.assign(**{UNITS[0]: sums[UNITS[1]] + sums["optimizer work"]})


def load(folder: str | Path, trust: Sequence[str] = ()) -> Results:
    """The study in ``folder``, as far as it is. ValueError or OSError, in one line, if there is none there.

    ``trust``: modules and files whose code may run because the study names them.
    """
    return Results(Path(folder), trust)


def is_step_size(factor: str) -> bool:
    """Whether a factor of the grid is about step sizes: ``lr``, ``lr*``, ``2.lr``, ``top.lr*``."""
    return factor.rpartition(".")[2].removesuffix("*") == "lr"
