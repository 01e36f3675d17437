"""Accelerated towers equal the plain ones, leaf by leaf; what must take the plain way takes it."""

import dataclasses
from typing import ClassVar

import pytest
import torch
from live import LiveBytes
from torch.testing import assert_close

from levels import LSTM, SGD, Adam, Level, NonFiniteError, Quadratic, Skip
from levels.gradients.exact import Exact
from levels.gradients.first_order import FirstOrder
from levels.tree import leaves, named_leaves
from recursion.accelerate import Running, accelerate, cells_native, fused, native, parts, repaying, repays, traced
from recursion.accelerate.sweeps import SWEEPS
from recursion.accelerate.tower import Accelerated, compiles_whole
from recursion.checkpoint import load, save
from recursion.notation import parse
from recursion.tower import Tower

needs_compiler = pytest.mark.skipif(not native.compiler(), reason="no C++ compiler")
TOLERANCE = {"float64": 1e-12, "float32": 1e-5}


@pytest.fixture
def interpreted(monkeypatch):
    """Graphs are run operation by operation, not compiled: what is traced is tested, in no time. A list of them."""
    graphs = []

    def keep(graph, inputs, **more):
        graphs.append(graph)
        return graph

    for module in (fused, traced):
        monkeypatch.setattr(module, "compile_graph", keep)
    return graphs


def assert_same(mine, theirs, tolerance):
    """Every leaf: whole numbers equal, others to ``tolerance`` of the largest entry."""
    assert list(named_leaves(mine)) == list(named_leaves(theirs))
    for (name, a), b in zip(named_leaves(mine).items(), leaves(theirs)):
        assert a.dtype == b.dtype
        scale = float(b.detach().abs().max()) if b.numel() and b.is_floating_point() else 0.0
        assert_close(a, b, rtol=0, atol=tolerance * scale, msg=lambda text, name=name: f"{name}: {text}")


def compare(plain, *, steps=3, tolerance=1e-12, **options):
    """Step a tower and its twin side by side; returns the twin and its state."""
    fast = accelerate(plain, **options)
    a, b = plain.init(0), fast.init(0)
    assert repr(fast) == repr(plain)
    assert fast.costs == plain.costs
    for _ in range(steps):
        (a, told), (b, said) = plain.step(a), fast.step(b)
        assert_same(b, a, tolerance)
        assert (said.step, said.skipped) == (told.step, told.skipped)
        assert_close(said.losses, told.losses, rtol=max(tolerance, 1e-12) * 10, atol=0)
        assert said.metrics.keys() == told.metrics.keys()
    assert_close(fast.result(b), plain.result(a), rtol=1e3 * tolerance, atol=tolerance)
    return fast, b


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
        "{lstm}@3[batch=2, gradient=recomputed] / sgd",
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


def test_without_a_compiler_the_cells_stay_plain(monkeypatch):
    monkeypatch.setattr(native, "compiler", lambda: "")
    tower = parse("quadratic(dims=4, dtype=float64): lstm(hidden=3)@3[batch=3] / sgd")
    fast, _ = compare(tower, tolerance=0)
    assert type(fast.bound[0].optimizer) is LSTM


def test_errors_say_what_the_plain_tower_says():
    for text in ("quadratic: sgd(lr=1e30)@5[batch=2] / sgd", "quadratic: sgd(lr=1e30) / sgd"):
        plain, said = parse(text), []
        for tower in (plain, accelerate(plain, compiled=False)):
            with pytest.raises(NonFiniteError) as error:
                for _ in tower.run(tower.init(0), 5):
                    pass
            said.append(str(error.value))
        assert said[0] == said[1]


def test_a_checkpoint_serves_both(tmp_path):
    plain = parse("quadratic(dims=4): sgd@3[batch=2] / sgd")
    fast = accelerate(plain)
    state, _ = fast.step(fast.init(0))
    save(tmp_path / "one", fast, state, seed=0)
    assert_same(load(tmp_path / "one", plain).state, state, 0)


# Whole steps.


