"""Tuned baselines: what is found, by which budget, and that what is counted was spent."""

from importlib.util import find_spec

import pytest
import torch
from torch.optim import SGD as TorchSGD

from levels import (
    SGD,
    Adam,
    Augmented,
    Constant,
    DigitsMLP,
    Fixed,
    Log,
    Quadratic,
    RMSprop,
    Scheduled,
    TorchOptim,
    keys,
)
from recursion.evaluate.baselines import mean_loss, tune
from recursion.evaluate.deploy import run
from recursion.notation import parse
from recursion.study.search import Line, Trials, moved, rates, schedules, search, set_to

needs_optuna = pytest.mark.skipif(find_spec("optuna") is None, reason="optuna is an extra")
KEY = keys.split(keys.seed(7), 6)
TASK = Quadratic(dims=4)
SIX = 6 * 31  # gradients of a setting: problems times the points of 30 steps


PLAIN = (SGD(),)


def searched(bases=PLAIN, task=TASK, **settings):
    given = {"steps": 30, "budget": 1e9, "method": "grid", "seed": 0, "tell": lambda what, fraction: None}
    return search(bases, task, KEY, **given | {"work": lambda optimizer: 0.0} | settings)


def mean_of(notation, task=TASK, steps=30):
    """The mean loss of what a notation describes, on its own, on the validation problems."""
    optimizer = parse(f"{task!r}: {notation}").levels[0].optimizer
    params = optimizer.bind(task.layout).init(keys.seed(0))[None]
    return float(mean_loss(run(optimizer, params, task.on("validation"), KEY, steps)).mean())


def test_every_score_is_that_of_the_setting_alone():
    found = searched((SGD(momentum=0.9), Adam()), budget=60 * SIX)
    assert len(found.scores) == len(dict(found.scores)) == 60
    for setting, score in found.scores:
        assert score == pytest.approx(mean_of(setting), rel=1e-4)
    assert found.setting == min(found.scores, key=lambda pair: pair[1])[0]


@pytest.mark.parametrize("rule", [SGD(), SGD(momentum=0.9, nesterov=True), RMSprop(), Adam()], ids=str)
def test_no_worse_than_a_tuned_step_size(rule):
    tuned = tune(rule, TASK, KEY, 30)
    found = searched((rule,))
    assert dict(found.scores)[found.setting] <= 1.001 * min(tuned.scores["mean"].values())
    assert found.ended == "the grid is so fine that more brings nothing"


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_the_grid_grows_where_the_best_lies_at_its_edge(scale):
    """In another unit a step size must be another by the square of the scale, far above or below the first grid."""
    usual, other = searched(), searched(task=Augmented(TASK, low=scale, high=scale))
    best = dict(other.scores)[other.setting]
    assert best < 0.8 * mean_of("sgd(lr=10.0)" if scale < 1 else "sgd(lr=0.0001)", Augmented(TASK, scale, scale))
    shift = lr_of(other) * scale**2 / lr_of(usual)
    assert 0.1 < shift < 10


def lr_of(found):
    optimizer = parse(f"quadratic: {found.setting}").levels[0].optimizer
    return optimizer.rule.lr if isinstance(optimizer, Scheduled) else optimizer.lr


def test_a_setting_that_diverges_on_one_problem_loses():
    found = searched()
    lost = [setting for setting, score in found.scores if score == torch.inf]
    assert "sgd(lr=10.0)" in lost
    losses = run(SGD(), torch.tensor([[0.1]]).log(), TASK.on("validation"), KEY, 300)
    assert torch.isinf(losses[-1]).any()
    assert not torch.isinf(losses[-1]).all()
    assert dict(searched(steps=300).scores)["sgd(lr=0.1)"] == torch.inf


class Counted(Quadratic):
    """Quadratics that count their gradients."""

    name = "counted"
    asked = [0]  # noqa: RUF012, shared on purpose

    def value_and_grad(self, params, state):
        self.asked[0] += params[..., 0].numel()
        return super().value_and_grad(params, state)


@pytest.mark.parametrize("method", ["grid", pytest.param("optuna", marks=needs_optuna)])
@pytest.mark.parametrize("budget", [SIX * 2.5, 5000.0, 20000.0])
def test_never_more_than_the_budget_and_all_of_it_is_counted(method, budget):
    Counted.asked[0] = 0
    told = []
    found = searched(
        (SGD(), Adam()),
        Counted(dims=4),
        budget=budget,
        method=method,
        work=lambda optimizer: 0.5 if "adam" in repr(optimizer) else 0.25,
        tell=lambda what, fraction: told.append(fraction),
    )
    assert found.gradients == Counted.asked[0] == SIX * len(found.scores)
    adams = sum("adam" in setting for setting, _ in found.scores)
    assert found.work == pytest.approx(180 * (0.5 * adams + 0.25 * (len(found.scores) - adams)))
    assert budget - SIX - 90 < found.gradients + found.work <= budget
    assert found.ended == "the budget is spent"
    assert told == sorted(told)
    assert told[-1] == pytest.approx((found.gradients + found.work) / budget)


