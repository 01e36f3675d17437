"""The page of a study, from the template ``page.html.j2``, which has its words and tables."""

import base64
import json
import math
import re
import shlex
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, FunctionLoader, StrictUndefined

from recursion.notation import parse
from recursion.spec import to_spec
from recursion.study import words
from recursion.study.drawing import Picture
from recursion.study.findings import Findings
from recursion.study.results import MEASURES, SPENT
from recursion.study.sensitivity import WITHIN

LONG = 16  # rows from which a table is folded away
MACHINE = ["version", "torch", "python", "machine", "threads"]
FILTERS = ("bounds", "capital", "number", "plural", "seconds", "share", "size", "uses")


def page(folder: Path, findings: Findings, pictures: list[Picture]) -> str:
    """The whole page of the study in ``folder``, as text."""
    jinja = Environment(
        loader=FunctionLoader(lambda name: files("recursion.study").joinpath(name).read_text()),
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined,
    )  # fmt: skip
    jinja.filters |= {name: getattr(words, name) for name in FILTERS}
    jinja.filters["base64"] = lambda data: base64.b64encode(data).decode()
    jinja.tests["match"] = lambda text, pattern: re.match(pattern, text) is not None
    data = findings.data
    return jinja.get_template("page.html.j2").render(
        folder=folder, begun=data.when[:10], findings=findings, request=data.request, pictures=pictures,
        command=shlex.join(data.argv) or "tower ablate ...",
        specs={cell.label: json.dumps(to_spec(parse(cell.tower)), indent=1) for cell in data.cells},
        machines=list(findings.done[MACHINE].drop_duplicates().sort_values(MACHINE).itertuples()),
        hours=float(findings.done.seconds.sum()) / 3600,
        measures=list(MEASURES), spent=SPENT, long=LONG, within=WITHIN, infinity=math.inf,
    )  # fmt: skip
