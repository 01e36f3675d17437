import math

import pytest
import torch
from test_deploy import Bowl

from levels import SGD, Adam, Quadratic, keys
from recursion.evaluate.baselines import BASELINES, MEASURES, tune
from recursion.evaluate.deploy import run

KEY = keys.split(keys.seed(3), 4)


def brute_force(optimizer_of, task, steps):
    """Final and mean loss of each step size of the first grid, one run and one problem at a time, in plain Python."""
    task = task.on("validation")
    scores = {"final": {}, "mean": {}}
    for exponent in range(-16, 5):
        lr = 10 ** (exponent / 4)
        optimizer = optimizer_of(lr).bind(task.layout)
        params = optimizer.init(keys.seed(0))[None]
        runs = [run(optimizer, params, task, KEY[p : p + 1], steps)[:, 0, 0].tolist() for p in range(len(KEY))]
        scores["final"][lr] = sum(losses[-1] for losses in runs) / len(runs)
        scores["mean"][lr] = sum(sum(losses[1:]) / steps for losses in runs) / len(runs)
    return scores


@pytest.mark.parametrize("name", ["sgd", "nag", "rmsprop", "adam"])
def test_the_tuned_step_size_is_that_of_brute_force(name):
    task, steps = Quadratic(dims=4, dtype="float64"), 20
    make = {
        "sgd": lambda lr: SGD(lr=lr),
        "nag": lambda lr: SGD(lr=lr, momentum=0.9, nesterov=True),
        "rmsprop": lambda lr: type(BASELINES["rmsprop"])(lr=lr),
        "adam": lambda lr: Adam(lr=lr),
    }[name]
    tuned, expected = tune(BASELINES[name], task, KEY, steps), brute_force(make, task, steps)
    for i, measure in enumerate(MEASURES):
        best = min(expected[measure], key=expected[measure].get)
        assert tuned.step_sizes[measure] == pytest.approx(best, rel=1e-12)
        assert tuned.params[i, 0].exp().item() == pytest.approx(best, rel=1e-12)
        for lr, score in expected[measure].items():
            if math.isfinite(score):
                assert tuned.scores[measure][lr] == pytest.approx(score, rel=1e-9)
    assert tuned.base_steps == 21 * len(KEY) * (steps + 1)


def test_the_measures_are_tuned_apart():
    tuned = tune(BASELINES["adam"], Quadratic(dims=4, dtype="float64"), KEY, 60)
    assert tuned.step_sizes["final"] != tuned.step_sizes["mean"]


def test_the_measures():
    losses = torch.tensor([9.0, 4.0, 2.0])
    assert MEASURES["final"](losses) == 2
    assert MEASURES["mean"](losses) == 3


def test_diverged_step_sizes_lose():
    tuned = tune(BASELINES["sgd"], Bowl(dtype="float64"), KEY, 150)
    assert tuned.scores["final"][10.0] == math.inf
    assert tuned.step_sizes["final"] == pytest.approx(10**-0.25)


@pytest.mark.parametrize(("curvature", "best"), [(1e-3, 10**2.75), (1e5, 10**-5.25)])
def test_the_grid_grows_where_the_best_is_at_its_edge(curvature, best):
    tuned = tune(BASELINES["sgd"], Bowl(curvature=curvature, dtype="float64"), KEY, 3)
    assert tuned.step_sizes["final"] == pytest.approx(best, rel=1e-9)
    assert len(tuned.scores["final"]) == 21 + 8
    assert tuned.base_steps == (21 + 8) * len(KEY) * 4


def test_the_grid_stops_growing():
    tuned = tune(BASELINES["sgd"], Bowl(curvature=1e-30, dtype="float64"), KEY, 2)
    assert len(tuned.scores["final"]) == 21 + 4 * 4


def test_tuning_sees_validation_problems_only():
    task = Bowl()
    tune(BASELINES["adam"], task, KEY, 3)
    assert {split for split, _ in task.log} == {"validation"}
