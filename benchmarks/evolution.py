"""Evolution strategies as their papers show them: variance against the number of windows, and influence balancing.

    python -m benchmarks.evolution [--out benchmarks/results] [--draws 20000] [--windows 2000]

Left: the variance of one window's estimate (trace of its covariance over the squared slope) against the window's place
in the trajectory, where nothing is remembered: dots measured, lines the closed form. Middle: the variance of a whole
trajectory's estimate against the windows that it is cut into, in influence balancing, over that of one window. Right:
influence balancing as a tower, theta from 0.5 under SGD with step size 1e-5, five seeds each. The loss settles at 0
for theta = -1/6 (dotted); restarts every 1000 updates, from where 0.5 settles, ask for a little more.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes

from levels import PES, SGD, ESSingle, Estimator, Evolution, FirstOrder, Level, Linear, TruncatedES, keys
from recursion import Tower
from tests.laws.systems import Balance, Forget, Plane, Target

WINDOWS, PERIOD = 32, 8
FAMILY: dict[str, Estimator] = {
    "PES": PES(),
    f"noise kept for {PERIOD} windows": Evolution(noise=PERIOD),
    "ES-Single, NRES": ESSingle(),
    "truncated ES (biased where there is memory)": TruncatedES(),
}
TRAJECTORY = 320
CUTS = (1, 2, 4, 8, 16, 32, 64)
RUNS: dict[str, tuple[Estimator, int]] = {
    "backpropagation, unroll 10": (FirstOrder(), 10),
    "backpropagation, unroll 100": (FirstOrder(), 100),
    "PES, 4 particles": (PES(sigma=0.1, pairs=2), 10),
    "PES, 1000 particles": (PES(sigma=0.1, pairs=500), 10),
    "ES-Single, 4 particles": (ESSingle(sigma=0.1, pairs=2), 10),
}
SEEDS, EVERY = 5, 100


def expected(name: str) -> list[float]:
    """The closed form: in d dimensions and with n draws met so far, n d + 1."""
    kept = {"PES": 1, f"noise kept for {PERIOD} windows": PERIOD}.get(name, WINDOWS)
    return [(k // kept + 1) * len(Plane().slopes) + 1.0 for k in range(WINDOWS)]


def by_place(gradient: Estimator, draws: int) -> list[float]:
    """Variance of the estimate in each window of a trajectory."""
    level = Level(optimizer=Forget(), horizon=WINDOWS, batch=1, gradient=gradient).over(Plane())
    params = level.init(keys.seed(0)).expand(draws, -1)
    state, variances = level.init_state(params, keys.split(keys.seed(1), draws)), []
    scale = torch.tensor(Plane().slopes, dtype=torch.float64).square().sum()
    for _ in range(WINDOWS):
        _, grad, state = level.value_and_grad(params, state)
        variances.append(float(grad.var(0).sum() / scale))
    return variances


def by_cuts(gradient: Estimator, cuts: int, draws: int) -> float:
    """Variance of the estimates summed over a trajectory of influence balancing that is cut into windows."""
    level = Level(optimizer=Balance(), unroll=TRAJECTORY // cuts, horizon=TRAJECTORY, batch=1, gradient=gradient)
    level = level.over(Target())
    params = level.init(keys.seed(0)).expand(draws, -1)
    state, total = level.init_state(params, keys.split(keys.seed(1), draws)), torch.zeros_like(params)
    for _ in range(cuts):
        _, grad, state = level.value_and_grad(params, state)
        total = total + grad
    return float(total.var(0).sum())


def descend(gradient: Estimator, unroll: int, windows: int) -> list[list[float]]:
    """Theta of each seed every hundred updates of the system; ``windows`` counts those of unroll 10."""
    level = Level(optimizer=Balance(), unroll=unroll, horizon=1000, batch=1, gradient=gradient)
    tower = Tower(Target(), level, Level(optimizer=SGD(lr=Linear(1e-5)), batch=SEEDS))
    state = tower.init(seed=0)
    path = []
    for number in range(windows * 10 // unroll + 1):
        if number * unroll % EVERY == 0:
            path.append([round(theta, 6) for theta in state.carry.x[:, 0].tolist()])
        state, _ = tower.step(state)
    return path


def measure(draws: int, windows: int) -> dict[str, Any]:
    """All numbers."""
    cut = {"PES": PES(sigma=0.1), "ES-Single, NRES": ESSingle(sigma=0.1)}
    return {
        "by place": {name: by_place(gradient, draws) for name, gradient in FAMILY.items()},
        "by cuts": {name: [by_cuts(gradient, n, draws // 10) for n in CUTS] for name, gradient in cut.items()},
        "theta": {name: descend(gradient, unroll, windows) for name, (gradient, unroll) in RUNS.items()},
    }


def draw_places(axes: Axes, found: dict[str, list[float]]) -> None:
    place = range(1, WINDOWS + 1)
    for number, (name, variances) in enumerate(found.items()):
        axes.plot(place, expected(name), color=f"C{number}", lw=1, ls=":" if "truncated" in name else "-")
        axes.plot(place, variances, "." if "truncated" not in name else "x", color=f"C{number}", ms=5, label=name)
    axes.set(xlabel="place of the window in its trajectory", ylabel="variance / |slope|$^2$", title="one window")


def draw_cuts(axes: Axes, found: dict[str, list[float]]) -> None:
    for number, (name, variances) in zip((0, 2), found.items()):
        axes.semilogx(CUTS, [v / variances[0] for v in variances], "o-", color=f"C{number}", label=name)
    axes.set(xlabel="windows in a trajectory of 320 updates", ylabel="variance / that of full ES", ylim=(0, None))
    axes.set_xticks(CUTS, [str(cuts) for cuts in CUTS])
    axes.set_title("a whole trajectory, influence balancing")


def draw_theta(axes: Axes, found: dict[str, list[list[float]]]) -> None:
    colors = ("C3", "C5", "C1", "C0", "C2")
    for color, (name, path) in zip(colors, found.items()):
        steps = range(0, EVERY * len(path), EVERY)
        lines = axes.plot(steps, path, color=color, lw=1, alpha=0.8)
        lines[0].set_label(name)
    axes.axhline(-1 / 6, color="black", lw=0.8, ls=":")
    axes.set(xlabel="updates of the system", ylabel="theta", ylim=(-0.6, 1.6), title="influence balancing")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--draws", type=int, default=20000)
    parser.add_argument("--windows", type=int, default=2000)
    args = parser.parse_args()
    torch.set_num_threads(1)
    found = measure(args.draws, args.windows)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "evolution.json").write_text(json.dumps(found) + "\n")
    figure, panels = plt.subplots(1, 3, figsize=(16, 4.6), layout="constrained")
    for draw, axes, numbers in zip((draw_places, draw_cuts, draw_theta), panels, found.values()):
        draw(axes, numbers)
        axes.legend(fontsize=8)
        axes.grid(alpha=0.3)
    figure.savefig(args.out / "evolution.png", dpi=120)
    for name, variances in found["by cuts"].items():
        print(f"{name}: variance with {CUTS[-1]} windows over that with one: {variances[-1] / variances[0]:.3g}")
    for name, path in found["theta"].items():
        print(f"{name}: theta ends at {min(path[-1]):.3f} to {max(path[-1]):.3f}")


if __name__ == "__main__":
    main()
