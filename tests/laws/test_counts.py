"""One base step per base step: what a tower evaluates, counted at the task, in calls and in copies."""

import math
from dataclasses import dataclass, replace

import pytest
from parts import Tallied, answers, built

from levels import SGD, Level
from recursion import Tower
from recursion.notation import parse


def level(unroll: int, batch: int = 1, horizon: int | None = None, stagger: bool = True) -> Level:
    return Level(optimizer=SGD(lr=1e-6), unroll=unroll, horizon=horizon, batch=batch, stagger=stagger)


def counts(levels: list[Level], steps: int) -> list[tuple[int, int]]:
    """Calls and copies of start-up, then of each step."""
    tower = Tower(Tallied(dims=2), *levels)
    Tallied.take()
    state = tower.init(seed=0)
    taken = [Tallied.take()]
    for _ in range(steps):
        state, _ = tower.step(state)
        taken.append(Tallied.take())
    return taken


UNROLLS = [(7,), (20, 5), (1, 6), (20, 5, 3), (1,) * 3, (3, 2, 1, 4), (2, 3, 1, 2, 2), (1,) * 5]


@pytest.mark.parametrize("unrolls", UNROLLS, ids=str)
@pytest.mark.parametrize("batch", [1, 2])
def test_a_step_costs_the_product_of_the_unrolls(unrolls, batch):
    start = sum(math.prod(unrolls[:k]) for k in range(len(unrolls)))  # 1 + T1 + T1 T2 + ...
    product, copies = math.prod(unrolls), batch ** len(unrolls)
    taken = counts([level(unroll, batch) for unroll in unrolls], 3)
    assert taken == [(start, start * copies)] + [(product, product * copies)] * 3


@pytest.mark.parametrize(("levels", "expected"), [
    # All five copies restart together before every third window but the first.
    ([level(4, 5, 12, stagger=False)], [(4, 20), (4, 20), (4, 20), (5, 25), (4, 20), (4, 20), (5, 25)]),
    # Three copies, three windows a life: after the first window one copy is due before each, and it alone is asked.
    ([level(4, 3, 12)], [(4, 12)] + [(5, 13)] * 5),
    # A fresh copy of level 2 begins level 1 (1 call) and runs one window of it (4); one of the two copies at a time.
    ([level(4, 3), level(2, 2, 4)], [(8, 8 * 6)] + [(8 + 1 + 4, 8 * 6 + (1 + 4) * 3)] * 3),
], ids=str)  # fmt: skip
def test_by_hand(levels, expected):
    assert counts(levels, len(expected))[1:] == expected


@dataclass
class Node:
    """One copy of the problem below a level, as far as counting goes: its age, and the copies below it."""

    age: int
    below: list["Node"]


