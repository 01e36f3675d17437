"""Work counted in base steps: hand counts, sums over levels, and what it must not depend on."""

import pytest
import torch

from levels import LSTM, SGD, Adam, Quadratic, keys
from levels.base import Problem
from levels.layout import Layout
from recursion import Tower
from recursion.analysis.metering import LiveBytes, Operations, Pass, measure
from recursion.analysis.work import base_flops, lived_work, own_work, own_work_under, use_work, work_of
from recursion.evaluation.observed import Observed, Tally
from recursion.notation import parse

N = 6


class Plain(Problem):
    """f = |x|^2, whose gradient is 2 x: n multiplications, a square and a sum."""

    layout = Layout.of({"x": (N,)}, torch.float32)

    def init(self, key):
        return keys.normal(key, (N,), torch.float32)

    def init_state(self, params, key):
        return None

    def value_and_grad(self, params, state):
        return params.square().sum(-1), 2 * params, state


def test_small_things_are_what_a_hand_counts():
    """SGD writes a product and a difference, and reads its step size once for all copies: 1/8 for each of eight."""
    assert base_flops(Plain()) == 2 * N + 1
    n = 5  # two matrix products of 2 n^2, less y, times 2, squared and summed
    assert base_flops(Quadratic(dims=n)) == 2 * n * n + n + 2 * n * n + n + n + 1
    assert use_work(SGD(lr=0.1), Plain()) * base_flops(Plain()) == pytest.approx(2 * N, abs=1)
    big = Quadratic(dims=100)  # Adam: m, v, two corrections, a root, an epsilon, a quotient, a step
    assert 10 <= use_work(Adam(), big) * base_flops(big) / 100 <= 20


@pytest.mark.parametrize(("n", "hidden"), [(10, 8), (20, 20)])
def test_an_lstm_is_its_matrix_products_and_little_beside(n, hidden):
    counted = use_work(LSTM(hidden=hidden), Quadratic(dims=n)) * base_flops(Quadratic(dims=n))
    gates = 4 * hidden  # two cells of two products each, and the output
    by_hand = n * 2 * (2 * gates + 3 * hidden * gates + hidden)
    assert by_hand < counted < 1.5 * by_hand


@pytest.mark.parametrize("text", [
    "lstm(hidden=4)@4[batch=3] / sgd@2[batch=2] / adam",
    "lstm(hidden=4)@4[batch=3, gradient=pes(pairs=2)] / adam",
    "sgd@3[batch=2, gradient=exact] / sgd",
    "sgd@1 / sgd@1 / sgd",
])  # fmt: skip
def test_gradients_of_a_top_step_are_the_towers_own_count(text):
    tower = parse(f"quadratic(4): {text}")
    copies = torch.tensor([level.copies for level in tower.bound]).prod()
    assert work_of(tower).gradients == tower.costs[-1] * copies


@pytest.mark.parametrize("text", [
    "lstm(hidden=4)@4[batch=3, horizon=none] / lstm(hidden=3)@2[horizon=none] / adam",
    "lstm(hidden=4)@4[batch=3, horizon=none, gradient=truncated-es] / adam",
    "adam@1 / sgd@1 / sgd",
])  # fmt: skip
def test_all_levels_and_gradients_add_up_to_the_operations_of_a_step(text):
    tower = parse(f"quadratic(4): {text}")
    state, _ = tower.step(tower.init(0))
    with Operations() as operations:
        tower.step(state)
    work = work_of(tower)
    assert len(work.optimizer) == tower.depth
    assert work.total * base_flops(tower.task) == pytest.approx(operations.count, rel=0.04)


def test_it_depends_neither_on_threads_nor_on_seeds_nor_on_numbers():
    tower, threads = parse("digits-mlp: lstm(hidden=4)@2[batch=2] / adam"), torch.get_num_threads()
    works = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            torch.manual_seed(count)
            works.append(work_of(tower))
    finally:
        torch.set_num_threads(threads)
    assert works[0] == works[1]
    sane, wild = (work_of(parse(f"quadratic(4): sgd(lr={lr})@5[batch=2] / adam")) for lr in ("0.01", "30.0"))
    assert sane == wild


def test_work_scales_with_copies_and_is_the_same_whatever_lies_above():
    once, twice = (work_of(parse(f"quadratic(8): lstm(hidden=8)@5[batch={batch}] / adam")) for batch in (4, 8))
    assert (twice.gradients, twice.optimizer[1]) == (2 * once.gradients, once.optimizer[1])
    assert twice.optimizer[0] == pytest.approx(2 * once.optimizer[0], rel=0.01)
    tops = ("adam", "sgd@3 / adam")
    low, high = (own_work(parse(f"quadratic(4): lstm(hidden=4)@4[batch=2] / {top}")) for top in tops)
    assert low[0] == pytest.approx(high[0], rel=0.01)
    tower = parse("quadratic(4): lstm(hidden=4)@4[batch=2] / lstm(hidden=3)@2[batch=2] / adam")
    assert own_work_under(tower, own_work(tower)) == pytest.approx(own_work(tower.under()), rel=0.02)


def test_peaks_of_memory_grow_with_the_window_of_the_level_that_has_it():
    def peaks(unroll) -> tuple[int, ...]:
        live, tower = LiveBytes(), parse(f"quadratic(4): lstm(hidden=8)@{unroll}[batch=4] / adam")
        return measure(tower, Pass(live, lambda: 0.0, live))[0].peaks

    short, long = peaks(4), peaks(16)
    assert long[1] > 3 * short[1]
    assert long[0] == short[0]


BOTTOM = "sgd(lr=1e-3)@2[horizon=6, batch=3{}]"


@pytest.mark.parametrize(("levels", "rel"), [
    (BOTTOM.format(""), 1e-9), (BOTTOM.format(", gradient=pes(pairs=2)"), 1e-9),
    (BOTTOM.format(", gradient=exact"), 1e-9), (BOTTOM.format("") + " / sgd(lr=1e-4)@2[horizon=4, batch=2]", 0.1),
])  # fmt: skip
def test_the_gradients_of_starts_and_restarts_are_foreseen_on_the_average(levels, rel):
    tower, tally = parse(f"quadratic(dims=2): {levels} / sgd(lr=1e-5)"), Tally()
    observed, lived, steps = Tower(Observed(tower.task, tally), *tower.levels), lived_work(tower), 24
    tally.gradients = 0
    start = observed.init(0)
    assert tally.gradients == pytest.approx(lived.start.gradients, rel=rel)
    tally.gradients = 0
    list(observed.run(start, steps))  # whole episodes of every level
    assert tally.gradients == pytest.approx(steps * lived.step.gradients, rel=min(rel, 0.02))


def test_an_observed_problem_answers_to_the_last_bit_what_it_always_did():
    for text in ("quadratic(3): sgd@3[batch=2, gradient=exact] / adam", "digits-mlp: lstm(hidden=2)@2[batch=2] / adam"):
        tower = parse(text)
        observed = Tower(Observed(tower.task, Tally()), *tower.levels)
        ours, theirs = (list(each.run(each.init(3), 3))[-1][0].carry.x for each in (observed, tower))
        assert torch.equal(ours, theirs)
