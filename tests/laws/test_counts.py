"""One base step per base step: what a tower evaluates, counted at the task, in calls and in copies."""

import math
from dataclasses import dataclass

import pytest
from torch import Tensor

from levels import SGD, Layout, Level, Problem, ProblemTraits, Quadratic
from levels.tree import State
from recursion import Tower


class Counted(Problem):
    """A problem that counts how often, and for how many copies, it is asked for its gradient."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.calls = self.copies_asked = 0

    @property
    def layout(self) -> Layout:
        return self.problem.layout

    @property
    def traits(self) -> ProblemTraits:
        return self.problem.traits

    def init(self, key: Tensor) -> Tensor:
        return self.problem.init(key)

    def init_state(self, params: Tensor, key: Tensor) -> State:
        return self.problem.init_state(params, key)

    def value_and_grad(self, params: Tensor, state: State) -> tuple[Tensor, Tensor, State]:
        self.calls += 1
        self.copies_asked += math.prod(params.shape[:-1])
        return self.problem.value_and_grad(params, state)

    def take(self) -> tuple[int, int]:
        """Calls and copies since the last time."""
        taken = self.calls, self.copies_asked
        self.calls = self.copies_asked = 0
        return taken


def level(unroll: int, batch: int = 1, horizon: int | None = None, stagger: bool = True) -> Level:
    return Level(optimizer=SGD(lr=1e-6), unroll=unroll, horizon=horizon, batch=batch, stagger=stagger)


def counts(levels: list[Level], steps: int) -> list[tuple[int, int]]:
    """Calls and copies of start-up, then of each step."""
    task = Counted(Quadratic(dims=2))
    tower = Tower(task, *levels)
    state = tower.init(seed=0)
    taken = [task.take()]
    for _ in range(steps):
        state, _ = tower.step(state)
        taken.append(task.take())
    return taken


UNROLLS = [
    (7,),
    (1,),
    (20, 5),
    (1, 6),
    (20, 5, 3),
    (1, 1, 1),
    (4, 1, 3),
    (3, 2, 1, 4),
    (1, 1, 1, 1),
    (2, 3, 1, 2, 2),
    (1,) * 5,
]


@pytest.mark.parametrize("unrolls", UNROLLS, ids=str)
@pytest.mark.parametrize("batch", [1, 2])
def test_a_step_costs_the_product_of_the_unrolls(unrolls, batch):
    start = sum(math.prod(unrolls[:k]) for k in range(len(unrolls)))  # 1 + T1 + T1 T2 + ...
    product, copies = math.prod(unrolls), batch ** len(unrolls)
    taken = counts([level(unroll, batch) for unroll in unrolls], 3)
    assert taken == [(start, start * copies)] + [(product, product * copies)] * 3


def test_the_cost_of_20_5_3():
    assert counts([level(20), level(5), level(3)], 2) == [(121, 121), (300, 300), (300, 300)]


def test_a_restart_costs_one_call():
    """All five copies restart together before every third window but the first."""
    taken = counts([level(4, batch=5, horizon=12, stagger=False)], 7)
    assert taken[1:] == [(4, 20), (4, 20), (4, 20), (5, 25), (4, 20), (4, 20), (5, 25)]


def test_a_staggered_restart_asks_only_the_copies_concerned():
    """Three copies, three windows a life: after the first window one copy is due before each."""
    taken = counts([level(4, batch=3, horizon=12)], 6)
    assert taken[1:] == [(4, 12)] + [(5, 13)] * 5


def test_a_restart_higher_up_lays_the_levels_below_anew():
    """A fresh copy of level 2 begins level 1 (one call) and runs one window of it (four)."""
    taken = counts([level(4, batch=3), level(2, batch=2, horizon=4)], 4)
    step, restart = (8, 8 * 6), (1 + 4, (1 + 4) * 3)  # staggered: one of the two copies of level 2 at a time
    both = (step[0] + restart[0], step[1] + restart[1])
    assert taken[1:] == [step, both, both, both]


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


@pytest.mark.parametrize("levels", TREES, ids=str)
def test_restarts_at_all_levels_cost_what_a_count_by_hand_says(levels):
    nodes, start = fresh(levels)
    expected = [start] + [answer(levels, nodes) for _ in range(9)]
    assert [copies for _, copies in counts(levels, 9)] == expected
    assert len(set(expected[1:])) > 1


@pytest.mark.parametrize("levels", TREES, ids=str)
def test_in_step_copies_cost_the_calls_of_one(levels):
    together = [level(part.unroll, part.batch, part.horizon, stagger=False) for part in levels]
    alone = [level(part.unroll, 1, part.horizon, stagger=False) for part in levels]
    nodes, start = fresh(alone)
    expected = [start] + [answer(alone, nodes) for _ in range(9)]
    copies = math.prod(part.batch for part in levels)
    assert counts(together, 9) == [(calls, calls * copies) for calls in expected]
