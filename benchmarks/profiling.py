"""Where the time of a tower goes: by function of this project, and by torch operation.

    python -m benchmarks W1 --profile [--out benchmarks/results]

Two runs of the same steps. Under cProfile, the time of torch's own functions counts for the function of this project
that called them, directly or through torch's Python; under torch's profiler, each operation counts without those that
it calls, and what is left of the wall clock is Python and what this project has in C++. Both profilers slow what they
watch: a picture has their shares of the processor time of a step without either. Plain steps and accelerated ones
(`recursion.accelerate`) are drawn side by side and, where numbers from before a change lie beside them, as
``profile_w1_before.json``, those too. One thread.
"""

import cProfile
import json
import pstats
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes

from recursion import Tower
from recursion.accelerate import accelerate
from recursion.notation import parse

TOWERS = {
    "w1": "quadratic: lstm@20[batch=128, horizon=none] / adam",
    "depth3": "quadratic: lstm@20[batch=16] / lstm(scale=0.02)@5[batch=2, horizon=200] / adam",
}
OURS = ("levels", "recursion")
OUTSIDE = "Python, and C++ of our own"
COLORS = {"before": "0.75", "plain": "C1", "accelerated": "C0"}
SHOWN = 12
Caller = tuple[str, int, str]


def profile(name: str, out: Path, *, steps: int = 20, suffix: str = "") -> Path:
    """Profile a tower of `TOWERS` and write ``profile_NAME.json`` and ``.png`` into ``out``; returns the picture."""
    torch.set_num_threads(1)
    tower, runs = parse(TOWERS[name]), {}
    for how in ("plain", "accelerated"):
        runs[how] = measure(accelerate(tower) if how == "accelerated" else tower, steps)
    out.mkdir(parents=True, exist_ok=True)
    (out / f"profile_{name}{suffix}.json").write_text(json.dumps({"tower": repr(tower), **runs}, indent=1) + "\n")
    before = out / f"profile_{name}_before.json"
    if before.exists() and not suffix:
        runs = {"before": json.loads(before.read_text())} | runs
    picture = out / f"profile_{name}{suffix}.png"
    draw(repr(tower), runs, picture)
    return picture


def measure(tower: Tower, steps: int) -> dict[str, Any]:
    """Milliseconds a step: alone, by function and by operation."""
    state = tower.init(seed=0)
    for _ in range(3):
        state, _ = tower.step(state)
    times = []
    for _ in range(steps):
        begin = time.process_time()
        state, _ = tower.step(state)
        times.append(1e3 * (time.process_time() - begin))
    functions, operations = by_function(tower, state, steps), by_operation(tower, state, steps)
    times.sort()
    return {"ms": times[len(times) // 2], "functions": functions, "operations": operations}


def by_function(tower: Tower, state: Any, steps: int) -> dict[str, float]:
    """Milliseconds a step spent in each function of this project, torch's functions counting for their callers."""
    profiler = cProfile.Profile(time.process_time)
    profiler.enable()
    for _ in range(steps):
        state, _ = tower.step(state)
    profiler.disable()
    stats: dict[Caller, Any] = pstats.Stats(profiler).stats  # type: ignore[attr-defined]
    spent: defaultdict[str, float] = defaultdict(float)
    for function, (_, _, own, _, callers) in stats.items():
        for owner, share in owners(function, callers, stats).items():
            spent[owner] += 1e3 * own * share / steps
    return ranked(spent)


def owners(function: Caller, callers: dict[Caller, Any], stats: dict[Caller, Any], depth: int = 8) -> dict[str, float]:
    """Whose time a function's own time is, in shares: its own if it is ours, else its callers'."""
    path = Path(function[0])
    if any(part in OURS for part in path.parts[:-1]):
        return {f"{path.stem}.{function[2]}": 1.0}
    total = sum(entry[2] for entry in callers.values())
    if not total or not depth:
        return {"outside": 1.0}
    shares: defaultdict[str, float] = defaultdict(float)
    for caller, entry in callers.items():
        for owner, share in owners(caller, stats[caller][4], stats, depth - 1).items():
            shares[owner] += share * entry[2] / total
    return shares


def by_operation(tower: Tower, state: Any, steps: int) -> dict[str, float]:
    """Milliseconds a step in each torch operation by itself, and outside of them."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        begin = time.perf_counter()
        for _ in range(steps):
            state, _ = tower.step(state)
        wall = 1e3 * (time.perf_counter() - begin) / steps
    spent: defaultdict[str, float] = defaultdict(float)
    for event in profiler.key_averages():
        spent[event.key.removeprefix("aten::")] += event.self_cpu_time_total / 1e3 / steps
    spent[OUTSIDE] = max(0.0, wall - sum(spent.values()))
    return ranked(spent)


def ranked(spent: dict[str, float]) -> dict[str, float]:
    """Largest first."""
    return dict(sorted(spent.items(), key=lambda item: -item[1]))


def draw(tower: str, runs: dict[str, dict[str, Any]], path: Path) -> None:
    """Bars of the largest entries, the shares of a step written on them."""
    figure, panels = plt.subplots(1, 2, figsize=(15, 2 + 2.2 * len(runs)), layout="constrained")
    times = ", ".join(f"{how} {found['ms']:.1f} ms" for how, found in runs.items())
    figure.suptitle(f"{tower}\nprocessor time of a step: {times}", fontsize=11)
    for axes, kind in zip(panels, ("functions", "operations")):
        draw_bars(axes, {how: scaled(found, kind) for how, found in runs.items()})
        axes.set(title=f"by {kind[:-1]}", xlabel="ms a step (share of it)")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def scaled(found: dict[str, Any], kind: str) -> dict[str, float]:
    """The shares of the watched steps, as milliseconds of a step that nobody watches."""
    total = sum(found[kind].values())
    return {name: found["ms"] * ms / total for name, ms in found[kind].items()}


def draw_bars(axes: Axes, runs: dict[str, dict[str, float]]) -> None:
    most: defaultdict[str, float] = defaultdict(float)
    for spent in runs.values():
        for name, ms in spent.items():
            most[name] = max(most[name], ms)
    names, height = list(ranked(most))[:SHOWN], 0.8 / len(runs)
    for number, (how, spent) in enumerate(runs.items()):
        total = sum(spent.values())
        shown = [spent.get(name, 0.0) for name in names]
        shown.append(total - sum(shown))
        places = [i + number * height for i in range(len(shown))]
        bars = axes.barh(places, shown, height, color=COLORS[how], label=how)
        axes.bar_label(bars, [f"{ms:.2f} ({ms / total:.0%})" if ms else "" for ms in shown], padding=3, fontsize=7)
    axes.set_yticks([i + 0.4 - height / 2 for i in range(len(names) + 1)], [*names, "all others"])
    axes.invert_yaxis()
    axes.margins(x=0.18)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower right")
