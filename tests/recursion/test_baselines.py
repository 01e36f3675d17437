"""Tuned baselines against brute force over the grid, and closed forms on a bowl."""

import math

import pytest
import torch
from test_deploy import Bowl

from levels import SGD, Adam, Quadratic, RMSprop, keys
from recursion.evaluation.baselines import BASELINES, MEASURES, tune
from recursion.evaluation.deploy import run

KEY = keys.split(keys.seed(3), 4)
MAKE = {"nag": lambda lr: SGD(lr=lr, momentum=0.9, nesterov=True), "rmsprop": lambda lr: RMSprop(lr=lr)}


@pytest.mark.parametrize("name", MAKE)
def test_the_tuned_step_size_is_that_of_brute_force(name):
    """One step size and one problem at a time, in plain Python."""
    task, steps = Quadratic(dims=4, dtype="float64"), 20
    tuned, expected = tune(BASELINES[name], task, KEY, steps), {"final": {}, "mean": {}}
    for lr in (10 ** (exponent / 4) for exponent in range(-16, 5)):
        optimizer, data = MAKE[name](lr), task.on("validation")
        theta = optimizer.bind(task).init(keys.seed(0))[None]
        runs = [run(optimizer, theta, data, KEY[p : p + 1], steps)[:, 0, 0].tolist() for p in range(len(KEY))]
        expected["final"][lr] = sum(losses[-1] for losses in runs) / len(runs)
        expected["mean"][lr] = sum(sum(losses[1:]) / steps for losses in runs) / len(runs)
    for i, measure in enumerate(MEASURES):
        best = min(expected[measure], key=expected[measure].get)
        assert tuned.step_sizes[measure] == pytest.approx(best, rel=1e-12)
        assert tuned.params[i, 0].exp().item() == pytest.approx(best, rel=1e-12)
        for lr, score in expected[measure].items():
            assert not math.isfinite(score) or tuned.scores[measure][lr] == pytest.approx(score, rel=1e-9)
    assert tuned.base_steps == 21 * len(KEY) * (steps + 1)


def test_the_measures_are_tuned_apart_and_diverged_step_sizes_lose():
    losses = torch.tensor([9.0, 4.0, 2.0])
    assert (MEASURES["final"](losses), MEASURES["mean"](losses)) == (2, 3)
    tuned = tune(Adam(), Quadratic(dims=4, dtype="float64"), KEY, 60)
    assert tuned.step_sizes["final"] != tuned.step_sizes["mean"]
    tuned = tune(SGD(), Bowl(dtype="float64"), KEY, 150)
    assert tuned.scores["final"][10.0] == math.inf
    assert tuned.step_sizes["final"] == pytest.approx(10**-0.25)


@pytest.mark.parametrize(("curvature", "best"), [(1e-3, 10**2.75), (1e5, 10**-5.25)])
def test_the_grid_grows_where_the_best_is_at_its_edge_up_to_four_times(curvature, best):
    tuned = tune(SGD(), Bowl(curvature=curvature, dtype="float64"), KEY, 3)
    assert tuned.step_sizes["final"] == pytest.approx(best, rel=1e-9)
    assert len(tuned.scores["final"]) == 21 + 8
    assert tuned.base_steps == (21 + 8) * len(KEY) * 4
    assert len(tune(SGD(), Bowl(curvature=1e-30, dtype="float64"), KEY, 2).scores["final"]) == 21 + 4 * 4
