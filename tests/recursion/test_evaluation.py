"""An evaluation: its numbers are those of the runs, its verdicts those of closed forms, its splits apart."""

import dataclasses
import json
import math

import pytest
import torch
from test_deploy import Bowl

from levels import SGD, Adam, Level, Log, Quadratic, keys
from recursion.evaluation.baselines import BASELINES, MEASURES, tune
from recursion.evaluation.deploy import Subject, run
from recursion.evaluation.scenarios import OURS, evaluate
from recursion.tower import Tower


def trained(task, lr, copies=1, sharing="value"):
    """A tower of depth 2 and a state in which it has learned the step size ``lr``."""
    below = Level(optimizer=SGD(lr=Log(0.01, shared_over=sharing)), unroll=2)
    tower = Tower(task, below, Level(optimizer=Adam(), batch=copies))
    state = tower.init(0)
    x = torch.full_like(state.carry.x, math.log(lr))
    return tower, state._replace(carry=state.carry._replace(x=x))


def small(tower, *states, **options):
    return evaluate(tower, states, **{"problems": 6, "tuning": 3, "steps": 8, "transfer": False, **options})


def test_a_perfect_optimizer_is_lower_a_poor_one_higher_and_an_equal_one_shows_no_difference():
    for lr, word, share in ((0.5, "lower than", 1.0), (1e-6, "higher than", 0.0)):
        evaluation = small(*trained(Bowl(dtype="float64"), lr))
        assert f"  the task itself, final loss: {word} " in repr(evaluation)
        for comparison in evaluation.scenarios[0].comparisons:
            assert comparison.verdict == f"{word} {comparison.baseline}"
            assert comparison.share_lower == share
    best = 10**-0.25
    scenario = small(*trained(Bowl(dtype="float64"), best), steps=1).scenarios[0]
    sgd = next(result for result in scenario.results if result.name == "sgd")
    assert sgd.measures["final"].step_size == pytest.approx(best)
    comparison = scenario.comparisons[0]
    assert (comparison.baseline, comparison.verdict) == ("sgd", "no difference from sgd shown")
    assert comparison.difference.value == pytest.approx(0, abs=1e-12)


def test_the_numbers_are_those_of_the_runs():
    task = Quadratic(dims=3, dtype="float64")
    tower, state = trained(task, 0.02)
    scenario = small(tower, state).scenarios[0]
    key = keys.split(keys.seed(0), 6)
    ours, first = run(SGD(), state.carry.x, task.on("test"), key, 8)[:, 0], scenario.results[0]
    assert (first.name, first.measures["final"].step_size) == (OURS, None)
    assert first.measures["final"].mean.value == pytest.approx(ours[-1].mean().item(), rel=1e-9)
    assert first.measures["mean"].mean.value == pytest.approx(ours[1:].mean().item(), rel=1e-9)
    assert first.curve.low[0] <= first.curve.median[0] <= first.curve.high[0]
    validation = keys.split(keys.fold_in(keys.seed(0), 1), 3)
    for name, result in zip(BASELINES, scenario.results[1:], strict=True):
        tuned = tune(BASELINES[name], task, validation, 8)
        losses = run(BASELINES[name], tuned.params, task.on("test"), key, 8)
        for i, measure in enumerate(MEASURES):
            assert result.measures[measure].step_size == tuned.step_sizes[measure]
            expected = MEASURES[measure](losses)[i].mean().item()
            assert result.measures[measure].mean.value == pytest.approx(expected, rel=1e-9)
    for comparison in scenario.comparisons:
        rivals = {each.name: each.measures[comparison.measure].mean.value for each in scenario.results}
        mean = rivals.pop(OURS)
        assert comparison.baseline == min(rivals, key=rivals.get)
        assert comparison.difference.value == pytest.approx(mean - min(rivals.values()), rel=1e-9)


def test_tuning_sees_validation_and_reporting_test_problems():
    task = Bowl()
    tower, state = trained(task, 0.1)
    task.log.clear()
    evaluation = small(tower, state, transfer=True)
    spent = {split: sum(count for where, count in task.log if where == split) for split, _ in task.log}
    assert set(spent) == {"validation", "test"}
    assert evaluation.base_steps == {"deployment": 0, "tuning": spent["validation"], "runs": spent["test"]}


def test_deep_towers_are_deployed_on_training_problems_and_every_task_gradient_is_counted():
    task = Bowl(dtype="float64")
    tower = Tower(task, *[Level(optimizer=SGD(), unroll=2)] * 2, Level(optimizer=Adam()))
    state = tower.init(0)
    task.log.clear()
    evaluation = small(tower, state, windows=3)
    assert {split for split, _ in task.log} == {"train", "validation", "test"}
    assert sum(evaluation.base_steps.values()) == sum(count for _, count in task.log)
    assert evaluation.base_steps["deployment"] > sum(count for where, count in task.log if where == "train") > 0


