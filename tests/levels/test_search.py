"""Searches: rules that read losses, one population for each copy."""

import dataclasses
import math

import cmaes
import numpy as np
import pytest
import torch
from parts import Tallied

from levels import (
    CMA,
    GA,
    LSTM,
    SGD,
    Adam,
    DigitsMLP,
    Ensemble,
    Guarded,
    HeldOut,
    Level,
    Linear,
    NoisyQuadratic,
    Quadratic,
    RandomSearch,
    TruncatedES,
    keys,
)
from levels.base import STATE, OptimizerTraits
from levels.episode import tolerant
from levels.optimizers.cma import advanced, constants
from levels.optimizers.search import Population
from levels.optimizers.self_update import SelfUpdate
from levels.tree import leaves, map_leaves
from recursion import Tower, checkpoint
from recursion.evaluation.deploy import run_afresh
from recursion.notation import parse

KEY = keys.seed(7)
TINY = LSTM(hidden=2, layers=1)
SEARCHES = [
    GA(population=5),
    GA(Adam(lr=0.1), 2, population=5),
    RandomSearch(population=4),
    RandomSearch(population=4, around="best"),
    CMA(population=6),
]


def level_below(optimizer=TINY, **settings):
    settings = {"unroll": 2, "horizon": 4, "batch": 2} | settings
    return Level(optimizer=optimizer, **settings)


def bound(optimizer=TINY, **settings):
    return level_below(optimizer, **settings).over(Quadratic(dims=3, dtype="float64"))


def begun(search, problem, key=KEY, x=None):
    """A bound search, its parameters, a first state and x, for keys ``[copies]``."""
    search = search.bind(problem)
    theta = search.init(KEY)
    x = problem.init(keys.split(key, 2)[..., 0]) if x is None else x
    return search, theta, search.init_state(theta, x, keys.fold_in(key, STATE)), x


def updated(search, theta, state, x):
    return search.update(theta, x, state, torch.zeros(x.shape[:-1]), torch.zeros_like(x))


# By hand: one copy, one member after the other.


def generation_by_hand(search, problem, sigma, members, losses, number, key, moved):
    """Children of one population, then everybody's loss; ``moved`` takes and returns one member and its life."""
    asked, judged = keys.split(keys.fold_in(key, number), 2)
    chosen, birth = keys.split(asked, 2)
    drawn, mated, mutated = keys.split(chosen, 3)
    rest = 0 if search.inner is None else 1
    n, count = members[0][0].shape[-1], search.population - rest - search.elite
    if number > 0:
        order = sorted(range(len(members)), key=lambda i: losses[i])
        entries = keys.integers(drawn, (count, 2, search.tournament), search.population).tolist()
        chance = keys.uniform(mated, (count, 1 + n), torch.float64)
        noise = keys.normal(mutated, (count, n), torch.float64)
        children = []
        for i in range(count):
            mother, father = (members[order[min(entries[i][parent])]][0] for parent in range(2))
            child = mother.clone()
            if chance[i, 0] < search.crossover:
                for j in range(n):
                    child[j] = father[j] if chance[i, 1 + j] < 0.5 else mother[j]
            children.append((child + sigma * noise[i], birth))
        members = [members[i] for i in order[:rest] + order[: search.elite]] + children
    members = members[:rest] + [moved(*member) for member in members[rest:]]
    return members, [problem.evaluate_from_scratch(x, judged).item() for x, _ in members]


def born(problem, rule, own, x, key):
    problem_state = tolerant(problem).init_state(x, key)
    return rule.init_state(own, x[None], key[None]), *tolerant(problem).value_and_grad(x, problem_state)


