"""W2: towers whose levels all move at every step (unroll 1), against gdtuo and, at height 1, torch.optim.

The network is that of gdtuo's README: 784-128-10 with tanh on hidden and output units, log-softmax, negative
log-likelihood. All sides see the same minibatch of 256 images at each step, so none pays for drawing. A unit is one
step of training: forward, backward, each level's update, and the loss as a Python number. Not included: data, building,
compiling (the first step tells). ``ours, accelerated`` is the same tower as ``tower train --compile on`` runs it: a
step of it is one compiled call (`recursion.accelerate.fused`).

``sgd / sgd``: SGD at each level; ``adam / sgd``: Adam below, SGD at each level above; ``adam / adam``: Adam at each.
A height counts the optimizers. Ours learns lr, beta1 and beta2 of an Adam and lr of an SGD, as gdtuo; gdtuo hands on an
SGD's momentum of 0 too, which has no gradient and never moves.
Every ten units a tower begins anew, and where Adam is below the loss is divided by 1000 on all sides (Adam's steps do
not mind): raw step sizes, stacked high, would run away or overflow.

The proof, in float64: the losses of the first evaluations and the hyperparameters where those end. A tower of height h
starts h - 1 evaluations later than gdtuo, up to where gdtuo's levels have no gradient yet (says
tests/laws/test_hyperoptimizer.py). For the proof ours takes over three conventions of gdtuo's Adam: v starts at eps, a
level's step count includes the steps before its first gradient, and beta is (tanh z + 1) / 2. Timed is the library's
own Adam, whose v starts at 0 and whose beta is sigmoid(u): as many operations. At height 1 that one is compared with
torch.optim.
"""

from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from benchmarks.harness import Spread, ours
from benchmarks.peers_towers import FIRST_RATES, Gdtuo, Ours, TorchOptim

TITLE = "MLP 784-128-10 tanh, minibatch 256, towers of unroll 1: one step of training"
HEIGHTS = (1, 2, 3, 4, 5, 10, 25, 50)
VARIANTS: dict[str, dict[str, Any]] = {
    f"{kind}, height {height}": {"kind": kind, "height": height} for kind in FIRST_RATES for height in HEIGHTS
}
TOLERANCE = 1e-9
SIDES: dict[str, Any] = {
    "ours": Ours,
    "ours, accelerated": partial(Ours, fast=True),
    "gdtuo": Gdtuo,
    "torch.optim": partial(TorchOptim, fused=False),
    "torch.optim, fused": partial(TorchOptim, fused=True),
}
IMPORTS = {
    "ours, accelerated": ["torch._dynamo", "torch._inductor.compile_fx"],
    "gdtuo": ["gradient_descent_the_ultimate_optimizer.gdtuo"],
    "torch.optim": ["torch._dynamo"],
    "torch.optim, fused": ["torch._dynamo"],
}
COLORS = {"ours": "C1", "ours, accelerated": "C3", "gdtuo": "C0", "torch.optim": "C2", "torch.optim, fused": "C4"}


def lines(result: dict[str, Any], kind: str) -> dict[str, list[tuple[int, list[float]]]]:
    """Of each side: heights, and [median, quartiles] in milliseconds of processor time.

    Heights are not measured in the same rounds, so seconds on the wall would compare busy times with quiet ones.
    """
    found: dict[str, list[tuple[int, list[float]]]] = {}
    for variant in result["variants"].values():
        for side, row in variant["sides"].items():
            if variant["settings"]["kind"] == kind and row["seconds"]:
                step = [1e3 * seconds for seconds in Spread.of(row["cpu"]).list()]
                found.setdefault(side, []).append((variant["settings"]["height"], step))
    return found


def slopes(result: dict[str, Any], kind: str, least: int = 1) -> dict[str, float]:
    """Milliseconds that each further level costs: the slope of a line through the medians, by least squares.

    Each height counts by the inverse square of its time, for the spread grows with that. ``least``: the lowest height
    that counts; the first level over an Adam reads all that Adam holds of the network, those above it some numbers.
    """
    found = {}
    for side, measured in lines(result, kind).items():
        points = [point for point in measured if point[0] >= least]
        if len(points) > 1:
            heights, times = [height for height, _ in points], [step[0] for _, step in points]
            found[side] = float(np.polyfit(heights, times, 1, w=1 / np.array(times))[0])
    return found


def summary(result: dict[str, Any]) -> list[str]:
    """What a further level costs, and what compiling takes, by kind."""
    told = []
    for kind in FIRST_RATES:
        for least, where in ((1, "from height 1"), (2, "from height 2")):
            found = slopes(result, kind, least)
            theirs = found.get("gdtuo", 0.0)
            told += [
                f"  {kind}, {where}: {side} {found[side]:.4f}, gdtuo {theirs:.4f}: x {found[side] / theirs:.2f}"
                for side in found
                if ours(side) and theirs
            ]
        if first := compile_times(result, kind):
            told.append(f"  {kind}: first compiled step, s, by height: {first}")
    return ["ms of processor time for each further level (slope by least squares):", *told] if told else []


def compile_times(result: dict[str, Any], kind: str) -> str:
    """Seconds of the first compiled step at each height, with an empty cache."""
    rows = [(v["settings"]["height"], v["sides"].get("ours, accelerated")) for v in result["variants"].values()
            if v["settings"]["kind"] == kind]  # fmt: skip
    return ", ".join(f"{height}: {row['first']:.0f}" for height, row in rows if row and row["seconds"])


def draw(result: dict[str, Any], path: Path) -> None:
    """Processor time of a step against height, a panel a kind; bands are quartiles."""
    kinds = [kind for kind in FIRST_RATES if lines(result, kind)]
    figure, panels = plt.subplots(1, len(kinds), figsize=(5 * len(kinds), 4.6), layout="constrained", squeeze=False)
    figure.suptitle(
        f"{result['title']}\n{result['machine']['cpu']}, {result['rounds']} rounds, one thread", fontsize=11
    )
    for kind, axes in zip(kinds, panels[0]):
        costs = slopes(result, kind)
        for side, points in lines(result, kind).items():
            heights, steps = [height for height, _ in points], np.array([step for _, step in points])
            label = f"{side}, {costs[side]:.3f} ms a further level" if side in costs else side
            alone = {"marker": "s", "ls": "", "ms": 7} if len(points) == 1 else {"marker": "o", "ms": 4}
            axes.plot(heights, steps[:, 0], color=COLORS[side], label=label, **alone)
            axes.fill_between(heights, steps[:, 1], steps[:, 2], color=COLORS[side], alpha=0.2, lw=0)
        axes.set(title=kind, xlabel="height (optimizers)", ylabel="ms of processor time a step", ylim=(0, None))
        axes.legend(fontsize=8)
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    plt.close(figure)
