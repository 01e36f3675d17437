"""Nothing of an inner optimizer is lost in a wrapper: each wrapper inside each other, for all that they forward."""

from dataclasses import dataclass, replace
from itertools import product
from typing import NamedTuple

import pytest
import torch

from levels import SGD, Exact, Last, Layout, Level, LossTask, Optimizer, keys
from levels.base import OptimizerTraits
from levels.tree import leaves
from recursion.notation import parse

KEY = keys.seed(4)


@dataclass(frozen=True, kw_only=True, repr=False)
class Bowl(LossTask):
    """A quadratic in three tensors, whose middle a key draws."""

    name = "bowl"

    @property
    def layout(self):
        return Layout.of({"a": (2,), "b": (2, 1), "c": ()}, torch.float64)

    def init(self, key):
        return keys.normal(self.own(key), (5,), torch.float64)

    def init_state(self, params, key):
        return keys.normal(self.own(key), (5,), torch.float64)

    def loss(self, params, state):
        return ((params - state).square() * torch.arange(1.0, 6.0, dtype=torch.float64)).sum(-1), state


TASK = Bowl()


BOWL, MARKED = f"{__name__}.Bowl: ", f"{__name__}.Marked"


def rule_of(text: str) -> Optimizer:
    return parse(BOWL + text).levels[0].optimizer


class Way(NamedTuple):
    """A wrapper of an inner optimizer ``{}``."""

    text: str
    start: str = "kept"  # whether a learned start is kept, unused, or refused
    result: bool = True  # whether the result is that of the inner optimizer
    followed: bool = True  # whether a level above can differentiate it
    asks: bool = False
    times: float = 1  # evaluations of its own for each that the inner optimizer asks


WAYS = {
    "start": Way("start({})", start="refused"),
    "gated": Way("gated({})"),
    "scheduled": Way("scheduled({}, linear-decay(0.2), steps=5)"),
    "ensemble": Way("ensemble({}, members=3)", start="refused", times=3),
    "by-name": Way('by-name(["c", "*"], [sgd(0.02), {}])'),
    "relay, first": Way("relay({}, adam(0.1), after=5)", times=0),
    "relay, second": Way("relay(sgd(0.02), {}, after=1)", start="unused"),
    "guarded": Way("guarded({}, every=2)", result=False, followed=False, asks=True),
    "guarded, fallback": Way("guarded(sgd(0.02), every=2, fallback={})", result=False, followed=False, asks=True),
    "safe": Way("safe({}, sgd(0.02), watch=1)", followed=False, asks=True),
    "ga": Way("ga({}, steps=1, population=3, elite=1)", start="refused", result=False, followed=False, asks=True, times=2),
}  # fmt: skip
PAIRS = [
    (outer, middle)
    for outer, middle in product(WAYS, WAYS)
    if not (outer == "by-name" and WAYS[middle].asks)
    and not (outer == middle == "by-name")  # the second finds no tensor c
    and not (middle == "start" and WAYS[outer].start == "refused")
    and not (outer == middle == "ga")  # that reads no gradient
]
pairs = pytest.mark.parametrize(("outer", "middle"), PAIRS)


def around(outer: str, middle: str, core: str) -> str:
    return WAYS[outer].text.format(WAYS[middle].text.format(core))


def level_of(text: str, **settings) -> Level:
    settings = {"unroll": 3, "horizon": 3, "batch": 2, "objective": Last()} | settings
    return Level(optimizer=rule_of(text), **settings).over(TASK)


@dataclass(frozen=True, repr=False)
class Marked(SGD):
    """Says what no other optimizer says."""

    name = "marked"
    cost: int = 0

    @property
    def traits(self) -> OptimizerTraits:
        return OptimizerTraits(reads_loss=True, locality="per_tensor", evals=self.cost)

    def result(self, state, x):
        return torch.full_like(x, 7.0)

    def metrics(self, state):
        return {"mark": state[..., 0]}

    def init_state(self, theta, x, key):
        return torch.full_like(x[..., :1], 3.0)

    def update(self, theta, x, state, f, g):
        return super().update(theta, x, None, f, g)[0], state


@pairs
def test_a_tower_runs_with_each_in_each(outer, middle):
    """Restarts among its steps; states keep their shapes, and begin with the dimensions of the copies."""
    tower = parse(f"{BOWL}{around(outer, middle, 'sgd(0.02, momentum=0.5)')}@2[horizon=2, batch=3]")
    state = tower.init(0)
    shapes = [leaf.shape for leaf in leaves(state)]
    assert all(leaf.shape[0] == 3 for leaf in leaves(state.carry.state))
    for state, report in tower.run(state, 2):  # noqa: B007, B020
        assert [leaf.shape for leaf in leaves(state)] == shapes
    assert report.losses[0] < 100
    assert tower.result(state).shape == state.carry.x.shape


