"""The look-ahead chosen online: against levels with each look-ahead, trials by hand, counts at the task, and systems
whose right look-ahead is known. Bit for bit where nothing else is said.
"""

import math
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
import torch
from oracle import equal
from parts import MOMENTUM, QUADRATIC, TINY, Tallied, answers, begun, built

from levels import Adam, FirstOrder, Level, LevelState, keys
from levels.gradients.online import choose
from levels.restart import is_due
from levels.tree import map_leaves
from recursion import Tower
from recursion.notation import parse

NOISY = "noisy-quadratic(3, dtype=float64): sgd(0.1)"


def online(text, candidates, every=2, horizon=8, batch=3, through="first-order") -> Level:
    """A level that chooses a look-ahead, in windows of two; ``text`` ends with its optimizer, or its first settings."""
    gradient = f"online({candidates}, every={every}, through={through})"
    text = text if text.endswith(", ") else f"{text}@2["
    return built(f"{text}gradient={gradient}, horizon={'none' if horizon is None else horizon}, batch={batch}]")


# What a window is.


@pytest.mark.parametrize("horizon", [6, None])
@pytest.mark.parametrize("copies", [(), (2,)])
@pytest.mark.parametrize(("optimizer", "through"), [(TINY, "first-order"), (MOMENTUM, "exact")])
def test_with_one_candidate_it_is_the_level_with_that_ahead(optimizer, through, copies, horizon):
    ours = online(QUADRATIC + optimizer, [5], horizon=horizon, through=through)
    plain = replace(ours, lookahead=5, gradient=ours.gradient.through)
    for ours_now, now in zip(*(answers(level, 7, 1, *copies, move=0.01) for level in (ours, plain))):
        assert equal((ours_now.value, ours_now.grad, ours_now.state.carry), (now.value, now.grad, now.state.carry))
    assert ours.traits.evals == plain.traits.evals


UNITS = {"sum": 3.0, "last": 1.0, "mean-log": 1.0, "discounted(0.5)": (2 - 2**-8) / (2 - 2**-2), "time-to(1.0)": 3.0}


@pytest.mark.parametrize("objective", UNITS)
def test_each_window_is_that_of_the_candidate_in_units_of_the_longest(objective):
    level, seen = online(f"{NOISY}@2[objective={objective}, ", [3, 9], every=1), set()
    for params, state, value, grad, after in answers(level, 12, 3, move=0.1):
        lookahead = int(level.gradient.metrics(after)["look-ahead"])
        seen.add(lookahead)
        alone = replace(level, lookahead=lookahead, gradient=FirstOrder())
        expected = alone.value_and_grad(params, LevelState(state.carry, None))
        unit = UNITS[objective] if lookahead == 3 else 1.0
        torch.testing.assert_close((value, grad), (unit * expected[0], unit * expected[1]), rtol=1e-6, atol=0.0)
        assert equal(after.carry, expected[2].carry)
    assert seen == {3, 9}


