"""How far to look ahead: fixed look-aheads, discounts, and the choice made online, at equal total base steps.

    python -m benchmarks.lookahead [--out benchmarks/results] [--effort 1.0]

A tower `sgd@5[ahead=H] / adam` learns one step size. Three families:

- on the way: the noisy quadratic of Wu et al. 2018 (arXiv 1803.02021), begun where 300 steps of the greediest step size
  have led. Only slow directions still have to fall, and a short look-ahead does not see that they will;
- fresh: the same from standard normal starts. Most of a life's loss stands in its first steps, which windows that
  look far count less often than what comes after the end of the life: there it is the short look-ahead that is right;
- images: perceptrons on 8x8 digits; discounts of the longest look-ahead too.

Each tower gets the same number of task gradients for each copy: look-aheads, restarts and the online choice's judging
are counted. Five training seeds. What is shown is the mean loss of a whole life from a fresh start with the step size
learned so far: for the quadratics its expectation, in closed form, over the noise's part, relative to the best single
step size; for images on 32 fresh problems of the test split. Ends are means over the last tenth of the budget; brackets
are 95% intervals over seeds (and problems). "Best in hindsight" is the fixed look-ahead that ends lowest.
"""

import argparse
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.ticker import LogFormatter, StrMethodFormatter
from torch import Tensor

from benchmarks.horizon import Underway, excess, start_of
from levels import SGD, Adam, DigitsMLP, Discounted, Level, NoisyQuadratic, Online, Task, keys
from levels.restart import is_due
from recursion import Tower, TowerState
from recursion.evaluation.statistics import Estimate, estimate

SEEDS, UNROLL, PROBLEMS = 5, 5, 32
POINTS = 20  # of each curve, evenly over the budget; its last tenth is what a run ends with
LAST = POINTS // 10


@dataclass(frozen=True)
class Family:
    """A task, what learns on it, and how a step size is judged in the end."""

    task: Task
    lookahead: tuple[int, ...]
    every: int
    episode_length: int
    copies: int
    start: float
    pace: float
    budget: float  # task gradients for each copy
    discounts: tuple[float, ...] = ()

    def level(self) -> Level:
        return Level(optimizer=SGD(lr=self.start), unroll=UNROLL, horizon=self.episode_length, batch=self.copies)

    def tower(self, level: Level) -> Tower:
        return Tower(self.task, level, Level(optimizer=Adam(lr=self.pace, beta1=0.5, beta2=0.95), batch=SEEDS))

    def towers(self) -> dict[str, Tower]:
        """By what is compared: the online choice, each look-ahead, and discounts of the longest."""
        level = self.level()
        found = {"online": replace(level, gradient=Online(self.lookahead, every=self.every))}
        found |= {str(lookahead): replace(level, lookahead=lookahead) for lookahead in self.lookahead}
        for discount in self.discounts:
            found[f"discount {discount}"] = replace(level, lookahead=self.lookahead[-1], objective=Discounted(discount))
        return {name: self.tower(each) for name, each in found.items()}


ON_THE_WAY = Family(
    task=Underway(low=0.001, noise=0.1, steps=300, dtype="float64"),
    lookahead=(5, 20, 80, 320), every=10, episode_length=500, copies=32, start=0.02, pace=0.03, budget=120_000,
)  # fmt: skip
FAMILIES = {
    "on the way": ON_THE_WAY,
    "fresh": replace(ON_THE_WAY, task=NoisyQuadratic(low=0.001, noise=0.1, dtype="float64"), budget=40_000),
    "images": Family(
        task=DigitsMLP(hidden=(8,), minibatch=16), lookahead=(5, 20, 80), every=15, episode_length=200, copies=8,
        start=0.05, pace=0.05, budget=24_000, discounts=(0.8, 0.95, 0.9875),
    ),
}  # fmt: skip


# What a step size is worth: values ``[seeds, problems]`` of logarithms ``[seeds]``.


def worth(family: Family) -> Callable[[Tensor], np.ndarray]:
    """Mean loss of a life from a fresh start."""
    task = family.task
    if isinstance(task, NoisyQuadratic):
        begun = start_of(task)
        rates = torch.logspace(-4, math.log10(1.9), 2000, dtype=torch.float64)[:, None]
        best = excess(task, rates, begun, family.episode_length).min()
        return lambda logs: (excess(task, logs.double().exp()[:, None], begun, family.episode_length) / best)[
            :, None
        ].numpy()
    level = replace(family.level(), batch=1).over(task.on("test"))
    key = keys.split(keys.seed(1), PROBLEMS)

    def tried(logs: Tensor) -> np.ndarray:
        params = logs[:, None, None].to(level.layout.dtype).expand(-1, PROBLEMS, 1)
        return (level.evaluate_from_scratch(params, key.expand(len(logs), -1)) / UNROLL).double().numpy()

    return tried


# Learning.


class Track(NamedTuple):
    """One tower's run, sampled at `POINTS` shares of the budget."""

    logs: Tensor  # [POINTS, seeds] log of the step size
    arms: Tensor  # [POINTS, seeds] place of the look-ahead in the list of candidates; -1 where there is no choice
    seconds: float


