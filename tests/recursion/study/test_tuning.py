"""Tuned baselines: which setting is chosen, by which budget, and that what is counted was spent."""

from importlib.util import find_spec

import pytest
import torch
from torch.optim import SGD as TorchSGD

from levels import SGD, Adam, Augmented, DigitsMLP, Fixed, Log, Quadratic, RMSprop, Scheduled, TorchOptim, keys
from levels.schedules import Constant
from recursion.evaluation.baselines import mean_loss, tune
from recursion.evaluation.deploy import run
from recursion.notation import parse
from recursion.study.search import Line, Trials, moved, rates, schedules, search, set_to

METHODS = ["grid", pytest.param("optuna", marks=pytest.mark.skipif(find_spec("optuna") is None, reason="an extra"))]
KEY = keys.split(keys.seed(7), 6)
TASK = Quadratic(dims=4)
SIX = 6 * 31  # gradients of a setting: problems times the points of 30 steps


def searched(*bases, task=TASK, key=KEY, **settings):
    given = {"steps": 30, "budget": 1e9, "method": "grid", "seed": 0, "tell": lambda what, fraction: None}
    return search(bases, task, key, **given | {"work": lambda optimizer: 0.0} | settings)


def optimizer_of(notation, task=TASK):
    return parse(f"{task!r}: {notation}").levels[0].optimizer


def mean_of(notation, task=TASK, steps=30):
    """The mean loss of what a notation describes, on its own, on the validation problems."""
    optimizer = optimizer_of(notation, task)
    params = optimizer.bind(task.layout).init(keys.seed(0))[None]
    return float(mean_loss(run(optimizer, params, task.on("validation"), KEY, steps)).mean())


def test_every_score_is_that_of_the_setting_alone():
    result = searched(SGD(momentum=0.9), Adam(), budget=60 * SIX)
    assert len(result.scores) == len(dict(result.scores)) == 60
    for setting, score in result.scores:
        assert score == pytest.approx(mean_of(setting), rel=1e-4)
    assert result.setting == min(result.scores, key=lambda pair: pair[1])[0]


@pytest.mark.parametrize("base", [SGD(), SGD(momentum=0.9, nesterov=True), RMSprop(), Adam()], ids=str)
def test_no_worse_than_a_tuned_step_size(base):
    result = searched(base)
    assert dict(result.scores)[result.setting] <= 1.001 * min(tune(base, TASK, KEY, 30).scores["mean"].values())
    assert result.ended == "the grid is so fine that more brings nothing"


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_the_grid_grows_where_the_best_lies_at_its_edge(scale):
    """In another unit a step size must be another by the square of the scale, far above or below the first grid."""
    other = searched(SGD(), task=Augmented(TASK, low=scale, high=scale))
    best = dict(other.scores)[other.setting]
    assert best < 0.8 * mean_of("sgd(lr=10.0)" if scale < 1 else "sgd(lr=0.0001)", Augmented(TASK, scale, scale))
    chosen = [optimizer_of(each.setting) for each in (other, searched(SGD()))]
    ours, usual = (each.inner.lr if isinstance(each, Scheduled) else each.lr for each in chosen)
    assert 0.1 < ours * scale**2 / usual < 10


def test_a_setting_that_diverges_on_one_problem_loses():
    assert dict(searched(SGD()).scores)["sgd(lr=10.0)"] == torch.inf
    losses = run(SGD(), torch.tensor([[0.1]]).log(), TASK.on("validation"), KEY, 300)
    assert torch.isinf(losses[-1]).any()
    assert not torch.isinf(losses[-1]).all()
    assert dict(searched(SGD(), steps=300).scores)["sgd(lr=0.1)"] == torch.inf


class Counted(Quadratic):
    """Quadratics that count their gradients."""

    name = "counted"
    asked = [0]  # noqa: RUF012, shared on purpose

    def value_and_grad(self, params, state):
        self.asked[0] += params[..., 0].numel()
        return super().value_and_grad(params, state)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("budget", [SIX * 2.5, 5000.0, 20000.0])
