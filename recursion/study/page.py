"""The page of an ablation: one HTML file that needs no network, no script and no font of its own.

Everything that comes from a store is escaped. Pictures are inline SVG whose colours are variables, so the page is light
or dark as the reader's system is; wide tables scroll in their own box.
"""

import json
import math
import shlex
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from importlib.resources import files

from recursion.study import tables
from recursion.study.comparing import BASELINES
from recursion.study.drawing import Picture, colours
from recursion.study.findings import Findings
from recursion.study.request import Budget
from recursion.study.results import Results
from recursion.study.tables import Table
from recursion.study.words import capital, number, plural

SECTIONS = {
    "sensitivity": "Sensitivity against height",
    "results": "What each cell comes to",
    "levels": "Another level, pair by pair",
    "cost": "What it cost, and when it is paid back",
    "training": "Training",
    "honesty": "Why to believe it",
    "failed": "Runs that failed",
    "again": "Do it again",
}
PLACES = {
    "mean-loss-by-depth": "results", "curves": "results", "final-loss-by-depth": "levels", "sensitivity": "sensitivity",
    "robust": "sensitivity", "time": "sensitivity", "cost-benefit": "cost", "ledger": "cost", "training": "training",
    "gaps": "honesty",
}  # fmt: skip
TITLE = "Does another level pay?"
OF_STEP_SIZES = "Does height forgive a wrong step size?"
METHOD = """\
Losses are interquartile means: of the middle half of all runs, so that neither a lucky problem nor a diverged run
decides (Agarwal et al. 2021, arXiv 2108.13264). A training that diverged counts as an infinite loss on every problem
and is never dropped.

Intervals are 95%, by a bootstrap that draws training seeds and problems anew, the same problems for all cells; they are
widened to what few seeds can say (Student's t), and hold for other seeds and other problems. With one seed they hold
for that seed only; with two or three they cover about 90%.

Differences are paired by problem and seed. The probability of improvement is how often the first of two is lower on the
same problem with the same seed; ties count half. Intervals are not corrected for how many comparisons there are.

The best cell is chosen on select problems and judged on report problems.
"""


def page(results: Results, findings: Findings, pictures: Sequence[Picture]) -> str:
    """The whole page as text."""
    bodies = {name: "".join(_section(name, results, findings, pictures)) for name in SECTIONS}
    kept = {name: body for name, body in bodies.items() if body}
    links = "".join(f'<li><a href="#{name}">{SECTIONS[name]}</a></li>' for name in kept)
    sections = "".join(
        f'<section id="{name}" aria-label="{SECTIONS[name]}"><h2>{SECTIONS[name]}</h2>{body}</section>'
        for name, body in kept.items()
    )
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{_title(findings)} '
        f"{escape(results.request.tower)}</title>"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,"><style>{_css()}</style>'
        "</head>\n"
        f"<body>{_header(results, findings)}\n<main>{_banners(results.request.budget, findings)}"
        f'<nav aria-label="Contents"><ul>{links}</ul></nav>\n{sections}</main>\n{_footer(results)}</body></html>\n'
    )


def _title(findings: Findings) -> str:
    """The question: about depth, or, if there is only a grid of step sizes, about these."""
    return OF_STEP_SIZES if findings.sensitivities and not findings.comparisons else TITLE


def _css() -> str:
    """The style, and every picture's colours in light and in dark."""
    style = files("recursion.study").joinpath("page.css").read_text()
    light = "".join(f"--c{colour[1:]}:{colour};" for colour in colours())
    dark = "".join(f"--c{colour[1:]}:{other};" for colour, other in colours().items())
    return f"{style}\n:root{{{light}}}\n@media screen and (prefers-color-scheme: dark){{:root{{{dark}}}}}"


def _header(results: Results, findings: Findings) -> str:
    request = results.request
    facts = {
        "depths": ", ".join(map(str, request.depths)),
        "seeds": str(request.seeds),
        "budget of a run": f"{number(request.budget.amount)} {request.budget.unit}",
        "report problems": str(request.problems),
        "steps of a use": str(request.steps),
        "begun": results.meta.get("when", "")[:10],
    } | {name: ", ".join(values) for name, values in request.grid}
    rows = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in facts.items() if v)
    answer = "".join(f"<p>{escape(sentence)}</p>" for sentence in findings.answer)
    return (
        f'<header><p class="over">Ablation on recursion depth</p><h1>{_title(findings)}</h1>'
        f'<p class="tower"><code>{escape(request.tower)}</code></p><dl class="facts">{rows}</dl>'
        f'<section class="answer" aria-label="Answer"><h2>In three sentences</h2>{answer}</section></header>'
    )


def _banners(budget: Budget, findings: Findings) -> str:
    """What a reader must know before anything else."""
    made = [("bad", "Alarm.", capital(alarm) + ".") for alarm in findings.alarms]
    if not findings.alarms and findings.gaps:
        made.append(("good", "No alarm.", "What improved on train and select problems improved on report problems."))
    made += [("wait", "Note.", text) for text in tables.caveats(budget, findings)]
    return "".join(f'<p class="banner {kind}"><strong>{head}</strong> {escape(text)}</p>' for kind, head, text in made)