@pytest.mark.parametrize("method", ["grid", pytest.param("optuna", marks=needs_optuna)])
def test_the_same_search_twice(method):
    bases = (SGD(momentum=0.9), Adam())
    first, second = (searched(bases, budget=40 * SIX, method=method, seed=3) for _ in range(2))
    assert first.scores == second.scores
    assert first.setting == second.setting
    other = searched(bases, budget=40 * SIX, method=method, seed=4)
    assert (other.scores == first.scores) == (method == "grid"), "a grid draws nothing"


@needs_optuna
def test_optuna_searches_all_of_it_and_finds_something_good():
    found = searched((SGD(momentum=0.9), Adam()), budget=100 * SIX, method="optuna")
    settings = [setting for setting, _ in found.scores]
    assert {parse(f"quadratic: {setting}").levels[0].optimizer.name for setting in settings} == {
        "sgd", "adam", "scheduled"}  # fmt: skip
    assert len({setting.partition("momentum=")[2] for setting in settings if "momentum" in setting}) > 5
    assert dict(found.scores)[found.setting] < 1.1 * tune(Adam(), TASK, KEY, 30).scores["mean"][0.1]
    for setting in settings[:5]:
        assert dict(found.scores)[setting] == pytest.approx(mean_of(setting), rel=1e-4)


def test_schedules_and_momenta_are_searched_too():
    """On minibatches, the chosen one is better than any plain step size."""
    task = DigitsMLP(hidden=(8,), minibatch=32)
    key = KEY[:3]
    found = search(
        (SGD(momentum=0.5),), task, key, steps=40, budget=1e9, method="grid", seed=0, tell=lambda what, fraction: None,
        work=lambda optimizer: 0.0,
    )  # fmt: skip
    assert all(any(repr(schedule) in s for s, _ in found.scores) for schedule in schedules(40)[1:])
    tuned = min(tune(SGD(momentum=0.5), task, key, 40).scores["mean"].values())
    assert dict(found.scores)[found.setting] < 0.95 * tuned
    assert "momentum=0.5" not in found.setting


def test_it_may_be_told_to_end():
    calls = []
    found = searched(over=lambda: len(calls) >= 3, tell=lambda what, fraction: calls.append(what))
    assert len(calls) == 3
    assert found.ended == "the budget is spent"
    assert calls[0].startswith("searching: sgd")


def test_the_work_of_a_rule_is_asked_for_once():
    asked = []
    found = searched((SGD(), SGD(momentum=0.9)), budget=150 * SIX, work=lambda o: asked.append(repr(o)) or 0.0)
    assert len(asked) < 30 < len(found.scores)
    assert len(asked) == len(set(asked))


def test_spaces_and_torchs_rules_keep_what_they_are():
    assert set_to(SGD(lr=Log(0.1, "tensor")), "lr", 0.3) == SGD(lr=Log(0.3, "tensor"))
    assert set_to(TorchOptim(TorchSGD, momentum=0.9), "lr", 0.3) == TorchOptim(TorchSGD, momentum=0.9, lr=0.3)
    assert rates(Adam(beta1=Fixed(0.9))) == ["beta2"]
    assert rates(SGD()) == []
    assert moved(SGD(momentum=0.9), "momentum", 4.0) == SGD(momentum=0.975)
    assert moved(SGD(momentum=0.9), "momentum", 0.25) == SGD(momentum=0.6)
    found = searched((TorchOptim(TorchSGD, momentum=0.9),), budget=20 * SIX)
    assert found.setting.startswith(("torch(sgd", "scheduled(torch(sgd"))


def test_of_equals_the_smallest_step_size():
    line = Line(Trials(TASK, KEY, 3, 1e9, lambda *_: None, lambda _: 0.0, lambda: False), SGD(), Constant())
    line.scores = {32: torch.inf, -32: torch.inf, 0: torch.inf}
    assert line.best == -32


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"bases": ()}, "a search needs hand-made rules with a step size lr, as adam or sgd, got no rules"),
        (
            {"budget": 100.0},
            "a budget of 100 base steps tries no setting: 6 problems and 30 steps cost 186 and the opt",
        ),
    ],
)
def test_what_is_refused(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        searched(**settings)
