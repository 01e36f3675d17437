"""Short-horizon bias (Wu et al. 2018, arXiv 1803.02021): the step size that each look-ahead chooses, and what it costs.

    python -m benchmarks.horizon [--out benchmarks/results] [--effort 1.0]

SGD on the noisy quadratic, from standard normal starts. A look-ahead H judges a step size by the mean expected loss of
H steps; what is said of losses is their excess over sum_i h_i sigma^2 / 2, which no step size removes. Lines are the
closed form, dots what towers learn (mean and deviation over five seeds, of 64 copies each, 256 of what is cut). Left:

- from the start: each window is a whole trajectory. Fast directions still have to fall, so short look-aheads choose
  large step sizes. First order leaves out what a gradient owes to the step size, and errs more with every step of H;
- cut out: windows of H in runs of 10,000 steps, each judged from where the run has come to. What a window leaves to
  later ones counts for nothing in it, so it pays to be cautious. Forward mode, in windows of 200, cuts nothing off;
- on the way: after 1000 steps whose step size was chosen anew at each, with look-ahead 1. The noise was driven out of
  the fast directions, only slow ones still have to fall; a short look-ahead does not see that they will.

Right, the mean loss of 10,000 steps with those choices (what was chosen on the way is kept for the 9,000 left), and
where the choice is made anew every H steps, from where the run has come to (closed form).
Last, at one step size: the slope of forward mode against the closed form, and its memory, up to 10,000 steps.
"""

import argparse
import json
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from torch import Tensor

from levels import SGD, Adam, Estimator, Exact, FirstOrder, Forward, Level, Linear, NoisyQuadratic, keys
from levels.tree import leaves
from recursion import Tower, TowerState
from tests.laws.live import LiveBytes

AHEAD = (1, 3, 10, 30, 100, 300, 1000, 3000, 10_000)
LONG, STOOD = 10_000, 1000
SEEDS, COPIES, START = 5, 64, 0.1
PACE = 0.05
CUT_PACE, CUT_COPIES = {1: 2.0, 10: 0.5, 100: 0.2}, 256  # what is cut shorter has less slope
TASK = NoisyQuadratic(low=0.001, noise=0.1, dtype="float64")


@dataclass(frozen=True, repr=False)
class Underway(NoisyQuadratic):
    """The same, begun where ``steps`` steps have led whose step size was the best for the step to come (`nearest`)."""

    name = "underway"

    steps: int = STOOD

    @cached_property
    def begun(self) -> Tensor:
        """E x^2 there."""
        start = fresh(self)
        for _ in range(self.steps):
            start = squares(self, nearest(self, start), start, 1)
        return start

    def init(self, key: Tensor) -> Tensor:
        return self.begun.sqrt() * super().init(key)


# The closed form: E x^2 of each coordinate, ``[*batch, n]``, for step sizes ``[*batch, 1]``. With q = (1 - lr h)^2 it
# goes to lr h sigma^2 / (2 - lr h) as q^t; this is `NoisyQuadratic.expected_sgd`, summed up.


def fresh(task: NoisyQuadratic) -> Tensor:
    """E x^2 of a standard normal start."""
    return torch.ones(task.dims, dtype=task.torch_dtype)


def squares(task: NoisyQuadratic, rate: Tensor, start: Tensor, steps: int) -> Tensor:
    """E x^2 after ``steps`` steps from ``start``."""
    bent = rate * task.curvature
    settled = bent * task.noise**2 / (2 - bent)
    return settled + (1 - bent) ** (2 * steps) * (start - settled)


def mean_squares(task: NoisyQuadratic, rate: Tensor, start: Tensor, steps: float, every: int = 1) -> Tensor:
    """Mean of E x^2 after 0, every, 2 every, ... of ``steps`` steps."""
    bent = rate * task.curvature
    settled = bent * task.noise**2 / (2 - bent)
    q = (1 - bent) ** 2
    return settled + (1 - q**steps) / (1 - q**every) * every / steps * (start - settled)


def excess(task: NoisyQuadratic, rate: Tensor, start: Tensor, steps: int) -> Tensor:
    """Mean expected loss ``[*batch]`` after 1, ..., ``steps`` steps, over the noise's part."""
    return (task.curvature * mean_squares(task, rate, squares(task, rate, start, 1), steps)).sum(-1) / 2


def exact_slope(task: NoisyQuadratic, rate: Tensor, start: Tensor, steps: int) -> Tensor:
    """Derivative of `excess` in the step size, ``[*batch]``, the start being a constant."""
    rate = rate.detach().requires_grad_()
    return torch.autograd.grad(excess(task, rate, start, steps).sum(), rate)[0].squeeze(-1)


