"""Self-tuning: an LSTM that moves its own weights, against the same LSTM moved by Adam, at equal base steps.

    python -m benchmarks.selftune [--out benchmarks/results] [--budget 1.0] [--seeds 5] [--only quadratics]

Each tower trains an LSTM on quadratics, or on perceptrons on digits, until the same number of task gradients is spent,
those of restarts, judgements and selection included. Every line is the mean meta-loss over a whole life of the LSTM on
test problems that nobody trained on, the same for all; a band is its 95% interval over problems and training seeds. The
table says how often guards acted. Selection stops at the end of a generation, so it may spend up to one more.
"""

import argparse
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes

from levels import NonFiniteError, keys
from recursion import Tower
from recursion.evaluation.observed import Observed, Tally
from recursion.evaluation.statistics import estimate
from recursion.notation import parse

ADAM = "Adam throughout"


@dataclass(frozen=True)
class Family:
    """A level to be trained, and by what; ``trials``: held-out trials for each of
    ``points`` measurements."""

    level: str
    arms: dict[str, str]
    budget: int
    trials: int
    points: int


def arms(adam: str, after: int) -> dict[str, str]:
    """Trainers by label; ``after``: updates of Adam before the LSTM takes over."""
    return {
        ADAM: adam,
        "Adam, then itself, guarded": f"relay({adam}, self, after={after})",
        "Adam, then itself, unguarded": f"relay({adam}, own, after={after})",
        "itself from random weights, guarded": "self",
        "itself from random weights, by selection": "ga(own, population=4, steps=20)",
    }


SHORT = (ADAM, "Adam, then itself, guarded", "itself from random weights, by selection")
FAMILIES = {
    "quadratics": Family("quadratic: lstm@20[nonfinite=skip]", arms("adam(lr=0.01)", 200), 20_000, 8, 12),
    "perceptrons": Family(
        "digits-mlp: lstm(hidden=10)@20[batch=2, clip=1, nonfinite=skip]",
        {label: arm for label, arm in arms("adam(lr=0.003)", 60).items() if label in SHORT},
        4_000,
        4,
        8,
    ),
}


def follow(notation: str, budget: float, family: Family, seed: int) -> dict[str, Any]:
    """One run: base steps for each copy of the task, held-out losses ``[points, trials]``, notes, by what was spent."""
    plain = parse(notation)
    tally = Tally()
    tower = Tower(Observed(plain.task, tally), *plain.levels)
    copies = float(np.prod([level.copies for level in tower.bound]))
    test, key = plain.bound[0].on("test"), keys.split(keys.seed(12345), family.trials)
    state = tower.init(seed)
    found: dict[str, Any] = {"spent": [], "losses": [], "metrics": {}, "died": None}
    for point in range(family.points + 1):
        while tally.gradients / copies < budget * point / family.points:
            try:
                state, report = tower.step(state)
            except NonFiniteError as error:
                return found | {"died": str(error)}
            found["metrics"] = dict(report.metrics)
        found["spent"].append(tally.gradients / copies)
        found["losses"].append(test.evaluate_from_scratch(tower.result(state).expand(family.trials, -1), key).tolist())
    return found


def table(runs: dict[str, list[dict[str, Any]]]) -> list[str]:
    """What each trainer ended with, against Adam, with what its guards did."""
    lines = []
    whole = {label: [run["losses"][-1] for run in some if run["died"] is None] for label, some in runs.items()}
    for label, some in runs.items():
        died = sum(run["died"] is not None for run in some)
        if died:
            lines.append(
                f"  {label:42} died in {died} of {len(some)} runs: {next(r['died'] for r in some if r['died'])}"
            )
        if len(whole[label]) < len(some):
            continue
        end = estimate(np.array(whole[label]))
        gap = estimate(np.log(np.array(whole[label])) - np.log(np.array(whole[ADAM])))
        worse = sum(np.mean(run["losses"][-1]) > np.mean(run["losses"][0]) for run in some)
        ratio = f"{np.exp(gap.value):.2f} [{np.exp(gap.low):.2f}, {np.exp(gap.high):.2f}] of Adam"
        metrics = {name: np.mean([run["metrics"][name] for run in some]).round(2) for name in some[0]["metrics"]}
        said = ", ".join(f"{name.removeprefix('level 2 ')} {value:g}" for name, value in metrics.items())
        lines.append(
            f"  {label:42} {end.value:8.3g} [{end.low:.3g}, {end.high:.3g}]  {ratio}  worse than begun {worse}"
        )
        lines += [f"  {'':42} {said}"] if said else []
    return lines


def draw(axes: Axes, name: str, runs: dict[str, list[dict[str, Any]]]) -> None:
    for label, some in runs.items():
        color = f"C{list(arms('', 0)).index(label)}"
        alive = [run for run in some if run["died"] is None]
        if not alive:
            continue
        spent = np.mean([run["spent"] for run in alive], axis=0)
        losses = np.array([run["losses"] for run in alive]).swapaxes(0, 1)  # [points, seeds, trials]
        ends = [estimate(row) for row in losses]
        axes.plot(spent, [end.value for end in ends], color=color, lw=1.5, label=label)
        axes.fill_between(spent, [e.low for e in ends], [e.high for e in ends], color=color, alpha=0.15, lw=0)
    axes.set(xlabel="base steps", ylabel="held-out meta-loss", title=name, yscale="log")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


def show(found: dict[str, dict[str, list[dict[str, Any]]]], out: Path) -> None:
    """Print the tables and draw the picture."""
    figure, panels = plt.subplots(1, len(found), figsize=(6.5 * len(found), 5), layout="constrained", squeeze=False)
    for axes, (name, runs) in zip(panels[0], found.items()):
        draw(axes, name, runs)
        seeds, spent = len(runs[ADAM]), runs[ADAM][0]["spent"][-1]
        print(f"{name}, {seeds} seeds, {spent:,.0f} base steps", *table(runs), sep="\n")
    figure.savefig(out / "selftune.png", dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--budget", type=float, default=1.0, help="share of the full budget")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", choices=FAMILIES, nargs="+", default=list(FAMILIES), help="other families are kept")
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    total, done, began = sum(len(FAMILIES[name].arms) for name in args.only) * args.seeds, 0, time.monotonic()
    for name in args.only:
        family, runs = FAMILIES[name], {label: [] for label in FAMILIES[name].arms}
        for seed in range(args.seeds):
            for label, arm in family.arms.items():
                runs[label].append(follow(f"{family.level} / {arm}", family.budget * args.budget, family, seed))
                done += 1
                left = (time.monotonic() - began) / done * (total - done)
                sys.stderr.write(f"{done} of {total}, about {left / 60:.0f} min left: {name}, {label}, seed {seed}\n")
            (args.out / f"selftune_{name}.json").write_text(json.dumps(runs) + "\n")
    files = {name: args.out / f"selftune_{name}.json" for name in FAMILIES}
    show({name: json.loads(file.read_text()) for name, file in files.items() if file.exists()}, args.out)


if __name__ == "__main__":
    main()
