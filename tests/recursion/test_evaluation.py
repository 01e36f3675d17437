import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from test_deploy import Bowl

from levels import SGD, Adam, Level, Log, Quadratic, keys
from recursion.evaluate.baselines import BASELINES, MEASURES, tune
from recursion.evaluate.deploy import Subject, run
from recursion.evaluate.evaluation import OURS, evaluate
from recursion.evaluate.statistics import difference, estimate
from recursion.tower import Tower


def trained(task, lr, copies=1, sharing="value"):
    """A tower of depth 2 and a state in which it has learned the step size ``lr``."""
    tower = Tower(
        task, Level(optimizer=SGD(lr=Log(0.01, shared_over=sharing)), unroll=2), Level(optimizer=Adam(), batch=copies)
    )
    state = tower.init(0)
    x = torch.full_like(state.carry.x, math.log(lr))
    return tower, state._replace(carry=state.carry._replace(x=x))


def small(tower, states, **options):
    return evaluate(tower, states, **{"problems": 6, "tuning": 3, "steps": 8, "transfer": False, **options})


# statistics


def test_the_bootstrap_interval_is_the_normal_one_for_many_values():
    values = np.random.default_rng(1).normal(3.0, 2.0, (1, 400))
    found = estimate(values)
    half = 1.96 * values.std() / math.sqrt(400)
    assert found.value == values.mean()
    assert found.low == pytest.approx(values.mean() - half, abs=0.12 * half)
    assert found.high == pytest.approx(values.mean() + half, abs=0.12 * half)


def test_the_interval_covers_the_truth_at_its_level():
    generator = np.random.default_rng(2)
    covered = 0
    for _ in range(200):
        found = estimate(generator.normal(0.0, 1.0, (1, 60)))
        covered += found.low <= 0 <= found.high
    assert 180 <= covered <= 197, "of 200 at 95%: 190, give or take three deviations"


def test_training_seeds_are_resampled_too():
    generator = np.random.default_rng(3)
    seeds, problems = generator.normal(0, 1.0, (8, 1)), generator.normal(0, 0.5, (1, 100))
    values = seeds + problems
    found = estimate(values)
    half = 1.96 * math.sqrt(seeds.var() / 8 + problems.var() / 100)
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.15)


def test_an_interval_with_diverged_runs_does_not_pretend():
    values = np.ones((1, 50))
    values[0, 0] = np.inf
    found = estimate(values)
    assert (found.value, found.low, found.high) == (math.inf, 1.0, math.inf)
    values[0, 1] = -np.inf
    found = estimate(values)
    assert (found.low, found.high, found.sign) == (-math.inf, math.inf, 0)


def test_the_sign_of_an_interval():
    generator = np.random.default_rng(4)
    values = generator.normal(0.0, 1.0, (1, 50))
    assert estimate(values + 5).sign == 1
    assert estimate(values - 5).sign == -1
    assert estimate(values - values.mean()).sign == 0
    assert estimate(np.zeros((1, 5))).sign == 0


def test_differences_are_paired_and_equal_where_both_diverge():
    ours, theirs = np.array([[1.0, np.inf, np.inf], [2.0, 1.0, 5.0]]), np.array([[3.0, np.inf, 2.0]])
    assert difference(ours, theirs).tolist() == [[-2.0, 0.0, np.inf], [-1.0, -np.inf, 3.0]]


# evaluation


def test_a_perfect_optimizer_is_lower_and_a_poor_one_higher():
    for lr, word, share in ((0.5, "lower than", 1.0), (1e-6, "higher than", 0.0)):
        evaluation = small(*_one(trained(Bowl(dtype="float64"), lr)))
        for comparison in evaluation.scenarios[0].comparisons:
            assert comparison.verdict == f"{word} {comparison.baseline}"
            assert comparison.share_lower == share


def test_a_learned_optimizer_equal_to_the_best_baseline_shows_no_difference():
    task = Bowl(dtype="float64")
    best = 10**-0.25
    evaluation = small(*_one(trained(task, best)), steps=1)
    result = {r.name: r for r in evaluation.scenarios[0].results}
    assert result["sgd"].measures["final"].step_size == pytest.approx(best)
    comparison = evaluation.scenarios[0].comparisons[0]
    assert comparison.baseline == "sgd"
    assert comparison.verdict == "no difference from sgd shown"
    assert comparison.difference.value == pytest.approx(0, abs=1e-12)