def fresh(levels: list[Level]) -> tuple[list[Node], int]:
    """Copies of the last of ``levels`` at their start and what they cost: for each, one answer of the problem below."""
    if not levels:
        return [], 0
    top, nodes, cost = levels[-1], [], 0
    for i in range(top.batch):
        below, start = fresh(levels[:-1])
        windows = (top.horizon or 0) // top.unroll if top.stagger else 0
        nodes.append(Node(i * windows // top.batch * top.unroll, below))
        cost += start + answer(levels[:-1], below)
    return nodes, cost


def answer(levels: list[Level], nodes: list[Node]) -> int:
    """Copies evaluated when the last of ``levels`` runs one window; no levels: the task answers."""
    if not levels:
        return 1
    top, cost = levels[-1], 0
    for node in nodes:
        if top.horizon is not None and node.age >= top.horizon:
            node.below, start = fresh(levels[:-1])
            node.age = 0
            cost += start + answer(levels[:-1], node.below)
        cost += sum(answer(levels[:-1], node.below) for _ in range(top.unroll))
        node.age += top.unroll
    return cost


TREES = [
    [level(2, 4, 6), level(3, 2, 6), level(2, 2, 4)],
    [level(1, 3, 2), level(2, 1, 6), level(1, 2, 3), level(2, 2, 4)],
    [level(2, 3, 10), level(1, 2), level(3, 3, 6)],
    [level(1, 2, 1), level(1, 2, 2), level(1, 2, 3), level(1, 1, 2), level(1, 1, 2)],
]


def by_hand(levels: list[Level]) -> list[int]:
    nodes, start = fresh(levels)
    return [start] + [answer(levels, nodes) for _ in range(9)]


@pytest.mark.parametrize("levels", TREES, ids=str)
def test_restarts_at_all_levels_cost_what_a_count_by_hand_says(levels):
    expected = by_hand(levels)
    assert [copies for _, copies in counts(levels, 9)] == expected
    assert len(set(expected[1:])) > 1
    together = [replace(part, stagger=False) for part in levels]  # copies in step cost the calls of one
    copies = math.prod(part.batch for part in levels)
    alone = by_hand([replace(part, batch=1) for part in together])
    assert counts(together, 9) == [(calls, calls * copies) for calls in alone]


# Estimators, look-aheads, and data that only counts.

TASKS = ["parts.Tallied(2): ", "held-out(parts.Tallied(2)): "]
COSTS = {  # of a window of 3 that looks 5 ahead, by hand; held out, each of the 5 is asked once more
    "first-order": (5, 10), "exact": (9, 14), "forward": (10, 15), "pes(pairs=2)": (20, 40),
    "mix(exact, es-single)": (19, 34), "bootstrapped": (5, 10), "bootstrapped(exact)": (7, 12),
}  # fmt: skip


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("gradient", COSTS)
def test_what_estimators_cost(gradient, task):
    """Windows of every level, behind their start and before a restart; batches of 2, 2 and 3."""
    cost = COSTS[gradient][TASKS.index(task)]
    tower = parse(
        f"{task}sgd(1e-3)@3[ahead=5, gradient={gradient}, horizon=1200, batch=2]"
        " / sgd(1e-3)@2[ahead=4, horizon=1200, batch=2] / sgd(1e-3)@3[horizon=none, batch=3]"
    )
    assert tower.costs == [cost, 4 * cost, 12 * cost]
    state = tower.init(0)
    Tallied.take()
    tower.step(state)
    assert Tallied.take()[1] == 12 * cost * 2 * 2 * 3
    for level, expected in zip(tower.bound[:2], (2 * cost, 4 * 4 * cost)):
        assert in_a_second_window(level) == expected


def in_a_second_window(level: Level) -> int:
    (first,) = answers(level, 1)
    Tallied.take()
    level.value_and_grad(first.params, first.state)
    return Tallied.take()[1]


E = "gradient=exact"


@pytest.mark.parametrize(("levels", "asked"), [
    (f"sgd(1e-3)@5[{E}]", 9),
    (f"sgd(1e-3)@4[{E}] / sgd(1e-3)@3[{E}]", 3 * 7 + 2 * 11),
    (f"sgd(1e-3)@1[{E}] / sgd(1e-3)@1[{E}] / sgd(1e-3)@1[{E}]", 1),
    (f"sgd(1e-3)@4[{E}] / sgd(1e-3)@3", 7 * 3),
    (f"sgd(1e-3)@4 / sgd(1e-3)@3[{E}]", 3 * 4 + 2 * 8),
    (f"sgd(1e-3)@3[{E}] / sgd(1e-3)@2[{E}] / sgd(1e-3)@2[{E}]", None),
    *((f"sgd(1e-3)@2[ahead=3, {E}] / sgd(1e-3)@1[ahead=2, gradient={top}]", None)
      for top in ("exact", "forward", "bootstrapped(exact)")),
])  # fmt: skip
def test_exact_levels(levels, asked):
    """A window of T asks below T times and takes T - 1 products; unrolls of 1 cost what first order does.

    A product over an exact window of T asks again: T evaluations, T - 1 products, and T products of its own sweep.
    """
    bare, held = (built(task + levels) for task in TASKS)
    assert in_a_second_window(bare) == bare.traits.evals
    assert in_a_second_window(held) == held.traits.evals
    assert bare.traits.evals == asked or asked is None
