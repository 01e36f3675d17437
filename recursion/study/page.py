"""The page of a study, from the template ``page.html.j2``, which has its words and tables."""

import json
import shlex
from pathlib import Path

from recursion.notation import parse
from recursion.spec import to_spec
from recursion.study.drawing import Picture
from recursion.study.findings import Findings
from recursion.study.measurements import MEASURES, SPENT, Cell
from recursion.study.results import Results
from recursion.study.templates import environment
from recursion.study.words import number, plural

LONG = 16  # rows from which a table is folded away


def page(folder: Path, results: Results, findings: Findings, pictures: list[Picture]) -> str:
    """The whole page of the study in ``folder``, as text."""
    took = float(findings.done.seconds.sum())
    cells = findings.data.cells
    template = environment().get_template("page.html.j2")
    return template.render(
        folder=folder,
        findings=findings,
        request=results.request,
        pictures=pictures,
        facts=_facts(results),
        command=shlex.join(results.argv) or "tower ablate ...",
        settings={cell.label: _settings(cell) for cell in cells},
        specs={cell.label: json.dumps(to_spec(parse(cell.tower)), indent=1) for cell in cells},
        machines=_machines(findings),
        hours=f"{took / 3600:.2g}" if took else "",
        measures=list(MEASURES),
        spent=SPENT,
        long=LONG,
    )


def _facts(results: Results) -> dict[str, str]:
    request = results.request
    return {
        "depths": ", ".join(map(str, request.depths)),
        "seeds": str(request.seeds),
        "budget of a run": f"{number(request.budget.amount)} {request.budget.unit}",
        "report problems": str(request.problems),
        "steps of a use": str(request.steps),
        "begun": results.when[:10],
    } | {name: ", ".join(values) for name, values in request.grid}


def _settings(cell: Cell) -> list[str]:
    """What each seed came to, in notation."""
    runs = cell.done.itertuples()
    return [f"seed {run.seed}: {run.facts['setting']}" for run in runs if "setting" in run.facts]


def _machines(findings: Findings) -> list[str]:
    """Versions and machines of the runs that are done."""
    columns = findings.done[["version", "torch", "python", "machine", "threads"]].drop_duplicates()
    return sorted(
        f"descent-tower {run.version}, torch {run.torch}, Python {run.python}, {run.machine}, "
        f"{plural(int(run.threads or 1), 'thread')} a run"
        for run in columns.itertuples()
    )