def test_the_numbers_are_those_of_the_runs():
    task = Quadratic(dims=3, dtype="float64")
    tower, state = trained(task, 0.02)
    scenario = small(tower, [state]).scenarios[0]
    key = keys.split(keys.seed(0), 6)
    ours = run(SGD(), state.carry.x, task.on("test"), key, 8)[:, 0]
    first = scenario.results[0]
    assert first.name == OURS
    assert first.measures["final"].mean.value == pytest.approx(ours[-1].mean().item(), rel=1e-9)
    assert first.measures["mean"].mean.value == pytest.approx(ours[1:].mean().item(), rel=1e-9)
    assert first.measures["final"].step_size is None
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
        means = {r.name: r.measures[comparison.measure].mean.value for r in scenario.results}
        rivals = {name: mean for name, mean in means.items() if name != OURS}
        assert comparison.baseline == min(rivals, key=rivals.get)
        gap = means[OURS] - rivals[comparison.baseline]
        assert comparison.difference.value == pytest.approx(gap, rel=1e-9)


def test_tuning_sees_validation_and_reporting_test_problems():
    task = Bowl()
    tower, state = trained(task, 0.1)
    task.log.clear()
    evaluation = small(tower, [state], transfer=True)
    spent = {split: sum(count for where, count in task.log if where == split) for split in ("validation", "test")}
    assert {split for split, _ in task.log} == {"validation", "test"}
    assert evaluation.base_steps == {"deployment": 0, "tuning": spent["validation"], "runs": spent["test"]}


def test_deep_towers_are_deployed_on_training_problems_and_every_task_gradient_is_counted():
    task = Bowl(dtype="float64")
    tower = Tower(task, *[Level(optimizer=SGD(), unroll=2)] * 2, Level(optimizer=Adam()))
    state = tower.init(0)
    task.log.clear()
    evaluation = small(tower, [state], windows=3)
    assert {split for split, _ in task.log} == {"train", "validation", "test"}
    assert sum(evaluation.base_steps.values()) == sum(count for _, count in task.log)
    assert evaluation.base_steps["deployment"] > sum(count for where, count in task.log if where == "train") > 0


def test_transfer_tries_variants_and_ten_times_the_steps():
    tower, state = trained(Bowl(), 0.1)
    evaluation = small(tower, [state], transfer=True)
    sizes = [(s.label, s.steps, s.problems) for s in evaluation.scenarios]
    assert sizes == [("the task itself", 8, 6), ("twice as wide", 8, 6), ("80 steps", 80, 1)]
    assert "dims=6" in evaluation.scenarios[1].task


def test_a_variant_that_does_not_fit_is_refused_by_name():
    tower, state = trained(Bowl(), 0.1, sharing="coordinate")
    evaluation = small(tower, [state], transfer=True)
    assert list(evaluation.refused) == ["twice as wide"]
    assert "takes 6 parameters" in evaluation.refused["twice as wide"]
    assert [s.label for s in evaluation.scenarios] == ["the task itself", "80 steps"]


def test_several_training_seeds_are_pooled_and_copies_averaged():
    task = Bowl(dtype="float64")
    tower, first = trained(task, 0.1, copies=2)
    _, second = trained(task, 0.2, copies=2)
    evaluation = small(tower, [first, second])
    ours = evaluation.scenarios[0].results[0].measures["final"]
    assert evaluation.training_seeds == 2
    assert ours.runs == 2 * 2 * 6
    alone = [small(tower, [s]).scenarios[0].results[0].measures["final"].mean for s in (first, second)]
    assert ours.mean.value == pytest.approx((alone[0].value + alone[1].value) / 2, rel=1e-12)
    assert ours.mean.low < ours.mean.value / 10 + alone[1].high, "resampling seeds reaches the better one alone"
    assert ours.mean.high > alone[0].value * 0.9, "and the worse one"