@dataclasses.dataclass(frozen=True, repr=False)
class Looks(Quadratic):
    """A task that looks at a number to decide what to do, which cannot be traced."""

    name = "looks"
    traceable: ClassVar[bool] = True

    def value_and_grad(self, params, state):
        f, g, state = super().value_and_grad(params, state)
        return (f, g, state) if float(f.detach().sum()) < 1e9 else (f, 0 * g, state)


STRAIGHT = ["sgd(lr=1e-2)", "sgd(momentum=0.5) / sgd / sgd", "adam(eps=1e-2) / sgd(lr=1e-4)", "rmsprop / adagrad / sgd"]


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
        (state, told), (running, said) = tower.step(state), running.step()
        assert_same(running.state, state, 1e-12)
        assert (said.step, said.skipped) == (told.step, told.skipped)
    for leaf in leaves(running.state):
        assert leaf.is_contiguous()
        assert leaf.storage_offset() == 0


def test_another_state_and_what_cannot_be_traced_take_the_plain_way(interpreted):
    fast, state = compare(parse("quadratic(dims=3): sgd / sgd"), steps=1, tolerance=1e-6)
    with torch.no_grad():
        assert fast._fused.window(state.theta, state.carry) is not None
        assert fast._fused.window(state.theta, state.carry._replace(f=state.carry.f.double())) is None
        assert fast._fused.window(state.theta, state.carry._replace(state=())) is None
    looking, _ = compare(Tower(Looks(4, dtype="float64"), Level(optimizer=SGD()), Level(optimizer=SGD())))
    assert looking._fused.off


def test_a_state_that_is_not_finite_is_stepped_plainly(interpreted):
    plain = parse("quadratic(dims=3): sgd / sgd")
    running, _ = Running(accelerate(plain), plain.init(0)).step()
    state = running.state
    far = state.carry.problem_state.carry._replace(x=state.carry.problem_state.carry.x + 1e30)
    state = state._replace(carry=state.carry._replace(problem_state=state.carry.problem_state._replace(carry=far)))
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

    monkeypatch.setattr(fused, "compile_graph", wrong)
    fast, _ = compare(parse("quadratic(dims=3, dtype=float64): sgd / sgd(lr=1e-2)"))
    assert fast._fused.off


def test_a_number_that_many_are_computed_from_is_computed_once(interpreted):
    for height in (2, 4):
        levels = [Level(optimizer=Adam(lr=0.01 * 0.1**k, eps=1e-3)) for k in range(height)]
        compare(Tower(Quadratic(300, dtype="float64"), *levels), tolerance=1e-9)
    aten, stored = torch.ops.aten, []
    for graph in interpreted:
        sizes = {
            node: node.meta["tensor_meta"].shape.numel() for node in graph.graph.nodes if "tensor_meta" in node.meta
        }
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


def test_without_a_compiler_nothing_repays(monkeypatch):
    monkeypatch.setattr(native, "compiler", lambda: "")
    assert not repays(parse("quadratic: sgd / sgd"), 10**9)
    assert not native.is_built(cells_native.SOURCE)


def test_skipped_copies_are_counted_as_in_the_plain_tower():
    """One copy fails at once and stands still; the plain way answers that window, from the same state."""
    plain = Tower(
        Quadratic(4, dtype="float64"),
        Level(optimizer=SGD(), unroll=3, batch=4, nonfinite=Skip()),
        Level(optimizer=SGD()),
    )
    ends = []
    for tower in (plain, accelerate(plain)):
        state = tower.init(0)
        problem_state = state.carry.problem_state
        x = problem_state.carry.x.index_fill(1, torch.tensor(1), 1e200)
        state = state._replace(
            carry=state.carry._replace(problem_state=problem_state._replace(carry=problem_state.carry._replace(x=x)))
        )
        for _ in range(3):
            state, report = tower.step(state)
        ends.append((state, report))
    assert ends[0][1].skipped == ends[1][1].skipped == [1, 0]
    assert_same(ends[1][0], ends[0][0], 1e-12)
