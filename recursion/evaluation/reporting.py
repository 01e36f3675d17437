"""An evaluation for people: tables and verdicts in the terminal, pictures, and all numbers as JSON.

Pictures are drawn on a matplotlib ``Figure`` without its global state, so nothing here opens a window or a display.
"""

import io
import json
import math
import textwrap
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from recursion.evaluation.scenarios import Evaluation, Scenario
from recursion.evaluation.statistics import Estimate
from recursion.files import explained, replace_file
from recursion.metrics import FILE as METRICS

Axes = Any  # matplotlib's, which is imported where something is drawn
# Okabe and Ito (2008), "Color universal design": distinct with any colour vision. Line styles differ too.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
DASHES = ("--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))
TITLES = {"final": "final loss", "mean": "mean loss"}
DPI = 130
DIVERGING = 100  # times the loss at the start: where the picture of losses ends
POINTS = 400  # most points of a line in the picture of training; more are averaged in groups


def write(evaluation: Evaluation, directory: Path, console: Console) -> None:
    """Print a table a scenario and write ``evaluation.json`` and ``losses.png`` to ``directory``, made if missing.

    ``training.png`` too, if the metrics of the training lie there. Each file replaces an older one as a whole. Raises
    OSError with the file's name if one cannot be written.
    """
    make_folder(directory)
    say = partial(console.print, markup=False, highlight=False)
    for scenario in evaluation.scenarios:
        console.print(table(scenario))
        for each in scenario.comparisons:
            gap, share = interval_text(each.difference), f"lower in {each.share_lower:.0%} of runs"
            say(f"{TITLES[each.measure]}: {each.verdict}; difference {gap}, {share}")
        console.print()
    for sentence in footnotes(evaluation):
        say(sentence, style="dim")
    replace_file(directory / "evaluation.json", (evaluation.to_json() + "\n").encode())
    replace_file(directory / "losses.png", losses_picture(evaluation))
    draw_training(evaluation.tower, directory)


def draw_training(tower: str, directory: Path) -> None:
    """Write ``training.png`` to ``directory``, if the metrics of a training lie there. OSError as above."""
    metrics = directory / METRICS
    if metrics.exists() and (records := list(_records(metrics))):
        replace_file(directory / "training.png", training_picture(tower, records))


def make_folder(directory: Path) -> None:
    """Make ``directory`` unless it is there; OSError with its name if that fails."""
    with explained("make", directory):
        directory.mkdir(parents=True, exist_ok=True)


def table(scenario: Scenario) -> Table:
    """What was learned first, then the baselines; the lowest of each column in bold.

    Step sizes and, if there are any, counts of diverged runs are those for final / mean loss.
    """
    title = f"{scenario.label}: {scenario.problems} problems of {scenario.task}, {scenario.steps} steps"
    rows = Table(title=escape(title), title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    rows.add_column("optimizer")
    diverged = any(measured.diverged for result in scenario.results for measured in result.measures.values())
    for heading in (*(f"{title} [95%]" for title in TITLES.values()), "step sizes", *["diverged"] * diverged):
        rows.add_column(heading, justify="right")
    best = {measure: min(result.measures[measure].mean.value for result in scenario.results) for measure in TITLES}
    for result in scenario.results:
        measures = [result.measures[measure] for measure in TITLES]
        texts = [escape(interval_text(each.mean)) for each in measures]
        lowest = [each.mean.value == best[name] for name, each in zip(TITLES, measures)]
        cells = [f"[bold]{text}[/bold]" if bold else text for text, bold in zip(texts, lowest)]
        cells.append(" / ".join(f"{each.step_size:.2g}" for each in measures if each.step_size is not None))
        cells += [" / ".join(str(each.diverged) for each in measures)] * diverged
        rows.add_row(escape(result.name), *cells)
    return rows


def footnotes(evaluation: Evaluation) -> Iterator[str]:
    """How to read the numbers, and what they cost."""
    yield (
        "Mean loss: of the losses after each step. Step sizes were tuned on validation problems, one for each measure "
        "(final / mean); verdicts are against the baseline that is best on the test problems."
    )
    seeds = evaluation.training_seeds
    over = f"problems and {seeds} training seeds" if seeds > 1 else "problems; one training, so not over training seeds"
    yield f"Intervals: 95% bootstrap over {over}."
    spent = ", ".join(f"{name} {count:,}" for name, count in evaluation.base_steps.items())
    yield f"Base steps, each copy counted: {spent}."
    for label, why in evaluation.refused.items():
        yield f"Left out: {label}: {why}."


def losses_picture(evaluation: Evaluation) -> bytes:
    """PNG: median loss with quartiles against steps, one panel a scenario."""
    panels = [partial(_losses_panel, scenario) for scenario in evaluation.scenarios]
    note = "median and quartiles over held-out problems, step sizes tuned for the mean loss"
    return picture((evaluation.tower, note), panels, height=3.5, rest=1.0, legend=3)


def _losses_panel(scenario: Scenario, axes: Axes) -> None:
    for number, result in enumerate(scenario.results):
        style: dict[str, Any] = {"color": "black", "linewidth": 2.6, "zorder": 3}
        if number:
            style = {"color": COLOURS[number - 1], "linewidth": 1.6, "linestyle": DASHES[number - 1]}
        low, median, high = (_drawable(line) for line in (result.curve.low, result.curve.median, result.curve.high))
        axes.plot(range(len(median)), median, label=result.name, **style)
        axes.fill_between(range(len(median)), low, high, color=style["color"], alpha=0.13, linewidth=0)
    drawn = [value for result in scenario.results for value in result.curve.median if math.isfinite(value)]
    finish(axes, f"{scenario.label} ({scenario.problems} problems)", "steps", "loss", drawn)
    start = scenario.results[0].curve.high[0]
    if drawn and max(drawn) > DIVERGING * abs(start):
        axes.set_ylim(top=DIVERGING * abs(start))


def training_picture(title: str, records: list[dict[str, Any]]) -> bytes:
    """PNG: the loss below each level against top steps, one panel a level; ``records`` as in ``metrics.jsonl``."""
    panels = [partial(_training_panel, level, records) for level in range(len(records[0]["losses"]))]
    return picture((title,), panels, height=3.2, rest=0.6, columns=4)


def _training_panel(level: int, records: list[dict[str, Any]], axes: Axes) -> None:
    group = math.ceil(len(records) / POINTS)
    losses = [math.inf if record["losses"][level] is None else record["losses"][level] for record in records]
    chunks = [losses[i : i + group] for i in range(0, len(losses), group)]
    means = [sum(chunk) / len(chunk) for chunk in chunks]
    axes.plot([record["step"] for record in records[::group]], _drawable(means), color="black", linewidth=1.4)
    steps = "top steps" if group == 1 else f"top steps (means of {group})"
    finish(axes, f"loss below level {level + 1}", steps, "loss", means)


def picture(
    title: Sequence[str], panels: Sequence[Callable[[Axes], None]], *, height: float, rest: float, columns: int = 3,
    legend: int = 0,
) -> bytes:  # fmt: skip
    """PNG: one panel of ``height`` for each function in ``panels``, which draws on its axes; ``columns`` at most.

    ``title``: lines above all panels. ``rest``: height beside the panels. ``legend``: its columns for each column of
    panels, 0 for none; it is that of the first panel.
    """
    from matplotlib.figure import Figure

    columns = min(len(panels), columns)
    rows = math.ceil(len(panels) / columns)
    figure, png = Figure(figsize=(4.6 * columns, height * rows + rest), layout="constrained"), io.BytesIO()
    for place, panel in enumerate(panels, 1):
        panel(figure.add_subplot(rows, columns, place))
    if legend:
        handles, labels = figure.axes[0].get_legend_handles_labels()
        most = min(legend * columns, len(labels))
        figure.legend(handles, labels, loc="outside lower center", ncols=most, frameon=False)
    figure.suptitle("\n".join(textwrap.fill(line, 48 * columns) for line in title), fontsize=11)
    figure.savefig(png, format="png", dpi=DPI)
    return png.getvalue()


def finish(axes: Axes, title: str, across: str, up: str, values: Sequence[float] = ()) -> None:
    """Words and lines around a panel; logarithmic where all ``values`` are above 0 and they span a decade."""
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    finite = [value for value in values if math.isfinite(value)]
    if finite and 0 < 10 * min(finite) < max(finite):
        axes.set_yscale("log")
    axes.grid(alpha=0.25)
    axes.margins(x=0.01)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def interval_text(estimate: Estimate) -> str:
    """``value [low, high]``, three digits each."""
    value, low, high = (
        f"{each:.3g}" if math.isfinite(each) else "inf" if each > 0 else "-inf" if each < 0 else "none"
        for each in (estimate.value, estimate.low, estimate.high)
    )
    return f"{value} [{low}, {high}]"


def _drawable(values: Sequence[float]) -> list[float]:
    """Infinite values as gaps."""
    return [value if math.isfinite(value) else math.nan for value in values]


def _records(path: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of a file of metrics, without a line that a killed process wrote in part."""
    with explained("read", path):
        lines = path.read_bytes().split(b"\n")[:-1]
    return (record for record in map(json.loads, lines) if record["losses"])
