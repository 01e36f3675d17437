"""A tower that is running goes through the states that `Tower.step` answers, packed or not."""

import json
from itertools import product

import pytest
import torch

from levels import SGD, Adagrad, Adam, Linear, NonFiniteError, RMSprop
from levels.compiled import compiling, has_compiler
from levels.tree import leaves, named_leaves
from recursion import TowerState, checkpoint
from recursion.fused import Fused
from recursion.notation import parse
from recursion.training import train
from tests.recursion.test_fused import Bowl, Breaks, Digits, tower

needs_compiler = pytest.mark.skipif(not has_compiler(), reason="no C++ compiler")
RULES = {
    "sgd": [SGD(lr=Linear(rate)) for rate in (0.1, 1e-2, 1e-2, 1e-2)],
    "adam on sgd": [Adam(lr=0.01), SGD(lr=1e-3), SGD(lr=Linear(1e-4)), SGD(lr=Linear(1e-4))],
    "adam": [Adam(lr=0.01), Adam(lr=1e-3), Adam(lr=1e-3), Adam(lr=1e-3)],
    "mixed": [RMSprop(lr=0.01), Adagrad(lr=1e-3), Adam(lr=1e-3), SGD(lr=Linear(1e-4), momentum=0.5)],
}
STEPS = 5
LIMIT = Breaks(dims=1, dtype="float64"), SGD(lr=0.3), SGD(lr=1e-9)  # fails at its third step


@pytest.fixture
def traced(monkeypatch) -> None:
    """Within this test the graph is run as it was traced, and not compiled: the very kernels of the plain code."""
    monkeypatch.setattr("recursion.fused.compile_graph", lambda graph, inputs: graph)


def assert_same(one: TowerState, other: TowerState) -> None:
    left, right = named_leaves(one), named_leaves(other)
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert torch.equal(tensor, right[name]), name


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("height", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_packed_states_are_the_plain_ones_bit_for_bit(name: str, height: int, dtype: str, traced) -> None:
    some = tower(Digits(hidden=(20,), minibatch=8, dtype=dtype), *RULES[name][:height])
    state, reports = some.init(seed=0), []
    running = some.running(state)
    with compiling():
        for _ in range(STEPS):
            running, report = running.step()
            reports.append(report)
    assert some.packed.program is not None
    assert some.packed.program.packing.alone, "no tensor is large"
    for again in reports:
        state, report = some.step(state)
        assert report == again
    assert_same(running.state, state)


def test_a_state_is_made_when_it_is_asked_for(traced, monkeypatch) -> None:
    made, unpack = [], Fused.unpack
    monkeypatch.setattr(Fused, "unpack", lambda self, packed: made.append(1) or unpack(self, packed))
    some = tower(Bowl(dims=3), *RULES["sgd"])
    begun = some.running(some.init(seed=0))
    with compiling():
        running = begun
        for _ in range(STEPS):
            running, _ = running.step()
        assert not made
        again = begun.step()[0]
    assert (begun.done, again.done, running.done) == (0, 1, STEPS)
    state = running.state
    assert running.state is state
    assert len(made) == 1
    assert int(state.step) == STEPS
    assert_same(begun.state, some.init(seed=0))
    assert_same(again.state, some.step(begun.state)[0])


def test_each_state_is_one_that_could_come_from_a_file(traced) -> None:
    towers = tower(Bowl(dims=50), *RULES["adam"]), parse("quadratic(dims=50): sgd@1 / sgd")
    for on, some in product((False, True), towers):
        with compiling(on):
            state = some.running(some.init(seed=0)).step()[0].state
        assert all(leaf.is_contiguous() and leaf.storage_offset() == 0 for leaf in leaves(state))
        assert len({leaf.untyped_storage().data_ptr() for leaf in leaves(state)}) > 2 * some.depth


def test_towers_that_are_not_compiled_whole_run_too() -> None:
    some = parse("quadratic(dims=3): lstm(hidden=4, layers=1)@5[batch=2, horizon=10, nonfinite=skip] / adam")
    running, state = some.running(some.init(seed=0)), some.init(seed=0)
    for _ in range(STEPS):
        running, report = running.step()
        state, other = some.step(state)
        assert report == other
    assert_same(running.state, state)


def test_a_failure_names_level_and_step_and_loses_nothing(traced) -> None:
    some = tower(*LIMIT)
    *_, (last, _) = some.run(some.init(seed=0), 2)
    running = some.running(some.init(seed=0))
    with compiling():
        for _ in range(2):
            running, _ = running.step()
        for _ in range(2):
            with pytest.raises(NonFiniteError, match=r"level 1 .* at top step 3"):
                running.step()
    assert some.packed.program is not None
    assert_same(running.state, last)


@needs_compiler
def test_a_compiled_run_that_ends_early_keeps_its_last_state(tmp_path) -> None:
    def stop(report) -> None:
        if report.step == 3:
            raise KeyboardInterrupt

    some = tower(Bowl(dims=3, dtype="float64"), *RULES["sgd"][:2])
    whole = train(some, steps=6, seed=0, out=tmp_path / "whole", compile=True)
    with pytest.raises(KeyboardInterrupt):
        train(some, steps=6, seed=0, out=tmp_path / "parts", compile=True, on_report=stop)
    kept = checkpoint.load(tmp_path / "parts" / "checkpoint.safetensors", some)
    assert int(kept.state.step) == 3
    assert_same(train(some, steps=6, seed=0, out=tmp_path / "parts", compile=True, resume=True), whole)
    lines = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("whole", "parts")]
    told = [[{**json.loads(line), "seconds": 0} for line in run] for run in lines]
    assert told[0] == told[1]
    assert some.packed.program is not None


@needs_compiler
def test_a_compiled_run_that_fails_keeps_its_last_state(tmp_path) -> None:
    some = tower(*LIMIT)
    with pytest.raises(NonFiniteError, match="at top step 3"):
        train(some, steps=6, seed=0, out=tmp_path, compile=True)
    *_, (last, _) = some.run(some.init(seed=0), 2)
    assert_same(checkpoint.load(tmp_path / "checkpoint.safetensors", some).state, last)
