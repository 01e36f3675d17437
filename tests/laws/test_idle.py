"""Laws that need no numbers: idle levels and seeds.

That copies do not see each other follows from test_oracle, which computes each alone; that inputs are left alone, from
the suites in `levels.testing`.
"""

import pytest
import torch
from oracle import equal

from levels.restart import run
from levels.tree import State, map_leaves
from recursion.notation import parse

TASKS = ["quadratic(4)", "digits-mlp(hidden=[3], minibatch=4)"]
RULES = ["lstm(hidden=3)", "adam(0.1)", "rmsprop", "sgd(0.01, momentum=0.9, nesterov=true)"]
TALL = "lstm(hidden=2)@2[horizon=4, batch=3] / adam(0.01)@2[horizon=6, batch=2] / sgd(0.01)[batch=1]"


def row(state: State, *index: int) -> State:
    return map_leaves(lambda leaf: leaf[index], state)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("task", TASKS)
def test_an_idle_level_changes_nothing_below(task, rule):
    """Levels with step size 0 on top: three windows of level 1 a window of level 2, two of those a top step."""
    idle = "sgd(linear(0.0))@{}[horizon=none, batch=1]"
    tower = parse(f"{task}: {rule}@2[horizon=8, batch=3] / {idle.format(3)} / {idle.format(2)}")
    state = tower.init(seed=4)
    start, params = tower.carries(state)[0], tower.carries(state)[1].x[0, 0]
    alone = row(start, 0, 0)
    for _ in range(4):
        state, _ = tower.step(state)
        for _ in range(6):
            alone, _ = run(tower.bound[0], params, alone)
        assert torch.equal(tower.carries(state)[1].x[0, 0], params)
        assert equal(row(tower.carries(state)[0], 0, 0), alone)
    assert not torch.equal(tower.carries(state)[0].x, start.x)


@pytest.mark.parametrize("task", TASKS)
def test_the_same_seed_is_the_same_run(task):
    def final(seed: int) -> State:
        tower = parse(f"{task}: {TALL}")
        return [state for state, _ in tower.run(tower.init(seed), 5)][-1]

    first = final(0)
    torch.rand(3)  # torch's generator is not read, and left alone
    generator = torch.get_rng_state()
    assert equal(first, final(0))
    assert torch.equal(generator, torch.get_rng_state())
    assert not torch.equal(first.carry.x, final(1).carry.x)
