"""Search against the gradient: genetic, random and CMA-ES, at equal total base steps; the last generation ensembled.

    python -m benchmarks.genetic [--out benchmarks/results] [--effort 1.0]

Two families of parameters for level 1 of a tower of two: the four hyperparameters of Adam on random quadratics, begun
at a step size 1,000 times too small; the 361 weights of a small LSTM optimizer on perceptrons for 8x8 digits, begun at
random. Above stands one of

- gradient: Adam on truncated backpropagation through windows of 20 updates;
- genetic, random, cma: whole lives as trials, no gradient;
- genetic + gradient: a population that Adam trains between selections; genetic + self: one that trains itself, so that
  no hand-made optimizer appears anywhere (Metz et al. 2021, arXiv 2101.07367).

Each gets the same number of task gradients, everything counted at the task: trials, restarts, births. Settings are one
guess each, not tuned. Shown is the mean loss over a life on held-out problems of the test split, against the task
gradients spent for each copy; five training seeds, and 95% intervals over seeds and problems. Right: each ensemble of
the last generation less its best member, on the same problems.
"""

import argparse
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor

from levels import CMA, GA, LSTM, Adam, DigitsMLP, Level, Optimizer, Quadratic, RandomSearch, SelfUpdate, Task, keys
from levels.tree import map_leaves
from recursion import Tower, TowerState
from recursion.analysis.ensembles import Compared, compare
from recursion.evaluation.deploy import run
from recursion.evaluation.observed import Observed, Tally
from recursion.evaluation.statistics import Values, difference, estimate

SEEDS, PROBLEMS, POINTS = 5, 32, 10
ENSEMBLED = ("genetic", "genetic + gradient")
FEW = 4  # members of the small ensemble


@dataclass(frozen=True)
class Family:
    """A task, what is trained on it, by whom, and for how many task gradients for each copy."""

    task: Task
    level: Level
    movers: Mapping[str, Optimizer]
    budget: int

    @property
    def episode_length(self) -> int:
        """Updates of level 1 from a start to a restart, which is what held-out runs last too."""
        assert self.level.episode_length is not None
        return self.level.episode_length


FAMILIES = {
    "hyperparameters": Family(
        Quadratic(),
        Level(optimizer=Adam(lr=1e-3), unroll=20, horizon=100, batch=16),
        {
            "gradient": Adam(lr=0.03),
            "genetic": GA(population=16, sigma=0.5),
            "random": RandomSearch(population=16, sigma=2.0),
            "cma": CMA(sigma=1.0),
        },
        50_000,
    ),
    "weights": Family(
        DigitsMLP(hidden=(10,), minibatch=32),
        Level(optimizer=LSTM(hidden=8, layers=1), unroll=20, horizon=60, batch=2, clip=1.0),
        {
            "gradient": Adam(lr=0.01),
            "genetic": GA(population=16, sigma=0.05),
            "random": RandomSearch(population=16, sigma=0.1),
            "cma": CMA(sigma=0.1),
            "genetic + gradient": GA(Adam(lr=0.01), 10, population=6, elite=2, sigma=0.02),
            "genetic + self": GA(SelfUpdate(), 10, population=6, elite=2, sigma=0.05),
        },
        30_000,
    ),
}


class Clock:
    """Says what is being done, and about how long the rest takes, by the task gradients that are still to come."""

    def __init__(self, total: float) -> None:
        self.total, self.done, self.begun = total, 0.0, time.perf_counter()

    def tell(self, what: str, share: float) -> None:
        self.done += share
        spent = time.perf_counter() - self.begun
        left = max(0.0, spent * (self.total - self.done) / self.done)
        print(f"{spent:6.0f} s  {what}; about {left / 60:.1f} min left", flush=True)


def held_out(family: Family, params: Tensor) -> Values:
    """Mean loss over a life ``[seeds, problems]`` of parameters ``[seeds, m]``."""
    key = keys.split(keys.seed(1), PROBLEMS)
    losses = run(family.level.optimizer, params, family.task.on("test"), key, family.episode_length)
    return np.asarray(losses[1:].mean(0).double())


def train(family: Family, name: str, budget: float, clock: Clock) -> tuple[dict[str, Any], Tower, TowerState]:
    """One mover for all seeds at once, and what it came to on held-out problems on its way."""
    tally = Tally()
    tower = Tower(Observed(family.task, tally), family.level, Level(optimizer=family.movers[name], batch=SEEDS))
    copies = SEEDS * tower.bound[0].copies
    state, begun = tower.init(seed=0), time.perf_counter()
    values = [held_out(family, tower.result(state))]
    spent, at = [tally.gradients / copies], 0.0
    while at < budget:
        state, _ = tower.step(state)
        at = tally.gradients / copies
        if at >= budget * len(values) / POINTS:
            values.append(held_out(family, tower.result(state)))
            clock.tell(f"{name}: {at:,.0f} base steps, loss {values[-1].mean():.4g}", at - spent[-1])
            spent.append(at)
    found = {
        "tower": repr(tower),
        "spent": spent,
        "loss": [asdict(estimate(each)) for each in values],
        "seconds": round(time.perf_counter() - begun, 1),
        "values": values[-1],
    }
    return found, tower, state


