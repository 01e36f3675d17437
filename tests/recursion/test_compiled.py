"""Whole steps and exact gradients of a task are traced and compiled; what cannot be takes the plain way."""

import dataclasses
from typing import ClassVar

import pytest
import torch
from twins import STRAIGHT, assert_same, compare, needs_compiler, with_x

from levels import SGD, Adam, Level, NonFiniteError, Quadratic
from levels.gradients.exact import Exact
from levels.tree import leaves
from recursion.accelerate import Running, accelerate, compiled
from recursion.accelerate.tower import Accelerated, compiles_whole
from recursion.notation import parse
from recursion.tower import Tower


@dataclasses.dataclass(frozen=True, repr=False)
class Looks(Quadratic):
    """A task that looks at a number to decide what to do, which cannot be traced."""

    name = "looks"
    traceable: ClassVar[bool] = True

    def value_and_grad(self, params, state):
        f, g, state = super().value_and_grad(params, state)
        return (f, g, state) if float(f.detach().sum()) < 1e9 else (f, 0 * g, state)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("levels", [*STRAIGHT, "sgd@1[objective=mean-log, batch=3] / sgd"])
def test_a_straight_step_equals_the_plain_one(levels, compiled, interpreted):
    tower = parse(f"quadratic(dims=4, dtype=float64): {levels}")
    fast, _ = compare(tower, steps=5, compiled=compiled)
    assert isinstance(fast, Accelerated)
    assert fast.straight
    assert len(interpreted) == compiled


@pytest.mark.parametrize("levels", ["sgd(momentum=0.5) / sgd / sgd", "sgd@3[batch=2] / sgd"])
def test_running_equals_stepping(levels, interpreted):
    tower = parse(f"quadratic(dims=4, dtype=float64): {levels}")
    state, running = tower.init(0), Running(accelerate(tower), tower.init(0))
    for _ in range(4):
        (state, expected), (running, report) = tower.step(state), running.step()
        assert_same(running.state, state, 1e-12)
        assert (report.step, report.skipped) == (expected.step, expected.skipped)
    assert all(leaf.is_contiguous() and leaf.storage_offset() == 0 for leaf in leaves(running.state))


def test_another_state_and_what_cannot_be_traced_take_the_plain_way(interpreted):
    fast, state = compare(parse("quadratic(dims=3): sgd / sgd"), steps=1, tolerance=1e-6)
    with torch.no_grad():
        assert fast.fused.pack(state.theta, state.carry) is not None
        assert fast.fused.pack(state.theta, state.carry._replace(f=state.carry.f.double())) is None
        assert fast.fused.pack(state.theta, state.carry._replace(state=())) is None
    looking, _ = compare(Tower(Looks(4, dtype="float64"), Level(optimizer=SGD()), Level(optimizer=SGD())))
    assert looking.fused.off


def test_a_state_that_is_not_finite_is_stepped_plainly(interpreted):
    plain = parse("quadratic(dims=3): sgd / sgd")
    running, _ = Running(accelerate(plain), plain.init(0)).step()
    state = with_x(running.state, plain.carries(running.state)[0].x + 1e30)
    for stepped in (plain.step, running.tower.step, lambda state: Running(running.tower, state).step()):
        with pytest.raises(NonFiniteError, match=r"level 1 .* loss is not finite at top step 2"):
            stepped(state)


@pytest.mark.parametrize("place", [0, -1], ids=["a state", "a loss"])
def test_what_is_compiled_wrongly_is_not_used(place, monkeypatch):
    def wrong(graph, inputs, **more):
        def run(*args):
            answer = list(graph(*args))
            answer[place] = answer[place] * 1.1
            return answer

        return run

    monkeypatch.setattr(compiled, "compile_graph", wrong)
    fast, _ = compare(parse("quadratic(dims=3, dtype=float64): sgd / sgd(lr=1e-2)"))
    assert fast.fused.off


