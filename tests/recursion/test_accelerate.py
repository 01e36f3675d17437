"""Accelerated towers equal the plain ones, leaf by leaf; what must take the plain way takes it."""

import dataclasses

import pytest
import torch
from live import LiveBytes
from twins import assert_same, compare, needs_compiler, with_x

from levels import LSTM, SGD, Adam, Level, NonFiniteError, Quadratic
from levels.gradients.first_order import FirstOrder
from recursion.accelerate import accelerate, cells_native, native, parts, repaying, repays
from recursion.accelerate.sweeps import SWEEPS
from recursion.checkpoint import load, save
from recursion.notation import parse
from recursion.tower import Tower

TOLERANCE = {"float64": 1e-12, "float32": 1e-5}


# Twins of parts.

RULES = [
    "sgd",
    "sgd(lr=log(0.01, per=coordinate))",
    "sgd(lr=linear(0.01, per=tensor), momentum=0.9)",
    "sgd(momentum=0.9, nesterov=true, weight_decay=0.1)",
    "sgd(lr=fixed(0.01), momentum=0.9)",
    "adam(eps=1e-3)",
    "adam(beta1=fixed(0.9), lr=linear(0.01))",
    "adamw(eps=1e-3)",
    "rmsprop",
    "rmsprop(momentum=0.5, weight_decay=0.1, centered=true)",
    "adagrad",
    "adagrad(lr_decay=0.1, initial=0.1, weight_decay=0.2)",
    pytest.param("lstm(hidden=3)", marks=needs_compiler),
    pytest.param("lstm(hidden=5, layers=1, p=5.0)", marks=needs_compiler),
    pytest.param("rnnprop(hidden=3)", marks=needs_compiler),
]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("rule", RULES)
def test_a_window_equals_the_plain_one(rule, dtype):
    tower = parse(f"quadratic(dims=4, dtype={dtype}): {rule}@3[batch=3, horizon=6] / sgd(lr=1e-6)")
    fast, _ = compare(tower, tolerance=TOLERANCE[dtype])
    assert type(fast.bound[0].gradient) is parts.SweptFirstOrder


@pytest.mark.parametrize(
    "levels",
    [
        "{lstm}@3[batch=3, horizon=6] / {lstm}@2[batch=2] / adam",
        "sgd@2[batch=2] / adam(eps=1e-3)@2[batch=2, horizon=4, clip=0.1] / rmsprop@2[batch=2] / sgd",
        "sgd@2[batch=2, objective=mean-log] / {lstm}@2[ahead=4, horizon=4, batch=2] / adam(eps=1e-3)",
        "by-name([x], [{lstm}])@3[batch=2] / sgd",
        'by-name(["*"], [sgd])@3[batch=2] / sgd',
        "scheduled({lstm}, cosine)@3[batch=2] / sgd",
        "start(sgd)@3[batch=2, horizon=3, objective=last] / sgd",
        "gated(sgd, price=0.1)@3[batch=2] / sgd",
        "{lstm}@3[batch=2, gradient=mix(first-order, es-single)] / sgd",
        "{lstm}@3[batch=2, gradient=accumulated] / sgd",
        "{lstm}@3[batch=2, gradient=pes] / sgd",
        "{lstm}@3[batch=2] / self",
        "ensemble({lstm}, members=2)@3[batch=2] / sgd",
        "sgd@3[batch=2] / relay(adam, sgd, after=2)",
        "sgd@2[batch=2, horizon=4] / sgd@2[gradient=exact] / sgd",
        "sgd@2[batch=2, horizon=4, gradient=exact] / sgd@2 / sgd",
        "sgd(lr=0.6)@4[batch=8, horizon=8, nonfinite=skip] / sgd(lr=1e-3)",
        "sgd(lr=1e60)@6[batch=8, horizon=12, nonfinite=skip] / sgd(lr=1e-3)",
    ],
)  # fmt: skip
def test_towers_equal_the_plain_ones(levels, interpreted):
    compare(parse(f"quadratic(dims=4, dtype=float64): {levels.format(lstm='lstm(hidden=3)')}"), steps=4)


@dataclasses.dataclass(frozen=True, repr=False)
class Doubled(SGD):
    """Twice the step of `SGD`: its sweep would be wrong."""

    name = "doubled"

    def update(self, theta, x, state, f, g):
        return super().update(theta, x, state, f, 2 * g)


