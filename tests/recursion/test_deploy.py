"""What a tower learned, and towers as optimizers, on many problems: closed forms, loops by hand, separate towers."""

import dataclasses
import math
from dataclasses import dataclass, field

import pytest
import torch

from levels import LSTM, SGD, Adam, DigitsMLP, Layout, LearnedInit, Level, Linear, Quadratic, Task, keys
from recursion.evaluation import deploy
from recursion.evaluation.afresh import is_optimizer, run_afresh
from recursion.evaluation.deploy import Subject, learned, run, trained_windows
from recursion.tower import Tower

SMALL = Quadratic(dims=3, dtype="float64")
DIGITS = DigitsMLP(hidden=(3,), minibatch=4, dtype="float64")


@dataclass(frozen=True, kw_only=True, repr=False)
class Bowl(Task):
    """f(x) = curvature |x|^2, of which SGD has a closed form; remembers the splits in which it was asked."""

    name = "bowl"
    dims: int = 3
    curvature: float = 1.0
    log: list = field(default_factory=list)

    @property
    def layout(self):
        return Layout.of({"x": (self.dims,)}, self.torch_dtype)

    def init(self, key):
        return keys.normal(self.own(key), (self.dims,), self.torch_dtype)

    def init_state(self, params, key):
        return self.own(key)

    def value_and_grad(self, params, state):
        self.log.append((self.split, params.shape[:-1].numel()))
        return self.curvature * params.square().sum(-1), 2 * self.curvature * params, state

    def __repr__(self):
        return f"bowl(dims={self.dims})"

    def variants(self):
        return {"twice as wide": dataclasses.replace(self, dims=2 * self.dims)}


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class Given(Task):
    """One quadratic, whatever the key."""

    name = "given"
    w: torch.Tensor
    y: torch.Tensor
    x: torch.Tensor

    @property
    def layout(self):
        return Layout.of({"x": (len(self.x),)}, self.torch_dtype)

    def init(self, key):
        return self.x.expand(*key.shape, -1)

    def init_state(self, params, key):
        return torch.zeros_like(key)

    def value_and_grad(self, params, state):
        residual = params @ self.w.T - self.y
        return residual.square().sum(-1), 2 * residual @ self.w, state


def sgd_params(*step_sizes):
    return torch.tensor(step_sizes, dtype=torch.float64).log()[:, None]


def problem_keys(count):
    return keys.split(keys.seed(5), count)


def test_run_has_the_closed_form_of_sgd_and_a_diverged_run_is_infinite():
    rates = (0.1, 0.3, 0.7)
    losses = run(SGD(), sgd_params(*rates), Bowl(dtype="float64"), problem_keys(4), 6)
    assert losses.shape == (7, 3, 4)
    for s, lr in enumerate(rates):
        shrink = torch.tensor([(1 - 2 * lr) ** (2 * t) for t in range(7)], dtype=torch.float64)
        torch.testing.assert_close(losses[:, s], shrink[:, None] * losses[0, s], rtol=1e-12, atol=0)
    losses = run(SGD(), sgd_params(100.0, 0.1).float(), Bowl(), problem_keys(2), 60)
    assert torch.isinf(losses[-1, 0]).all()
    assert torch.isfinite(losses[:, 1]).all()
    assert not losses.isnan().any()


def test_settings_run_together_and_in_chunks_as_each_runs_alone(monkeypatch):
    key, lstm = problem_keys(3), LSTM(hidden=4)
    params = lstm.bind(DIGITS).init(keys.split(keys.seed(1), 2))
    together = run(lstm, params, DIGITS, key, 5)
    monkeypatch.setattr(deploy, "CHUNK", 2 * DIGITS.layout.size)
    torch.testing.assert_close(run(lstm, params, DIGITS, key, 5), together, rtol=1e-13, atol=0)
    for s in range(2):
        torch.testing.assert_close(together[:, s], run(lstm, params[s : s + 1], DIGITS, key, 5)[:, 0])
    assert not torch.allclose(together[1:, 0], together[1:, 1])
    losses = run(SGD(), sgd_params(0.1, 1e-300, 0.1), DIGITS, key, 5)  # same problems and minibatches
    assert torch.equal(losses[0, 0], losses[0, 1])
    assert torch.equal(losses[:, 0], losses[:, 2])
    assert len(losses[:, 1, 0].unique()) == 6, "another minibatch at every step"


def deep(task, **top):
    bottom, trainer = (Level(optimizer=SGD(**lr), unroll=n, horizon=None) for lr, n in (({}, 3), ({"lr": 1e-4}, 2)))
    return Tower(task, bottom, trainer, Level(optimizer=Adam(lr=0.1), **top))


