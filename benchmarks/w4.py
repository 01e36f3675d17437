"""W4: towers of depth 1-4 against their floor: the gradients and optimizer steps that they cannot do without.

    python -m benchmarks W4

A tower's floor is the work of one top step and nothing around it, on tensors of the tower's own shapes:

    task gradients x the time of one                      (``value_and_grad`` of the task, all copies at once)
  + updates of the topmost level x the time of one ``update``
  + for each trained level: its updates x the time of one and of its derivative by autograd

The side ``floor`` does that work: the same calls, as often, one after the other on inputs that stay the same. What
the tower does beside (carries, sums of cotangents, checks that numbers are finite, the report) makes it slower; so does
memory, for its inputs move and the graph of a whole window is stored. Both sides prove
their counts: the tower's by a task and optimizers that count, the floor's as it will run them. Nothing restarts.

The tower of depth d has d - 1 trained levels over 128 ten-dimensional quadratics, unrolls 20, 5, 3, and Adam on top.
"""

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import torch
from torch import Tensor

from benchmarks.harness import Numbers, Side
from levels import LSTM, SGD, Adam, Level, Optimizer, Quadratic
from levels.base import Problem
from levels.layout import Layout
from levels.optimizers.wrap import Wrapper
from levels.tree import State, leaves, with_leaves
from recursion import Tower
from recursion.accelerate import Running, accelerate
from recursion.tower import TowerState

TITLE = "towers of depth 1-4 against their floor"
TOLERANCE = {"task gradients": 0.0, "updates": 0.0, "losses": 1e-3}
PROVED = 3  # steps whose losses are compared
UNROLLS = (20, 5, 3)
COPIES = 128
RULES: dict[str, Optimizer] = {"lstm": LSTM(), "adam": Adam(lr=0.01), "sgd": SGD(lr=0.001)}
DEPTHS = (1, 2, 3, 4)
COUNTED = ("task gradients", "updates")
VARIANTS: dict[str, dict[str, Any]] = {
    f"{rule} depth {depth}": {"rule": rule, "depth": depth}
    for rule in RULES
    for depth in DEPTHS
    if depth > 1 or rule == "adam"  # of depth 1, every family's tower is Adam alone
}


def levels(rule: str, depth: int) -> list[Level]:
    """The levels of a tower of this family: bottom first, Adam on top."""
    rules = [RULES[rule]] * (depth - 1) + [Adam()]
    unrolls = (*UNROLLS[: depth - 1], 1)
    copies = (COPIES, *[1] * (depth - 1))
    return [Level(optimizer=o, unroll=t, batch=b, horizon=None) for o, t, b in zip(rules, unrolls, copies)]


class Ours:
    """A top step of the tower."""

    def __init__(self, rule: str, depth: int) -> None:
        self.levels = levels(rule, depth)
        self.tower = Tower(Quadratic(dims=10), *self.levels)
        self.state = self.tower.init(seed=0)
        self.facts = {"tower": repr(self.tower)}

    def step(self) -> None:
        self.state, _ = self.tower.step(self.state)

    def prove(self) -> Numbers:
        task = CountedTask(Quadratic(dims=10))
        rules = [Counted(level.optimizer, {"updates": 0}) for level in self.levels]
        counted = [dataclasses.replace(level, optimizer=rule) for level, rule in zip(self.levels, rules)]
        tower = Tower(task, *counted)
        state, _ = tower.step(tower.init(seed=0))
        task.calls = 0
        for rule in rules:
            rule.counts["updates"] = 0
        tower.step(state)
        updates = [float(rule.counts["updates"]) for rule in rules]
        return dict(zip(COUNTED, ([float(task.calls)], updates))) | {"losses": losses(self.tower)}


class Accelerated:
    """A top step of the accelerated tower, running."""

    def __init__(self, rule: str, depth: int) -> None:
        self.levels = levels(rule, depth)
        self.tower = accelerate(Tower(Quadratic(dims=10), *self.levels))
        self.running = Running(self.tower, self.tower.init(seed=0))
        self.facts = {"tower": repr(self.tower)}

    def step(self) -> None:
        self.running, _ = self.running.step()

    def prove(self) -> Numbers:
        task = CountedTask(Quadratic(dims=10))
        tower = accelerate(Tower(task, *self.levels))
        running = Running(tower, tower.init(seed=0))
        task.calls = 0
        running.step()
        return {COUNTED[0]: [float(task.calls)], "losses": losses(self.tower)}


def losses(tower: Tower) -> list[float]:
    """What the first steps report, of each level."""
    running, found = Running(tower, tower.init(seed=0)), []
    for _ in range(PROVED):
        running, report = running.step()
        found += report.losses
    return found


class Call(NamedTuple):
    """A function that a top step calls ``times`` times."""

    whats: tuple[str, ...]  # of COUNTED
    function: Callable[..., Any]
    inputs: tuple[Any, ...]
    times: int


class Floor:
    """The calls that a top step cannot do without, on inputs taken from the tower."""

    def __init__(self, rule: str, depth: int) -> None:
        ours = Ours(rule, depth)
        self.calls = list(calls(ours.tower, ours.tower.step(ours.state)[0]))

    @torch.no_grad()
    def step(self) -> None:
        for _, function, inputs, times in self.calls:
            for _ in range(times):
                function(*inputs)

    def prove(self) -> Numbers:
        return {what: [float(call.times) for call in self.calls if what in call.whats] for what in COUNTED}