def first_order_slope(task: NoisyQuadratic, rate: Tensor, start: Tensor, steps: int) -> Tensor:
    """What first order takes for it: -sum_i h_i E x_t S_t, the mean over t, where S_t is the sum of gradients so far.

    E x S goes to (1 - lr h) (E x S + h E x^2) - lr (h sigma)^2 with a step.
    """
    h, square, product, total = task.curvature, start, torch.zeros_like(start), torch.zeros_like(rate[..., 0])
    for _ in range(steps):
        product = (1 - rate * h) * (product + h * square) - rate * (h * task.noise) ** 2
        square = squares(task, rate, square, 1)
        total = total - (h * product).sum(-1)
    return total / steps


class Cost(NamedTuple):
    """Excess losses of a run of 10,000 steps."""

    mean: float
    last: float


Slope = Callable[[NoisyQuadratic, Tensor, Tensor, int], Tensor]


def chosen(task: NoisyQuadratic, steps: int, *, slope: Slope = exact_slope, cut: bool = False) -> float:
    """The least step size at which a slope turns positive; with ``cut``, of windows cut out of long runs with it."""
    low, high = 1e-5, 1.9
    for _ in range(5):
        rates = torch.logspace(math.log10(low), math.log10(high), 50, dtype=torch.float64)[:, None]
        start = mean_squares(task, rates, start_of(task), LONG, steps) if cut else start_of(task)
        place = int((slope(task, rates, start, steps) > 0).long().argmax())
        assert place > 0, "no step size at which the slope turns positive"
        low, high = rates[place - 1].item(), rates[place].item()
    return math.sqrt(low * high)


def start_of(task: NoisyQuadratic) -> Tensor:
    """E x^2 where trajectories of this task begin."""
    return task.begun if isinstance(task, Underway) else fresh(task)


def nearest(task: NoisyQuadratic, start: Tensor) -> Tensor:
    """The step size ``[1]`` that is best for one step."""
    h = task.curvature
    return (h**2 * start).sum(-1, keepdim=True) / (h**3 * (start + task.noise**2)).sum(-1, keepdim=True)


def anew(task: NoisyQuadratic, steps: int) -> Cost:
    """A long run whose step size is chosen anew every ``steps`` steps."""
    rates = torch.logspace(-4, math.log10(1.9), 400, dtype=torch.float64)[:, None]
    start, total = fresh(task), 0.0
    for begun in range(0, LONG, steps):
        run = min(steps, LONG - begun)
        rate = rates[excess(task, rates, start, steps).argmin()] if steps > 1 else nearest(task, start)
        total += run * float(excess(task, rate, start, run))
        start = squares(task, rate, start, run)
    return Cost(total / LONG, float(task.curvature @ start) / 2)


def kept(task: NoisyQuadratic, rate: float) -> Cost:
    """A long run with this step size: from its start, or, on the way, for the steps that are left."""
    total, left, start = 0.0, LONG, fresh(task)
    if isinstance(task, Underway):
        left = LONG - task.steps
        for _ in range(task.steps):
            best = nearest(task, start)
            total, start = total + float(excess(task, best, start, 1)), squares(task, best, start, 1)
    rates = torch.tensor([rate], dtype=torch.float64)
    total += left * float(excess(task, rates, start, left))
    return Cost(total / LONG, float(task.curvature @ squares(task, rates, start, left)) / 2)


# What towers learn.


