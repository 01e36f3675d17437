"""Learned depth: how deep a tower ends where extra levels cannot help, and where hyperparameters start wrong by 10^3.

    python -m benchmarks.depth [--out benchmarks/results] [--effort 1.0]

Noisy quadratics under SGD, 100 steps from a fresh start; the loss is the mean of log f over them. Level 2 moves the
step size during these steps and is judged every 50 of them, level 3 moves the step size of level 2, level 4 that of
level 3; all are SGD, in linear space. Three families, told apart by where hyperparameters start:

- right: the step size that is best for all 100 steps. Moving it gains less than 0.0005, and a gate costs 0.0003;
- one wrong: the step size a thousandth of that;
- two wrong: that, and the step size of level 2 a thousandth of what serves.

On each, towers of depths 1 to 4, and one of four levels with gates between them (`recursion.group`), moved by SGD
under a level that does nothing else. All are given the same base steps, 5 seeds of 32 copies. What they end with (the
pruned tower, of the gated one, its half-open gates as they are, or rounded) then runs on held-out problems, with all
from level 2 on fixed. Trying every depth costs four runs, the gates one. Compared is with the depth that does best on
the held-out problems themselves. Noise, price and paces were chosen with other seeds, of training and of problems.

Last, gates that an LSTM moves: it begins with random weights, which Adam trains on the way (``lstm``, two levels).
"""

import argparse
import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor

from levels import LSTM, SGD, Adam, Fixed, Gated, Level, Linear, MeanLog, NoisyQuadratic, keys
from recursion import Tower, TowerState
from recursion.analysis.depth import gates
from recursion.analysis.pruning import prune
from recursion.evaluation.statistics import estimate
from recursion.group import Depth, gated_levels

TASK = NoisyQuadratic(noise=2.0)
LIFE, UNROLL, COPIES, SEEDS = 100, 50, 32, 5
RATES = (0.1, 0.01, 2e-4, 1e-6)  # step sizes of levels 1 to 4
FAMILIES = {"right": (1.0, 1.0), "one wrong": (1e-3, 1.0), "two wrong": (1e-3, 1e-3)}  # factors at levels 1 and 2
DEPTHS = (1, 2, 3, 4)
PRICE, PACE, STEPS = 0.0003, 8.0, 300  # of a base step; of the gates; windows of level 2
LSTM_UNROLL, LSTM_RATE = 5, 0.01
LEARNED = ("gated", "gated, rounded", "lstm", "lstm, rounded")
TRAINED, TRIED = 11, 12  # seeds, of training and of held-out problems
PROBLEMS = 64  # held-out, each 32 copies
IDLE, STILL = SGD(lr=Fixed(0.0)), SGD(lr=Linear(0.0))  # the latter has a parameter, so that a level can lie over it


def levels_of(family: str) -> list[Level]:
    """The four levels, without gates."""
    rules = [SGD(lr=Linear(rate * factor)) for rate, factor in zip(RATES, (*FAMILIES[family], 1.0, 1.0))]
    first = Level(optimizer=rules[0], objective=MeanLog())
    second = Level(optimizer=rules[1], unroll=UNROLL, horizon=LIFE, batch=COPIES)
    return [first, second, *(Level(optimizer=rule) for rule in rules[2:])]


def fixed(family: str, height: int) -> Tower:
    """A tower of so many levels that learn, the seeds side by side; a level that does nothing holds them together."""
    first, second, *rest = levels_of(family)
    moved = [second if height > 1 else dataclasses.replace(second, optimizer=STILL), *rest[: max(0, height - 2)]]
    return Tower(TASK, first, *moved, Level(optimizer=IDLE, batch=SEEDS))


def gated(family: str) -> Tower:
    """Four levels with gates, under a level that moves the last gate and nothing else."""
    settings = Depth(gates=SGD(lr=Fixed(PACE)), price=PRICE)
    return Tower(TASK, *gated_levels(TASK, levels_of(family), Level(optimizer=IDLE, batch=SEEDS), settings))


def gated_by_lstm(family: str) -> Tower:
    """Two levels with one gate, moved by an LSTM that Adam trains."""
    above = Level(optimizer=IDLE, unroll=LSTM_UNROLL, horizon=None, batch=1)
    settings = Depth(gates=LSTM(hidden=10, layers=1), price=PRICE)
    levels = gated_levels(TASK, levels_of(family)[:2], above, settings)
    return Tower(TASK, *levels, Level(optimizer=Adam(lr=LSTM_RATE), batch=SEEDS))


