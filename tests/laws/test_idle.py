"""Laws that need no numbers: idle levels, seeds, copies alone and in a batch, inputs left alone."""

import pytest
import torch
from oracle import equal
from parts import DIGITS, QUADRATIC, TINY, begun, built, levels_of, stacked

from levels import keys
from levels.restart import run, started
from levels.tree import State, leaves, map_leaves
from recursion.notation import parse

TASKS = ["quadratic(4)", "digits-mlp(hidden=[3], minibatch=4)"]
RULES = ["lstm(hidden=3)", "adam(0.1)", "rmsprop", "sgd(0.01, momentum=0.9, nesterov=true)"]
TALL = ["lstm(hidden=2)@2[horizon=4, batch=3]", "adam(0.01)@2[horizon=6, batch=2]", "sgd(0.01)[batch=1]"]


def row(state: State, *index: int) -> State:
    return map_leaves(lambda leaf: leaf[index], state)


def assert_close(ours: State, theirs: State, rtol: float = 1e-11) -> None:
    for a, b in zip(leaves(ours), leaves(theirs), strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=rtol * float(b.abs().max()))


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
        tower = parse(f"{task}: {' / '.join(TALL)}")
        return [state for state, _ in tower.run(tower.init(seed), 5)][-1]

    first = final(0)
    torch.rand(3)  # torch's generator is not read, and left alone
    generator = torch.get_rng_state()
    assert equal(first, final(0))
    assert torch.equal(generator, torch.get_rng_state())
    assert not torch.equal(first.carry.x, final(1).carry.x)


LEVELS = [task + " / ".join(TALL[:height]) for task in (QUADRATIC, DIGITS) for height in (1, 2, 3)]
LEVELS += [f"{QUADRATIC}{TINY}@2[horizon=4, batch=2, gradient={g}]" for g in ("exact", "forward", "pes(pairs=2)")]


@pytest.mark.parametrize("text", LEVELS)
def test_the_same_key_alone_and_in_a_batch_is_the_same_and_inputs_are_left_alone(text):
    """Six levels side by side, twice, and one by itself from its own key, to rounding; restarts on the way."""
    level, key = built(text), keys.split(keys.seed(3), 6)
    (params, together), (_, again) = begun(level, 3, 6), begun(level, 3, 6)
    assert torch.equal(level.init(key[4]), params[4])
    alone = level.init_state(params[4], key[4])
    for _ in range(4):
        before = map_leaves(torch.clone, (params, together))
        answer, same = level.value_and_grad(params, together), level.value_and_grad(params, again)
        assert equal((params, together), before)
        assert equal(answer, same)
        value, grad, alone = level.value_and_grad(params[4], alone)
        assert_close(row((answer[0], answer[2].carry), 4), (value, alone.carry))
        assert_close(row(answer[1], 4), grad, 1e-6 if "pes" in text else 1e-11)
        together, again = answer[2], same[2]
    assert len(together.carry.key.unique()) == together.carry.key.numel() / (4 if "pes" in text else 1)


@pytest.mark.parametrize("rule", RULES)
def test_copies_of_one_level_do_not_see_each_other(rule):
    """One copy's carry taken out of a level with four, windows with a restart in between."""
    text = f"quadratic(4, dtype=float64): {rule}@2[horizon=6, batch="
    four, one = (stacked(*levels_of(f"{text}{batch}]")) for batch in (4, 1))
    params = four.init(keys.seed(3))
    carry = started(four, params, keys.seed(3))
    alone = [map_leaves(lambda leaf, i=i: leaf[i : i + 1], carry) for i in range(4)]
    for _ in range(5):
        carry, window = run(four, params, carry)
        for i in range(4):
            alone[i], single = run(one, params, alone[i])
            torch.testing.assert_close(window.losses[:, i], single.losses[:, 0], rtol=1e-12, atol=0)
    for i in range(4):
        assert_close(row(carry, i), row(alone[i], 0))
