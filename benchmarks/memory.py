"""Peak memory of a tower against its unrolls, beside naive nested autograd, and over a thousand steps.

    python -m benchmarks.memory [--out benchmarks/results] [--steps 1000] [--largest 1024]

Left, in bytes of live tensor storages (exact, see tests/laws/live.py): the peak of one top step above what was alive
before it, for towers of depth 1-4 whose levels all have the unroll T. Ours grows as the sum of the unrolls, T times
the depth; the naive oracle of the tests, one autograd graph for the whole step, as their product, T to the depth.
Right: resident memory of one process for each depth, over its top steps. Needs Linux (/proc) for the right half.
"""

import argparse
import json
import multiprocessing
import os
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch

from levels import LSTM, SGD, Level, Log, Quadratic, keys
from recursion import Tower
from tests.laws.live import LiveBytes
from tests.laws.oracle import naive

DEPTHS = (1, 2, 3, 4)
UNROLLS = (1, 2, 4, 8, 16, 32, 64)
TASK = Quadratic(dims=100, dtype="float64")


def stack(depth: int, unroll: int) -> list[Level]:
    """``depth`` levels of one unroll: momentum SGD with a step size for each coordinate, one copy each."""
    rule = SGD(lr=Log(1e-6, shared_over="coordinate"), momentum=0.5)
    return [Level(optimizer=rule, unroll=unroll, horizon=None, batch=1) for _ in range(depth)]


def peak_ours(depth: int, unroll: int) -> int:
    """Peak bytes of one value and gradient of the topmost level, above those alive before."""
    problem: Any = TASK
    for level in stack(depth, unroll):
        problem = level.over(problem)
    with LiveBytes() as live:
        params = problem.init(keys.seed(0))
        state = problem.init_state(params, keys.seed(0))
        before = live.reset_peak().bytes
        problem.value_and_grad(params, state)
        return live.peak - before


def peak_naive(depth: int, unroll: int) -> int:
    """The same of the oracle."""
    problem = naive(TASK, *stack(depth, unroll))
    with LiveBytes() as live:
        params = problem.init(keys.seed(0))
        state = problem.start(params, keys.seed(0))
        before = live.reset_peak().bytes
        problem.ask(params.requires_grad_(), state)
        return live.peak - before


def resident(depth: int, steps: int) -> list[float]:
    """Resident MiB of this process after every tenth top step: SGD over LSTMs, with restarts."""
    torch.set_num_threads(1)
    levels = [Level(optimizer=LSTM(hidden=8), unroll=2, horizon=10, batch=2) for _ in range(depth - 1)]
    tower = Tower(Quadratic(dims=10), *levels, Level(optimizer=SGD(lr=1e-4), batch=1))
    state, series = tower.init(seed=0), []
    for _ in range(steps):
        state, report = tower.step(state)
        if report.step % 10 == 0:
            series.append(_resident_mib())
    return series


def _resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def measure(steps: int, largest: int) -> dict[str, Any]:
    """All numbers; a point is left out where its step would cost more than ``largest`` task gradients."""
    peaks = {
        name: {depth: {t: peak(depth, t) for t in UNROLLS if t**depth <= largest} for depth in DEPTHS}
        for name, peak in (("ours", peak_ours), ("naive", peak_naive))
    }
    spawn = multiprocessing.get_context("spawn")
    series = {}
    for depth in DEPTHS:
        with spawn.Pool(1) as pool:
            series[depth] = pool.apply(resident, (depth, steps))
    return {"torch": torch.__version__, "task": repr(TASK), "peak_bytes": peaks, "steps": steps, "resident_mib": series}


def draw(result: dict[str, Any], path: Path) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    for depth in DEPTHS:
        for name, line in (("ours", "-o"), ("naive", "--x")):
            points = result["peak_bytes"][name][depth]
            left.loglog(list(points), [value / 1024 for value in points.values()], line, color=f"C{depth}", ms=4)
        left.plot([], [], color=f"C{depth}", label=f"depth {depth}")
        series = result["resident_mib"][depth]
        right.plot(range(10, 10 * len(series) + 1, 10), series, color=f"C{depth}", label=f"depth {depth}")
    for name, line in (("first order (sum)", "-o"), ("naive nested autograd (product)", "--x")):
        left.plot([], [], line, color="black", ms=4, label=name)
    left.set(xlabel="unroll of every level", ylabel="peak of a top step, KiB", title="Live tensor bytes")
    left.set_xticks(UNROLLS, [str(t) for t in UNROLLS])
    left.minorticks_off()
    right.set(xlabel="top step", ylabel="resident, MiB", title="Process memory", ylim=(0, None))
    left.set_ylim(5, 50_000)
    left.legend(fontsize=8, loc="upper right", ncols=2)
    right.legend(fontsize=8)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def show(result: dict[str, Any]) -> None:
    print("peak of a top step, KiB: ours / naive")
    print("unroll".rjust(8) + "".join(f"depth {depth}".rjust(20) for depth in DEPTHS))
    for t in UNROLLS:
        cells = []
        for depth in DEPTHS:
            pair = [result["peak_bytes"][name][depth].get(t) for name in ("ours", "naive")]
            cells.append("-" if None in pair else " / ".join(f"{value / 1024:.0f}" for value in pair))
        print(str(t).rjust(8) + "".join(cell.rjust(20) for cell in cells))
    print(f"resident MiB over {result['steps']} top steps: after a tenth, at the end, largest")
    for depth, series in result["resident_mib"].items():
        print(f"depth {depth}: {series[len(series) // 10]:.1f}  {series[-1]:.1f}  {max(series):.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--out", type=Path, default=Path("benchmarks/results"), help="folder for memory.png, memory.json"
    )
    parser.add_argument("--steps", type=int, default=1000, help="top steps of the right half")
    parser.add_argument("--largest", type=int, default=1024, help="task gradients of the largest step measured")
    options = parser.parse_args()
    torch.set_num_threads(1)
    result = measure(options.steps, options.largest)
    show(result)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "memory.json").write_text(json.dumps(result, indent=1) + "\n")
    draw(result, options.out / "memory.png")
    print(f"wrote {options.out / 'memory.json'} and memory.png")


if __name__ == "__main__":
    main()