def ensembled(tower: Tower, state: TowerState, family: Family) -> dict[str, Any]:
    """The ensembles of all members of the last generation, and of its best few."""
    whole = Tower(family.task, *tower.levels)
    states = [state._replace(carry=map_leaves(lambda leaf, i=i: leaf[i : i + 1], state.carry)) for i in range(SEEDS)]
    found = {}
    for members in (FEW, None):
        compared = compare(whole, states, problems=PROBLEMS // 2, steps=family.episode_length, members=members)
        found["all" if members is None else f"best {members}"] = plain(compared)
    return found


def plain(compared: Compared) -> dict[str, Any]:
    """What is kept of a comparison: the mean over a life."""
    return {
        "members": compared.members,
        "best member": asdict(compared.best.means["mean"]),
        "less best member": {each.name: asdict(each.difference["mean"]) for each in compared.ensembles},
        "verdict": {each.name: each.verdict["mean"] for each in compared.ensembles},
        "refused": compared.refused,
    }


def measure(effort: float) -> dict[str, Any]:
    """All numbers."""
    clock = Clock(sum(effort * family.budget * len(family.movers) for family in FAMILIES.values()))
    found: dict[str, Any] = {}
    for label, family in FAMILIES.items():
        runs, ensembles = {}, {}
        for name in family.movers:
            runs[name], tower, state = train(family, name, effort * family.budget, clock)
            if name in ENSEMBLED:
                ensembles[name] = ensembled(tower, state, family)
        gradient = runs["gradient"]["values"]
        for one in runs.values():
            one["less gradient"] = asdict(estimate(difference(one["values"], gradient)))
            one["values"] = [round(float(value), 6) for value in one["values"].mean(1)]  # of each seed
        found[label] = {"task": repr(family.task), "level": repr(family.level), "runs": runs, "ensembles": ensembles}
    return found


def show(result: dict[str, Any]) -> None:
    for label, family in result.items():
        print(f"{label} ({family['task']}): mean loss over a life on held-out problems; less the gradient's; seconds")
        for name, one in family["runs"].items():
            end, less = one["loss"][-1], one["less gradient"]
            print(f"{name:>20}  {bracket(end)}   {bracket(less)}  {one['seconds']:6.1f}  {one['tower']}")
        for name, groups in family["ensembles"].items():
            for members, one in groups.items():
                for kind, less in one["less best member"].items():
                    verdict = one["verdict"][kind]
                    print(
                        f"{name}, {members}, {kind:>12}: {one['best member']['value']:.4g}, {bracket(less)} {verdict}"
                    )


def bracket(one: Mapping[str, float]) -> str:
    return f"{one['value']:9.4g} [{one['low']:.4g}, {one['high']:.4g}]"


def draw_curves(axes: Axes, label: str, family: dict[str, Any]) -> None:
    for number, (name, one) in enumerate(family["runs"].items()):
        value, low, high = ([each[part] for each in one["loss"]] for part in ("value", "low", "high"))
        axes.plot(one["spent"], value, "o-", ms=3, color=f"C{number}", label=name)
        axes.fill_between(one["spent"], low, high, color=f"C{number}", alpha=0.12, lw=0)
    axes.set(xlabel="task gradients spent, for each copy", ylabel="mean loss over a life, held out", yscale="log")
    axes.set_title(f"{label}: {family['level'].partition('@')[0]} on {family['task'].partition('(')[0]}")


def draw_ensembles(axes: Axes, result: dict[str, Any]) -> None:
    names, kinds = [], {"weights": "C0", "updates": "C1", "predictions": "C2"}
    for label, family in result.items():
        for name, groups in family["ensembles"].items():
            for members, one in groups.items():
                best = one["best member"]["value"]
                for shift, kind in enumerate(kinds):
                    if kind in one["less best member"]:
                        less = {part: value / best for part, value in one["less best member"][kind].items()}
                        bar = [[less["value"] - less["low"]], [less["high"] - less["value"]]]
                        place = -len(names) - 0.2 * (shift - 1)
                        axes.errorbar(less["value"], place, xerr=bar, fmt="o", ms=4, color=kinds[kind], capsize=2)
                names.append(f"{label}\n{name}, {members}")
    for kind, color in kinds.items():
        axes.plot([], [], "o", color=color, label=kind)
    axes.axvline(0, color="black", lw=0.8)
    axes.set_yticks([-i for i in range(len(names))], names, fontsize=8)
    axes.set(xlabel="mean loss, relative to that of the best member", title="ensembles of the last generation")


def draw(result: dict[str, Any], path: Path) -> None:
    figure, panels = plt.subplots(1, 3, figsize=(16, 4.8), layout="constrained")
    for axes, (label, family) in zip(panels, result.items()):
        draw_curves(axes, label, family)
    draw_ensembles(panels[2], result)
    for axes in panels:
        axes.legend(fontsize=8)
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--effort", type=float, default=1.0, help="task gradients of everybody, as a factor")
    options = parser.parse_args()
    torch.set_num_threads(1)
    result = measure(options.effort)
    show(result)
    settings = {"seeds": SEEDS, "problems": PROBLEMS, "effort": options.effort, "torch": torch.__version__}
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "genetic.json").write_text(json.dumps({"settings": settings} | result, indent=1) + "\n")
    draw(result, options.out / "genetic.png")
    print(f"wrote {options.out / 'genetic.json'} and genetic.png")


if __name__ == "__main__":
    main()
