"""W4: towers of depth 1-4 against their floor: the gradients and optimizer steps that they cannot do without.

    python -m benchmarks W4

A tower's floor is the work of one top step and nothing around it, on tensors of the tower's own shapes:

    task gradients x the time of one                      (``value_and_grad`` of the task, all copies at once)
  + updates of the topmost level x the time of one ``update``
  + for each trained level: its updates x the time of one and of its pullback    (``linearized``, then what it returns)

The side ``floor`` does that work: the same calls, as often, one after the other on inputs that stay the same. What
the tower does beside (keeping carries, adding cotangents, checking that numbers are finite, the report) is what makes
it slower; so does memory, for its inputs move and what pullbacks need is kept for a whole window. Both sides prove
their counts: the tower's by a task and optimizers that count, the floor's as it will run them. Nothing restarts.

The tower of depth d has d - 1 trained levels over 128 ten-dimensional quadratics, unrolls 20, 5, 3, and Adam on top.
"""

import dataclasses
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import torch
from torch import Tensor

from benchmarks.harness import Numbers, Side
from levels import LSTM, SGD, Adam, Level, Optimizer, Quadratic
from levels.compiled import compiling
from levels.layout import Layout
from levels.base import Problem
from levels.tree import State
from recursion import Tower
from recursion.tower import TowerState

TITLE = "towers of depth 1-4 against their floor"
TOLERANCE = {"task gradients": 0.0, "updates": 0.0, "pullbacks": 0.0, "losses": 1e-3}
PROVED = 3  # steps whose losses are compared
UNROLLS = (20, 5, 3)
COPIES = 128
RULES: dict[str, Optimizer] = {"lstm": LSTM(), "adam": Adam(lr=0.01), "sgd": SGD(lr=0.001)}
DEPTHS = (1, 2, 3, 4)
COUNTED = ("task gradients", "updates", "pullbacks")
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
        rules = [CountedRule(level.optimizer) for level in self.levels]
        counted = [dataclasses.replace(level, optimizer=rule) for level, rule in zip(self.levels, rules)]
        tower = Tower(task, *counted)
        state, _ = tower.step(tower.init(seed=0))
        task.calls = 0
        for rule in rules:
            rule.counts.update(updates=0, pullbacks=0)
        tower.step(state)
        updates = [float(rule.counts["updates"]) for rule in rules]
        pullbacks = [float(rule.counts["pullbacks"]) for rule in rules[:-1]]
        counts = dict(zip(COUNTED, ([float(task.calls)], updates, pullbacks)))
        return counts | {"losses": losses(self.tower)}


class Compiled:
    """A top step of the tower, running; what this process does from here on is compiled."""

    def __init__(self, rule: str, depth: int) -> None:
        self.switch = compiling()
        self.switch.__enter__()
        self.levels = levels(rule, depth)
        self.tower = Tower(Quadratic(dims=10), *self.levels)
        self.running = self.tower.running(self.tower.init(seed=0))
        self.facts = {"tower": repr(self.tower)}

    def step(self) -> None:
        self.running, _ = self.running.step()

    def prove(self) -> Numbers:
        task = CountedTask(Quadratic(dims=10))
        tower = Tower(task, *self.levels)
        running = tower.running(tower.init(seed=0))
        task.calls = 0
        running.step()
        return {COUNTED[0]: [float(task.calls)], "losses": losses(self.tower)}


def losses(tower: Tower) -> list[float]:
    """What the first steps report, of each level."""
    running, told = tower.running(tower.init(seed=0)), []
    for _ in range(PROVED):
        running, report = running.step()
        told += report.losses
    return told


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
    """What a top step from ``state`` needs: every update once, with its pullback where something trains the level.

    A level's parameters are what the level above carries; ``dx`` is the gradient it carries, ``dstate`` what a
    pullback made of that.
    """
    gradients, updates, pullbacks = COUNTED
    carries, times = tower.carries(state), tower.base_steps
    yield Call((gradients,), tower.task.value_and_grad, (carries[0].x, carries[0].below), times)
    for laid, carry, above in zip(tower.bound_levels, carries, carries[1:]):
        read = (above.x, carry.f, carry.g, carry.state, carry.x)
        _, dstate, _ = laid.optimizer.pullback(*read, carry.g, None)
        yield Call((updates, pullbacks), update_and_pull, (laid.optimizer, read, carry.g, dstate), times)
        times //= laid.level.unroll
    top = carries[-1]
    yield Call((updates,), tower.top.optimizer.update, (state.params, top.f, top.g, top.state, top.x), times)


def update_and_pull(optimizer: Optimizer, read: tuple[Any, ...], dx: Tensor, dstate: list[Tensor | None]) -> Any:
    """What a trained level asks of its optimizer for each step; returns the new ``x``, and cotangents."""
    x, _, pull = optimizer.linearized(*read)
    return x, pull(dx, dstate)


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


class CountedRule(Optimizer):
    """An optimizer that counts its updates and pullbacks; copies of it count together."""

    name = "counted"

    def __init__(self, rule: Optimizer) -> None:
        self.rule = rule
        self.counts = {"updates": 0, "pullbacks": 0}

    @cached_property
    def bound_levels(self) -> Optimizer:
        """The rule, laid over what this one is laid over."""
        return self.rule.over(self.below)

    def shapes(self, below: Layout) -> dict[str, tuple[int, ...]]:
        return self.rule.shapes(below)

    def init(self, key: Tensor) -> Tensor:
        return self.bound_levels.init(key)

    def init_state(self, params: Tensor, x: Tensor) -> State:
        return self.bound_levels.init_state(params, x)

    def update(self, params: Tensor, f: Tensor, g: Tensor, state: State, x: Tensor) -> tuple[Tensor, State]:
        self.counts["updates"] += 1
        return self.bound_levels.update(params, f, g, state, x)

    def pullback(
        self,
        params: Tensor,
        f: Tensor,
        g: Tensor,
        state: State,
        x: Tensor,
        dx: Tensor,
        dstate: list[Tensor | None] | None,
    ) -> tuple[Tensor, list[Tensor | None], Tensor]:
        self.counts["pullbacks"] += 1
        return self.bound_levels.pullback(params, f, g, state, x, dx, dstate)


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


LINES = {"ours": "-o", "ours, compiled": ":s", "floor": "--x"}
"""How each side is drawn."""

SIDES: dict[str, Callable[..., Side]] = {"ours": Ours, "ours, compiled": Compiled, "floor": Floor}
IMPORTS = {"ours, compiled": ["torch._dynamo", "torch._inductor.compile_fx"]}