@pytest.mark.parametrize("rule", [None, Adam(lr=0.1), SelfUpdate(scale=0.3)], ids=str)
def test_a_generation_is_what_a_loop_over_members_does(rule):
    problem = bound()
    steps = 0 if rule is None else 2
    search = GA(rule, steps, population=5, elite=2, tournament=2, crossover=0.6, sigma=0.2)
    key = keys.split(KEY, 3)
    search, theta, state, x = begun(search, problem, key)
    assert (theta.exp()[0] - 0.2).abs() < 1e-12
    first = [keys.split(keys.fold_in(one, -1), 2)[1] for one in state.key]
    populations = [[(member, birth) for member in own] for own, birth in zip(state.members, first)]
    scores = [[math.inf] * 5 for _ in key]

    def moved(member, life):
        """``life``: the key of a birth, or what is remembered since."""
        if rule is None:
            return member, None
        mover, own = search.inner, theta[1:]
        remembered, f, g, problem_state = (
            born(problem, mover, own, member, life) if isinstance(life, torch.Tensor) else life
        )
        for _ in range(steps):
            stepped, remembered = mover.update(own, member[None], remembered, f[None], g[None])
            member = stepped[0]
            f, g, problem_state = tolerant(problem).value_and_grad(member, problem_state)
        return member, (remembered, f, g, problem_state)

    for number in range(4):
        x, state = updated(search, theta, state, x)
        for copy in range(3):
            populations[copy], scores[copy] = generation_by_hand(
                search, problem, 0.2, populations[copy], scores[copy], number, state.key[copy], moved
            )
            expected = torch.stack([member for member, _ in populations[copy]])
            torch.testing.assert_close(state.members[copy], expected, rtol=1e-9, atol=1e-11)
            torch.testing.assert_close(state.losses[copy], torch.tensor(scores[copy], dtype=torch.float64))
            torch.testing.assert_close(x[copy], expected[scores[copy].index(min(scores[copy]))], rtol=1e-9, atol=1e-11)


def test_the_best_member_is_not_lost_when_all_that_move_run_away():
    problem = bound(SGD(lr=1e-3), unroll=5, horizon=10)
    search, theta, state, x = begun(GA(SGD(lr=1e3), 1, population=4, sigma=1e-6), problem, keys.split(KEY, 2))
    first = x
    for _ in range(5):
        x, state = updated(search, theta, state, x)
        torch.testing.assert_close(x, first, rtol=1e-3, atol=1e-3)
        assert (state.losses[:, 1:3] > state.losses[:, :1]).all()


# What members are judged on.


def test_all_members_of_a_generation_are_judged_on_the_same_and_each_generation_on_other_problems():
    search, theta, state, x = begun(RandomSearch(4, sigma=1e-300, around="best"), bound(), keys.split(KEY, 2))
    seen = []
    for _ in range(3):
        x, state = updated(search, theta, state, x)
        assert (state.members - state.members[:, :1]).abs().max() < 1e-290
        assert (state.losses == state.losses[:, :1]).all()
        seen += state.losses[:, 0].tolist()
    assert len(set(seen)) == 6


@pytest.mark.parametrize("rule", [None, SGD(lr=0.01)], ids=str)
@pytest.mark.parametrize("task", [Quadratic(), NoisyQuadratic(), DigitsMLP(hidden=(2,), minibatch=8)], ids=str)
def test_over_a_task_members_are_judged_on_the_problem_of_their_copy(task, rule):
    """Every answer of the task is for one minibatch; that of the level comes one later, for it asked at the start."""
    tower = Tower(task, Level(optimizer=GA(rule, 0 if rule is None else 1, population=4), batch=3))
    state = tower.init(0)
    for _ in range(3):
        before = state.carry.state.task
        state, _ = tower.step(state)
        population = state.carry.state
        alike = map_leaves(lambda leaf: leaf[:, None].expand(3, 4, *leaf.shape[1:]), before)
        losses, _ = task.value(population.members, alike)
        torch.testing.assert_close(population.losses, losses)
    _, _, where = task.value_and_grad(state.carry.x, population.task)
    for ours, theirs in zip(leaves(where), leaves(state.carry.problem_state), strict=True):
        torch.testing.assert_close(ours, theirs)  # the level asked once more, at its start


def test_what_a_task_counts_is_what_members_are_judged_by():
    task = HeldOut(DigitsMLP(hidden=(2,), minibatch=8))
    tower = Tower(task, Level(optimizer=GA(population=3)))
    state = tower.init(0)
    before = state.carry.state.task
    state, _ = tower.step(state)
    for member, loss in zip(state.carry.state.members[0], state.carry.state.losses[0]):
        expected = task.counted.value(member[None], before.counted)[0]
        torch.testing.assert_close(loss[None], expected)


