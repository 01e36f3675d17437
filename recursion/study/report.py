"""``tower report``: what an ablation found, in the terminal, as a page, and as pictures beside it."""

from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from recursion.files import explained, replace_file
from recursion.study import tables
from recursion.study.findings import Findings, Line, find
from recursion.study.page import page
from recursion.study.pictures import pictures
from recursion.study.request import Budget
from recursion.study.results import read
from recursion.study.words import capital, interval, share

PAGE = "report.html"


def write(folder: Path, console: Console, out: Path | None = None) -> list[Path]:
    """Print what the ablation in ``folder`` found and write its page and pictures; the paths that were written.

    ``out``: the page, ``report.html`` in the folder by default; pictures go beside it. Each file replaces an older one
    as a whole. Unfinished ablations are reported as far as they are. Raises ValueError, in one line, for a store that
    is empty or of another kind; OSError, saying which file, if one cannot be read or written.
    """
    results = read(folder)
    findings = find(results)
    show(results.request.budget, findings, console)
    target = folder / PAGE if out is None else out
    with explained("make", target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
    drawn = list(pictures(results, findings))
    written = [target]
    for picture in drawn:
        path = target.parent / f"{picture.name}.png"
        replace_file(path, picture.png)
        written.append(path)
    replace_file(target, page(results, findings, drawn).encode())
    return written


def show(budget: Budget, findings: Findings, console: Console) -> None:
    """The table and the sentences, in the terminal."""
    shown = [line for line in findings.lines if tables.plain(line)]
    if any(line.losses for line in shown):
        console.print(_table(findings))
    for made in (tables.robust(findings), tables.failed(findings)):
        if made.rows:
            console.print(_rich(made))
    for sentence in findings.answer:
        console.print(sentence, style="bold", markup=False, highlight=False)
    console.print()
    for sentence in tables.sentences(findings):
        console.print(capital(sentence), markup=False, highlight=False)
    for alarm in findings.alarms:
        console.print(f"Alarm: {alarm}.", style="bold red", markup=False, highlight=False)
    for sentence in tables.caveats(budget, findings):
        console.print(f"Note: {sentence}", style="dim", markup=False, highlight=False)


def _table(findings: Findings) -> Table:
    """One row a cell, the lowest of each loss in bold; step sizes of a grid have a table of their own."""
    made = Table(title="on report problems", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for heading in ("cell", "mean loss [95%]", "final loss [95%]", "< one less", "< baseline", "cost", "runs"):
        made.add_column(escape(heading), justify="left" if heading == "cell" else "right", no_wrap=True)
    lines = [line for line in findings.lines if tables.plain(line)]
    for line in lines:
        cost = "" if line.ledger is None else f"{line.ledger.spent:.3g}"
        pairs = [
            "" if each is None else escape(share(each.contrasts["mean loss"].improvement))
            for each in (line.below, line.baseline)
        ]
        losses = [_loss(line, lines, measure) for measure in ("mean loss", "final loss")]
        made.add_row(escape(line.cell.label), *losses, *pairs, cost, f"{len(line.cell.done)}/{len(line.cell.runs)}")
    return made


def _loss(line: Line, lines: list[Line], measure: str) -> str:
    if measure not in line.losses:
        return ""
    text = escape(interval(line.losses[measure]))
    lowest = min(each.losses[measure].value for each in lines if measure in each.losses)
    return f"[bold]{text}[/bold]" if line.losses[measure].value == lowest else text


def _rich(made: tables.Table) -> Table:
    table = Table(title=escape(made.caption), title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for index, heading in enumerate(made.head):
        table.add_column(escape(heading.text), justify="right" if index and not heading.look else "left")
    for row in made.rows:
        table.add_row(*(escape(f"{each.text} ({each.small})" if each.small else each.text) for each in row))
    return table
