"""One training curve for every task, under Adam with its step size tuned.

    python -m benchmarks.tasks [--out benchmarks/results] [--steps 200] [--only char-gru photo] [--fashion FOLDER]

The step size has the lowest mean loss over the run on validation problems, of a logarithmic grid with 4 to a decade;
the panel shows median and quartiles over test problems. Test loss is the loss of the minibatch at hand on the
test split, whose data is what the parameters learn from there: these are training curves of held-out problems.
Augmented quadratics have scales from 0.1 to 10 here, not 0.001 to 1000: one step size cannot serve six decades.
Tasks whose data is not installed are left out, and named. 12 minutes on a core that other work used too.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from levels import (
    Adam,
    Augmented,
    CharGRU,
    CharTransformer,
    DigitsConvNet,
    DigitsMLP,
    FashionConvNet,
    FashionMLP,
    LoaderTask,
    Logistic,
    Mixture,
    Mnist1dMLP,
    MnistConvNet,
    MnistMLP,
    NoisyQuadratic,
    Photo,
    Quadratic,
    Rosenbrock,
    Task,
    keys,
)
from levels.tasks.data import FASHION
from levels.tasks.data.scikit import table
from levels.tasks.task import SPLITS
from recursion.evaluation.baselines import tune
from recursion.evaluation.deploy import run

TUNING, PROBLEMS = 2, 8


def wine_loader() -> LoaderTask:
    """scikit-learn's wines through DataLoaders and an ordinary module."""
    parts = {split: TensorDataset(*table(split, torch.float32, "wine")[:2]) for split in SPLITS}
    loaders: dict[str, Any] = {split: DataLoader(part, 16, shuffle=True) for split, part in parts.items()}

    def make() -> nn.Module:
        return nn.Sequential(nn.Linear(13, 16), nn.Tanh(), nn.Linear(16, 3))

    return LoaderTask(make=make, loss_function=nn.functional.cross_entropy, **loaders)


def tasks(folder: str) -> dict[str, Callable[[], Task]]:
    """Every task by its name, made only when asked for."""
    return {
        "quadratic": Quadratic,
        "noisy-quadratic": NoisyQuadratic,
        "rosenbrock": Rosenbrock,
        "logistic": Logistic,
        "digits-mlp": DigitsMLP,
        "mnist-mlp": MnistMLP,
        "fashion-mlp": lambda: FashionMLP(folder=folder),
        "mnist1d-mlp": Mnist1dMLP,
        "digits-convnet": DigitsConvNet,
        "mnist-convnet": MnistConvNet,
        "fashion-convnet": lambda: FashionConvNet(folder=folder),
        "char-gru": CharGRU,
        "char-transformer": CharTransformer,
        "photo": Photo,
        "mixture": lambda: Mixture((Quadratic(dims=5), Quadratic(dims=10))),
        "augmented": lambda: Augmented(Quadratic(), low=0.1, high=10.0),
        "loader": wine_loader,
    }


def measure(task: Task, steps: int) -> dict[str, Any]:
    """Tuned step size and losses ``[steps + 1, PROBLEMS]`` on test problems, with the seconds it took."""
    began = time.perf_counter()
    tuned = tune(Adam(), task, keys.split(keys.seed(1), TUNING), steps)
    losses = run(Adam(), tuned.params[1:], task.on("test"), keys.split(keys.seed(0), PROBLEMS), steps)[:, 0]
    quartiles = np.quantile(losses.double().numpy(), (0.25, 0.5, 0.75), axis=1)
    return {
        "parameters": task.layout.size,
        "step size": tuned.step_sizes["mean"],
        "loss": dict(zip(("low", "median", "high"), quartiles.tolist())),
        "seconds": round(time.perf_counter() - began, 1),
    }


def draw(axes: Axes, name: str, found: dict[str, Any]) -> None:
    loss, steps = found["loss"], range(len(found["loss"]["median"]))
    axes.fill_between(steps, loss["low"], loss["high"], alpha=0.25, linewidth=0)
    axes.plot(steps, loss["median"], linewidth=1.2)
    wide = loss["median"][0] > 30 * max(min(loss["median"]), 1e-12)
    axes.set_yscale("log" if wide else "linear")
    axes.set_title(f"{name}, n = {found['parameters']}, lr {found['step size']:.2g}", fontsize=8)
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.2)


def figure(results: dict[str, dict[str, Any]], path: Path) -> None:
    columns = min(6, len(results))
    rows = -(-len(results) // columns)
    plot, panels = plt.subplots(rows, columns, figsize=(2.9 * columns, 2.3 * rows), squeeze=False)
    for axes, (name, found) in zip(panels.flat, results.items()):
        draw(axes, name, found)
    for axes in panels.flat[len(results) :]:
        axes.set_visible(False)
    plot.supxlabel("step of Adam, step size tuned on validation problems", fontsize=9)
    plot.supylabel("loss: median and quartiles of test problems", fontsize=9)
    plot.tight_layout()
    plot.savefig(path, dpi=130)
    plt.close(plot)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--only", nargs="*", help="names of tasks; all without it")
    parser.add_argument("--fashion", default=FASHION, help="folder with the IDX files of Fashion-MNIST")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results = {}
    for name, make in tasks(arguments.fashion).items():
        if arguments.only and name not in arguments.only:
            continue
        try:
            task = make()
        except ValueError as error:
            print(f"left out: {error}")
            continue
        results[name] = found = measure(task, arguments.steps)
        start, end = found["loss"]["median"][0], found["loss"]["median"][-1]
        print(
            f"{name:17} lr {found['step size']:<8.2g} {start:10.4g} -> {end:<10.4g} {found['seconds']:6.1f} s",
            flush=True,
        )
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "tasks.json").write_text(json.dumps(results, indent=1) + "\n")
    figure(results, arguments.out / "tasks.png")
    print(f"wrote {arguments.out / 'tasks.png'}")


if __name__ == "__main__":
    main()