@pairs
def test_a_penalty_is_charged(outer, middle):
    """0.5 of the price, for a gate that is half open; a mean over the members of an ensemble."""
    dear, free = (
        level_of(around(outer, middle, f"gated(sgd(0.02), price={price})"), unroll=1) for price in (1000.0, 0.0)
    )
    theta = free.init(KEY)
    torch.testing.assert_close(dear.optimizer.penalty(theta), torch.tensor(500.0, dtype=torch.float64))
    assert free.optimizer.penalty(theta) is None
    state = free.init_state(theta, KEY)
    value = [level.value(theta, state)[0] for level in (dear, free)]
    torch.testing.assert_close(value[0] - value[1], torch.tensor(500.0, dtype=torch.float64))


@pairs
def test_traits_are_joined(outer, middle):
    optimizer, cheap = (level_of(around(outer, middle, f"{MARKED}(cost={cost})")).optimizer for cost in (2, 0))
    ways = WAYS[outer], WAYS[middle]
    assert optimizer.traits.reads_loss or outer == "ga" or middle == "ga"  # that reads the losses of its members
    assert optimizer.traits.differentiable == all(way.followed for way in ways)
    assert optimizer.traits.locality != "elementwise"
    times = ways[0].times * ways[1].times
    assert optimizer.traits.evals - cheap.traits.evals == 2 * times
    if not any(way.asks for way in ways):
        assert cheap.traits.evals == 0
    else:
        assert cheap.traits.evals > 0 or outer == "relay, first"


@pairs
def test_metrics_come_through(outer, middle):
    level = level_of(around(outer, middle, f"{MARKED}(0.02)"))
    theta = level.init(KEY)
    carry = level.init_state(theta, KEY).carry
    _, state = level.optimizer.update(theta, carry.x, carry.state, carry.f, carry.g)
    found = {name: value for name, value in level.optimizer.metrics(state).items() if name.endswith("mark")}
    (value,) = found.values()
    assert torch.equal(value.double(), torch.full((2,), 3.0, dtype=torch.float64))


@pairs
def test_the_result_is_that_of_the_inner_optimizer(outer, middle):
    """After an update that it made; guards and searches judge parameters, and answer those that they kept."""
    level = level_of(around(outer, middle, f"{MARKED}(0.02)"))
    theta = level.init(KEY)
    x, state, f, g, *_ = level.init_state(theta, KEY).carry
    for _ in range(3):
        x, state = level.optimizer.update(theta, x, state, f, g)
    result = level.optimizer.result(state, x)
    if "safe" in (outer, middle) or not (WAYS[outer].result and WAYS[middle].result):
        assert result.shape == x.shape
        return
    ours = slice(0, 4) if "by-name" in (outer, middle) else slice(None)
    assert (result[..., ours] == 7).all()
    assert torch.equal(result[..., 4:] == 7, torch.full((2, 1), ours == slice(None)))


@pairs
def test_a_learned_start_comes_through(outer, middle):
    """Each number of the offset moves the start; where it can be differentiated, its slope is that of the loss."""
    ways = WAYS[outer], WAYS[middle]
    core = "start(sgd(0.02, momentum=0.5), seed=9)"
    if ways[1].start == "refused" or (ways[1].start == "kept" and ways[0].start == "refused"):
        with pytest.raises(ValueError, match="start"):
            level_of(around(outer, middle, core))
        return
    level = level_of(around(outer, middle, core), gradient=Exact())
    theta = level.init(KEY)
    used = all(way.start == "kept" for way in ways)
    if outer == "start":
        return  # it has a start of its own, instead of one that is not used
    assert level.optimizer.traits.learns_init == used
    offset = [i for name, entry in level.layout.unravel(torch.arange(len(theta))).items()
              if name.endswith("offset") for i in entry.flatten().tolist()]  # fmt: skip
    moved = theta.clone()
    moved[offset] += torch.arange(1.0, 1 + len(offset), dtype=theta.dtype)
    key = keys.split(KEY, 2)
    start, other = (level.optimizer.init_x(params, key) for params in (theta, moved))
    if not used:
        assert torch.equal(start, other)
        return
    torch.testing.assert_close(other[:, : len(offset)] - start[:, : len(offset)], (moved - theta)[offset].expand(2, -1))
    torch.testing.assert_close(start[:, : len(offset)], TASK.init(keys.seed(9))[: len(offset)].expand(2, -1))
    if not all(way.followed for way in ways):
        return
    theta = theta + 0.1 * keys.normal(KEY, theta.shape, theta.dtype)
    _, grad, _ = level.value_and_grad(theta, level.init_state(theta, KEY))
    assert (grad[offset] != 0).all()
    direction, step = keys.normal(keys.seed(8), theta.shape, theta.dtype), 1e-5
    up, down = (
        level.value(at, level.init_state(at, KEY))[0] for at in (theta + step * direction, theta - step * direction)
    )
    assert (grad * direction).sum().item() == pytest.approx(((up - down) / (2 * step)).item(), rel=1e-7)