def test_a_member_that_goes_wrong_stops_nobody_and_is_not_chosen():
    """A mutation of 1e3 in the logarithm of a step size makes it 0 or infinite."""
    for search in (GA(population=6, sigma=1e3), GA(Adam(), 2, population=6, sigma=1e3)):
        tower = Tower(Quadratic(), level_below(SGD(lr=0.01), unroll=20, horizon=40), Level(optimizer=search))
        lost = 0
        for state, report in tower.run(tower.init(0), 4):
            worst = torch.isinf(state.carry.state.losses).sum().item()
            assert report.metrics["level 2 lost"] == pytest.approx(worst / 6)
            assert worst < 6
            assert math.isfinite(report.losses[-1])
            lost += worst
        assert lost > 0


# Populations.


def test_a_population_begins_with_starts_that_differ_and_with_x():
    problem = bound()
    key = keys.split(KEY, 2)
    _, _, state, x = begun(GA(population=4, sigma=0.01), problem, key)
    assert torch.equal(state.members[:, 0], x)
    views = problem.layout.unravel(state.members)
    spread = {name: view.std(1).mean() for name, view in views.items()}
    assert spread["layer0.weight"] > 0.2, "as an LSTM's weights are drawn"
    assert 0.001 < spread["layer0.bias"] < 0.03, "the same in every draw, so mutated"
    _, _, state, x = begun(GA(population=400, sigma=0.3), bound(SGD(lr=0.1)), key)
    assert torch.equal(state.members[:, 0], x)
    assert state.members.std().item() == pytest.approx(0.3, rel=0.1)


@pytest.mark.parametrize(
    "notation",
    [
        "rosenbrock: ga",
        "rosenbrock: ga(adam, steps=1)",
        "rosenbrock: random-search(around=best, sigma=0.3)",
    ],
)
def test_the_best_loss_never_rises_where_nothing_is_noisy(notation):
    tower = parse(notation)
    losses = [report.losses[0] for _, report in tower.run(tower.init(0), 30)]
    assert all(b <= a for a, b in zip(losses, losses[1:]))
    assert losses[-1] < losses[0] / 2


@pytest.mark.parametrize("search", SEARCHES, ids=str)
@pytest.mark.parametrize("below", ["level", "task"])
def test_copies_do_not_mix(search, below):
    problem = bound() if below == "level" else Quadratic(dims=3, dtype="float64")
    key = keys.split(KEY, 3)
    search, theta, state, x = begun(search, problem, key)
    other_key = torch.cat((keys.fold_in(key[:1], 9), key[1:]))
    _, _, other, other_x = begun(search, problem, other_key)
    _, _, alone, alone_x = begun(search, problem, key[2:])
    for _ in range(3):
        x, state = updated(search, theta, state, x)
        other_x, other = updated(search, theta, other, other_x)
        alone_x, alone = updated(search, theta, alone, alone_x)
    assert not torch.equal(x[0], other_x[0])
    for ours, theirs, single in zip(leaves(state), leaves(other), leaves(alone), strict=True):
        torch.testing.assert_close(ours[1:], theirs[1:])
        torch.testing.assert_close(ours[2:], single)


@pytest.mark.parametrize("search", SEARCHES, ids=str)
def test_copies_may_begin_at_different_times(search):
    problem, key = bound(), keys.split(KEY, 2)
    search, theta, old, x_old = begun(search, problem, key[:1])
    for _ in range(2):
        x_old, old = updated(search, theta, old, x_old)
    _, _, new, x_new = begun(search, problem, key[1:])
    both, x = map_leaves(lambda a, b: torch.cat((a, b)), old, new), torch.cat((x_old, x_new))
    for _ in range(2):
        x_old, old = updated(search, theta, old, x_old)
        x_new, new = updated(search, theta, new, x_new)
        x, both = updated(search, theta, both, x)
    for a, b, joined in zip(leaves(old), leaves(new), leaves(both), strict=True):
        torch.testing.assert_close(joined, torch.cat((a, b)))