def train(tower: Tower, windows: int) -> dict[str, Any]:
    """The state after so many windows of level 2, and the gates on the way: ``[steps, gates, seeds]``."""
    state, begun, path = tower.init(seed=TRAINED), time.perf_counter(), []
    for _ in range(windows * UNROLL // int(tower.costs[-1])):
        state, _ = tower.step(state)
        path.append([by_seed(gate.each) for gate in gates(tower, state)])
    seconds = round(time.perf_counter() - begun, 1)
    print(f"{seconds:6.1f} s  {tower}", flush=True)
    return {"state": state, "gates": path, "seconds": seconds, "base steps": windows * UNROLL}


def by_seed(each: Tensor) -> list[float]:
    return [round(gate, 4) for gate in each.reshape(SEEDS, -1).mean(-1).tolist()]


# What is learned, at work on problems that nobody saw.


def held_out(tower: Tower, params: Tensor | None) -> list[float]:
    """Mean log loss on held-out problems, level 2 with these parameters ``[m]``; None: the step size stays put."""
    first, second = tower.levels[0], levels_of("right")[1]
    rule = IDLE if params is None else tower.levels[1].optimizer
    rule = dataclasses.replace(rule, price=0.0) if isinstance(rule, Gated) else rule
    level = Tower(TASK, first, dataclasses.replace(second, optimizer=rule)).bound[1].on("test")
    key = keys.split(keys.seed(TRIED), PROBLEMS)
    params = level.init(key) if params is None else params.expand(PROBLEMS, -1)
    return [round(loss, 6) for loss in (level.evaluate_from_scratch(params, key) / UNROLL).tolist()]


def of_fixed(tower: Tower, state: TowerState) -> list[list[float]]:
    """Held-out losses ``[seeds, problems]``."""
    trained = tower.carries(state)[2].x.reshape(SEEDS, -1)  # level 2's parameters, if it has any
    return [held_out(tower, params) for params in trained]


def of_gated(tower: Tower, state: TowerState, most: int, rounded: bool) -> tuple[list[int], list[list[float]]]:
    """What was learned and what it is worth: a depth each seed, ``most`` at most, and held-out losses.

    ``rounded``: gates that are open in part are pruned to open or closed; else they stay as they are.
    """
    depths, losses = [], []
    for copy in range(1, SEEDS + 1):
        shallow, left = prune(tower, state, rounded=rounded, copy=copy)
        depths.append(min(len(shallow.levels), most))  # what is above them moved gates, and nothing else
        params = [*(carry.x for carry in shallow.carries(left)[2:]), left.theta]
        losses.append(held_out(shallow, params[0].reshape(-1) if len(shallow.levels) > 1 else None))
    return depths, losses


def measure(family: str, windows: int) -> dict[str, Any]:
    """All numbers of a family."""
    found: dict[str, Any] = {"fixed": {}}
    for height in DEPTHS:
        tower = fixed(family, height)
        run = train(tower, windows)
        found["fixed"][height] = {"losses": of_fixed(tower, run.pop("state"))} | run
    towers = {"gated": (gated(family), 4)} | ({} if family == "two wrong" else {"lstm": (gated_by_lstm(family), 2)})
    for name, (tower, most) in towers.items():
        run = train(tower, windows)
        state = run.pop("state")
        for label, rounded in ((name, False), (f"{name}, rounded", True)):
            depths, losses = of_gated(tower, state, most, rounded)
            found[label] = {"tower": repr(tower), "depths": depths, "losses": losses} | run
    return found | compared(found)


def compared(found: dict[str, Any]) -> dict[str, Any]:
    """Every loss less that of the fixed depth that does best here: mean and 95% interval over seeds and problems."""
    means = {height: float(np.mean(run["losses"])) for height, run in found["fixed"].items()}
    best = min(means, key=means.__getitem__)
    theirs = np.array(found["fixed"][best]["losses"])
    runs = {f"depth {height}": run for height, run in found["fixed"].items()}
    runs |= {name: found[name] for name in LEARNED if name in found}
    gaps = {name: dataclasses.asdict(estimate(np.array(run["losses"]) - theirs)) for name, run in runs.items()}
    spent = sum(run["base steps"] for run in found["fixed"].values())
    return {"means": means, "best": best, "gaps": gaps, "cost": found["gated"]["base steps"] / spent}


# What is shown.


def show(family: str, found: dict[str, Any]) -> None:
    means = ", ".join(f"depth {height} {mean:.4f}" for height, mean in found["means"].items())
    print(f"{family}: held-out mean log loss: {means}; best is depth {found['best']}")
    gain = found["means"][1] - found["means"][found["best"]]
    for name in LEARNED:
        if name in found:
            gap, mean = found["gaps"][name], float(np.mean(found[name]["losses"]))
            spread = float(np.std(np.mean(found[name]["losses"], 1)))
            print(
                f"  {name}: depths {found[name]['depths']}, {mean:.4f}, over the best fixed depth by {gap['value']:.4f}"
                f" [{gap['low']:.4f}, {gap['high']:.4f}] (deviation over seeds {spread:.4f}); "
                f"the best gains {gain:.4f} on depth 1; {found['cost']:.0%} of what trying all depths costs"
            )


def draw_gates(axes: Axes, title: str, runs: dict[str, tuple[dict[str, Any], int, str]]) -> None:
    """One line for each seed; ``runs``: a run, which of its gates, and a colour, by label."""
    for label, (run, place, color) in runs.items():
        path = [gate[place] for gate in run["gates"]]
        steps = np.linspace(0, run["base steps"], len(path) + 1)
        drawn = axes.plot(steps, np.vstack([np.full((1, SEEDS), 0.5), np.array(path)]), color=color, lw=1, alpha=0.8)
        drawn[0].set_label(label)
    axes.set(title=title, xlabel="base steps", ylabel="how far it is open", ylim=(-0.03, 1.03))
    axes.legend(fontsize=8)


def draw_losses(axes: Axes, families: dict[str, dict[str, Any]]) -> None:
    for number, (family, found) in enumerate(families.items()):
        axes.plot(DEPTHS, list(found["means"].values()), "o--", color=f"C{number}", lw=1, mfc="none", label=family)
        for name, mark in (("gated", "*"), ("lstm", "^")):
            if name in found:
                mean, height = np.mean(found[name]["losses"]), np.mean(found[name]["depths"])
                axes.plot([height], [mean], mark, color=f"C{number}", ms=11)
    axes.plot([], [], "*", color="black", ms=10, label="gates moved by SGD")
    axes.plot([], [], "^", color="black", ms=9, label="gate moved by an LSTM")
    axes.set(title="held-out problems", xlabel="depth, as set or learned", ylabel="mean log loss", xticks=DEPTHS)
    axes.legend(fontsize=8)


def draw_gaps(axes: Axes, families: dict[str, dict[str, Any]]) -> None:
    for number, (family, found) in enumerate(families.items()):
        for place, gap in enumerate(found["gaps"].values()):
            at, bar = place + 0.2 * (number - 1), [[gap["value"] - gap["low"]], [gap["high"] - gap["value"]]]
            axes.errorbar([at], [gap["value"]], bar, fmt="o", color=f"C{number}", ms=4, capsize=3)
        axes.plot([], [], "o", color=f"C{number}", ms=4, label=family)
    names = max((found["gaps"] for found in families.values()), key=len)
    axes.set_xticks(range(len(names)), [name.replace(" ", "\n") for name in names])
    axes.set_yscale("symlog", linthresh=1e-3)
    axes.axhline(0, color="black", lw=0.8, ls=":")
    axes.set(title="over the best fixed depth, 95%", ylabel="difference in mean log loss")
    axes.legend(fontsize=8)


def draw(result: dict[str, Any], path: Path) -> None:
    families = result["families"]
    figure, panels = plt.subplots(2, 3, figsize=(15, 8), layout="constrained")
    for axes, (family, found) in zip(panels[0], families.items()):
        lines = {f"of level {place + 2}": (found["gated"], place, f"C{place + 3}") for place in range(3)}
        draw_gates(axes, f"gates, {family}", lines)
    by_lstm = {
        family: (found["lstm"], 0, f"C{n}") for n, (family, found) in enumerate(families.items()) if "lstm" in found
    }
    draw_gates(panels[1, 0], "gate of level 2, moved by an LSTM", by_lstm)
    draw_losses(panels[1, 1], families)
    draw_gaps(panels[1, 2], families)
    for axes in panels.flat:
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--effort", type=float, default=1.0, help="windows of every run, as a factor")
    options = parser.parse_args()
    torch.set_num_threads(1)
    windows = max(1, round(options.effort * STEPS / LSTM_UNROLL)) * LSTM_UNROLL
    settings = {
        "task": repr(TASK), "life": LIFE, "unroll": UNROLL, "copies": COPIES, "seeds": SEEDS, "rates": RATES,
        "price": PRICE, "pace": PACE, "windows": windows, "problems": PROBLEMS, "torch": torch.__version__,
    }  # fmt: skip
    result: dict[str, Any] = {"settings": settings, "families": {}}
    for family in FAMILIES:
        result["families"][family] = measure(family, windows)
        show(family, result["families"][family])
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "depth.json").write_text(json.dumps(result) + "\n")
    draw(result, options.out / "depth.png")
    print(f"wrote {options.out / 'depth.json'} and depth.png")


if __name__ == "__main__":
    main()