def test_a_subclass_takes_the_plain_way():
    tower = Tower(Quadratic(4, dtype="float64"), Level(optimizer=Doubled(), unroll=3, batch=2), Level(optimizer=SGD()))
    fast, _ = compare(tower)
    assert type(fast.bound[0].gradient) is FirstOrder


def test_every_twin_has_a_sweep_and_every_rule_of_the_tables_is_tried():
    assert {rule for rule, _ in parts.ESTIMATORS} == set(SWEEPS)
    tried = {str(rule if isinstance(rule, str) else rule.values[0]).partition("(")[0] for rule in RULES}
    assert tried == {rule.name for rule in SWEEPS}


@needs_compiler
def test_of_a_window_only_the_first_state_is_stored():
    tower = Tower(Quadratic(10), Level(optimizer=LSTM(), unroll=10, batch=8), Level(optimizer=Adam()))
    state_bytes, peaks = 4 * 20 * 2 * 2 * 10 * 8, []
    for one in (tower, accelerate(tower)):
        with LiveBytes() as live:
            state, _ = one.step(one.init(seed=0))
            before = live.reset_peak().bytes
            one.step(state)
            peaks.append(live.peak - before)
    assert peaks[0] > 10 * state_bytes
    assert peaks[1] < 9 * state_bytes


def test_without_a_compiler_the_cells_stay_plain_and_nothing_repays(monkeypatch):
    monkeypatch.setattr(native, "compiler", lambda: "")
    tower = parse("quadratic(dims=4, dtype=float64): lstm(hidden=3)@3[batch=3] / sgd")
    fast, _ = compare(tower, tolerance=0)
    assert type(fast.bound[0].optimizer) is LSTM
    assert not repays(parse("quadratic: sgd / sgd"), 10**9)
    assert not native.is_built(cells_native.SOURCE)


def test_skipped_copies_are_counted_as_in_the_plain_tower():
    """One copy fails at once and stands still; the plain way answers that window, from the same state."""
    plain, ends = parse("quadratic(4, dtype=float64): sgd@3[batch=4, nonfinite=skip] / sgd"), []
    for tower in (plain, accelerate(plain)):
        state = tower.init(0)
        x = tower.carries(state)[0].x.index_fill(1, torch.tensor(1), 1e200)
        *_, (state, report) = tower.run(with_x(state, x), 3)
        ends.append(state)
        assert report.skipped == [1, 0]
    assert_same(ends[1], ends[0], 1e-12)


@pytest.mark.parametrize("text", ["quadratic: sgd(lr=1e30)@5[batch=2] / sgd", "quadratic: sgd(lr=1e30) / sgd"])
def test_errors_say_what_the_plain_tower_says(text):
    sentences = []
    for tower in (parse(text), accelerate(parse(text), compiled=False)):
        with pytest.raises(NonFiniteError) as error:
            list(tower.run(tower.init(0), 5))
        sentences.append(str(error.value))
    assert sentences[0] == sentences[1]


def test_a_checkpoint_serves_both(tmp_path):
    plain = parse("quadratic(dims=4): sgd@3[batch=2] / sgd")
    fast = accelerate(plain)
    state, _ = fast.step(fast.init(0))
    save(tmp_path / "one", fast, state, seed=0)
    assert_same(load(tmp_path / "one", plain).state, state, 0)


# When it repays.


@needs_compiler
def test_runs_that_are_long_enough_are_compiled():
    some = parse("quadratic: sgd / sgd / sgd / sgd")
    assert repays(some, repaying.FUSED // 4)
    assert not repays(some, repaying.FUSED // 4 - 1)
    learned = parse("quadratic: lstm@20 / adam")  # 64 copies of 10 coordinates
    updates = 20 * (64 * 10 + repaying.EACH_UPDATE)
    assert repays(learned, repaying.BUILT // updates + 1)
    assert not repays(learned, repaying.BUILT // updates)
    exact = parse("digits-mlp: sgd@2[batch=1, gradient=exact] / adam")
    assert repays(exact, repaying.COMPILED // (3 * 1510) + 1)
    assert not repays(exact, repaying.COMPILED // (3 * 1510))
    assert not repays(parse("quadratic: sgd@2 / adam"), 10**9)
