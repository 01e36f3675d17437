"""Towers of every estimator are written down, run, and resume bit for bit where a checkpoint was saved."""

import math

import pytest
from oracle import equal

from recursion import checkpoint
from recursion.notation import parse
from recursion.spec import dumps, loads

Q, D = "quadratic(dims=2): ", "digits-mlp(hidden=[2], minibatch=4): "
TEXTS = [
    Q + "lstm(hidden=2)@2[batch=2, gradient=exact] / adam@2[batch=2, gradient=exact] / sgd@2[gradient=exact] / adam",
    Q + "lstm(hidden=2)@2[batch=3, gradient=accumulated(copies=1)]"
    " / adam@2[gradient=accumulated(through=exact)] / adam",
    Q + "sgd(momentum=0.5)@5[horizon=none, batch=2, gradient=forward] / sgd(lr=0.001)",
    Q + "adam@2[batch=2, gradient=forward(limit=8)] / adam@2 / sgd",
    Q + "lstm(hidden=2)@2[batch=2] / sgd@2[horizon=none, gradient=forward] / sgd",
    D + "lstm(hidden=2)@2[batch=2, gradient=pes] / lstm(hidden=2)@2[batch=2] / adam",
    D + "lstm(hidden=2)@2[batch=2] / lstm(hidden=2)@2[batch=2, gradient=es-single(pairs=2)] / adam",
    D + "torch(adafactor, lr=log(0.1))@2[batch=2, gradient=nres]"
    " / lstm(hidden=2)@2[batch=1, gradient=truncated-es] / adam",
    D + "lstm(hidden=2)@2[batch=2, gradient=mix(first-order, pes)]"
    " / adam@2[batch=2, gradient=evolution(noise=4)] / sgd",
    Q + "sgd(momentum=0.5)@2[batch=2, ahead=6] / adam@2[batch=2, ahead=4, gradient=exact] / adam",
    Q + "lstm(hidden=2)@2[batch=2, ahead=8, gradient=bootstrapped(through=exact)] / adam",
    Q + "lstm(hidden=2)@2[ahead=8, objective=time-to(0.5), gradient=bootstrapped] / adam@1 / adam",
    Q + "sgd@2[horizon=8, batch=2, gradient=online([2, 6], every=2)] / lstm(hidden=3)@2 / adam",
    Q + "sgd@2[horizon=4, batch=2] / adam@2[horizon=8, batch=2, gradient=online([2, 4], every=1)] / sgd",
    "held-out(noisy-quadratic(dims=4)): lstm(hidden=2)@2[batch=2, gradient=exact]"
    " / adam@2[batch=2, ahead=4, gradient=bootstrapped] / adam",
    "held-out(digits-mlp(hidden=[3], minibatch=8), dtype=float64): sgd(momentum=0.5)@2[batch=2, gradient=forward]"
    " / adam@2[batch=2] / sgd",
    "quadratic(dtype=float64, dims=2): sgd@2[horizon=4, batch=2, ahead=4, gradient=bootstrapped]"
    " / sgd@2[horizon=4, batch=2, objective=time-to(0.1), gradient=nres]"
    " / sgd@2[horizon=4, batch=2, gradient=mix(first-order, pes)] / adam",
]


@pytest.mark.parametrize("text", TEXTS)
def test_towers_are_written_down_and_resume_bit_for_bit(text, tmp_path):
    tower = parse(text)
    assert repr(tower) == repr(loads(dumps(tower))) == text
    assert parse(repr(tower)).levels == loads(dumps(tower)).levels == tower.levels
    state = tower.init(0)
    for step in range(6):
        if step == 3:
            checkpoint.save(tmp_path / "c", tower, state, seed=0)
        state, report = tower.step(state)
        state = checkpoint.settled(state)
        assert all(map(math.isfinite, report.losses))
    saved = checkpoint.load(tmp_path / "c")
    again = saved.state
    for _ in range(3):
        again = checkpoint.settled(saved.tower.step(again)[0])
    assert equal(again, state)
    for old, new in zip(tower.carries(saved.state), tower.carries(state)):
        assert not equal(old.x, new.x)