@pytest.mark.parametrize("search", [GA(population=4), RandomSearch(4), CMA(4)], ids=str)
def test_sigma_is_a_parameter_that_a_level_above_trains(search):
    problem = bound(SGD(lr=0.01))
    one, theta, state, x = begun(search, problem, keys.split(KEY, 2))
    wide = one.init_state(theta + math.log(10), x, state.key)
    near, far = updated(one, theta, state, x), updated(one, theta + math.log(10), wide, x)
    a, b = near[1].members - problem.init(KEY), far[1].members - problem.init(KEY)
    torch.testing.assert_close(10 * a, b)
    tower = Tower(
        Quadratic(),
        Level(optimizer=SGD(lr=0.001), unroll=2, horizon=4),
        Level(optimizer=dataclasses.replace(search, sigma=0.1), unroll=2, horizon=4, gradient=TruncatedES(sigma=0.1)),
        Level(optimizer=Adam(lr=0.1)),
    )
    *_, (state, _) = tower.run(tower.init(0), 3)
    assert state.carry.x.item() != pytest.approx(math.log(0.1), abs=0.05)


def test_searches_run_over_black_boxes():
    tower = parse("digits-mlp(hidden=[2], minibatch=8): torch(rprop)@3[batch=1, horizon=6] / ga(population=3, elite=1)")
    start = tower.init(0)
    *_, (state, report) = tower.run(start, 3)
    assert not torch.equal(state.carry.x, start.carry.x)
    assert math.isfinite(report.losses[-1])


@dataclasses.dataclass(frozen=True, repr=False)
class Blind(SGD):
    """Moves at random, by its step size."""

    name = "blind"

    @property
    def traits(self):
        return OptimizerTraits(reads_grad=False)

    def init_state(self, theta, x, key):
        return key

    def update(self, theta, x, state, f, g):
        return x - self.read(theta)["lr"] * keys.normal(state, x.shape[-1:], x.dtype), keys.fold_in(state, 1)


# What it costs.

LEVEL = {"unroll": 3, "batch": 2, "horizon": None}
COUNTED = {
    "ga": ((Level(optimizer=SGD(lr=0.01), **LEVEL),), GA(population=5, elite=2)),
    "ga, long trials": ((Level(optimizer=SGD(lr=0.01), unroll=2, batch=2, horizon=100),), GA(population=3, elite=1)),
    "ensembled": ((Level(optimizer=SGD(lr=0.01), **LEVEL),), GA(Ensemble(Adam(), 2), 4, population=5)),
    "guarded": ((Level(optimizer=SGD(lr=0.01), **LEVEL),), Guarded(CMA(), 1)),
    "memetic": ((Level(optimizer=SGD(lr=0.01), **LEVEL),), GA(Adam(), 4, population=5, elite=2)),
    "random": ((Level(optimizer=TINY, **LEVEL),), RandomSearch(population=4)),
    "cma": ((Level(optimizer=SGD(lr=0.01), **LEVEL), Level(optimizer=SGD(lr=1e-6), **LEVEL)), CMA(population=6)),
    "on a task": ((), GA(population=5, elite=2)),
    "memetic, on a task": ((), GA(Adam(), 4, population=5, elite=2)),
}


@pytest.mark.parametrize(("levels", "search"), COUNTED.values(), ids=COUNTED)
def test_a_tower_knows_what_a_search_costs(levels, search):
    task = Tallied(dims=2)
    tower = Tower(task, *levels, Level(optimizer=search, unroll=2, batch=2, horizon=None))
    state, copies = tower.init(0), 2 ** (1 + len(levels))
    state, _ = tower.step(state)
    task.take()
    for _ in range(3):
        state, _ = tower.step(state)
        assert task.take()[1] == tower.costs[-1] * copies


class Closed(Quadratic):
    """Has values, and no gradient."""

    name = "closed"

    def value(self, params, state):
        return super().value_and_grad(params, state)[0], state

    def value_and_grad(self, params, state):
        raise AssertionError("a gradient was asked for")


def test_a_search_of_searches_makes_no_gradient():
    tower = Tower(Closed(), level_below(Blind()), Level(optimizer=GA(population=3, elite=1)))
    *_, (_, report) = tower.run(tower.init(0), 2)
    assert math.isfinite(report.losses[-1])


