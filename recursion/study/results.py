"""What a study found, as pandas tables.

results = load(Path("runs/depths"))
results.rows.query("stage == 'chosen' and split == 'report' and measure == 'mean loss'")
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from recursion.study import records
from recursion.study.request import Request

ABOUT = ("version", "torch", "python", "machine", "threads", "started", "seconds")  # a run's surroundings
MEASUREMENT = ("stage", "split", "level", "problem", "step", "measure", "value")
ABSENT: dict[str, Any] = {"split": "", "level": -1, "problem": -1, "step": -1, "value": float("inf")}
PLACES = {"seed": "int64", "level": "int64", "problem": "int64", "step": "int64", "value": "float64"}


@dataclass(frozen=True)
class Results:
    """``runs``: one row a run, in the request's order. ``rows``: one row a measurement of the runs that are done.

    ``runs`` has the columns run, cell, kind, depth, factors, tower, seed, status (waiting, running, done, failed), why,
    facts, and the surroundings. ``rows`` has run, cell, seed, stage, split, level, problem, step, measure, value;
    -1 or "" where one of them does not apply, and inf for a value that is no number.
    """

    request: Request
    argv: list[str]
    when: str
    runs: pd.DataFrame
    rows: pd.DataFrame

    def repeatable(self) -> list[tuple[Any, ...]]:
        """All that the same request finds wherever it is repeated: all but seconds, bytes and surroundings."""
        facts = self.runs["facts"].map(lambda facts: json.dumps(facts, sort_keys=True))
        runs = self.runs[["run", "status", "why"]].assign(facts=facts)
        rows = self.rows[~self.rows["measure"].str.contains("seconds|bytes")]
        return [*runs.itertuples(index=False, name=None), *rows.itertuples(index=False, name=None)]


def load(folder: str | Path) -> Results:
    """The study in ``folder``, as far as it is. ValueError or OSError, in one line, if there is none there."""
    study = records.read(Path(folder))
    request = Request.from_json(study["request"])
    runs, rows = [], []
    for run in request.runs():
        result = records.result_of(Path(folder), run, request)
        data = {name: getattr(run, name) for name in ("cell", "kind", "depth", "factors", "tower", "seed")}
        status = {name: result[name] for name in ("status", "why", "facts")}
        about = {name: result["about"].get(name) for name in ABOUT}
        runs.append({"run": run.id} | data | status | about)
        rows += [(run.id, run.cell, run.seed, *row) for row in result["rows"]]
    measured = pd.DataFrame(rows, columns=["run", "cell", "seed", *MEASUREMENT]).fillna(ABSENT).astype(PLACES)
    return Results(request, study["argv"], study["when"], pd.DataFrame(runs).astype({"depth": "Int64"}), measured)