def learn(tower: Tower, budget: float, tell: Callable[[float], None]) -> Track:
    """Train until every seed has spent the budget; each is sampled when it has spent its share."""
    state, begun = tower.init(seed=0), time.perf_counter()
    level, counted = tower.levels[0], Counter(tower)
    marks = budget * torch.arange(1, POINTS + 1, dtype=torch.float64) / POINTS
    logs, arms = torch.full((2, POINTS, SEEDS), math.nan, dtype=torch.float64).unbind(0)
    at = counted.after(state)
    while float(at.min()) < budget:
        before, was = state.carry.x[:, 0].double(), arm_of(level, state)
        state, _ = tower.step(state)
        now = counted.after(state)
        passed = (marks[:, None] < now) & torch.isnan(logs)  # what would pass a mark does not count before it
        logs, arms = torch.where(passed, before, logs), torch.where(passed, was, arms)
        at = now
        tell(float(at.min()) / budget)
    logs = torch.where(torch.isnan(logs), state.carry.x[:, 0].double(), logs)
    arms = torch.where(torch.isnan(arms), arm_of(level, state), arms)
    return Track(logs, arms, time.perf_counter() - begun)


class Counter:
    """Counts task gradients ``[seeds]`` for each copy: an online choice says so itself, else restarts are added."""

    def __init__(self, tower: Tower) -> None:
        self.level = tower.bound[0]
        self.online = isinstance(self.level.gradient, Online)
        self.total = torch.zeros(SEEDS, dtype=torch.float64)
        self.due: Tensor | None = None

    def after(self, state: TowerState) -> Tensor:
        """The count at this state, asked once for each."""
        carry = state.carry.problem_state.carry
        copies = carry.age.shape[-1]
        if self.online:
            return state.carry.problem_state.memory.spent / copies
        restarts = torch.zeros(SEEDS) if self.due is None else self.due.sum(-1)
        first = 1 if self.due is None else 0
        self.total = self.total + first + float(self.level.traits.evals) + restarts / copies
        self.due = is_due(self.level, carry.age)
        return self.total


def arm_of(level: Level, state: TowerState) -> Tensor:
    if isinstance(level.gradient, Online):
        return state.carry.problem_state.memory.arm.double()
    return torch.full((SEEDS,), -1.0, dtype=torch.float64)


def run(family: Family, tower: Tower, tell: Callable[[float], None]) -> dict[str, Any]:
    """One tower: its curve with intervals, where it ended, and what it chose."""
    path, judge = learn(tower, family.budget, tell), worth(family)
    values = np.stack([judge(logs) for logs in path.logs])  # [POINTS, seeds, problems]
    return {
        "tower": repr(tower),
        "curve": [listed(estimate(each)) for each in values],
        "end": listed(estimate(values[-LAST:].mean(0))),
        "ends by seed": values[-LAST:].mean((0, 2)).tolist(),
        "end values": np.round(values[-LAST:].mean(0), 6).tolist(),
        "rates": path.logs[-LAST:].exp().mean(0).tolist(),
        "arms": path.arms.T.long().tolist(),
        "seconds": round(path.seconds, 1),
    }


def listed(found: Estimate) -> list[float]:
    return [found.value, found.low, found.high]


def measure(effort: float) -> dict[str, Any]:
    """All families, with the time that is left by the share of base steps that are done."""
    families = {name: replace(each, budget=effort * each.budget) for name, each in FAMILIES.items()}
    weights = {name: (3.0 if name == "images" else 1.0) * each.budget for name, each in families.items()}
    total = sum(weight * len(families[name].towers()) for name, weight in weights.items())
    found: dict[str, Any] = {}
    begun, done, said = time.perf_counter(), 0.0, [0.0]

    def tell(what: str, share: float, weight: float) -> None:
        now = time.perf_counter()
        if now - said[0] > 10:
            said[0] = now
            part = (done + share * weight) / total
            left = (now - begun) * (1 - part) / max(part, 1e-9)
            print(f"{part:5.0%}, about {left:4.0f} s left: {what}", flush=True)

    for name, family in families.items():
        runs = {}
        for each, tower in family.towers().items():
            runs[each] = run(family, tower, lambda share, what=f"{name}, {each}", w=weights[name]: tell(what, share, w))
            done += weights[name]
            show_line(name, each, runs[each])
        found[name] = {"task": repr(family.task), "budget": family.budget, "ahead": family.lookahead, "runs": runs}
        found[name] |= compared(runs, [str(lookahead) for lookahead in family.lookahead])
    return found


def compared(runs: dict[str, Any], fixed: list[str]) -> dict[str, Any]:
    """The online choice against the best fixed look-ahead in hindsight and the shortest: mean ratio of ends."""
    best = min(fixed, key=lambda name: runs[name]["end"][0])
    ends = {name: np.array(run["ends by seed"])[:, None] for name, run in runs.items()}
    ratios = {name: listed(estimate(ends["online"] / ends[name])) for name in dict.fromkeys((best, fixed[0]))}
    return {"best in hindsight": best, "online over": ratios}


