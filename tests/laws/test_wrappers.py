"""Nothing of an inner optimizer is lost in a wrapper: each wrapper inside each other, for all that they forward."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from typing import NamedTuple

import pytest
import torch

from levels import (
    GA,
    SGD,
    Adam,
    Ensemble,
    Exact,
    Gated,
    Guarded,
    Last,
    Layout,
    LearnedInit,
    Level,
    LinearDecay,
    LossTask,
    Optimizer,
    Partition,
    Safeguarded,
    Scheduled,
    Self,
    SelfUpdate,
    Switch,
    keys,
)  # fmt: skip
from levels.base import OptimizerTraits
from levels.tree import leaves
from recursion import Tower

KEY = keys.seed(4)
REST = SGD(lr=0.02)


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


class Way(NamedTuple):
    """A wrapper, and what it makes of an inner optimizer."""

    wrap: Callable[[Optimizer], Optimizer]
    start: str = "kept"  # whether a learned start is kept, unused, or refused
    result: bool = True  # whether the result is that of the inner optimizer
    followed: bool = True  # whether a level above can differentiate it
    asks: bool = False
    times: float = 1  # evaluations of its own for each that the inner optimizer asks


WAYS = {
    "start": Way(LearnedInit, start="refused"),
    "gated": Way(Gated),
    "scheduled": Way(lambda inner: Scheduled(inner, LinearDecay(0.2), 5)),
    "ensemble": Way(lambda inner: Ensemble(inner, 3), start="refused", times=3),
    "by-name": Way(lambda inner: Partition(("c", "*"), (REST, inner))),
    "relay, first": Way(lambda inner: Switch(inner, Adam(lr=0.1), 5), times=0),
    "relay, second": Way(lambda inner: Switch(REST, inner, 1), start="unused"),
    "guarded": Way(lambda inner: Guarded(inner, 2), result=False, followed=False, asks=True),
    "guarded, fallback": Way(lambda inner: Guarded(REST, 2, inner), result=False, followed=False, asks=True),
    "safe": Way(lambda inner: Safeguarded(inner, REST, watch=1), followed=False, asks=True),
    "ga": Way(
        lambda inner: GA(inner, 1, 3, elite=1), start="refused", result=False, followed=False, asks=True, times=2
    ),
}
PAIRS = [
    (outer, middle)
    for outer, middle in product(WAYS, WAYS)
    if not (outer == "by-name" and WAYS[middle].asks)
    and not (outer == middle == "by-name")  # the second finds no tensor c
    and not (middle == "start" and WAYS[outer].start == "refused")
    and not (outer == middle == "ga")  # that reads no gradient
]
pairs = pytest.mark.parametrize(("outer", "middle"), PAIRS)


def around(outer: str, middle: str, core: Optimizer) -> Optimizer:
    return WAYS[outer].wrap(WAYS[middle].wrap(core))


def level_of(optimizer: Optimizer, **settings) -> Level:
    settings = {"unroll": 3, "horizon": 3, "batch": 2, "objective": Last()} | settings
    return Level(optimizer=optimizer, **settings).over(TASK)


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
    optimizer = around(outer, middle, SGD(lr=0.02, momentum=0.5))
    tower = Tower(TASK, Level(optimizer=optimizer, unroll=2, horizon=2, batch=3))
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
        level_of(around(outer, middle, Gated(SGD(lr=0.02), price=price)), unroll=1) for price in (1000.0, 0.0)
    )
    theta = free.init(KEY)
    torch.testing.assert_close(dear.optimizer.penalty(theta), torch.tensor(500.0, dtype=torch.float64))
    assert free.optimizer.penalty(theta) is None
    state = free.init_state(theta, KEY)
    value = [level.value(theta, state)[0] for level in (dear, free)]
    torch.testing.assert_close(value[0] - value[1], torch.tensor(500.0, dtype=torch.float64))


@pairs
def test_traits_are_joined(outer, middle):
    optimizer, cheap = (level_of(around(outer, middle, Marked(cost=cost))).optimizer for cost in (2, 0))
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
    level = level_of(around(outer, middle, Marked(lr=0.02)))
    theta = level.init(KEY)
    carry = level.init_state(theta, KEY).carry
    _, state = level.optimizer.update(theta, carry.x, carry.state, carry.f, carry.g)
    found = {name: value for name, value in level.optimizer.metrics(state).items() if name.endswith("mark")}
    (value,) = found.values()
    assert torch.equal(value.double(), torch.full((2,), 3.0, dtype=torch.float64))


@pairs
def test_the_result_is_that_of_the_inner_optimizer(outer, middle):
    """After an update that it made; guards and searches judge parameters, and answer those that they kept."""
    level = level_of(around(outer, middle, Marked(lr=0.02)))
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
    core = LearnedInit(SGD(lr=0.02, momentum=0.5), seed=9)
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


# What wrappers once lost.


@pytest.mark.parametrize("wrap", [lambda inner: Partition(("*",), (inner,)), lambda inner: Switch(inner, Adam(), 3)])
def test_a_start_by_name_and_in_a_relay_has_the_slope_that_it_has_alone(wrap):
    inner = LearnedInit(SGD(lr=0.02))
    alone, level = level_of(inner), level_of(wrap(inner))
    theta = alone.init(KEY)
    both = torch.cat((theta, level.init(KEY)[len(theta) :]))
    grads = [
        one.value_and_grad(params, one.init_state(params, KEY))[1] for one, params in ((alone, theta), (level, both))
    ]
    assert torch.equal(grads[1][: len(theta)], grads[0])
    assert (grads[0] != 0).all()


@pytest.mark.parametrize("wrap", [lambda inner: Switch(inner, Adam(), 3), lambda inner: Guarded(inner, 2)])
def test_a_price_in_a_relay_and_in_a_guard_is_charged_whatever_the_depth(wrap):
    for inner in (Gated(SGD(), price=3.0), Partition(("*",), (Gated(Gated(SGD(), price=1.0), price=2.0),))):
        assert level_of(wrap(inner)).optimizer.penalty(level_of(wrap(inner)).init(KEY)).item() == pytest.approx(1.5)


def test_an_ensemble_of_guards_comes_to_the_mean_of_what_they_kept():
    tower = Tower(TASK, Level(optimizer=Ensemble(Guarded(SGD(lr=0.01), 2), 3), batch=2))
    *_, (state, _) = tower.run(tower.init(0), 5)
    kept = state.carry.state[1][0].best  # [copies, members, n]
    torch.testing.assert_close(tower.result(state), kept.mean(1))
    assert not torch.equal(tower.result(state), state.carry.x)


# Where two meet.


def test_two_learned_starts():
    a, b = LearnedInit(SGD(lr=0.1), seed=1), LearnedInit(Adam(), seed=2)
    for both in (Safeguarded(a, b), Guarded(a, 2, b)):
        with pytest.raises(ValueError, match=r"start\(sgd.* and start\(adam.* have a learned start each; keep one of"):
            both.bind(TASK)
    with pytest.raises(ValueError, match=r"start\(sgd.*\)\) has a learned start already; keep one of them"):
        LearnedInit(Gated(a)).bind(TASK)
    key = keys.split(KEY, 3)
    first, second = TASK.init(keys.seed(1)), TASK.init(keys.seed(2))
    shared = Partition(("a", "*"), (a, b)).bind(TASK)
    torch.testing.assert_close(shared.init_x(shared.init(KEY), key), torch.cat((first[:2], second[2:])).expand(3, -1))
    relay = Switch(a, b).bind(TASK)
    assert torch.equal(relay.init_x(relay.init(KEY), key), first.expand(3, -1))


def test_tensors_without_a_learned_start_begin_as_the_problem_says():
    both = Partition(("a", "*"), (LearnedInit(SGD()), Adam())).bind(TASK.on("test"))
    key = keys.split(KEY, 3)
    x = both.init_x(both.init(KEY), key)
    assert torch.equal(x[:, 2:], TASK.on("test").init(key)[:, 2:])
    assert torch.equal(x[:, :2], TASK.init(keys.seed(0))[:2].expand(3, -1))


@pytest.mark.parametrize("optimizer", [Guarded(SGD()), Safeguarded(SGD()), GA(), Self(), SelfUpdate()], ids=str)
def test_what_asks_its_problem_needs_all_of_it(optimizer):
    with pytest.raises(ValueError, match=r"it was bound to a layout alone, give it a level of its own"):
        optimizer.bind(TASK.layout)
    with pytest.raises(ValueError, match=r"some tensors of it have no loss, give it a level of its own"):
        Level(optimizer=Partition(("*",), (Gated(optimizer),))).over(level_of(SGD()))
    assert optimizer.traits.evals == 0, "not bound yet"


def test_names_of_metrics_that_meet_are_told_apart():
    level = level_of(Switch(Gated(Gated(SGD(), gate=0.3), gate=0.6), Gated(SGD(), gate=0.9)))
    theta = level.init(KEY)
    metrics = level.optimizer.metrics(level.init_state(theta, KEY).carry.state)
    found = {name: value[0].item() for name, value in metrics.items()}
    assert found == pytest.approx({"first.gate": 0.6, "first.inner.gate": 0.3, "second.gate": 0.9})


def test_binding_leaves_the_optimizer_as_it_was():
    optimizer = Gated(Scheduled(SGD(), LinearDecay(), 3))
    bound = optimizer.bind(TASK)
    assert optimizer.site is None
    assert optimizer.inner.site is None
    assert bound == optimizer
    assert repr(bound) == repr(optimizer)
    assert replace(bound, gate=0.2).inner.inner.site is TASK