def test_learned_at_depth_three_is_the_best_on_validation_of_a_hand_run_of_the_tower_under_it():
    tower = deep(SMALL, batch=2)
    state, _ = tower.step(tower.init(0))
    found = learned(tower, state, windows=4, seed=9)
    validation = keys.split(keys.fold_in(keys.seed(9), 2), 8)
    for copy, trained in enumerate(state.carry.x):
        under = tower.under()
        candidates = torch.stack([each.carry.x[0] for each, _ in under.run(under.init(9, theta=trained), 4)])
        means = run(SGD(), candidates, SMALL.on("validation"), validation, 100)[1:].mean((0, 2))
        assert torch.equal(found.params[copy], candidates[means.argmin()])
        assert len(means.unique()) == 4, "the candidates differ"


def test_learned_counts_what_it_spends_and_never_looks_at_test_problems():
    task = Bowl(dtype="float64")
    tower = deep(task, batch=2)
    state, _ = tower.step(tower.init(0))
    task.log.clear()
    found = learned(tower, state, windows=4, seed=9)
    spent = {split: sum(copies for s, copies in task.log if s == split) for split in ("train", "validation", "test")}
    assert spent == {"train": 2 * (1 + 3 + 4 * 6), "validation": 2 * 4 * 8 * 101, "test": 0}
    assert found.base_steps == sum(spent.values())


def test_learned_runs_for_as_long_as_was_trained_for_and_stops_where_it_diverges():
    windows = [trained_windows(Level(optimizer=SGD(), **more)) for more in ({"unroll": 5}, {"horizon": 40}, {})]
    assert windows == [5, 40, 20]
    tower = Tower(SMALL, Level(optimizer=SGD(), unroll=3), Level(optimizer=SGD(lr=Linear(0.1))), Level(optimizer=SGD()))
    state = tower.init(0)
    for rate in (1e-4, 1.0):
        x = torch.full_like(state.carry.x, rate)
        assert torch.isfinite(learned(tower, state._replace(carry=state.carry._replace(x=x)), seed=1).params).all()


def test_learned_goes_down_as_far_as_there_are_levels():
    task = Bowl(dtype="float64")
    tower = Tower(task, *deep(task).levels, Level(optimizer=SGD(lr=1e-6)))
    state, under = tower.init(0), tower.under()
    *_, (below, _) = under.run(under.init(3, theta=state.carry.x[0]), 2)
    expected, found = learned(under, below, windows=2, seed=3), learned(tower, state, windows=2, seed=3)
    assert torch.equal(found.params, expected.params)
    assert found.base_steps > expected.base_steps


def test_which_towers_are_optimizers_themselves_and_what_others_learn():
    one, window = Level(optimizer=SGD()), Level(optimizer=SGD(), unroll=5)
    assert all(is_optimizer(Tower(Bowl(), *levels)) for levels in ([one], [window], [one] * 3))
    for bottom in (window, dataclasses.replace(window, horizon=None), dataclasses.replace(one, horizon=7)):
        assert not is_optimizer(Tower(Bowl(), bottom, one))
    tower = Tower(Bowl(), window, Level(optimizer=Adam(), batch=2))
    state, _ = tower.step(tower.init(0))
    trained = learned(tower, state, seed=1)
    assert torch.equal(trained.params, state.carry.x)
    assert (trained.params.shape, trained.base_steps) == ((2, 1), 0)


@pytest.mark.parametrize("height", [1, 2, 4])
def test_a_hyperoptimizer_on_many_problems_equals_separate_towers(height):
    task, steps = SMALL.on("test"), 12
    hyper = [Level(optimizer=SGD(lr=Linear(1e-4)), batch=3), *[Level(optimizer=Adam(lr=1e-3), batch=2)] * 3]
    tower = Tower(task, Level(optimizer=SGD(lr=0.01)), *hyper[: height - 1])
    found = run_afresh(tower, task, 5, steps, seed=2, theta=None)
    assert (found.losses.shape, found.base_steps) == ((steps + 1, 1, 5), 5 * (steps + 1))
    for p, (for_x, for_state) in enumerate(keys.split(found.key, 2)):
        x = task.init(for_x)
        w, y = task.init_state(x, for_state)
        levels = [dataclasses.replace(level, batch=1) for level in tower.levels]
        alone = Tower(Given(w=w, y=y, x=x, dtype="float64"), *levels)
        states = [alone.init(0), *(state for state, _ in alone.run(alone.init(0), steps + 1 - height))]
        losses = [alone.carries(state)[0].f.item() for state in states]
        torch.testing.assert_close(found.losses[height - 1 :, 0, p].tolist(), losses, rtol=1e-11, atol=0)


