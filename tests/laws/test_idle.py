"""Laws that need no numbers: idle levels, seeds, copies alone and in a batch, inputs left alone."""

import pytest
import torch
from torch import Tensor

from levels import LSTM, SGD, Adam, DigitsMLP, Level, LevelState, Linear, Problem, Quadratic, RMSprop, Task, keys
from levels.restart import run, started
from levels.tree import State, leaves, map_leaves
from recursion import Tower

TASKS = [Quadratic(dims=4), DigitsMLP(hidden=(3,), minibatch=4)]
RULES = [LSTM(hidden=3), Adam(lr=0.1), RMSprop(), SGD(lr=0.01, momentum=0.9, nesterov=True)]


def same(a: State, b: State) -> bool:
    """Whether two states are equal bit for bit."""
    return all(torch.equal(x, y) for x, y in zip(leaves(a), leaves(b), strict=True))


def copied(state: State) -> State:
    return map_leaves(Tensor.clone, state)


def tall(task: Task) -> list[Level]:
    return [Level(optimizer=LSTM(hidden=2), unroll=2, horizon=4, batch=3),
            Level(optimizer=Adam(lr=0.01), unroll=2, horizon=6, batch=2),
            Level(optimizer=SGD(lr=0.01), batch=1)]  # fmt: skip


@pytest.mark.parametrize("rule", RULES, ids=repr)
@pytest.mark.parametrize("task", TASKS, ids=repr)
def test_an_idle_level_changes_nothing_below(task, rule):
    """Levels with step size 0 on top: three windows of level 1 a window of level 2, two of those a top step."""
    level = Level(optimizer=rule, unroll=2, horizon=8, batch=3)
    idle = [Level(optimizer=SGD(lr=Linear(0.0)), unroll=unroll, horizon=None, batch=1) for unroll in (3, 2)]
    tower = Tower(task, level, *idle)
    state = tower.init(seed=4)
    problem_state = tower.carries(state)[0]
    params = tower.carries(state)[1].x[0, 0]
    alone = map_leaves(lambda leaf: leaf[0, 0], problem_state)
    for _ in range(4):
        state, _ = tower.step(state)
        for _ in range(6):
            alone, _ = run(tower.bound[0], params, alone)
        bottom = tower.carries(state)[0]
        assert torch.equal(tower.carries(state)[1].x[0, 0], params)
        assert same(map_leaves(lambda leaf: leaf[0, 0], bottom), alone)
    assert not torch.equal(bottom.x, problem_state.x)


@pytest.mark.parametrize("task", TASKS, ids=repr)
def test_the_same_seed_is_the_same_run(task):
    def final(seed: int) -> State:
        tower = Tower(task, *tall(task))
        state = tower.init(seed)
        for _ in range(5):
            state, _ = tower.step(state)
        return state

    first = final(0)
    torch.rand(3)  # the global generator is nobody's business
    generator = torch.get_rng_state()
    assert same(first, final(0))
    assert torch.equal(generator, torch.get_rng_state())
    assert not torch.equal(first.carry.x, final(1).carry.x)


def laid_over(task: Problem, levels: list[Level]) -> Level:
    for level in levels:
        task = level.over(task)
    assert isinstance(task, Level)
    return task


@pytest.mark.parametrize("task", TASKS, ids=repr)
def test_a_copy_alone_is_what_it_is_in_a_batch(task):
    """Three towers side by side, and each by itself from its own key; in float64, to rounding."""
    task = type(task)(**{"dtype": "float64", **({"hidden": (3,)} if isinstance(task, DigitsMLP) else {"dims": 4})})
    laid = laid_over(task, tall(task)[:2])
    key = keys.split(keys.seed(9), 3)
    params = laid.init(key)
    together = laid.init_state(params, key)
    for _ in range(4):
        value, grad, together = laid.value_and_grad(params, together)
    for i in range(3):
        row = laid.init(key[i])
        assert torch.equal(row, params[i])
        alone = laid.init_state(row, key[i])
        for _ in range(4):
            f, g, alone = laid.value_and_grad(row, alone)
        torch.testing.assert_close(value[i], f, rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(grad[i], g, rtol=1e-11, atol=1e-11 * float(g.abs().max()))
        for a, b in zip(leaves(together), leaves(alone), strict=True):
            torch.testing.assert_close(a[i], b, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_copies_of_one_level_do_not_see_each_other(rule):
    """One copy's carry taken out of a level with four, windows with a restart in between."""
    task = Quadratic(dims=4, dtype="float64")
    four, one = (Level(optimizer=rule, unroll=2, horizon=6, batch=batch).over(task) for batch in (4, 1))
    params = four.init(keys.seed(3))
    carry = started(four, params, keys.seed(3))
    alone = [map_leaves(lambda leaf, i=i: leaf[i : i + 1], carry) for i in range(4)]
    for _ in range(5):
        carry, window = run(four, params, carry)
        for i in range(4):
            alone[i], single = run(one, params, alone[i])
            torch.testing.assert_close(window.losses[:, i], single.losses[:, 0], rtol=1e-12, atol=0)
    for i in range(4):
        for a, b in zip(leaves(carry), leaves(alone[i]), strict=True):
            torch.testing.assert_close(a[i], b[0], rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("task", TASKS, ids=repr)
def test_inputs_are_not_mutated(task):
    for height in (1, 2, 3):
        laid = laid_over(task, tall(task)[:height])
        key = keys.split(keys.seed(2), 2)
        params = laid.init(key)
        state: LevelState = laid.init_state(params, key)
        before = copied((params, state, key))
        for _ in range(4):  # restarts on the way
            _, _, state_next = laid.value_and_grad(params, state)
            assert same((params, state, key), before)
            state = state_next
            before = copied((params, state, key))
