"""Memory of exact gradients against the unroll, beside naive nested autograd.

    python -m benchmarks.exact [--out benchmarks/results] [--largest 320]

In bytes of live tensor storages (exact, the same on every machine, see tests/laws/live.py): the peak of one
meta-gradient above what was alive before it. Sides and the quantity are those of `benchmarks.w5`: momentum SGD with a
step size for each tensor, over a perceptron on 8x8 digits and over a small transformer, each at two sizes of
minibatch. The naive graph holds the model's activations and backward graph of every step, so it grows with the
minibatch; exact mode holds the carries (weights, gradient, momentum, loss) of every step and the graph of one.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes

from benchmarks.w5 import Measured, Naive, Ours, start
from levels import CharTransformer, DigitsMLP
from levels.tasks.task import LossTask
from tests.laws.live import LiveBytes

UNROLLS = (10, 20, 40, 80, 160, 320)
TASKS: dict[str, dict[int, LossTask]] = {
    "perceptron": {minibatch: DigitsMLP(minibatch=minibatch) for minibatch in (8, 128)},
    "transformer": {minibatch: CharTransformer(minibatch=minibatch) for minibatch in (1, 8)},
}
SIDES: dict[str, type[Measured]] = {"exact": Ours, "naive": Naive}


def peak(kind: type[Measured], task: LossTask, unroll: int) -> int:
    """Peak bytes of one meta-gradient, above those alive before."""
    side = kind(start(task, unroll))
    kind(start(task, 2)).step()  # first calls fill torch's caches
    with LiveBytes() as live:
        side.step()
    return int(live.peak)


def measure(largest: int) -> dict[str, Any]:
    """All numbers: peaks by task, minibatch, side and unroll, up to an unroll of ``largest``."""
    unrolls = [unroll for unroll in UNROLLS if unroll <= largest]
    peaks = {
        name: {
            minibatch: {side: {t: peak(kind, task, t) for t in unrolls} for side, kind in SIDES.items()}
            for minibatch, task in sizes.items()
        }
        for name, sizes in TASKS.items()
    }
    carries = {name: carry(next(iter(sizes.values()))) for name, sizes in TASKS.items()}
    return {"torch": torch.__version__, "carry_bytes": carries, "peak_bytes": peaks}


def carry(task: LossTask) -> int:
    """Bytes that a step of exact mode leaves behind: weights, gradient, momentum and loss."""
    return (3 * task.layout.size + 1) * task.torch_dtype.itemsize


def growth(peaks: dict[int, int]) -> float:
    """Bytes that each step more costs, between the two largest unrolls."""
    (less, least), (more, most) = sorted(peaks.items())[-2:]
    return (most - least) / (more - less)


def draw(result: dict[str, Any], path: Path) -> None:
    figure, panels = plt.subplots(1, len(TASKS), figsize=(11, 4.5), layout="constrained")
    for axes, (name, sizes) in zip(panels, result["peak_bytes"].items()):
        for color, (minibatch, sides) in zip(("C0", "C1"), sizes.items()):
            for side, line in (("naive", "--x"), ("exact", "-o")):
                label = f"{'naive nested autograd' if side == 'naive' else 'exact mode'}, minibatch {minibatch}"
                axes.loglog(
                    list(sides[side]), [b / 2**20 for b in sides[side].values()], line, color=color, label=label
                )
        unrolls = list(sides["exact"])
        alone = [result["carry_bytes"][name] * t / 2**20 for t in unrolls]
        axes.plot(unrolls, alone, ":", color="black", label="the carries alone")
        finish(axes, f"{name}, {TASKS[name][minibatch].layout.size:,} parameters", unrolls)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def finish(axes: Axes, title: str, unrolls: list[int]) -> None:
    axes.set(xlabel="unroll", ylabel="peak of a meta-gradient, MiB of live tensors", title=title)
    axes.set_xticks(unrolls, [str(t) for t in unrolls])
    axes.minorticks_off()
    axes.yaxis.set_major_formatter("{x:g}")
    axes.grid(alpha=0.2)
    axes.legend(fontsize=8)


def show(result: dict[str, Any]) -> None:
    for name, sizes in result["peak_bytes"].items():
        print(f"{name}: peak of a meta-gradient in KiB, by unroll; last, KiB for each step more")
        for minibatch, sides in sizes.items():
            for side, peaks in sides.items():
                cells = "".join(f"{value / 1024:10.0f}" for value in peaks.values())
                print(f"  {side}, minibatch {minibatch}".ljust(24) + cells + f"{growth(peaks) / 1024:10.1f}")
        print("  the carries alone".ljust(24) + " " * 10 * len(peaks) + f"{result['carry_bytes'][name] / 1024:10.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder for exact.png, exact.json")
    parser.add_argument("--largest", type=int, default=UNROLLS[-1], help="largest unroll measured, at least 20")
    options = parser.parse_args()
    torch.set_num_threads(1)
    result = measure(options.largest)
    show(result)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "exact.json").write_text(json.dumps(result, indent=1) + "\n")
    draw(result, options.out / "exact.png")
    print(f"wrote {options.out / 'exact.json'} and exact.png")


if __name__ == "__main__":
    main()
