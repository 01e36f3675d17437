"""Work counted in base steps: hand counts, sums over levels, and what it must not depend on."""

import pytest
import torch
from torch import Tensor

from levels import LSTM, PES, SGD, Adam, Exact, Level, Quadratic, keys
from levels.base import Problem
from levels.layout import Layout
from levels.tree import State
from recursion import Tower
from recursion.analysis.metering import Operations
from recursion.analysis.work import base_flops, lived_work, own_work, own_work_under, use_work, work_of
from recursion.evaluate.observed import Observed, Tally
from recursion.notation import parse

N = 6


class Plain(Problem):
    """f = |x|^2, whose gradient is 2 x: n multiplications, a square and a sum."""

    @property
    def layout(self) -> Layout:
        return Layout.of({"x": (N,)}, torch.float32)

    def init(self, key: Tensor) -> Tensor:
        return keys.normal(key, (N,), torch.float32)

    def init_state(self, params: Tensor, key: Tensor) -> State:
        return None

    def value_and_grad(self, params: Tensor, state: State) -> tuple[Tensor, Tensor, State]:
        return params.square().sum(-1), 2 * params, state


def quadratic_by_hand(n: int) -> int:
    """Two matrix products of 2 n^2, less y, times 2, squared and summed."""
    return 2 * n * n + n + 2 * n * n + n + n + 1


def lstm_by_hand(n: int, hidden: int) -> int:
    """The matrix products of one update, for each of n coordinates: two cells of two products each, and the output."""
    gates = 4 * hidden
    return n * 2 * (2 * gates + hidden * gates + hidden * gates + hidden * gates + hidden)


def test_a_base_step_is_what_a_hand_counts():
    assert base_flops(Plain()) == 2 * N + 1
    assert base_flops(Quadratic(dims=5)) == quadratic_by_hand(5)


def test_sgd_writes_a_product_and_a_difference():
    """And reads its step size out of its logarithm, once for all copies: 1/8 of a number for each of eight."""
    assert use_work(SGD(lr=0.1), Plain()) * base_flops(Plain()) == pytest.approx(2 * N, abs=1)


def test_adam_does_a_small_number_of_operations_for_each_coordinate():
    """m, v, two corrections, a root, an epsilon, a quotient, a step: torch's own Adam writes about as many."""
    each = use_work(Adam(), Quadratic(dims=100)) * base_flops(Quadratic(dims=100)) / 100
    assert 10 <= each <= 20


@pytest.mark.parametrize(("n", "hidden"), [(10, 8), (10, 16), (20, 20)])
def test_an_lstm_is_its_matrix_products_and_little_beside(n: int, hidden: int):
    counted = use_work(LSTM(hidden=hidden), Quadratic(dims=n)) * base_flops(Quadratic(dims=n))
    by_hand = lstm_by_hand(n, hidden)
    assert by_hand < counted < 1.5 * by_hand


def test_gradients_of_a_top_step_are_the_towers_own_count():
    for text in (
        "quadratic(4): lstm(hidden=4)@4[batch=3] / sgd@2[batch=2] / adam",
        "quadratic(4): lstm(hidden=4)@4[batch=3, gradient=pes(pairs=2)] / adam",
        "quadratic(4): sgd@3[batch=2, gradient=exact] / sgd",
        "quadratic(4): sgd@1 / sgd@1 / sgd",
    ):
        tower = parse(text)
        copies = torch.tensor([level.copies for level in tower.bound]).prod()
        assert work_of(tower).gradients == tower.base_steps * copies


@pytest.mark.parametrize(
    "text",
    [
        "quadratic(4): lstm(hidden=4)@4[batch=3, horizon=none] / lstm(hidden=3)@2[horizon=none] / adam",
        "quadratic(4): lstm(hidden=4)@4[batch=3, horizon=none, gradient=truncated-es] / adam",
        "quadratic(4): adam@1 / sgd@1 / sgd",
    ],
)
def test_all_levels_and_gradients_add_up_to_the_operations_of_a_step(text: str):
    tower = parse(text)
    state = tower.init(0)
    state, _ = tower.step(state)
    with Operations() as operations:
        tower.step(state)
    work = work_of(tower)
    assert len(work.optimizer) == tower.depth
    assert work.total * base_flops(tower.task) == pytest.approx(operations.count, rel=0.04)


