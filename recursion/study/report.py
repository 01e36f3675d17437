"""``tower report``: what a study found, in the terminal, as a page, and as pictures beside it.

The page is the template ``page.html.j2``, which has its words and tables.
"""

import base64
import json
import math
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from recursion.evaluation.reporting import make_folder
from recursion.files import replace_file
from recursion.notation import parse
from recursion.spec import to_spec
from recursion.study import words
from recursion.study.drawing import Picture
from recursion.study.findings import Findings, Line, lowest
from recursion.study.pictures import draw
from recursion.study.results import MEASURES, UNITS, load
from recursion.study.sensitivity import WITHIN

LONG = 16  # rows from which a table of the page is folded away
MACHINE = ["version", "torch", "python", "machine", "threads"]
FILTERS = ("bounds", "capital", "number", "plural", "seconds", "share", "size", "uses")
FACTORS = ("cell", "mean loss [95%]", "final loss [95%]", "< one less", "< baseline", "cost", "runs")
RANGES = [f"decades within {within:g} times the best" for within in WITHIN]
ROBUST = ("tower", *RANGES, "its best mean loss", "time of a step")


def write(folder: Path, console: Console, out: Path | None = None, trust: Sequence[str] = ()) -> list[Path]:
    """Print what the study in ``folder`` found and write its page and pictures; the paths that were written.

    ``out``: the page, ``report.html`` in the folder by default; pictures go beside it. ``trust``: as in `load`. Each
    file replaces an older one as a whole. Unfinished studies are reported as far as they are. Raises ValueError, in one
    line, for a folder that holds no study; OSError, saying which file, if one cannot be read or written.
    """
    findings = Findings(load(folder, trust))
    show(findings, console)
    target = folder / "report.html" if out is None else out
    make_folder(target.parent)
    pictures = draw(findings)
    contents = {target: page(folder, findings, pictures).encode()}
    contents |= {target.parent / f"{picture.name}.png": picture.png for picture in pictures}
    for path, content in contents.items():
        replace_file(path, content)
    return list(contents)


def page(folder: Path, findings: Findings, pictures: list[Picture]) -> str:
    """The whole page of the study in ``folder``, as text."""
    jinja = Environment(
        loader=PackageLoader("recursion.study", "."), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=StrictUndefined,
    )  # fmt: skip
    jinja.filters |= {name: getattr(words, name) for name in FILTERS}
    jinja.filters["base64"] = lambda data: base64.b64encode(data).decode()
    jinja.tests["match"] = lambda text, pattern: re.match(pattern, text) is not None
    data = findings.data
    return jinja.get_template("page.html.j2").render(
        folder=folder, started=data.when[:10], findings=findings, request=data.request, pictures=pictures,
        command=shlex.join(data.argv) or "tower ablate ...",
        specs={cell.label: json.dumps(to_spec(parse(cell.tower)), indent=1) for cell in data.cells},
        machines=list(findings.done[MACHINE].drop_duplicates().sort_values(MACHINE).itertuples()),
        hours=float(findings.done.seconds.sum()) / 3600,
        measures=list(MEASURES), lowest=lowest(findings.lines), long=LONG, ranges=ROBUST, infinity=math.inf,
    )  # fmt: skip


def show(findings: Findings, console: Console) -> None:
    """The tables and the sentences, in the terminal. A row a cell; step sizes of a grid have a table of their own."""
    cells = _cells(findings.plain) if any(line.losses for line in findings.plain) else ()
    counts = findings.failed.diverged.map({True: "infinite loss", False: "left out"})
    failed = zip(findings.failed.run, findings.failed.why, counts)
    robust = (
        (height.name, *(each.text for each in height.ranges), words.number(height.losses.min()),
         words.seconds(height.seconds.value) if height.seconds else "")
        for each in findings.sensitivities for height in each.heights
    )  # fmt: skip
    for title, heads, rows in (
        ("on report problems", FACTORS, cells),
        ("Robust range of step sizes, with the range over seeds", ROBUST, robust),
        ("Failed runs, and how they count", ("run", "why", "counts as"), failed),
    ):
        table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
        for head in heads:
            left = head in (heads[0], "why")
            table.add_column(escape(head), justify="left" if left else "right", no_wrap=heads is FACTORS)
        for row in rows:
            table.add_row(*(each if isinstance(each, Text) else escape(each) for each in row))
        if table.row_count:
            console.print(table)
    for style, sentences in (
        ("bold", [*findings.answer, ""]),
        ("", findings.sentences),
        ("bold red", [f"Alarm: {alarm}." for alarm in findings.alarms]),
        ("dim", [f"Note: {caveat}" for caveat in findings.caveats]),
    ):
        for sentence in sentences:
            console.print(sentence, style=style, markup=False, highlight=False)


def _cells(lines: Sequence[Line]) -> Iterator[list[Text | str]]:
    """A row a cell, the lowest of each loss in bold."""
    least = lowest(lines)
    for line in lines:
        bold = {m: "bold" if loss.value == least[m] else "" for m, loss in line.losses.items()}
        losses = [Text(words.interval(line.losses[m]), bold[m]) if m in bold else "" for m in MEASURES]
        pairs = ["" if each is None else words.share(each.main.improvement) for each in (line.lower, line.baseline)]
        cost = f"{line.ledger.paid[UNITS[0]]:.3g}" if len(line.cell.done) else ""
        yield [line.cell.label, *losses, *pairs, cost, f"{len(line.cell.done)}/{len(line.cell.runs)}"]
