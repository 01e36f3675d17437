"""What a study found, as pandas tables and by cell.

results = load(Path("runs/depths"))
results.rows.query("stage == 'chosen' and split == 'report' and measure == 'mean loss'")

A training that diverged has no measurements but is not missing: its losses count as infinite on every problem. A run
that failed for another reason (memory, a disk, a bug), or is not done, is missing, and the report says so.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from recursion.study import records
from recursion.study.request import BASELINE, Request

ABOUT = ("version", "torch", "python", "machine", "threads", "started", "seconds")  # a run's surroundings
MEASUREMENT = ("stage", "split", "level", "problem", "step", "measure", "value")
ABSENT: dict[str, Any] = {"split": "", "level": -1, "problem": -1, "step": -1, "value": float("inf")}
PLACES = {"seed": "int64", "level": "int64", "problem": "int64", "step": "int64", "value": "float64"}
PRIMARY = "mean loss"  # snapshots are chosen by it
MEASURES = (PRIMARY, "final loss")
SPLITS = ("train", "select", "report")
SPENT = ("training", "selection", "deployment", "search")  # what a budget pays for, in this order
UNITS = ("base steps", "task gradients", "seconds")  # of cost
DIVERGED = "not finite"  # `levels.faults.NonFiniteError` says so


@dataclass(frozen=True, kw_only=True, eq=False)
class Cell:
    """Runs that differ only in their seed. ``runs``: their rows of `Results.runs`, by seed.

    ``factors``: depth and grid values as typed; empty for the baseline, whose ``depth`` is 0.
    """

    label: str
    kind: str
    depth: int
    factors: dict[str, str]
    tower: str
    runs: pd.DataFrame

    @property
    def done(self) -> pd.DataFrame:
        """The runs that have measurements."""
        return self.runs[self.runs.status == "done"]

    @property
    def diverged(self) -> pd.DataFrame:
        """The runs whose training met numbers that are not finite."""
        return self.runs[self.runs.diverged]

    @property
    def is_baseline(self) -> bool:
        """Whether this is the tuned baseline."""
        return self.label == BASELINE

    @property
    def on_grid(self) -> bool:
        """Whether the cell is one of a grid of step sizes, which `sensitivity` reports."""
        return any(map(is_step_size, self.factors))


class Results:
    """``runs``: one row a run, in the request's order. ``rows``: one row a measurement of the runs that are done.

    ``runs`` has the columns run, cell, kind, depth, factors, tower, seed, status (waiting, running, done, failed), why,
    facts, diverged, and the surroundings. ``rows`` has run, cell, seed, stage, split, level, problem, step, measure,
    value; -1 or "" where one of them does not apply, and inf for a value that is no number. ``cells``: in the order of
    the request, the tuned baseline last.
    """

    def __init__(self, study: dict[str, Any], runs: list[dict[str, Any]], rows: list[tuple[Any, ...]]) -> None:
        self.request, self.argv, self.when = Request.from_json(study["request"]), study["argv"], study["when"]
        columns = ["run", "cell", "seed", *MEASUREMENT]
        self.rows = pd.DataFrame(rows, columns=columns).fillna(ABSENT).astype(PLACES)
        table = pd.DataFrame(runs).astype({"depth": "Int64"})
        diverged = (table.status == "failed") & table.why.str.contains(DIVERGED, regex=False)
        self.runs = table.assign(diverged=diverged)
        cells = [_cell(runs.sort_values("seed")) for _, runs in self.runs.groupby("cell", sort=False)]
        self.cells = sorted(cells, key=lambda cell: cell.is_baseline)
        self.baseline = next((cell for cell in self.cells if cell.is_baseline), None)
        self._parts = dict(tuple(self.rows.groupby(["stage", "split", "measure"])))

    def repeatable(self) -> list[tuple[Any, ...]]:
        """All that the same request finds wherever it is repeated: all but seconds, bytes and surroundings."""
        facts = self.runs["facts"].map(lambda facts: json.dumps(facts, sort_keys=True))
        runs = self.runs[["run", "status", "why"]].assign(facts=facts)
        rows = self.rows[~self.rows["measure"].str.contains("seconds|bytes")]
        return [*runs.itertuples(index=False, name=None), *rows.itertuples(index=False, name=None)]

    def part(self, cell: Cell, stage: str, split: str, measure: str) -> pd.DataFrame:
        """The rows of a cell that are about one thing."""
        rows = self._parts.get((stage, split, measure), self.rows[:0])
        return rows[rows.cell == cell.label]

    def losses(self, cell: Cell, stage: str, split: str, measure: str = PRIMARY) -> pd.DataFrame:
        """A row a seed and a column a problem; infinite for a run that diverged. Empty where nothing is measured."""
        problems = self._parts.get((stage, split, measure), self.rows[:0]).problem.unique()
        wide = self.part(cell, stage, split, measure).pivot(index="seed", columns="problem", values="value")
        wide = wide.reindex(columns=problems).dropna()
        return wide.reindex(wide.index.union(cell.diverged.seed), fill_value=np.inf)

    def curves(self, cell: Cell, measure: str) -> pd.DataFrame:
        """A row a seed and a column a step of a use on report problems, the start first."""
        rows = self.part(cell, "chosen", "report", measure)
        return rows.pivot(index="seed", columns="step", values="value").dropna()

    def single(self, cell: Cell, measure: str) -> pd.Series:
        """What each seed measured once of a use."""
        return self.part(cell, "use", "", measure).set_index("seed").value

    def costs(self, cell: Cell, stages: tuple[str, ...]) -> pd.DataFrame:
        """The rows of what these stages cost; level -1 is the process."""
        return self.rows[(self.rows.cell == cell.label) & (self.rows.split == "") & self.rows.stage.isin(stages)]

    def paid(self, cell: Cell, stages: tuple[str, ...] = SPENT) -> pd.DataFrame:
        """What the budget paid in these stages, a row a seed and a column a unit."""
        rows = self.costs(cell, stages)
        rows = rows[(rows.measure != "seconds") | (rows.level < 0)]  # each level's seconds are part of the process's
        sums = rows.pivot_table(index="seed", columns="measure", values="value", aggfunc="sum").fillna(0.0)
        sums = sums.reindex(columns=["task gradients", "optimizer work", "seconds"], fill_value=0.0)
        return sums.assign(**{UNITS[0]: sums["task gradients"] + sums["optimizer work"]})[list(UNITS)]


def load(folder: str | Path) -> Results:
    """The study in ``folder``, as far as it is. ValueError or OSError, in one line, if there is none there."""
    study = records.read(Path(folder))
    request = Request.from_json(study["request"])
    runs, rows = [], []
    for run in request.runs():
        result = records.result_of(Path(folder), run)
        data = {name: getattr(run, name) for name in ("cell", "kind", "depth", "factors", "tower", "seed")}
        data |= {name: result[name] for name in ("status", "why", "facts")}
        runs.append({"run": run.id} | data | {name: result["about"].get(name) for name in ABOUT})
        rows += [(run.id, run.cell, run.seed, *row) for row in result["rows"]]
    return Results(study, runs, rows)


def is_step_size(factor: str) -> bool:
    """Whether a factor of the grid is about step sizes: ``lr``, ``lr*``, ``2.lr``, ``top.lr*``."""
    return factor.rpartition(".")[2].removesuffix("*") == "lr"


def _cell(runs: pd.DataFrame) -> Cell:
    one = runs.iloc[0]
    depth = 0 if pd.isna(one.depth) else int(one.depth)
    return Cell(label=one.cell, kind=one.kind, depth=depth, factors=one.factors, tower=one.tower, runs=runs)