def test_it_is_the_same_at_every_call_and_with_any_number_of_threads():
    tower = parse("digits-mlp: lstm(hidden=4)@2[batch=2] / adam")
    threads = torch.get_num_threads()
    found = [work_of(tower)]
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            torch.manual_seed(count)
            found.append(work_of(tower))
    finally:
        torch.set_num_threads(threads)
    assert found[0] == found[1] == found[2]


def test_it_does_not_depend_on_what_the_numbers_are():
    sane, wild = (parse(f"quadratic(4): sgd(lr={lr})@5[batch=2] / adam") for lr in ("0.01", "30.0"))
    assert work_of(sane) == work_of(wild)


def test_twice_the_copies_are_twice_the_work():
    once, twice = (work_of(parse(f"quadratic(8): lstm(hidden=8)@5[batch={batch}] / adam")) for batch in (4, 8))
    assert twice.gradients == 2 * once.gradients
    assert twice.optimizer[0] == pytest.approx(2 * once.optimizer[0], rel=0.01)
    assert twice.optimizer[1] == once.optimizer[1]


def test_a_level_does_as_much_whatever_lies_above():
    low, high = (
        own_work(parse(f"quadratic(4): lstm(hidden=4)@4[batch=2] / {top}")) for top in ("adam", "sgd@3 / adam")
    )
    assert low[0] == pytest.approx(high[0], rel=0.01)


def test_own_work_of_the_tower_below_needs_no_second_measurement():
    tower = parse("quadratic(4): lstm(hidden=4)@4[batch=2] / lstm(hidden=3)@2[batch=2] / adam")
    assert own_work_under(tower, own_work(tower)) == pytest.approx(own_work(tower.under()), rel=0.02)


@pytest.mark.parametrize("levels", [
    [Level(optimizer=SGD(lr=1e-3), unroll=2, horizon=6, batch=3), Level(optimizer=SGD(lr=1e-4))],
    [
        Level(optimizer=SGD(lr=1e-3), unroll=2, horizon=6, batch=3),
        Level(optimizer=SGD(lr=1e-4), unroll=2, horizon=4, batch=2),
        Level(optimizer=SGD(lr=1e-5)),
    ],
    [
        Level(optimizer=SGD(lr=1e-3), unroll=2, horizon=6, batch=3, gradient=PES(pairs=2)),
        Level(optimizer=SGD(lr=1e-4)),
    ],
    [Level(optimizer=SGD(lr=1e-3), unroll=2, horizon=6, batch=3, gradient=Exact()), Level(optimizer=SGD(lr=1e-4))],
])  # fmt: skip
def test_the_gradients_of_starts_and_restarts_are_foreseen_on_the_average(levels: list[Level]):
    tower, tally = Tower(Quadratic(dims=2), *levels), Tally()
    observed = Tower(Observed(tower.task, tally), *levels)
    tally.gradients = 0
    state, lived = observed.init(0), lived_work(tower)
    assert tally.gradients == pytest.approx(lived.start.gradients, rel=1e-9 if tower.depth == 2 else 0.1)
    tally.gradients, steps = 0, 24  # whole lives of every level
    for _ in range(steps):
        state, _ = observed.step(state)
    assert tally.gradients == pytest.approx(steps * lived.step.gradients, rel=1e-9 if tower.depth == 2 else 0.02)


def test_an_observed_problem_answers_to_the_last_bit_what_it_always_did():
    for text in ("quadratic(3): sgd@3[batch=2, gradient=exact] / adam", "digits-mlp: lstm(hidden=2)@2[batch=2] / adam"):
        tower = parse(text)
        observed = Tower(Observed(tower.task, Tally()), *tower.levels)
        ours, theirs = (list(each.run(each.init(3), 3))[-1][0].carry.x for each in (observed, tower))
        assert torch.equal(ours, theirs)
