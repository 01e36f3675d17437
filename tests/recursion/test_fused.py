"""A step that is compiled whole equals the plain one, and is taken only where it may be."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from levels import SGD, Adagrad, Adam, DigitsMLP, Exact, Level, Linear, NonFiniteError, Quadratic, RMSprop, Skip
from levels.compiled import compiling, has_compiler
from levels.tree import named_leaves
from recursion import Tower, TowerState
from recursion.fused import Fused, eligible
from recursion.training import REPAID_FUSED, repays_compiling, train

needs_compiler = pytest.mark.skipif(not has_compiler(), reason="no C++ compiler")
STEPS = 40


@dataclass(frozen=True, repr=False)
class Digits(DigitsMLP):
    """Draws its minibatches from keys."""

    name = "traceable-digits"
    traceable: ClassVar[bool] = True


@dataclass(frozen=True, repr=False)
class Bowl(Quadratic):
    """Small enough for products of gradients not to run away; counts its evaluations in Python."""

    name = "traceable-bowl"
    traceable: ClassVar[bool] = True
    calls: ClassVar[int] = 0

    def value_and_grad(self, params, state):
        Bowl.calls += 1
        value, grad, state = super().value_and_grad(params, state)
        return 1e-2 * value, 1e-2 * grad, state


@dataclass(frozen=True, repr=False)
class Breaks(Bowl):
    """Is not a number once its one parameter has fallen below 1; begins at 2 and moves by the step size."""

    name = "traceable-breaks"
    traceable: ClassVar[bool] = True

    def init(self, key: Tensor) -> Tensor:
        return 2 * torch.ones(*key.shape, 1, dtype=self.torch_dtype)

    def value_and_grad(self, params, state):
        return torch.sqrt(params.squeeze(-1) - 1), torch.ones_like(params), state


@dataclass(frozen=True, repr=False)
class Silent(Bowl):
    """Does not say that it is traceable."""

    name = "silent"
    traceable: ClassVar[bool] = False


@dataclass(frozen=True, repr=False)
class Looks(Bowl):
    """Decides by a number."""

    name = "looks"
    traceable: ClassVar[bool] = True

    def value_and_grad(self, params, state):
        value, grad, state = super().value_and_grad(params, state)
        return (value, grad, state) if bool(value.sum() > 0) else (-value, -grad, state)


@dataclass(frozen=True, repr=False)
class Listed(SGD):
    """Decides by a number, where it may: nothing but autograd follows it."""

    name = "listed"

    def step(self, h, g, state, x):
        return super().step(h, g if g.abs().max().item() < 10 else g / 10, state, x)


def tower(task, *rules, **settings) -> Tower:
    return Tower(task, *(Level(optimizer=rule, **settings) for rule in rules))


def sgds(height: int) -> list[SGD]:
    return [SGD(lr=Linear(rate)) for rate in (0.1, 1e-2, 1e-2, 1e-2)[:height]]


BOWL, DIGITS = Bowl(dims=3, dtype="float64"), Digits(hidden=(5,), minibatch=16, dtype="float64")
SOME = {f"sgd, height {height}": tower(DIGITS, *sgds(height)) for height in (1, 2, 3, 4)} | {
    "adam on sgd": tower(DIGITS, Adam(lr=0.01), SGD(lr=1e-3)),
    "adam on adam": tower(DIGITS, Adam(lr=0.01), Adam(lr=1e-3), Adam(lr=1e-3)),
    "adagrad on rmsprop, float32": tower(
        Digits(hidden=(5,), minibatch=16, dtype="float32"), Adagrad(lr=0.01), RMSprop(lr=1e-3), SGD(lr=1e-3)
    ),
    "copies, momentum, clip": Tower(
        BOWL,
        Level(optimizer=SGD(momentum=0.5), batch=3, clip=0.1),
        Level(optimizer=Adam(lr=Linear(1e-3, per="tensor")), batch=2),
    ),
}


def run(tower: Tower, on: bool, steps: int = STEPS) -> tuple[TowerState, list]:
    with compiling(on):
        states, reports = zip(*tower.run(tower.init(seed=0), steps))
    return states[-1], list(reports)


def assert_close(one: TowerState, other: TowerState) -> None:
    left, right = named_leaves(one), named_leaves(other)
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        close = {"rtol": rounding(tensor), "atol": rounding(tensor)}
        torch.testing.assert_close(tensor, right[name], **close, msg=lambda m, n=name: f"{n}: {m}")


def rounding(tensor: Tensor) -> float:
    return 1e-3 if tensor.dtype == torch.float32 else 1e-12


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("name", SOME)
def test_a_compiled_step_equals_the_plain_one(name: str) -> None:
    some = SOME[name]
    plain, reports = run(some, on=False)
    fast, others = run(some, on=True)
    assert some.fused.program is not None
    assert_close(fast, plain)
    first = named_leaves(some.init(seed=0))
    moved = [key for key, tensor in named_leaves(fast).items() if not torch.equal(tensor, first[key])]
    assert sum(key.rpartition(".")[2] == "x" for key in moved) == some.depth, "a level has not moved"
    for a, b in zip(others, reports, strict=True):
        assert (a.step, a.skipped) == (b.step, b.skipped)
        assert a.losses == pytest.approx(b.losses, rel=rounding(plain.params), abs=0)


@needs_compiler
def test_the_task_is_not_asked_in_python_and_old_states_stay() -> None:
    some = tower(BOWL, SGD(lr=0.1), SGD(lr=1e-2))
    begun = some.init(seed=0)
    kept = {name: tensor.clone() for name, tensor in named_leaves(begun).items()}
    with compiling():
        state, _ = some.step(begun)
        calls = Bowl.calls
        again, _ = some.step(begun)  # not the state that was answered last
        later = [after for after, _ in some.run(state, 3)]
    assert Bowl.calls == calls
    assert_close(again, state)
    assert_close(later[-1], run(some, on=False, steps=4)[0])
    assert all(torch.equal(tensor, kept[name]) for name, tensor in named_leaves(begun).items())


@needs_compiler
def test_a_state_may_lie_in_memory_as_it_likes() -> None:
    some = tower(BOWL, SGD(lr=0.1), batch=3)
    state = some.init(seed=0)
    carry = state.carry._replace(x=state.carry.x.T.contiguous().T)
    with compiling():
        assert_close(some.step(state._replace(carry=carry))[0], some.step(state)[0])
    assert_close(some.step(state._replace(carry=carry))[0], run(some, on=True, steps=1)[0])


@needs_compiler
@pytest.mark.parametrize("rate", [0.3, 0.6])
def test_what_is_not_finite_is_said_as_the_plain_step_says_it(rate: float) -> None:
    said = []
    for on in (False, True):
        some = tower(Breaks(dims=1, dtype="float64"), SGD(lr=rate), SGD(lr=1e-9))
        with pytest.raises(NonFiniteError) as caught:
            run(some, on)
        said.append(str(caught.value))
    assert some.fused.program is not None
    assert said[0] == said[1]
    assert "level 1" in said[0]
    assert "at top step" in said[0]


@needs_compiler
def test_a_killed_run_resumes_bit_for_bit(tmp_path) -> None:
    some = tower(BOWL, SGD(lr=0.1), SGD(lr=1e-2))
    whole = train(some, steps=6, seed=0, out=tmp_path / "whole", compile=True)
    train(some, steps=3, seed=0, out=tmp_path / "parts", compile=True)
    parts = train(some, steps=6, seed=0, out=tmp_path / "parts", resume=True, compile=True)
    assert some.packed.program is not None
    left, right = named_leaves(whole), named_leaves(parts)
    assert all(torch.equal(tensor, right[name]) for name, tensor in left.items())


@needs_compiler
@pytest.mark.parametrize(
    "some",
    [tower(Looks(dims=3, dtype="float64"), *sgds(2)), tower(BOWL, Listed(lr=Linear(0.1)), SGD(lr=1e-3))],
    ids=["task", "rule"],
)
def test_parts_that_look_at_numbers_run_plainly(some: Tower) -> None:
    assert eligible(some)
    assert_close(run(some, on=True)[0], run(some, on=False)[0])
    assert some.fused.program is None


def test_another_state_than_it_was_compiled_for_runs_plainly(monkeypatch) -> None:
    monkeypatch.setattr("recursion.fused.compile_graph", lambda graph, inputs: graph)
    some = tower(BOWL, SGD(lr=0.1), SGD(lr=1e-2))
    state = some.init(seed=0)
    fused = Fused(some)
    with torch.no_grad():
        assert fused.window(state.params, state.carry) is not None
        assert fused.window(state.params, state.carry._replace(f=state.carry.f.float())) is None
        assert fused.window(state.params, state.carry._replace(state=())) is None  # no tensors either, but another tree


@pytest.mark.parametrize("place", [0, -1], ids=["a state", "what is told"])
def test_what_is_compiled_wrongly_is_not_used(place: int, monkeypatch) -> None:
    def wrong(graph, inputs):
        def run(*args):
            answer = list(graph(*args))
            answer[place] = answer[place] * 1.1
            return answer

        return run

    monkeypatch.setattr("recursion.fused.compile_graph", wrong)
    some = tower(BOWL, SGD(lr=0.1), SGD(lr=1e-2))
    assert_close(run(some, on=True)[0], run(some, on=False)[0])
    assert some.fused.off


def test_which_towers_are_compiled_whole() -> None:
    assert all(eligible(some) for some in SOME.values())
    others = [
        tower(Silent(dims=3), *sgds(2)),
        tower(BOWL, *sgds(2), unroll=2, horizon=None),
        tower(BOWL, *sgds(2), horizon=5),
        tower(BOWL, *sgds(2), nonfinite=Skip()),
        tower(BOWL, *sgds(2), gradient=Exact()),
    ]
    assert not any(eligible(other) for other in others)


def test_runs_that_are_long_enough_are_compiled() -> None:
    some = tower(BOWL, *sgds(4))
    assert repays_compiling(some, REPAID_FUSED // 4)
    assert not repays_compiling(some, REPAID_FUSED // 4 - 1)
    assert not repays_compiling(tower(Silent(dims=3), *sgds(4)), REPAID_FUSED)


def test_a_number_that_many_are_made_with_is_made_once(monkeypatch) -> None:
    graphs = []
    monkeypatch.setattr("recursion.fused.compile_graph", lambda graph, inputs: graphs.append(graph.graph) or graph)
    for height in (2, 4):
        some = tower(Bowl(dims=500), *[Adam(lr=0.01 * 0.1**k) for k in range(height)])
        assert_close(run(some, on=True)[0], run(some, on=False)[0])
    aten, kept = torch.ops.aten, []
    for graph in graphs:
        sizes = {node: node.meta["tensor_meta"].shape.numel() for node in graph.nodes if "tensor_meta" in node.meta}
        numbers = [node for node, size in sizes.items() if size == 1]
        assert any(node.target == aten.pow.Tensor_Tensor for node in numbers), "of Adam's decay rates"
        assert 500 in sizes.values()
        for node in numbers:
            if node.target in (aten.pow.Tensor_Tensor, aten.rsub.Scalar, aten.reciprocal.default):
                assert not any(sizes.get(user) == 500 for user in node.users), f"{node} is made again for each of 500"
        kept.append(sum(node.target == aten.as_strided.default for node in graph.nodes))
    assert kept[0] == kept[1] > 0, "only what moves the task, not the few numbers of the levels above"