@pytest.mark.parametrize("notation", ["quadratic: ga(population=4)", "quadratic: ga(adam, steps=2, population=4)"])
def test_a_search_of_one_level_is_evaluated_as_an_optimizer(notation):
    tower = parse(notation)
    afresh = run_afresh(tower, tower.task, 3, 5, seed=2, theta=None)
    whole = Tower(tower.task, dataclasses.replace(tower.levels[0], batch=3))
    state = whole.init(2)
    rows = [state.carry.f]
    for later, _ in whole.run(state, 5):
        rows.append(later.carry.f)
    torch.testing.assert_close(afresh.losses[:, 0], torch.stack(rows))
    first = 4 - 1 if "adam" in notation else 0  # all members are born at the start, no child in the first generation
    assert afresh.base_steps == 3 * (1 + 5 * tower.costs[-1] + first)


def test_a_search_over_a_level_is_evaluated_as_an_optimizer():
    tower = parse("quadratic: sgd(lr=0.01) / ga(population=4)")
    afresh = run_afresh(tower, tower.task, 3, 5, seed=2, theta=None)
    assert afresh.losses.shape == (6, 1, 3)
    assert torch.isfinite(afresh.losses).all()
    assert (afresh.losses[-1] < afresh.losses[0]).all()


# To the last bit.


@pytest.mark.parametrize(
    "notation",
    [
        "quadratic: lstm(hidden=2)@2[batch=2, horizon=4] / ga(population=4)",
        "quadratic: lstm(hidden=2)@2[batch=2, horizon=4] / ga(own, steps=2, population=4)",
        "quadratic: adam@2[batch=2, horizon=4] / random-search(population=4)",
        "quadratic: adam@2[batch=2, horizon=4] / cma@2[batch=2]",
        "digits-mlp(hidden=[2], minibatch=8): ga(population=4)",
    ],
)
def test_a_run_that_was_cut_goes_on_to_the_last_bit(notation, tmp_path):
    tower = parse(notation)
    assert repr(parse(repr(tower))) == repr(tower)
    state = tower.init(1)
    for step in range(6):
        state = checkpoint.settled(tower.step(state)[0])
        if step == 2:
            checkpoint.save(tmp_path / "half", tower, state, seed=1)
    again = checkpoint.load(tmp_path / "half").state
    for _ in range(3):
        again = checkpoint.settled(tower.step(again)[0])
    assert all(torch.equal(a, b) for a, b in zip(leaves(state), leaves(again), strict=True))


# CMA-ES.