def test_transfer_tries_variants_and_ten_times_the_steps_and_names_what_does_not_fit():
    evaluation = small(*trained(Bowl(), 0.1), transfer=True)
    sizes = [(s.label, s.steps, s.problems) for s in evaluation.scenarios]
    assert sizes == [("the task itself", 8, 6), ("twice as wide", 8, 6), ("80 steps", 80, 1)]
    assert "dims=6" in evaluation.scenarios[1].task
    evaluation = small(*trained(Bowl(), 0.1, sharing="coordinate"), transfer=True)
    assert list(evaluation.refused) == ["twice as wide"]
    assert "takes 6 parameters" in evaluation.refused["twice as wide"]
    assert [s.label for s in evaluation.scenarios] == ["the task itself", "80 steps"]


def test_several_training_seeds_are_pooled_and_copies_averaged():
    task = Bowl(dtype="float64")
    (tower, first), (_, second) = (trained(task, lr, copies=2) for lr in (0.1, 0.2))

    def final(*states):
        return small(tower, *states).scenarios[0].results[0].measures["final"]

    ours, worse, better = final(first, second), final(first).mean, final(second).mean
    assert small(tower, first, second).training_seeds == 2
    assert ours.runs == 2 * 2 * 6
    assert ours.mean.value == pytest.approx((worse.value + better.value) / 2, rel=1e-12)
    assert ours.mean.low < ours.mean.value / 10 + better.high, "resampling seeds reaches the better one alone"
    assert ours.mean.high > worse.value * 0.9, "and the worse one"


def test_diverged_runs_are_counted_and_null_in_json():
    evaluation = small(*trained(Bowl(), 100.0), steps=60)
    ours = evaluation.scenarios[0].results[0].measures["final"]
    assert (ours.diverged, ours.runs) == (6, 6)
    assert evaluation.scenarios[0].comparisons[0].verdict.startswith("higher than")
    first, second, *_ = json.loads(evaluation.to_json())["scenarios"][0]["results"]
    assert first["measures"]["final"]["mean"]["value"] is None
    assert second["measures"]["final"]["diverged"] == 0
    evaluation = small(*trained(Bowl(), 0.1))
    assert json.loads(evaluation.to_json()) == json.loads(json.dumps(dataclasses.asdict(evaluation)))


def test_a_hyperoptimizer_is_evaluated_as_itself():
    task = Quadratic(dims=3, dtype="float64")
    tower = Tower(task, Level(optimizer=SGD()), Level(optimizer=SGD(lr=1e-300)))
    ours, sgd, *_ = (
        result.measures["mean"] for result in small(tower, tower.init(0), tower.init(1)).scenarios[0].results
    )
    wide = Tower(task, tower.levels[0], dataclasses.replace(tower.levels[1], batch=6))
    key = wide.carries(wide.init(0))[0].key.flatten()  # of the problems with which six copies at the top start
    for found, lr in ((ours, 0.01), (sgd, sgd.step_size)):
        losses = run(SGD(), torch.tensor([[math.log(lr)]]).double(), task.on("test"), key, 8)
        assert found.mean.value == pytest.approx(losses[1:].mean().item(), rel=1e-6)


def test_the_same_seed_gives_the_same_evaluation_and_progress_rises_from_nothing_to_all():
    tower, state = trained(Quadratic(dims=3), 0.02)
    assert small(tower, state) == small(tower, state)
    assert small(tower, state) != small(tower, state, seed=1)
    told = []
    small(*trained(Bowl(), 0.1), transfer=True, progress=lambda what, fraction: told.append((what, fraction)))
    fractions = [fraction for _, fraction in told]
    assert fractions == sorted(fractions)
    assert (fractions[0], fractions[-1]) == (0.0, 1.0)
    assert "twice as wide: tuning nag" in [what for what, _ in told]


def test_what_was_learned_is_tried_on_another_family():
    tower, other = Tower(Bowl(dtype="float64"), *trained(Bowl(), 0.1)[0].levels), Quadratic(dims=3, dtype="float64")
    scenario = small(tower, tower.init(0), on=other).scenarios[0]
    assert scenario.task == repr(other)
    by_hand = Subject.of(tower, [tower.init(0)], windows=None, seed=0).losses(other.on("test"), 6, 8, 0)[0]
    assert scenario.results[0].measures["final"].mean.value == pytest.approx(by_hand[-1].mean().item())


LEARNED, FUSSY = trained(Bowl(), 0.1), trained(Bowl(), 0.1, sharing="coordinate")
HIGH = Tower(LEARNED[0].bound[0], Level(optimizer=SGD()))


@pytest.mark.parametrize(("error", "match", "what"), [
    (ValueError, "states is empty", lambda: evaluate(LEARNED[0], [])),
    (ValueError, "problems must be a whole number of at least 1, got 0", lambda: small(*LEARNED, problems=0)),
    (TypeError, "held-out", lambda: small(HIGH, HIGH.init(0))),
    (ValueError, "takes 5 parameters on quadratic", lambda: small(*FUSSY, on=Quadratic(dims=5))),
])  # fmt: skip
def test_refusals_say_what_to_do(error, match, what):
    with pytest.raises(error, match=match):
        what()