def _section(name: str, results: Results, findings: Findings, pictures: Sequence[Picture]) -> Iterator[str]:
    drawn = [each for each in pictures if _place(each) == name]
    if name == "levels":
        yield from _pairs(findings)
    if name == "honesty":
        yield from _honesty(results, findings)
    if drawn:
        yield f'<div class="figures">{"".join(map(_figure, drawn))}</div>'
    if name == "cost":
        yield _listed(each.sentence for each in findings.break_even)
    if name == "sensitivity":
        yield _listed(sentence for found in findings.sensitivities for sentence in found.sentences)
    for made in tables.of(name, findings):
        folded = f"<details><summary>{escape(made.caption)}</summary>{_table(made)}</details>"
        yield _table(made) if made.open else folded
    if name == "again":
        yield from _again(results)


def _place(picture: Picture) -> str:
    return next(place for start, place in PLACES.items() if picture.name.startswith(start))


def _pairs(findings: Findings) -> Iterator[str]:
    """A list for each factor, the verdict of each pair in front."""
    titles = {"depth": "One level more", BASELINES: "Against the tuned baseline"}
    for factor in dict.fromkeys(each.factor for each in findings.comparisons):
        items = [
            f"<li>{escape(capital(each.subject))}: <strong>{each.verdict}</strong>; {escape(each.details)}.</li>"
            for each in findings.comparisons
            if each.factor == factor
        ]
        yield f"<h3>{escape(titles.get(factor, factor))}</h3><ul>{''.join(items)}</ul>"


def _honesty(results: Results, findings: Findings) -> Iterator[str]:
    request = results.request
    yield (
        "<p>Problems are in three splits. <strong>Train</strong> problems train the optimizers. "
        f"<strong>Select</strong> problems ({request.select}) choose among "
        f"{plural(request.snapshots, 'snapshot')} of each training, and among settings of hand-made rules. "
        f"<strong>Report</strong> problems ({request.problems}) are looked at once, by what was chosen; "
        "all cells see the very same ones.</p>"
    )
    checked = f"{plural(findings.checked, 'run')} checked" if findings.checked else "no run checked yet"
    items = [
        "Alarm: " + (f"{plural(len(findings.alarms), 'alarm')}, see above." if findings.alarms else "none."),
        f"No reported problem may have been trained on: {checked}"
        + (
            ", none was."
            if findings.checked and not any("was trained on" in alarm for alarm in findings.alarms)
            else "."
        ),
        *(f"Guard: {each.sentence}." for each in findings.guards if each.rescued),
    ]
    if findings.guards and not any(each.rescued for each in findings.guards):
        uses = plural(sum(each.uses for each in findings.guards), "use")
        items.append(f"Guard: none of {uses} had to fall back to the hand-made optimizer.")
    yield _listed(items) + "<h3>How the numbers are made</h3>" + _listed(METHOD.split("\n\n"))


def _again(results: Results) -> Iterator[str]:
    words = json.loads(results.meta.get("argv") or "[]")
    command = shlex.join(map(str, words)) if words else "tower ablate ..."
    yield (
        "<p>The same command finds the same numbers, times apart, and goes on where it was if it is stopped:</p>"
        f'<pre class="command"><code>{escape(command)}</code></pre><p>Every measurement, one row each:</p>'
        "<pre><code>pandas.read_sql(&quot;select * from results&quot;, sqlite3.connect(&quot;ablation.db&quot;))"
        "</code></pre>"
    )
    for cell in results.cells:
        chosen = [f"seed {run.seed}: {run.facts['setting']}" for run in cell.done if "setting" in run.facts]
        spec = next((run.spec for run in cell.runs if run.spec), "{}")
        yield (
            f"<details><summary>{escape(cell.label)}: <code>{escape(cell.tower)}</code></summary>"
            f"{_listed(dict.fromkeys(chosen))}<pre><code>{escape(_pretty(spec))}</code></pre></details>"
        )


def _figure(picture: Picture) -> str:
    return (
        f'<figure><div role="img" aria-label="{escape(picture.alt)}">{picture.svg}</div>'
        f"<figcaption>{escape(picture.caption)}</figcaption></figure>"
    )


def _table(made: Table) -> str:
    head = "".join(_head("col", title) for title in made.head)
    rows = "".join(f"<tr>{_head('row', row[0])}{''.join(map(_cell, row[1:]))}</tr>" for row in made.rows)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(made.caption)}"><table>'
        f"<caption><span>{escape(made.caption)}</span></caption><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _head(scope: str, cell: tables.Entry) -> str:
    look = f' class="{cell.look}"' if cell.look else ""
    return f'<th scope="{scope}"{look}>{escape(cell.text)}</th>'


def _cell(cell: tables.Entry) -> str:
    small = f"<small>{escape(cell.small)}</small>" if cell.small else ""
    look = f' class="{cell.look}"' if cell.look else ""
    return f"<td{look}>{escape(cell.text)}{small}</td>"


def _footer(results: Results) -> str:
    runs = [run for cell in results.cells for run in cell.done]
    about = sorted(
        {
            f"descent-tower {run.version}, torch {run.torch}, Python {run.python}, {run.machine}, "
            f"{plural(run.threads or 1, 'thread')} a run"
            for run in runs
        }
    )
    took = sum(run.seconds or 0.0 for run in runs)
    time = f" Processor time of all runs: {took / 3600:.2g} hours." if math.isfinite(took) and took else ""
    return f"<footer><p>{escape('; '.join(about) or 'No run is done yet')}.{time}</p></footer>"


def _listed(sentences: Iterable[str]) -> str:
    items = "".join(f"<li>{escape(capital(sentence))}</li>" for sentence in sentences)
    return f"<ul>{items}</ul>" if items else ""


def _pretty(text: str) -> str:
    try:
        return json.dumps(json.loads(text), indent=1)
    except ValueError:
        return text