def learn(task: NoisyQuadratic, gradient: Estimator, unroll: int, horizon: int, windows: float) -> dict[str, Any]:
    """The step size of each seed over so many ``windows``: the geometric mean over their second half.

    Where windows are cut out of longer trajectories, the step size rests for the first of these, so that copies have
    come as far as their ages say; and it is moved by SGD: in proportion, for few windows hold most of the slope.
    """
    cut = unroll < horizon and not isinstance(gradient, Forward)
    copies = CUT_COPIES if cut else COPIES
    level = Level(optimizer=SGD(lr=START), unroll=unroll, horizon=horizon, batch=copies, gradient=gradient)
    mover = SGD(lr=CUT_PACE[unroll]) if cut else Adam(lr=PACE, beta2=0.95)
    tower = Tower(task, level, Level(optimizer=mover, batch=SEEDS))
    state, begun = tower.init(seed=0), time.perf_counter()
    state = rested(tower, state, horizon // unroll) if unroll < horizon else state
    logs = []
    for _ in range(math.ceil(windows)):
        state, _ = tower.step(state)
        logs.append(state.carry.x[:, 0])
    rates = torch.stack(logs[len(logs) // 2 :]).mean(0).exp()
    seconds = round(time.perf_counter() - begun, 1)
    print(f"{seconds:6.1f} s  {tower}", flush=True)
    return {"rates": rates.tolist(), "windows": len(logs), "seconds": seconds, "tower": repr(tower)}


def rested(tower: Tower, state: TowerState, windows: int) -> TowerState:
    """The state after so many windows in which the topmost level moves nothing; that level's is as at the start."""
    fixed = Tower(tower.task, tower.levels[0], Level(optimizer=SGD(lr=Linear(0.0)), batch=SEEDS))
    still = fixed.init(seed=0)
    for _ in range(windows):
        still, _ = fixed.step(still)
    return state._replace(carry=still.carry._replace(state=state.carry.state))


def towers(effort: float) -> dict[str, dict[int, dict[str, Any]]]:
    """All that is learned: by method, by look-ahead."""

    def whole(gradient: Estimator, lookahead: int) -> dict[str, Any]:
        return learn(TASK, gradient, lookahead, lookahead, effort * (150 if lookahead > 100 else 100))

    def cut(lookahead: int) -> dict[str, Any]:
        return learn(TASK, FirstOrder(), lookahead, LONG, effort * 1.5 * LONG / lookahead)

    def forward(task: NoisyQuadratic, lookahead: int) -> dict[str, Any]:
        windows = (1000 if lookahead == 1 else 300) if isinstance(task, Underway) else 120 if lookahead < LONG else 75
        return learn(task, Forward(), max(min(lookahead, 10), lookahead // 50), lookahead, effort * windows)

    way = Underway(**vars(TASK))
    return {
        "start, forward": {lookahead: forward(TASK, lookahead) for lookahead in (1, 10, 100, 1000, LONG)},
        "start, exact": {lookahead: whole(Exact(), lookahead) for lookahead in (1, 10, 100)},
        "start, first order": {lookahead: whole(FirstOrder(), lookahead) for lookahead in (1, 10, 100, 300)},
        "cut out, first order": {lookahead: cut(lookahead) for lookahead in CUT_PACE},
        "on the way, forward": {lookahead: forward(way, lookahead) for lookahead in (1, 10, 100, 1000)},
    }


def lines() -> dict[str, dict[int, float]]:
    """The closed form of the same, by method, by look-ahead."""
    way = Underway(**vars(TASK))
    return {
        "start": {lookahead: chosen(TASK, lookahead) for lookahead in AHEAD},
        "start, first order": {lookahead: chosen(TASK, lookahead, slope=first_order_slope) for lookahead in AHEAD[:6]},
        "cut out": {lookahead: chosen(TASK, lookahead, cut=True) for lookahead in AHEAD},
        "cut out, first order": {
            lookahead: chosen(TASK, lookahead, slope=first_order_slope, cut=True) for lookahead in AHEAD[:6]
        },
        "on the way": {lookahead: chosen(way, lookahead) for lookahead in (*AHEAD[:-1], LONG - STOOD)},
    }


def slopes(rate: float = START, runs: int = 256) -> dict[int, dict[str, float]]:
    """Forward mode in windows of 10, at one step size: its slope of the mean loss so far in log lr, and its memory.

    The memory is the peak of a window, in bytes, with the state that it is handed.
    """
    level = Level(optimizer=SGD(lr=rate), unroll=10, horizon=None, batch=1, gradient=Forward()).over(TASK)
    key, found = keys.split(keys.seed(1), runs), {}
    params, rates = level.init(key), torch.tensor([rate], dtype=torch.float64)
    state, total = level.init_state(params, key), torch.zeros(runs, dtype=torch.float64)
    for step in range(10, LONG + 1, 10):
        held = sum(leaf.nbytes for leaf in leaves(state))
        with LiveBytes() if step in AHEAD else nullcontext() as live:
            _, grad, state = level.value_and_grad(params, state)
        total = total + grad[:, 0]
        if live is not None:
            expected = rate * float(exact_slope(TASK, rates, fresh(TASK), step))
            slope, error = float(total.mean()) / step, float(total.std()) / step / math.sqrt(runs)
            numbers = {"slope": slope, "error": error, "expected": expected, "z": (slope - expected) / error}
            found[step] = {**numbers, "bytes": held + live.peak}
    return found


# What is shown.


def cost_of(line: str, rate: float) -> Cost:
    return kept(Underway(**vars(TASK)) if "way" in line else TASK, rate)


def center(learned: dict[str, Any]) -> tuple[float, float]:
    """Mean over seeds and standard deviation of log10 of the step size."""
    logs = torch.tensor(learned["rates"], dtype=torch.float64).log10()
    return float(logs.mean()), float(logs.std())


def show(result: dict[str, Any]) -> None:
    print(
        "look-ahead: closed form; learned, its log10 error and the spread over seeds; mean, last excess of 10,000 steps"
    )
    for method, points in result["learned"].items():
        line = method if "first" in method else method.split(",")[0]
        for lookahead, learned in points.items():
            expected, (mean, spread) = result["lines"][line][lookahead], center(learned)
            cost = cost_of(line, 10**mean)
            print(
                f"{method:>20} {lookahead:>6}: {expected:.4f}  {10**mean:.4f} {mean - math.log10(expected):+.4f}"
                f" {spread:.4f}  {cost.mean:.3g} {cost.last:.3g}"
            )
    for lookahead, cost in result["anew"].items():
        print(f"{'anew':>20} {lookahead:>6}:  {cost.mean:.3g} {cost.last:.3g}")
    print("forward mode at one step size: steps, slope, standard error, closed form, z, peak KiB")
    for step, found in result["slopes"].items():
        print("  ".join([f"{step:>6}", *(f"{value:.4g}" for value in list(found.values())[:-1])]), end="  ")
        print(f"{found['bytes'] / 1024:.1f}")


COLORS = {"start": "C0", "cut out": "C2", "on the way": "C3"}
LABELS = {"start": "from the start", "cut out": "cut out of runs of 10,000", "on the way": "on the way, step 1000"}
MARKS = {"forward": "o", "exact": "x", "first order": "+"}


def draw_rates(axes: Axes, result: dict[str, Any]) -> None:
    for line, rates in result["lines"].items():
        setting, _, gradient = line.partition(", ")
        style = {"ls": "--"} if gradient else {"label": LABELS[setting]}
        axes.plot(list(rates), list(rates.values()), color=COLORS[setting], lw=1, **style)
    for method, points in result["learned"].items():
        setting, gradient = method.split(", ")
        for lookahead, learned in points.items():
            mean, spread = center(learned)
            bar = [[10**mean - 10 ** (mean - spread)], [10 ** (mean + spread) - 10**mean]]
            color = COLORS[setting]
            axes.errorbar([lookahead], [10**mean], bar, fmt=MARKS[gradient], color=color, ms=6, mfc="none", capsize=2)
    for gradient, mark in MARKS.items():
        axes.plot([], [], mark, color="black", mfc="none", label=f"learned, {gradient}")
    axes.plot([], [], "--", color="black", lw=1, label="closed form of first order")
    axes.axhline(result["lines"]["start"][LONG], color="black", lw=0.8, ls=":")
    axes.set(xscale="log", yscale="log", xlabel="look-ahead, steps", ylabel="step size", title="what is chosen")


def draw_costs(axes: Axes, result: dict[str, Any]) -> None:
    for setting, label in LABELS.items():
        rates = result["lines"][setting]
        costs = [cost_of(setting, rate).mean for rate in rates.values()]
        axes.plot(list(rates), costs, color=COLORS[setting], lw=1, label=label)
    for method, points in result["learned"].items():
        setting, gradient = method.split(", ")
        costs = [cost_of(setting, 10 ** center(learned)[0]).mean for learned in points.values()]
        axes.plot(list(points), costs, MARKS[gradient], color=COLORS[setting], ms=6, mfc="none")
    anew = result["anew"]
    axes.plot(list(anew), [cost.mean for cost in anew.values()], color="C4", lw=1, label="chosen anew every H steps")
    best = cost_of("start", result["lines"]["start"][LONG]).mean
    axes.axhline(best, color="black", lw=0.8, ls=":", label="best single step size for 10,000")
    axes.set(xscale="log", yscale="log", xlabel="look-ahead H, steps", ylabel="mean excess loss")
    axes.set_title("what 10,000 steps cost")


def draw(result: dict[str, Any], path: Path) -> None:
    figure, panels = plt.subplots(1, 2, figsize=(12, 4.8), layout="constrained")
    for panel, axes in zip((draw_rates, draw_costs), panels):
        panel(axes, result)
        axes.legend(fontsize=8)
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--effort", type=float, default=1.0, help="steps of all that is learned, as a factor")
    options = parser.parse_args()
    torch.set_num_threads(1)
    settings = {
        "task": repr(TASK),
        "seeds": SEEDS,
        "copies": COPIES,
        "cut_copies": CUT_COPIES,
        "start": START,
        "effort": options.effort,
        "torch": torch.__version__,
    }
    result: dict[str, Any] = {
        "settings": settings,
        "lines": lines(),
        "anew": {lookahead: anew(TASK, lookahead) for lookahead in AHEAD},
        "slopes": slopes(),
        "learned": towers(options.effort),
    }
    show(result)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "horizon.json").write_text(json.dumps(result, indent=1) + "\n")
    draw(result, options.out / "horizon.png")
    print(f"wrote {options.out / 'horizon.json'} and horizon.png")


if __name__ == "__main__":
    main()