def test_an_ensemble_of_guards_comes_to_the_mean_of_what_they_kept():
    tower = parse(f"{BOWL}ensemble(guarded(sgd(0.01), every=2), members=3)[batch=2]")
    *_, (state, _) = tower.run(tower.init(0), 5)
    kept = state.carry.state[1][0].best  # [copies, members, n]
    torch.testing.assert_close(tower.result(state), kept.mean(1))
    assert not torch.equal(tower.result(state), state.carry.x)


# Where two meet.


def test_two_learned_starts():
    a, b, both = "start(sgd(0.1), seed=1)", "start(adam, seed=2)", r"start\(sgd.* and start\(adam.*"
    for text in (f"safe({a}, {b})", f"guarded({a}, every=2, fallback={b})"):
        with pytest.raises(ValueError, match=f"{both} have a learned start each; keep one of"):
            rule_of(text).bind(TASK)
    with pytest.raises(ValueError, match=r"start\(sgd.*\)\) has a learned start already; keep one of them"):
        rule_of(f"start(gated({a}))").bind(TASK)
    key = keys.split(KEY, 3)
    first, second = TASK.init(keys.seed(1)), TASK.init(keys.seed(2))
    shared = rule_of(f'by-name(["a", "*"], [{a}, {b}])').bind(TASK)
    torch.testing.assert_close(shared.init_x(shared.init(KEY), key), torch.cat((first[:2], second[2:])).expand(3, -1))
    relay = rule_of(f"relay({a}, {b}, after=5)").bind(TASK)
    assert torch.equal(relay.init_x(relay.init(KEY), key), first.expand(3, -1))


def test_tensors_without_a_learned_start_begin_as_the_problem_says():
    both = rule_of('by-name(["a", "*"], [start(sgd), adam])').bind(TASK.on("test"))
    key = keys.split(KEY, 3)
    x = both.init_x(both.init(KEY), key)
    assert torch.equal(x[:, 2:], TASK.on("test").init(key)[:, 2:])
    assert torch.equal(x[:, :2], TASK.init(keys.seed(0))[:2].expand(3, -1))


@pytest.mark.parametrize("text", ["guarded(sgd)", "safe(sgd)", "ga", "self", "own"])
def test_what_asks_its_problem_needs_all_of_it(text):
    optimizer = parse(f"{BOWL}sgd@3 / {text}").levels[1].optimizer
    with pytest.raises(ValueError, match=r"it was bound to a layout alone, give it a level of its own"):
        optimizer.bind(TASK.layout)
    with pytest.raises(ValueError, match=r"some tensors of it have no loss, give it a level of its own"):
        parse(f'{BOWL}sgd@3 / by-name(["*"], [gated({text})])')
    assert optimizer.traits.evals == 0, "not bound yet"


def test_names_of_metrics_that_meet_are_told_apart():
    level = level_of("relay(gated(gated(sgd, gate=0.3), gate=0.6), gated(sgd, gate=0.9), after=9)")
    theta = level.init(KEY)
    metrics = level.optimizer.metrics(level.init_state(theta, KEY).carry.state)
    found = {name: value[0].item() for name, value in metrics.items()}
    assert found == pytest.approx({"first.gate": 0.6, "first.inner.gate": 0.3, "second.gate": 0.9})


def test_binding_leaves_the_optimizer_as_it_was():
    optimizer = rule_of("gated(scheduled(sgd, linear-decay, steps=3))")
    bound = optimizer.bind(TASK)
    assert optimizer.site is None
    assert optimizer.inner.site is None
    assert bound == optimizer
    assert repr(bound) == repr(optimizer)
    assert replace(bound, gate=0.2).inner.inner.site is TASK