@torch.no_grad()
def calls(tower: Tower, state: TowerState) -> Iterator[Call]:
    """What a top step from ``state`` needs: every update once, with its derivative where something trains the level.

    A level's parameters are what the level above carries; ``dx`` is the gradient that it carries.
    """
    gradients, updates = COUNTED
    carries, times = tower.carries(state), int(tower.costs[-1])
    yield Call((gradients,), tower.task.value_and_grad, (carries[0].x, carries[0].problem_state), times)
    for level, carry, above in zip(tower.bound, carries, carries[1:]):
        read = (above.x, carry.x, carry.state, carry.f, carry.g)
        yield Call((updates,), update_and_pull, (level.optimizer, read, carry.g), times)
        times //= level.unroll
    top = carries[-1]
    yield Call((updates,), tower.top.optimizer.update, (state.theta, top.x, top.state, top.f, top.g), times)


@torch.enable_grad()
def update_and_pull(optimizer: Optimizer, read: tuple[Any, ...], dx: Tensor) -> Any:
    """What a trained level asks of its optimizer for each step: the new ``x``, and cotangents of what it read."""
    theta, x, state, f, g = read
    theta, x = theta.detach().requires_grad_(), x.detach().requires_grad_()
    rest = [leaf.detach().requires_grad_() if leaf.is_floating_point() else leaf for leaf in leaves(state)]
    new, _ = optimizer.update(theta, x, with_leaves(state, rest), f, g)
    inputs = [theta, x, *(leaf for leaf in rest if leaf.requires_grad)]
    return new.detach(), torch.autograd.grad(new, inputs, dx, allow_unused=True)


class CountedTask(Problem):
    """A problem that counts how often it is asked."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.calls = 0

    @property
    def layout(self) -> Layout:
        return self.problem.layout

    def init(self, key: Tensor) -> Tensor:
        return self.problem.init(key)

    def init_state(self, params: Tensor, key: Tensor) -> State:
        return self.problem.init_state(params, key)

    def value_and_grad(self, params: Tensor, state: State) -> tuple[Tensor, Tensor, State]:
        self.calls += 1
        return self.problem.value_and_grad(params, state)


@dataclass(frozen=True, repr=False)
class Counted(Wrapper):
    """An optimizer that counts its updates; copies of it count together."""

    name = "counted"

    inner: Optimizer
    counts: dict[str, int] = field(default_factory=dict)

    def update(self, theta: Tensor, x: Tensor, state: State, f: Tensor, g: Tensor) -> tuple[Tensor, State]:
        self.counts["updates"] += 1
        return super().update(theta, x, state, f, g)


def points(result: dict[str, Any], rule: str, side: str) -> list[tuple[int, dict[str, Any]]]:
    """Depth and the rows of all sides, for the towers of one family of which ``side`` and the floor were timed."""
    found = [variant for variant in result["variants"].values() if variant["settings"].get("threads", 1) == 1]
    chosen = [variant for variant in found if variant["settings"]["rule"] == rule or variant["settings"]["depth"] == 1]
    timed = [variant for variant in chosen
             if all(variant["sides"].get(name, {}).get("seconds") for name in (side, "floor"))]  # fmt: skip
    return sorted(((variant["settings"]["depth"], variant["sides"]) for variant in timed), key=lambda point: point[0])


def summary(result: dict[str, Any]) -> list[str]:
    """Measured time over the floor: a line for each family and side, by depth."""
    lines = []
    for side in LINES:
        for rule in RULES if side != "floor" else ():
            cells = [f"{depth}: {sides[side]['ratio'][0]:.2f}" for depth, sides in points(result, rule, side)]
            lines.append(f"time over the floor by depth, {rule}, {side}: {', '.join(cells)}")
    return lines


def draw(result: dict[str, Any], path: Path) -> None:
    """Time over the floor, and peak memory, against the depth."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    for place, rule in enumerate(RULES):
        color = f"C{place}"
        for side, line in LINES.items():
            found = points(result, rule, side)
            if not found:
                continue
            right.plot(
                [depth for depth, _ in found], [rows[side]["peak"] / 1e6 for _, rows in found], line, color=color
            )
            if side != "floor":
                depths = [depth + 0.05 * (place - 1) for depth, _ in found]
                middle, low, high = zip(*(rows[side]["ratio"] for _, rows in found))
                whiskers = [[m - at for m, at in zip(middle, low)], [at - m for m, at in zip(middle, high)]]
                left.errorbar(depths, middle, yerr=whiskers, fmt=line, color=color, capsize=3)
        left.plot([], [], color=color, label=f"{rule}@20 / @5 / @3 / adam")
        right.plot([], [], color=color, label=rule)
    for side, line in LINES.items():
        for axes in (left, right) if side != "floor" else (right,):
            axes.plot([], [], line, color="black", label=side)
    left.axhline(1.0, color="black", linewidth=0.8, label="the floor")
    left.axhline(1.2, color="black", linewidth=0.8, linestyle=":", label="the goal, 1.2")
    left.set(xlabel="depth", ylabel="time over the floor; whiskers: quartiles", title="A top step against its floor")
    left.set_ylim(0, None)
    right.set(xlabel="depth", ylabel="MB beyond the process after its imports", title="Peak memory", ylim=(0, None))
    for axes in (left, right):
        axes.set_xticks(DEPTHS)
        axes.grid(alpha=0.2)
        axes.legend(fontsize=8)
    figure.suptitle(f"{result['title']}\n{result['machine']['cpu']}, {result['rounds']} rounds", fontsize=11)
    figure.savefig(path, dpi=120)
    plt.close(figure)


LINES = {"ours": "-o", "ours, accelerated": ":s", "floor": "--x"}
"""How each side is drawn."""

SIDES: dict[str, Callable[..., Side]] = {"ours": Ours, "ours, accelerated": Accelerated, "floor": Floor}
IMPORTS = {"ours, accelerated": ["torch._dynamo", "torch._inductor.compile_fx"]}