def test_diverged_runs_are_counted_and_null_in_json():
    evaluation = small(*_one(trained(Bowl(), 100.0)), steps=60)
    ours = evaluation.scenarios[0].results[0].measures["final"]
    assert (ours.diverged, ours.runs) == (6, 6)
    assert evaluation.scenarios[0].comparisons[0].verdict.startswith("higher than")
    read = json.loads(evaluation.to_json())
    assert read["scenarios"][0]["results"][0]["measures"]["final"]["mean"]["value"] is None
    assert read["scenarios"][0]["results"][1]["measures"]["final"]["diverged"] == 0


def test_json_says_what_the_evaluation_says():
    evaluation = small(*_one(trained(Bowl(), 0.1)))
    assert json.loads(evaluation.to_json()) == json.loads(json.dumps(dataclasses.asdict(evaluation)))


def test_a_hyperoptimizer_is_evaluated_as_itself():
    task = Quadratic(dims=3, dtype="float64")
    tower = Tower(task, Level(optimizer=SGD()), Level(optimizer=SGD(lr=1e-300)))
    scenario = small(tower, [tower.init(0), tower.init(1)]).scenarios[0]
    losses = run(SGD(), torch.tensor([[math.log(0.01)]]).double(), task.on("test"), tower_keys(tower, 6), 8)
    assert scenario.results[0].measures["mean"].mean.value == pytest.approx(losses[1:].mean().item(), rel=1e-6)
    sgd = scenario.results[1].measures["mean"]
    tuned = SGD(lr=sgd.step_size).bind(task.layout).init(keys.seed(0))[None]
    losses = run(SGD(), tuned, task.on("test"), tower_keys(tower, 6), 8)
    assert sgd.mean.value == pytest.approx(losses[1:].mean().item(), rel=1e-6), "on the same problems"


def tower_keys(tower, count):
    """Keys of the problems that a tower with ``count`` copies at its top starts with."""
    *lower, top = tower.levels
    wide = Tower(tower.task, *lower, dataclasses.replace(top, batch=count))
    return wide.carries(wide.init(0))[0].key.flatten()


def test_the_same_seed_the_same_evaluation():
    tower, state = trained(Quadratic(dims=3), 0.02)
    assert small(tower, [state]) == small(tower, [state])
    assert small(tower, [state]) != small(tower, [state], seed=1)


def test_progress_rises_from_nothing_to_all():
    told = []
    tower, state = trained(Bowl(), 0.1)
    small(tower, [state], transfer=True, progress=lambda what, fraction: told.append((what, fraction)))
    fractions = [fraction for _, fraction in told]
    assert fractions == sorted(fractions)
    assert (fractions[0], fractions[-1]) == (0.0, 1.0)
    assert "twice as wide: tuning nag" in [what for what, _ in told]


def test_refusals_say_what_to_do():
    tower, state = trained(Bowl(), 0.1)
    with pytest.raises(ValueError, match="states is empty"):
        evaluate(tower, [])
    with pytest.raises(ValueError, match="problems must be a whole number of at least 1, got 0"):
        evaluate(tower, [state], problems=0)
    over_a_tower = Tower(tower.bound[0], Level(optimizer=SGD()))
    with pytest.raises(TypeError, match="held-out"):
        evaluate(over_a_tower, [over_a_tower.init(0)])


def _one(pair):
    tower, state = pair
    return tower, [state]


def test_what_was_learned_is_tried_on_another_family():
    tower, _ = trained(Bowl(), 0.1)
    other = Quadratic(dims=3, dtype="float64")
    tower64 = Tower(Bowl(dtype="float64"), *tower.levels)
    state64 = tower64.init(0)
    evaluation = small(tower64, [state64], on=other)
    assert evaluation.scenarios[0].task == repr(other)
    by_hand = Subject.of(tower64, [state64], windows=None, seed=0).losses(other.on("test"), 6, 8, 0)[0]
    assert evaluation.scenarios[0].results[0].measures["final"].mean.value == pytest.approx(by_hand[-1].mean().item())
    fussy = Tower(Bowl(), Level(optimizer=SGD(lr=Log(0.1, "coordinate")), unroll=2), Level(optimizer=Adam()))
    with pytest.raises(ValueError, match="takes 5 parameters on quadratic"):
        small(fussy, [fussy.init(0)], on=Quadratic(dims=5))
