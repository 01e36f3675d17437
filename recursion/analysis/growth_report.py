"""What the probe found, for people: a table and a sentence a level in the terminal, and a picture of the growth.

Pictures are drawn on a matplotlib ``Figure`` without its global state, so nothing here opens a window or a display.
"""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from recursion.analysis.advice import LIMIT, short
from recursion.analysis.probe import LevelGrowth
from recursion.evaluate.reporting import COLOURS, DPI
from recursion.evaluate.statistics import Estimate
from recursion.files import explained, replace_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def table(found: Sequence[LevelGrowth]) -> Table:
    """One row a level; for those below the topmost, growth where gradients are data as well."""
    made = Table(box=SIMPLE_HEAD, pad_edge=False)
    for heading in ("level", "unroll", "growth [95%]", "as data [95%]", "window", "horizon", "gradient", "run is"):
        made.add_column(escape(heading), justify="left" if heading in ("level", "run is") else "right")
    for each in found:
        factors = (each.over_window, each.over_horizon, each.in_gradient)
        made.add_row(
            escape(f"{each.level} {each.name}"),
            str(each.unroll),
            escape(_interval(each.growth)),
            escape("" if each.as_data is None else _interval(each.as_data)),
            *("" if factor is None else short(factor) for factor in factors),
            each.verdict,
        )
    return made


def write(found: Sequence[LevelGrowth], title: str, directory: Path, console: Console) -> None:
    """Print the table and a sentence a level, and write ``probe.png`` to ``directory``, made if missing.

    Raises OSError, saying which file, if it cannot be written.
    """
    with explained("make", directory):
        directory.mkdir(parents=True, exist_ok=True)
    console.print(table(found))
    for each in found:
        console.print(f"level {each.level}: {each.advice}", markup=False, highlight=False)
    note = (
        "Growth of a perturbation for each update, as a natural logarithm: in the run, and where gradients are data. "
        "Then by what factor it grows over a window, over the horizon, and over what the level's gradient is "
        f"backpropagated through; there, factors above {LIMIT:g} swamp it in noise."
    )
    console.print(note, style="dim", markup=False, highlight=False)
    replace_file(directory / "probe.png", picture(found, title))


def picture(found: Sequence[LevelGrowth], title: str) -> bytes:
    """PNG: size of the perturbation against updates, one panel a level, with the line of the measured rate."""
    from matplotlib.figure import Figure

    columns = min(len(found), 3)
    rows = math.ceil(len(found) / columns)
    figure = Figure(figsize=(4.6 * columns, 3.4 * rows + 1.0), layout="constrained")
    for place, each in enumerate(found, 1):
        _panel(figure.add_subplot(rows, columns, place), each)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(columns + 1, 4), frameon=False)
    figure.suptitle(textwrap.fill(title, 48 * columns), fontsize=11)
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=DPI)
    return png.getvalue()


def _panel(axes: Axes, each: LevelGrowth) -> None:
    axes.plot(_factors(each.path), color="black", linewidth=1.8, label="perturbation of the run")
    line = [each.path[each.aligned] + each.growth.value * t for t in range(len(each.path) - each.aligned)]
    axes.plot(range(each.aligned, len(each.path)), _factors(line), color=COLOURS[5], linestyle="--", linewidth=1.4,
              label="exp(growth t)")  # fmt: skip
    if each.path_as_data is not None:
        axes.plot(_factors(each.path_as_data), color=COLOURS[0], linestyle="-.", linewidth=1.4,
                  label="with gradients as data")  # fmt: skip
    axes.axvspan(0, each.aligned, color="0.93", linewidth=0, label="aligning, not counted")
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, 0.3), max(high, 3.0))
    axes.set_title(f"level {each.level}: {each.name}@{each.unroll}, {each.verdict}", fontsize=10)
    axes.set_xlabel("updates")
    axes.set_ylabel("size, 1 at the start")
    axes.grid(alpha=0.25)
    axes.margins(x=0.01)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _factors(logs: Sequence[float]) -> list[float]:
    """Factors of logs; gaps where a picture cannot hold them."""
    return [math.exp(log) if abs(log) < 600 else math.nan for log in logs]


def _interval(rate: Estimate) -> str:
    return f"{rate.value:.3g} [{rate.low:.3g}, {rate.high:.3g}]"