def test_never_more_than_the_budget_and_all_of_it_is_counted(method, budget):
    Counted.asked[0] = 0
    fractions = []
    result = searched(
        SGD(), Adam(), task=Counted(dims=4), budget=budget, method=method,
        work=lambda optimizer: 0.5 if "adam" in repr(optimizer) else 0.25,
        tell=lambda what, fraction: fractions.append(fraction),
    )  # fmt: skip
    assert result.gradients == Counted.asked[0] == SIX * len(result.scores)
    adams = sum("adam" in setting for setting, _ in result.scores)
    assert result.work == pytest.approx(180 * (0.5 * adams + 0.25 * (len(result.scores) - adams)))
    assert budget - SIX - 90 < result.gradients + result.work <= budget
    assert result.ended == "the budget is spent"
    assert fractions == sorted(fractions)
    assert fractions[-1] == pytest.approx((result.gradients + result.work) / budget)


@pytest.mark.parametrize("method", METHODS)
def test_the_same_search_twice(method):
    common = {"budget": 40 * SIX, "method": method}
    first, second, other = (searched(SGD(momentum=0.9), Adam(), seed=seed, **common) for seed in (3, 3, 4))
    assert (first.scores, first.setting) == (second.scores, second.setting)
    assert (other.scores == first.scores) == (method == "grid"), "a grid draws nothing"


@pytest.mark.parametrize("method", METHODS[1:])
def test_optuna_searches_all_of_it_and_chooses_something_good(method):
    result = searched(SGD(momentum=0.9), Adam(), budget=100 * SIX, method=method)
    settings = [setting for setting, _ in result.scores]
    assert {optimizer_of(setting).name for setting in settings} == {"sgd", "adam", "scheduled"}
    assert len({setting.partition("momentum=")[2] for setting in settings if "momentum" in setting}) > 5
    assert dict(result.scores)[result.setting] < 1.1 * tune(Adam(), TASK, KEY, 30).scores["mean"][0.1]
    for setting in settings[:5]:
        assert dict(result.scores)[setting] == pytest.approx(mean_of(setting), rel=1e-4)


def test_schedules_and_momenta_are_searched_too():
    """On minibatches, the chosen one is better than any plain step size."""
    task, base = DigitsMLP(hidden=(8,), minibatch=32), SGD(momentum=0.5)
    result = searched(base, task=task, key=KEY[:3], steps=40)
    assert all(any(repr(schedule) in s for s, _ in result.scores) for schedule in schedules(40)[1:])
    tuned = min(tune(base, task, KEY[:3], 40).scores["mean"].values())
    assert dict(result.scores)[result.setting] < 0.95 * tuned
    assert "momentum=0.5" not in result.setting


def test_it_may_be_told_to_end_and_asks_for_the_work_of_an_optimizer_once():
    calls, asked = [], []
    result = searched(SGD(), over=lambda: len(calls) >= 3, tell=lambda what, fraction: calls.append(what))
    assert len(calls) == 3
    assert result.ended == "the budget is spent"
    assert calls[0].startswith("searching: sgd")
    result = searched(SGD(), SGD(momentum=0.9), budget=150 * SIX, work=lambda o: asked.append(repr(o)) or 0.0)
    assert len(set(asked)) == len(asked) < 30 < len(result.scores)


def test_spaces_and_torchs_optimizers_stay_what_they_are():
    assert set_to(SGD(lr=Log(0.1, "tensor")), "lr", 0.3) == SGD(lr=Log(0.3, "tensor"))
    assert set_to(TorchOptim(TorchSGD, momentum=0.9), "lr", 0.3) == TorchOptim(TorchSGD, momentum=0.9, lr=0.3)
    assert rates(Adam(beta1=Fixed(0.9))) == ["beta2"]
    assert rates(SGD()) == []
    assert moved(SGD(momentum=0.9), "momentum", 4.0) == SGD(momentum=0.975)
    assert moved(SGD(momentum=0.9), "momentum", 0.25) == SGD(momentum=0.6)
    result = searched(TorchOptim(TorchSGD, momentum=0.9), budget=20 * SIX)
    assert result.setting.startswith(("torch(sgd", "scheduled(torch(sgd"))


def test_of_equals_the_smallest_step_size():
    line = Line(Trials(TASK, KEY, 3, 1e9, lambda *_: None, lambda _: 0.0, lambda: False), SGD(), Constant())
    line.scores = {32: torch.inf, -32: torch.inf, 0: torch.inf}
    assert line.best == -32


def test_what_is_refused():
    with pytest.raises(ValueError, match="needs hand-made rules with a step size lr, as adam or sgd, got no rules"):
        searched()
    with pytest.raises(
        ValueError, match="a budget of 100 base steps tries no setting: 6 problems and 30 steps cost 186"
    ):
        searched(SGD(), budget=100.0)