# What is shown.


def show_line(family: str, name: str, found: dict[str, Any]) -> None:
    value, low, high = found["end"]
    seeds = " ".join(f"{end:.3f}" for end in found["ends by seed"])
    rates = sum(found["rates"]) / SEEDS
    print(f"{family:>10} {name:>15}: {value:.4f} [{low:.4f}, {high:.4f}]  seeds {seeds}  step size {rates:.4f}"
          f"  {found['seconds']:.0f} s", flush=True)  # fmt: skip


def show(result: dict[str, Any]) -> None:
    for name, found in result["families"].items():
        print(f"{name}: {found['task']}, {found['budget']:.0f} task gradients for each copy")
        for each, run in found["runs"].items():
            show_line(name, each, run)
        for other, (value, low, high) in found["online over"].items():
            what = "the best in hindsight" if other == found["best in hindsight"] else "the shortest"
            print(f"  online over {other}, {what}: {value:.3f} [{low:.3f}, {high:.3f}]")


def draw(result: dict[str, Any], path: Path) -> None:
    rows = result["families"]
    figure, panels = plt.subplots(len(rows), 3, figsize=(15, 4 * len(rows)), layout="constrained")
    for (name, found), (left, middle, right) in zip(rows.items(), panels):
        draw_ends(left, found)
        draw_curves(middle, found)
        draw_arms(right, found)
        unit = "loss on test problems" if name == "images" else "excess loss over the best step size's"
        left.set_ylabel(unit)
        left.set_title(f"{name}: at the end")
        middle.set_title(f"{name}: while training")
        right.set_title(f"{name}: chosen online, a line a seed")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_ends(axes: Axes, found: dict[str, Any]) -> None:
    runs, lookahead = found["runs"], found["ahead"]
    ends = np.array([runs[str(one)]["end"] for one in lookahead])
    bar(axes, lookahead, ends, fmt="o-", color="C0", label="fixed look-ahead")
    faded = {name: each for name, each in runs.items() if name.startswith("discount")}
    if faded:
        reach = [1 / (1 - float(name.split()[1])) for name in faded]
        bar(axes, reach, np.array([each["end"] for each in faded.values()]), fmt="s--", color="C2",
            label=f"look-ahead {lookahead[-1]}, discounted, at 1 / (1 - discount)")  # fmt: skip
    value, low, high = runs["online"]["end"]
    axes.axhline(value, color="C1", label="chosen online")
    axes.axhspan(low, high, color="C1", alpha=0.2, lw=0)
    axes.set(xscale="log", xlabel="look-ahead, updates")
    axes.minorticks_off()
    axes.set_xticks(lookahead, [str(one) for one in lookahead])
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)


def bar(axes: Axes, x: Any, ends: np.ndarray, **style: Any) -> None:
    axes.errorbar(x, ends[:, 0], np.abs(ends[:, 1:] - ends[:, :1]).T, capsize=3, ms=5, lw=1, **style)


def draw_curves(axes: Axes, found: dict[str, Any]) -> None:
    base = found["budget"] * np.arange(1, POINTS + 1) / POINTS
    for number, (name, each) in enumerate(found["runs"].items()):
        if name.startswith("discount"):
            continue
        curve = np.array(each["curve"])
        color = "C1" if name == "online" else plt.get_cmap("viridis")(0.9 * (number - 1) / len(found["ahead"]))
        width = 2 if name == "online" else 1
        axes.plot(base, curve[:, 0], color=color, lw=width, label=name if name == "online" else f"look-ahead {name}")
        axes.fill_between(base, curve[:, 1], curve[:, 2], color=color, alpha=0.12, lw=0)
    axes.set(xlabel="task gradients for each copy", yscale="log")
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1, 0.4)))
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3, which="both")


def draw_arms(axes: Axes, found: dict[str, Any]) -> None:
    base = found["budget"] * np.arange(1, POINTS + 1) / POINTS
    for seed, arms in enumerate(found["runs"]["online"]["arms"]):
        axes.step(base, np.array(arms) + 0.06 * (seed - SEEDS // 2), where="pre", lw=1.2, color=f"C{seed}")
    axes.set_yticks(range(len(found["ahead"])), [str(one) for one in found["ahead"]])
    axes.set(xlabel="task gradients for each copy", ylabel="look-ahead", ylim=(-0.4, len(found["ahead"]) - 0.6))
    axes.grid(alpha=0.3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--effort", type=float, default=1.0, help="budget of all runs, as a factor")
    options = parser.parse_args()
    torch.set_num_threads(1)
    begun = time.perf_counter()
    settings = {"seeds": SEEDS, "unroll": UNROLL, "effort": options.effort, "torch": torch.__version__}
    result = {"settings": settings, "families": measure(options.effort)}
    result["settings"]["seconds"] = round(time.perf_counter() - begun)
    show(result)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "lookahead.json").write_text(json.dumps(result, indent=1) + "\n")
    draw(result, options.out / "lookahead.png")
    print(f"wrote {options.out / 'lookahead.json'} and lookahead.png")


if __name__ == "__main__":
    main()