def test_a_hyperoptimizer_follows_the_hypergradient_written_by_hand():
    task = SMALL.on("test")
    tower = Tower(task, Level(optimizer=SGD(lr=Linear(0.01))), Level(optimizer=SGD(lr=1e-6)))
    found = run_afresh(tower, task, 4, 10, seed=0, theta=None)
    for_x, for_state = keys.split(found.key, 2).unbind(-1)
    x = task.init(for_x)
    state = task.init_state(x, for_state)
    f, g, _ = task.value_and_grad(x, state)
    losses, lr = [f], torch.full((4, 1), 0.01, dtype=torch.float64)
    for _ in range(10):
        x, old = x - lr * g, g
        f, g, _ = task.value_and_grad(x, state)
        lr = lr + 1e-6 * (g * old).sum(-1, keepdim=True)
        losses.append(f)
    torch.testing.assert_close(found.losses[:, 0], torch.stack(losses), rtol=1e-11, atol=0)


def test_a_hyperoptimizer_sees_the_problems_that_run_sees():
    task = DIGITS.on("test")
    idle = Tower(task, Level(optimizer=SGD(lr=0.1)), Level(optimizer=SGD(lr=1e-300)))
    found = run_afresh(idle, task, 3, 6, seed=4, theta=None)
    torch.testing.assert_close(found.losses, run(SGD(), sgd_params(0.1), task, found.key, 6), rtol=1e-12, atol=0)
    again = run_afresh(idle, task, 3, 6, seed=8, theta=None, key=found.key)
    assert torch.equal(again.losses, found.losses)


def test_a_diverged_copy_of_a_hyperoptimizer_leaves_its_neighbours_alone():
    task = Quadratic(dims=5, split="test")
    idle = Tower(task, Level(optimizer=SGD(lr=0.08)), Level(optimizer=SGD(lr=1e-45)))
    found = run_afresh(idle, task, 12, 400, seed=1, theta=None)
    expected = run(SGD(), torch.tensor([[math.log(0.08)]]), task, found.key, 400)
    diverged = torch.isinf(found.losses[-1, 0])
    assert 0 < diverged.sum() < 12
    assert torch.equal(diverged, torch.isinf(expected[-1, 0]))
    torch.testing.assert_close(found.losses[:, 0, ~diverged], expected[:, 0, ~diverged])
    five = Tower(Bowl(), *[Level(optimizer=SGD())] * 5)  # start-up makes more steps than are asked for
    assert run_afresh(five, Bowl(), 2, 2, seed=0, theta=None).losses.shape == (3, 1, 2)


def test_plain_training_is_run_with_the_parameters_of_its_state():
    task = Bowl(dtype="float64")
    tower = Tower(task, Level(optimizer=SGD(), unroll=4))
    states = [tower.init(seed, theta=sgd_params(lr)[0]) for seed, lr in enumerate((0.1, 0.2, 0.1))]
    subject = Subject.of(tower, states, windows=1, seed=0)
    assert subject.sizes == [1, 1], "one for each setting that differs"
    losses, key, spent = subject.losses(task.on("test"), 3, 5, 0)
    expected = run(SGD(), torch.cat(subject.params), task.on("test"), key, 5)
    torch.testing.assert_close(losses, expected, rtol=1e-12, atol=0)
    assert spent == losses.numel()


PLAIN, WINDOWS = (Tower(Bowl(), *levels) for levels in ([Level(optimizer=SGD())],
                                                        [Level(optimizer=SGD(), unroll=2), Level(optimizer=SGD())]))  # fmt: skip
KEY = problem_keys(2)


@pytest.mark.parametrize(("match", "what"), {
    "depth 1 trains no optimizer": lambda: learned(PLAIN, PLAIN.init(0), seed=0),
    "windows must be at least 1, got 0": lambda: learned(WINDOWS, WINDOWS.init(0), windows=0, seed=0),
    "windows or restarts": lambda: run_afresh(WINDOWS, Bowl(), 2, 3, seed=0, theta=None),
    "key must name 3 problems, got shape": lambda: run_afresh(PLAIN, Bowl(), 3, 3, seed=0, theta=None, key=KEY),
    "steps must be at least 1, got 0": lambda: run(SGD(), sgd_params(0.1), Bowl(dtype="float64"), KEY, 0),
    "takes 2 parameters in the last dimension": lambda: run(SGD(momentum=0.9), sgd_params(0.1), Bowl(), KEY, 3),
}.items())  # fmt: skip
def test_refusals_say_what_to_do(match, what):
    with pytest.raises(ValueError, match=match):
        what()


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_learned_start_is_where_runs_begin(split):
    task = Quadratic(dims=4, dtype="float64").on(split)
    optimizer, key = LearnedInit(SGD(lr=Linear(0.01))), keys.split(keys.seed(5), 3)
    params = optimizer.bind(task.layout).init(keys.seed(0)) + torch.tensor([1.5, 0, 0, 0, 0])
    x = (task.on("train").init(keys.seed(0)) + params[:4]).expand(3, 4)
    state = task.init_state(x, keys.split(key, 2)[:, 1])
    f, g, _ = task.value_and_grad(x, state)
    losses = run(optimizer, params[None], task, key, 1)
    assert torch.equal(losses[0, 0], f)
    torch.testing.assert_close(losses[1, 0], task.value_and_grad(x - 0.01 * g, state)[0])