def wander(level: Level, key: torch.Tensor, windows: int) -> list[Any]:
    """What it answers along a path whose steps have the gradient's sign in some windows and not in others."""
    params, answers = level.init(key), []
    state = level.init_state(params, key)
    state = state._replace(memory=state.memory._replace(left=1 + keys.fold_in(key, 2) % 2))  # begun at different times
    for number in range(windows):
        value, grad, state = level.value_and_grad(params, state)
        answers.append((value, grad, state))
        turn = torch.where(keys.fold_in(key, number // 5) % 3 == 0, 1.0, -1.0)
        params = params + 0.2 * turn[..., None] * grad.sign()
    return answers


def test_each_level_of_a_batch_chooses_for_itself():
    level, key = online(NOISY, [2, 4, 8]), keys.split(keys.seed(2), 4).reshape(2, 2)
    together, arms = wander(level, key, 24), set()
    for at in [(0, 0), (0, 1), (1, 0), (1, 1)]:
        alone = wander(level, key[at], 24)
        assert equal(map_leaves(lambda leaf, at=at: leaf[at], together), alone)
        arms.add(tuple(int(state.memory.arm) for _, _, state in alone))
    assert len(arms) > 1
    assert any(len(state.memory.arm.unique()) > 1 for *_, state in together)


# How candidates are judged.


@pytest.mark.parametrize("horizon", [8, None])
def test_a_blocks_gain_is_that_of_trials_by_hand(horizon):
    level = online(NOISY, [2, 4, 8], every=3, horizon=horizon)
    (params, state), arms, blocks = begun(level, 5), [], Blocks(3)
    while len(arms) < 8:
        began = params
        for _ in range(3):
            _, grad, state = level.value_and_grad(params, state)
            params = params - 0.1 * grad.sign()
        arm, old = int(state.memory.arm), state.memory
        assert int(old.left) == 0
        assert torch.equal(old.began, began)
        state = state._replace(memory=level.gradient._compared(level, params, state.carry, old))
        before, after = (by_hand(level, each, state) for each in (began, params))
        blocks.add(arm, (before - after) / (before + after))
        ours = state.memory.blocks, state.memory.gains, state.memory.squares
        torch.testing.assert_close(ours, (blocks.counts, blocks.sums, blocks.squares), rtol=1e-10, atol=1e-12)
        assert not torch.equal(state.memory.key, old.key)
        arms.append(arm)
    assert arms[:2] == [2, 1]
    assert len(set(arms)) > 1


class Blocks:
    """Discounted sums over the blocks of each candidate, by hand."""

    def __init__(self, candidates: int) -> None:
        self.counts, self.sums = torch.zeros(2, candidates).double()
        self.squares = torch.zeros(()).double()

    def add(self, arm: int, gain: float) -> None:
        mean = float(self.sums[arm] / self.counts[arm]) if self.counts[arm] > 0 else 0.0
        self.counts, self.sums, self.squares = 0.9 * self.counts, 0.9 * self.sums, 0.9 * self.squares
        self.counts[arm], self.sums[arm] = self.counts[arm] + 1, self.sums[arm] + gain
        self.squares = self.squares + (gain - mean) ** 2


def by_hand(level: Level, params: torch.Tensor, state: LevelState) -> float:
    """A life from fresh starts on validation problems; without a horizon, the longest window from here."""
    if level.episode_length is None:
        longest = replace(level, lookahead=8, gradient=FirstOrder()).over(level.problem)
        return float(longest.value_and_grad(params, LevelState(state.carry, None))[0])
    fresh, total = level.on("validation"), 0.0
    carry = fresh.begin(params, keys.split(state.memory.key, level.copies))
    for _ in range(level.episode_length):
        x = carry.x - params.exp() * carry.g
        f, g, problem_state = fresh.problem.value_and_grad(x, carry.problem_state)
        carry = carry._replace(x=x, g=g, problem_state=problem_state)
        total += float(f.mean())
    return total / (level.episode_length // level.unroll)


def test_parameters_that_go_wrong_gain_nothing_and_lose_the_most():
    level = online(NOISY, [2, 4], every=1)
    (good, state), bad = begun(level), torch.full((1,), 400.0, dtype=torch.float64)
    _, _, state = level.value_and_grad(good, state)
    for began, now, gain in ((good, bad, -1.0), (bad, good, 1.0), (bad, bad, 0.0)):
        memory = state.memory._replace(began=began)
        new = level.gradient._compared(level, now, state.carry, memory)
        assert new.gains.tolist() == [0.0, gain]


PRICES = (1.0, 2.0, 4.0, 8.0)


def bounds(blocks: list[float], gains: list[float], squares: float) -> int:
    """The rule, one candidate at a time."""
    means = [g / n / p if n else -math.inf for g, n, p in zip(gains, blocks, PRICES)]
    leader = means.index(max(means))
    best, chosen = -math.inf, -1
    for arm in range(max(0, leader - 1), min(len(blocks), leader + 2)):
        bound = math.inf
        if blocks[arm]:
            width = math.sqrt(squares / sum(blocks) * math.log(1 + sum(blocks)) / blocks[arm])
            bound = means[arm] + width / PRICES[arm]
        if bound > best:
            best, chosen = bound, arm
    return chosen


def test_the_rule_is_the_one_that_is_written_down():
    draws, prices = keys.uniform(keys.seed(0), (500, 9), torch.float64), torch.tensor(PRICES)
    chosen = set()
    for row in draws:
        blocks, gains = row[:4] * (row[:4] > 0.3), (row[4:8] - 0.5) * (row[:4] > 0.3)
        if blocks.any():
            chosen.add(int(choose(blocks, gains, row[8], prices)))
            assert int(choose(blocks, gains, row[8], prices)) == bounds(blocks.tolist(), gains.tolist(), float(row[8]))
    assert chosen == {0, 1, 2, 3}


def played(gains: Any, blocks: int, prices: tuple[float, ...] = (1.0,) * 4) -> list[int]:
    """Which of four candidates are chosen if candidate a gains ``gains(a, block)``, the last one first."""
    seen, arm, chosen = Blocks(4), 3, []
    for block in range(blocks):
        chosen.append(arm)
        gain = gains(arm, block) + 0.01 * float(keys.normal(keys.fold_in(keys.seed(7), block), (), torch.float64))
        seen.add(arm, gain)
        arm = int(choose(seen.counts, seen.sums, seen.squares, torch.tensor(prices)))
    return chosen


@pytest.mark.parametrize("best", range(4))
def test_it_finds_the_best_and_never_goes_far_from_it(best):
    chosen = played(lambda arm, _: 0.1 - 0.1 * abs(arm - best), 300)[50:]
    assert chosen.count(best) > 0.6 * len(chosen)
    assert all(abs(arm - best) <= 1 for arm in chosen)


def test_of_equal_gains_it_takes_the_cheaper_and_of_losses_the_smaller_and_it_forgets():
    assert played(lambda arm, _: 0.1, 100, PRICES)[50:].count(0) > 40
    losing = played(lambda arm, _: -0.1 * (3 - arm), 100, PRICES)[50:]
    assert losing.count(3) > 40
    chosen = played(lambda arm, block: 0.1 - 0.1 * abs(arm - (0 if block < 100 else 3)), 200)
    assert chosen[50:100].count(0) > 30
    assert chosen[150:].count(3) > 30


# Known answers.


BALANCE = "systems.Target: systems.Balance@10[objective=last, "


def descend(level: Level, steps: int) -> tuple[float, list[float]]:
    """Theta of influence balancing in the end, and the look-ahead in each window."""
    tower = Tower(level.problem, replace(level, problem=None), Level(optimizer=Adam(lr=0.03, beta1=0.1, beta2=0.8)))
    lookahead = []
    for state, report in tower.run(tower.init(seed=0), steps):  # noqa: B007
        lookahead.append(report.metrics["level 1 look-ahead"])
    return float(state.carry.x), lookahead


@pytest.mark.parametrize(("horizon", "best"), [(None, -1 / 6), (200, 0.28)])
def test_it_gets_where_a_short_look_ahead_does_not(horizon, best):
    """Influence balancing: the first updates after a change push the loss one way, later ones the other, further.

    Looking 10 ahead, theta rises for ever; looking 100 ahead, it settles where the loss does in the long run, -1/6. In
    lives of 200 from a start that is far from there, the best theta is in between: there it takes both.
    """
    settings = {"every": 5, "horizon": horizon, "batch": 1}
    short, lookahead = descend(online(BALANCE, [10], **settings), 40)
    assert lookahead == [10.0] * 40
    assert short > 1.0
    chosen, lookahead = descend(online(BALANCE, [10, 100], **settings), 100)
    assert abs(chosen - best) < 0.1
    share = lookahead[-60:].count(100.0) / 60
    assert share > 0.7 if horizon is None else 0.2 < share < 0.8
    if horizon is not None:
        grid = torch.linspace(-1, 1, 201, dtype=torch.float64)[:, None]
        losses = online(BALANCE, [10], **settings).evaluate_from_scratch(grid, keys.seed(0).expand(201))
        assert float(grid[losses.argmin()]) == pytest.approx(best, abs=0.006)


def test_of_two_that_go_the_right_way_the_cheaper_is_chosen_while_there_is_far_to_go():
    _, lookahead = descend(online(BALANCE, [100, 200], every=2, horizon=None, batch=1), 24)
    assert lookahead[-16:].count(100.0) > 10


# Counts.


@pytest.mark.parametrize("through", ["first-order", "exact"])
@pytest.mark.parametrize("horizon", [4, 8, None])
@pytest.mark.parametrize("candidates", [[4], [2, 3, 8]], ids=str)
@pytest.mark.parametrize("task", ["parts.Tallied(2, dtype=float64)", "held-out(parts.Tallied(2), dtype=float64)"])
def test_what_it_says_it_spent_is_what_the_task_was_asked(task, candidates, horizon, through):
    """And no window takes more than the bound, with its share of the judging; restarts apart."""
    level = online(f"{task}: sgd(0.1)", candidates, horizon=horizon, through=through)
    key = keys.split(keys.seed(0), 2)
    params = level.init(key)
    Tallied.take()
    state, asked, restarts = level.init_state(params, key), 0, 0
    for number in range(1, 31):
        restarts += int(is_due(level, state.carry.age).sum())
        _, grad, state = level.value_and_grad(params, state)
        params = params - 0.1 * grad.sign()
        asked += Tallied.take()[1]
        assert float(state.memory.spent.sum()) == asked
        most = level.traits.evals * level.copies * number + level.copies * level.traits.init_evals + restarts
        assert (state.memory.spent <= float(most)).all()
    metrics = level.gradient.metrics(state)
    assert torch.equal(metrics["task gradients"], state.memory.spent / 3)


def test_the_cost_of_a_tower_is_the_longest_and_the_judgings_share():
    tower = parse("quadratic: sgd@5[horizon=100, batch=2, gradient=online([5, 20, 80], every=10)] / adam")
    assert tower.costs[-1] == 80 + Fraction(2 * (100 + 1), 10)
    endless = parse("quadratic: sgd@5[horizon=none, gradient=online([5, 20, 80], every=10)] / adam@3")
    assert endless.costs == [80 + 16, 3 * 96]


# In a tower.


def test_what_is_not_finite_is_said_of_its_level():
    tower = parse("quadratic: sgd(lr=1e30)@2[horizon=none, gradient=online([2, 50])] / adam")
    with pytest.raises(ArithmeticError, match=r"level 1 \(sgd.*gradient=online.*\): the problem's .* is not finite"):
        list(tower.run(tower.init(seed=0), 5))
