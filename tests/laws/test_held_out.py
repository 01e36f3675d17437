"""Meta-losses of data that the steps below never see; what their gradients are stands in test_oracle."""

import math

import pytest
import torch
from oracle import equal
from parts import answers
from torch import nn
from torch.nn import functional

from levels import SGD, DigitsMLP, HeldOut, Level, ModuleTask, keys
from levels.testing import check_problem
from levels.tree import map_leaves
from recursion.notation import parse

BARE = DigitsMLP(hidden=(3,), minibatch=8, dtype="float64")
TASK = HeldOut(DigitsMLP(hidden=(3,), minibatch=8), dtype="float64")


def test_a_tower_of_one_level_never_looks_at_other_data():
    towers = [parse(f"{task}: adam(0.01)@3[batch=2]") for task in (TASK, BARE)]
    runs = [[(report, state.carry.x.tolist()) for state, report in tower.run(tower.init(0), 3)] for tower in towers]
    assert runs[0] == runs[1]
    assert towers[0].costs == towers[1].costs == [3]
    state = towers[0].step(towers[0].init(0))[0]
    assert (state.carry.problem_state.counted.step == 0).all()


NOISE, COINS = keys.normal(keys.seed(0), (200, 30), torch.float64), keys.integers(keys.seed(1), (200,), 2)


def coins(**settings) -> ModuleTask:
    """Labels that nothing explains, and 12 of them to learn by heart from 30 numbers each."""
    splits = {
        "train": (NOISE[:12], COINS[:12]),
        "validation": (NOISE[12:], COINS[12:]),
        "test": (NOISE[:50], COINS[:50]),
    }
    return ModuleTask(
        make=lambda: nn.Linear(30, 2), loss_function=functional.cross_entropy, minibatch=12, **splits, **settings
    )


def test_a_model_that_overfits_shows_it():
    """It learns 12 coins by heart: its losses vanish, those that count rise above guessing, and the step size feels it.

    Counted losses fall where steps shrink; training losses fall where they grow.
    """
    part = Level(optimizer=SGD(lr=2.0), unroll=20, horizon=None, batch=2)
    level, bare = part.over(HeldOut(coins(), dtype="float64")), part.over(coins(dtype="float64"))
    first, *_, last = answers(level, 4)
    carry = last.before.carry
    training = last.before._replace(carry=carry._replace(problem_state=carry.problem_state.training))
    loss, slope, _ = bare.value_and_grad(last.params, training)
    assert float(loss) / 20 < 0.02
    assert float(last.value) / 20 > float(first.value) / 20 > math.log(2)
    assert float(last.grad) > 0 > float(slope)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("split", ["validation", "test"])
def test_on_another_split_it_is_the_bare_task(split, dtype):
    task = HeldOut(DigitsMLP(hidden=(3,)), dtype=dtype)
    assert task.on(split) == DigitsMLP(hidden=(3,), split=split, dtype=dtype)
    assert task.on("train") is task
    assert task.on(split).traits.outer_evals == 0
    assert [*task.variants().values()] == [*DigitsMLP(hidden=(3,), dtype=dtype).variants().values()]


TASKS = [
    TASK,
    parse("held-out(logistic, dtype=float64): sgd").task,
    parse("held-out(noisy-quadratic(4), dtype=float64): sgd").task,
    HeldOut(coins(), dtype="float64"),
]


@pytest.mark.parametrize("task", TASKS, ids=lambda task: f"{task.task.name}, {task.dtype}")
def test_it_conforms_and_what_it_counts_is_the_validation_split(task):
    check_problem(task)
    key = keys.split(keys.seed(2), 6).reshape(2, 3)
    params = task.init(key)
    f, g, state = task.value_and_grad(params, task.init_state(params, key))
    before = map_leaves(torch.clone, state)
    value, grad, after = task.outer_value_and_grad(params, state, f, g)
    bare = task.on("validation")
    assert equal((value, grad, after.counted), bare.value_and_grad(params, bare.init_state(params, key)))
    assert equal(after.training, state.training)
    assert equal(state, before)
    assert not torch.equal(value, f)
    assert task.traits == task.task.traits._replace(outer_evals=1, scratch_evals=2)
