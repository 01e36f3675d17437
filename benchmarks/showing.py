"""Results of a benchmark as JSON, tables and a picture."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from rich.table import Table

from benchmarks.harness import Row, Spread, fastest_peer, ours, ratios

MEGA = 1e6


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        models = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
        cpu = models[0] if models else cpu
    processors = len(os.sched_getaffinity(0))
    return {"cpu": cpu, "processors": processors, "system": platform.platform(), "python": platform.python_version()}


def as_result(title: str, rounds: int, variants: dict[str, tuple[dict[str, Any], dict[str, Row]]]) -> dict[str, Any]:
    """Everything that was found, as it is kept: seconds, bytes, and each side's rounds."""
    versions: dict[str, str] = {}
    found = {}
    for label, (settings, rows) in variants.items():
        peer = fastest_peer(rows)
        sides = {}
        for side, row in rows.items():
            versions |= row.versions
            sides[side] = {key: value for key, value in asdict(row).items() if key != "versions"}
            if row.seconds:
                sides[side]["step"] = Spread.of(row.seconds).list()
            if row.seconds and peer:
                sides[side]["ratio"] = Spread.of(list(ratios(row, rows[peer]))).list()
        found[label] = {"settings": settings, "fastest peer": peer, "sides": sides}
    result = {"title": title, "machine": machine(), "versions": versions, "load at the end": os.getloadavg()}
    return result | {"rounds": rounds, "spread": "median, lower quartile, upper quartile", "variants": found}


def table(label: str, found: dict[str, Any]) -> Table:
    """One variant: a row for each side that was timed."""
    peer = found["fastest peer"]
    shown = Table(title=label, title_justify="left", title_style="bold")
    shown.add_column("side", no_wrap=True)
    for head in ("ms a step", f"x {peer or 'peer'}", "cpu ms", "build s", "first step s", "peak MB", "with warm-up"):
        shown.add_column(head, justify="right")
    shown.add_column("differs by", justify="right")
    for side, row in found["sides"].items():
        if row["seconds"]:
            shown.add_row(side, *cells(row), style="bold" if ours(side) else None)
    return shown


def cells(row: dict[str, Any]) -> list[str]:
    """A row's columns; quartiles in brackets."""
    middle, low, high = (1e3 * s for s in row["step"])
    ratio = row.get("ratio")
    return [
        f"{middle:.3g} ({low:.3g}-{high:.3g})",
        f"{ratio[0]:.2f} ({ratio[1]:.2f}-{ratio[2]:.2f})" if ratio else "",
        f"{1e3 * median(row['cpu']):.3g}",
        f"{row['build']:.1f}",
        f"{row['first']:.2f}",
        f"{row['peak'] / MEGA:.0f}",
        f"{row['peak_warm'] / MEGA:.0f}",
        f"{max(row['differs'].values()):.0e}" if row["differs"] else "(first)",
    ]


def missing(found: dict[str, Any]) -> list[str]:
    """Why sides have no row, a line each; those that have none by their nature are not spoken of."""
    rows = found["sides"].items()
    return [f"{side}: {row['why']}" for side, row in rows if not row["seconds"] and not row["unsupported"]]


def draw(result: dict[str, Any], path: Path) -> None:
    """Bars of time and of memory, a row of panels a variant; whiskers are quartiles, ratios are to the fastest peer."""
    variants = result["variants"]
    timed = max(sum(bool(row["seconds"]) for row in found["sides"].values()) for found in variants.values())
    size = (14, len(variants) * (0.42 * timed + 1.1) + 0.5)
    figure, panels = plt.subplots(len(variants), 2, figsize=size, layout="constrained", squeeze=False)
    figure.suptitle(f"{result['title']}\n{result['machine']['cpu']}, {result['rounds']} rounds", fontsize=11)
    for (label, found), (left, right) in zip(variants.items(), panels):
        draw_times(left, label, found)
        draw_peaks(right, found)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def shown_rows(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The sides that were timed, ours first."""
    rows = {side: row for side, row in found["sides"].items() if row["seconds"]}
    return dict(sorted(rows.items(), key=lambda item: (not ours(item[0]), item[1]["step"][0])))


def colors(rows: dict[str, Any]) -> list[str]:
    return ["C1" if ours(side) else "C0" for side in rows]


def draw_times(axes: Axes, label: str, found: dict[str, Any]) -> None:
    rows = shown_rows(found)
    steps = [[1e3 * s for s in row["step"]] for row in rows.values()]
    whiskers = [[m - low for m, low, _ in steps], [high - m for m, _, high in steps]]
    axes.barh(list(rows), [m for m, _, _ in steps], xerr=whiskers, color=colors(rows), capsize=3, ecolor="0.3")
    for place, (row, (middle, _, high)) in enumerate(zip(rows.values(), steps)):
        note = f"{middle:.3g} ms" + (f", x{row['ratio'][0]:.2f}" if "ratio" in row else "")
        axes.annotate(note, (high, place), (5, 0), textcoords="offset points", va="center", fontsize=9)
    finish(axes, f"{label}: time of a step", f"ms a step (x: over {found['fastest peer']}, within a round)")


def draw_peaks(axes: Axes, found: dict[str, Any]) -> None:
    rows = shown_rows(found)
    peaks = [row["peak"] / MEGA for row in rows.values()]
    bars = axes.barh(list(rows), peaks, color=colors(rows))
    axes.bar_label(bars, [f"{peak:.0f} MB" for peak in peaks], padding=4, fontsize=9)
    finish(axes, "peak memory of timed steps", "MB beyond the process after its imports")


def finish(axes: Axes, title: str, label: str) -> None:
    axes.set(title=title, xlabel=label)
    axes.invert_yaxis()
    axes.margins(x=0.25)
    axes.set_xlim(0, max(axes.get_xlim()[1], 1e-9))
    axes.spines[["top", "right"]].set_visible(False)