@pytest.mark.parametrize("start", [0.5, 50.0], ids=["near", "far"])  # far off, the path is long and h is 0
@pytest.mark.parametrize(("n", "size"), [(2, 6), (5, 8), (5, 13), (12, 11), (3, 40)])
def test_cma_equals_a_package_fed_the_same_samples(n, size, start):
    other = cmaes.CMA(mean=np.full(n, start), sigma=0.7, population_size=size, seed=0)
    search = CMA(population=size, sigma=0.7).bind(Quadratic(n, dtype="float64"))
    theta, x = search.init(KEY), torch.full((1, n), start, dtype=torch.float64)
    state = search.init_state(theta, x, KEY[None])
    scale = 10.0 ** torch.linspace(0, 2, n, dtype=torch.float64)
    for number in range(12):
        state = search.ask(theta, state, x, keys.split(keys.fold_in(KEY, number), 1))
        losses = (scale * state.members.square()).sum(-1)
        pairs = zip(state.members[0].numpy().copy(), losses[0].tolist())
        other.tell([(point, loss) for point, loss in pairs])
        state = state._replace(losses=losses, generation=state.generation + 1)
        x, memory = search.tell(theta, state)
        state = state._replace(memory=memory)
        np.testing.assert_allclose(memory.mean[0].numpy(), other.mean, rtol=1e-7, atol=1e-10)
        assert memory.sigma.item() == pytest.approx(other._sigma, rel=1e-7)
        np.testing.assert_allclose(memory.c[0].numpy(), other._C, rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(x, memory.mean)


def test_cma_draws_from_the_distribution_that_it_keeps():
    task = Quadratic(3, dtype="float64")
    search = CMA(population=40_000, sigma=2.0).bind(task)
    theta, x = search.init(KEY), torch.tensor([[1.0, -2.0, 3.0]], dtype=torch.float64)
    state = search.init_state(theta, x, KEY[None])
    memory = state.memory
    few = keys.normal(KEY, (1, 8, 3), torch.float64)
    memory = advanced(memory, constants(3, 8), few, few[..., 0], torch.ones(1, dtype=torch.int64))
    members = search.ask(theta, state._replace(memory=memory), x, KEY[None]).members[0]
    torch.testing.assert_close(members.mean(0), memory.mean[0], atol=0.02, rtol=0)
    expected = memory.sigma[0] ** 2 * memory.c[0]
    torch.testing.assert_close(members.T.cov(), expected, atol=0.03 * expected.abs().max().item(), rtol=0)


def test_cma_finds_the_bottom_of_a_curved_valley():
    tower = parse("rosenbrock(dtype=float64): cma@1[batch=4]")
    *_, (state, report) = tower.run(tower.init(0), 150)
    assert report.losses[0] < 1e-8
    torch.testing.assert_close(state.carry.x, torch.ones_like(state.carry.x), atol=1e-3, rtol=0)


# Refusals.

REFUSED = {
    "quadratic: ga(population=1)": r"ga: population must be a whole number of at least 2, got 1",
    "quadratic: ga(elite=0)": r"ga: elite must be a whole number of at least 1, got 0",
    "quadratic: ga(population=4, elite=4)": r"elite must be less than the population 4, got 4",
    "quadratic: ga(tournament=0)": r"tournament must be a whole number of at least 1",
    "quadratic: ga(crossover=1.5)": r"crossover must be a number from 0 to 1, got 1.5",
    "quadratic: ga(sigma=0)": r"sigma must be a number above 0, got 0; without it nothing varies",
    "quadratic: ga(sigma=none)": r"sigma must be a number above 0|sigma must be a",
    "quadratic: ga(sigma=linear(0))": r"sigma must be a number above 0, got linear\(0\)",
    "quadratic: ga(steps=3)": r"3 steps of no optimizer",
    "quadratic: ga(adam)": r"steps must be a whole number of at least 1, got 0",
    "quadratic: ga(ga, steps=1)": r"reads no gradient; members are moved by an optimizer that does",
    "quadratic: ga(own, steps=1)": r"own applies the optimizer below to itself",
    "quadratic: ga@2 / ga(adam, steps=1)": r"level 2 .* cannot be differentiated by first-order",
    "quadratic: random-search(population=1)": r"population must be a whole number of at least 2",
    "quadratic: random-search(around=here)": r"around must be start or best, got here",
    "quadratic: cma(population=3)": r"population must be a whole number of at least 4, or none, got 3",
    "quadratic: cma(sigma=-1)": r"sigma must be a number above 0, got -1",
    "quadratic: cma(sigma=log(1, per=tensor))": r"cma: sigma is one number",
    "quadratic(2001): cma": r"matrix of 2001 x 2001 for 2001 parameters; it takes at most 2,000, use ga",
    "quadratic: sgd@5 / ga@2 / adam": r"cannot be differentiated by first-order",
    'quadratic: by-name(["*"], [ga])': r"some tensors of it have no loss, give it a level of its own",
}


@pytest.mark.parametrize("notation", REFUSED)
def test_what_cannot_be_searched_is_refused_when_the_tower_is_built(notation):
    with pytest.raises(ValueError, match=REFUSED[notation]):
        parse(notation)


def test_notes_tell_of_the_population():
    tower = Tower(Quadratic(), Level(optimizer=GA(population=4), batch=2))
    *_, (state, report) = tower.run(tower.init(0), 2)
    population: Population = state.carry.state
    means = population.losses.amin(-1).mean().item()
    assert report.metrics["level 1 best trial"] == pytest.approx(means)
    spread = (population.members - population.members.mean(1, keepdim=True)).square().mean((1, 2)).sqrt().mean()
    assert report.metrics["level 1 spread"] == pytest.approx(spread.item(), rel=1e-5)
    assert report.metrics["level 1 lost"] == 0


def test_a_fixed_sigma_is_no_parameter():
    problem = Quadratic()
    search = parse("quadratic: ga(sigma=fixed(0.2))").top.optimizer
    assert search.layout.size == 0
    assert GA(sigma=Linear(0.2)).bind(problem).init(KEY).item() == pytest.approx(0.2)
