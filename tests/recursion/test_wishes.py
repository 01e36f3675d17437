"""The four wishes with each other and with depth: self-tuning, the look-ahead, learned depth, genetic search."""

import pytest
from towers import assert_same

from recursion import checkpoint
from recursion.notation import parse

ONLINE = "lstm(hidden=4)@5[batch=4, gradient=online([5, 20], every=2)]"
ALL = f"quadratic: depth({ONLINE} / own@2[batch=2]) / ga(population=3)"
TOWERS = {
    "all four": ALL,
    "self-tuning gates": "quadratic: depth(sgd@2[batch=2] / lstm(hidden=3)@2[batch=2], price=1e-3) / self(every=4)",
    "an online look-ahead under selection": f"quadratic: {ONLINE} / ga(own, steps=2, population=4)",
    "a guarded level below a gate, three levels high": (
        "quadratic: lstm(hidden=3)@2[batch=2] / gated(guarded(own, every=2))@2[gradient=truncated-es] / adam"
    ),
    "trained genetic search": "quadratic: sgd@5[batch=2] / ga(population=3)@2[gradient=truncated-es] / adam",
}


@pytest.mark.parametrize("name", TOWERS)
def test_wishes_compose_and_resume_bit_for_bit(name, tmp_path):
    tower = parse(TOWERS[name])
    assert repr(parse(repr(tower))) == repr(tower)
    state = start = tower.init(seed=1)
    for step in range(6):
        state, report = tower.step(state)
        if step == 2:
            checkpoint.save(tmp_path / "half", tower, state, seed=1)
    assert all(abs(loss) < 1e6 for loss in report.losses)
    assert (state.carry.x != start.carry.x).any(), "something is moved"
    again = checkpoint.load(tmp_path / "half").state  # the tower from its spec
    for _ in range(3):
        again, report = tower.step(again)
    assert_same(state, again)
    if name == "all four":
        said = {metric.removeprefix("level ") for metric in report.metrics}
        assert {"1 look-ahead", "1 task gradients", "2 gate", "2 self-gradient", "3 best trial"} <= said
