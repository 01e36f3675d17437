"""The probe's findings for people: a table and a sentence a level in the terminal, and a picture of the growth."""

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from recursion.analysis.probe import LIMIT, LevelGrowth
from recursion.evaluation.reporting import COLOURS, Axes, finish, interval_text, make_folder
from recursion.evaluation.reporting import picture as drawn
from recursion.files import replace_file

NOTE = (
    "Growth of a perturbation for each update, as a natural logarithm: in the run, and where gradients are data. "
    "Then by what factor it grows over a window, over the horizon, and over what the level's gradient is "
    f"backpropagated through; there, factors above {LIMIT:g} swamp it in noise."
)


def table(growths: Sequence[LevelGrowth]) -> Table:
    """One row a level; for those below the topmost, growth where gradients are data as well."""
    rows = Table(box=SIMPLE_HEAD, pad_edge=False)
    for heading in ("level", "unroll", "growth [95%]", "as data [95%]", "window", "horizon", "gradient", "run is"):
        rows.add_column(escape(heading), justify="left" if heading in ("level", "run is") else "right")
    for each in growths:
        factors = (each.over_window, each.over_horizon, each.in_gradient)
        rows.add_row(
            escape(f"{each.level} {each.name}"),
            str(each.unroll),
            *("" if rate is None else escape(interval_text(rate)) for rate in (each.growth, each.as_data)),
            *("" if factor is None else f"{factor:.3g}" for factor in factors),
            each.verdict,
        )
    return rows


def write(growths: Sequence[LevelGrowth], title: str, directory: Path, console: Console) -> None:
    """Print the table and a sentence a level, and write ``probe.png`` to ``directory``, made if missing.

    Raises OSError with the file's name if it cannot be written.
    """
    make_folder(directory)
    console.print(table(growths))
    for each in growths:
        console.print(f"level {each.level}: {each.advice}", markup=False, highlight=False)
    console.print(NOTE, style="dim", markup=False, highlight=False)
    replace_file(directory / "probe.png", picture(growths, title))


def picture(growths: Sequence[LevelGrowth], title: str) -> bytes:
    """PNG: size of the perturbation against updates, one panel a level, with the line of the measured rate."""
    return drawn((title,), [partial(_panel, each) for each in growths], height=3.4, rest=1.0, legend=2)


def _panel(each: LevelGrowth, axes: Axes) -> None:
    axes.plot(_factors(each.path), color="black", linewidth=1.8, label="perturbation of the run")
    line = [each.path[each.aligned] + each.growth.value * t for t in range(len(each.path) - each.aligned)]
    counted, style = range(each.aligned, len(each.path)), {"linewidth": 1.4}
    axes.plot(counted, _factors(line), color=COLOURS[5], linestyle="--", label="exp(growth t)", **style)
    if each.path_as_data is not None:
        data = _factors(each.path_as_data)
        axes.plot(data, color=COLOURS[0], linestyle="-.", label="with gradients as data", **style)
    axes.axvspan(0, each.aligned, color="0.93", linewidth=0, label="aligning, not counted")
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, 0.3), max(high, 3.0))
    title = f"level {each.level}: {each.name}@{each.unroll}, {each.verdict}"
    finish(axes, title, "updates", "size, 1 at the start")


def _factors(logs: Sequence[float]) -> list[float]:
    """Factors of logs; gaps where a picture cannot hold them."""
    return [math.exp(log) if abs(log) < 600 else math.nan for log in logs]
