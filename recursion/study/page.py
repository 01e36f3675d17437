"""The page of a study, from the template ``page.html.j2``, which has its words and tables."""

import json
import shlex
from pathlib import Path

from recursion.notation import parse
from recursion.spec import to_spec
from recursion.study.drawing import Picture
from recursion.study.findings import Findings
from recursion.study.measurements import MEASURES, SPENT
from recursion.study.results import Results
from recursion.study.templates import environment

LONG = 16  # rows from which a table is folded away
MACHINE = ["version", "torch", "python", "machine", "threads"]


def page(folder: Path, results: Results, findings: Findings, pictures: list[Picture]) -> str:
    """The whole page of the study in ``folder``, as text."""
    return environment().get_template("page.html.j2").render(
        folder=folder,
        begun=results.when[:10],
        findings=findings,
        request=results.request,
        pictures=pictures,
        command=shlex.join(results.argv) or "tower ablate ...",
        specs={cell.label: json.dumps(to_spec(parse(cell.tower)), indent=1) for cell in findings.data.cells},
        machines=list(findings.done[MACHINE].drop_duplicates().sort_values(MACHINE).itertuples()),
        hours=float(findings.done.seconds.sum()) / 3600,
        measures=list(MEASURES),
        spent=SPENT,
        long=LONG,
    )  # fmt: skip