def test_a_number_that_many_are_computed_from_is_computed_once(interpreted):
    for height in (2, 4):
        levels = [Level(optimizer=Adam(lr=0.01 * 0.1**k, eps=1e-3)) for k in range(height)]
        compare(Tower(Quadratic(300, dtype="float64"), *levels), tolerance=1e-9)
    aten, stored = torch.ops.aten, []
    for graph in interpreted:
        nodes = [node for node in graph.graph.nodes if "tensor_meta" in node.meta]
        sizes = {node: node.meta["tensor_meta"].shape.numel() for node in nodes}
        for node in (node for node, size in sizes.items() if size == 1):
            if node.target in (aten.pow.Tensor_Tensor, aten.rsub.Scalar, aten.reciprocal.default):
                assert not any(sizes.get(user) == 300 for user in node.users), f"{node} is made again for each of 300"
        stored.append(sum(node.target == aten.as_strided.default for node in graph.graph.nodes))
    assert stored[0] == stored[1] > 0, "only what moves the task, not the few numbers of the levels above"


@needs_compiler
def test_which_towers_are_compiled_whole():
    assert all(compiles_whole(parse(f"quadratic: {levels}")) for levels in STRAIGHT)
    others = ["sgd@2 / sgd", "sgd@1[horizon=5] / sgd", "sgd@1[nonfinite=skip] / sgd", "sgd@1[gradient=exact] / sgd",
              "sgd@1[clip=1] / sgd", "start(sgd)@1 / sgd"]  # fmt: skip
    assert not any(compiles_whole(parse(f"quadratic: {levels}")) for levels in others)


# Exact gradients of a compiled task.


@dataclasses.dataclass(frozen=True, repr=False)
class Counts(Quadratic):
    """Says that it is traceable, but reads a number that moves."""

    name = "counts"
    traceable: ClassVar[bool] = True
    calls: ClassVar[list[int]] = []

    def value_and_grad(self, params, state):
        self.calls.append(1)
        f, g, state = super().value_and_grad(params, state)
        return f + len(self.calls), g, state


@needs_compiler
@pytest.mark.parametrize(
    "levels",
    [
        "sgd(momentum=0.9)@3[batch=2, horizon=6, gradient=exact] / sgd",
        "start(sgd)@3[batch=2, horizon=3, gradient=exact] / sgd",
        "sgd@2[batch=2, gradient=recomputed(exact)] / sgd@2[batch=2] / sgd",
        "sgd@2[batch=2, gradient=exact] / sgd@2[gradient=exact] / sgd",
        "sgd@2[batch=2, gradient=exact, nonfinite=skip] / sgd@2[batch=2, horizon=4] / sgd",
        "sgd@3[batch=2, ahead=5, objective=mean-log, gradient=exact] / sgd",
        "sgd(momentum=0.5, nesterov=true, weight_decay=0.1)@4[batch=2, gradient=exact] / sgd",
        "rmsprop(momentum=0.5, centered=true, weight_decay=0.1)@4[batch=2, gradient=exact] / sgd",
        "adagrad(lr_decay=0.1, initial=0.1, weight_decay=0.2)@4[batch=2, gradient=exact] / sgd",
        "adam(eps=1e-3)@4[batch=2, gradient=exact] / sgd",
        "sgd(lr=1e200)@4[batch=2, gradient=exact, nonfinite=skip] / sgd",
    ],
)
def test_exact_gradients_of_a_compiled_task_equal_the_plain_ones(levels, interpreted):
    task = "digits-mlp(hidden=[4], minibatch=5" if "momentum" in levels else "quadratic(dims=4"
    compare(parse(f"{task}, dtype=float64): {levels}"), tolerance=1e-11)
    assert interpreted, "nothing was traced"


@needs_compiler
def test_a_task_that_says_wrongly_that_it_is_traceable_stays_plain(interpreted):
    level = Level(optimizer=SGD(), unroll=2, batch=2, gradient=Exact())
    fast = accelerate(Tower(Counts(4), level, Level(optimizer=SGD())))
    with pytest.warns(UserWarning, match="Counts.* is not compiled: its compiled answers differ from its plain ones"):
        fast.step(fast.init(0))
    fast = accelerate(Tower(Looks(4), level, Level(optimizer=SGD())))
    with pytest.warns(UserWarning, match="Looks.* is not compiled: it cannot be traced"):
        fast.step(fast.init(0))


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize(
    "levels", ["sgd(momentum=0.5) / sgd / sgd", "sgd(momentum=0.9)@3[batch=2, gradient=exact] / sgd"]
)
def test_what_the_compiler_makes_equals_the_plain_tower(levels):
    compare(parse(f"quadratic(dims=4, dtype=float64): {levels}"))
