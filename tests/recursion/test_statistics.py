"""Interquartile means, their intervals and probabilities of improvement, against scipy, counts by hand and coverage."""

import numpy as np
import pytest
from scipy.stats import trim_mean

from recursion.evaluate.statistics import (
    Estimate,
    difference,
    improvement,
    interquartile_mean,
    interval,
    level,
    lower,
    mean,
)

INF = np.inf


@pytest.mark.parametrize("runs", [1, 2, 3, 4, 5, 7, 8, 320])
def test_the_interquartile_mean_is_scipys(runs):
    values = np.random.default_rng(runs).exponential(1.0, (6, runs))
    assert interquartile_mean(values) == pytest.approx(trim_mean(values, 0.25, axis=-1), rel=1e-12)


def test_a_diverged_run_is_among_the_worst_and_never_dropped():
    assert interquartile_mean(np.array([1.0, 2.0, 3.0, INF])) == 2.5  # not the 2 of the three that are finite
    assert interquartile_mean(np.array([1.0, 2.0, INF, INF])) == INF
    assert np.isnan(interquartile_mean(np.array([-INF, -INF, INF, INF])))


def covered(draw, truth, statistic=interquartile_mean, trials=400):
    found = [interval(draw(np.random.default_rng(trial)), statistic, seed=trial) for trial in range(trials)]
    return np.mean([each.low <= truth <= each.high for each in found])


def crossed(seed_effect, problem_effect, noise, shape):
    """Values with an effect of the seed, an effect of the problem, and noise."""

    def draw(generator):
        seeds = generator.normal(0.0, seed_effect, (shape[0], 1))
        problems = generator.normal(0.0, problem_effect, (1, shape[1]))
        return 1.0 + seeds + problems + generator.normal(0.0, noise, shape)

    return draw


@pytest.mark.parametrize(
    ("effects", "shape"),
    [((1.0, 1.0, 0.5), (5, 32)), ((1.0, 0.0, 0.3), (5, 32)), ((0.2, 1.0, 0.5), (5, 32)), ((0.0, 1.0, 0.0), (1, 32))],
    ids=["seeds and problems", "seeds", "problems", "one seed"],
)
def test_a_95_percent_interval_covers_the_truth_that_often(effects, shape):
    assert 0.92 <= covered(crossed(*effects, shape), 1.0) <= 0.98


def test_the_interval_of_a_probability_covers_it():
    def draw(generator):
        ours, theirs = (crossed(1.0, 2.0, 1.0, (8, 32))(generator) for _ in range(2))
        return lower(ours, theirs)

    assert 0.92 <= covered(draw, 0.5, mean) <= 0.99  # each value is 0 or 1, so that most of it is noise of the pair


def test_one_seed_and_one_problem_say_nothing_about_others():
    assert interval(np.array([[3.0]])) == Estimate(3.0, -INF, INF)


def test_equal_values_have_no_width_and_an_interval_moves_with_its_values():
    assert interval(np.full((3, 4), 2.0)) == Estimate(2.0, 2.0, 2.0)
    values = np.random.default_rng(1).normal(0.0, 1.0, (4, 9))
    here, there = interval(values), interval(3 * values + 5)
    assert (there.value, there.low, there.high) == pytest.approx([3 * x + 5 for x in (here.value, here.low, here.high)])


def test_a_seed_more_is_worth_more_than_a_problem_more_where_seeds_differ():
    draw = crossed(1.0, 0.01, 0.01, (4, 8))
    values = draw(np.random.default_rng(0))
    width = interval(values).high - interval(values).low
    problems = np.tile(values, (1, 8))
    assert interval(problems).high - interval(problems).low == pytest.approx(width, rel=0.15)


def test_diverged_runs_open_the_interval_upwards_only():
    values = np.array([[1.0, 2.0, 3.0, 4.0, INF, INF], [1.1, 2.1, 3.1, 4.1, INF, 2.0]])
    found = interval(values)
    assert np.isfinite(found.value)
    assert np.isfinite(found.low)
    assert found.high == INF


def test_probability_of_improvement_counts_pairs_and_halves_ties():
    ours = np.array([[1.0, 2.0, INF, INF], [3.0, 1.0, 1.0, INF]])
    theirs = np.array([[2.0, 2.0, INF, 1.0], [1.0, 2.0, INF, 5.0]])
    assert lower(ours, theirs).tolist() == [[1.0, 0.5, 0.5, 0.0], [0.0, 1.0, 1.0, 0.0]]
    found = improvement(ours, theirs)
    assert found.value == 4.0 / 8
    assert 0.0 <= found.low < found.value < found.high <= 1.0
    assert improvement(theirs, ours).value == pytest.approx(1 - found.value)


def test_losses_that_hold_for_sure_have_probability_one():
    ours = np.random.default_rng(2).uniform(0.0, 1.0, (3, 10))
    assert improvement(ours, ours + 0.1) == Estimate(1.0, 1.0, 1.0)
    assert interval(difference(ours, ours + 0.1)).sign == -1


def test_the_interval_of_a_level_covers_and_stays_above_zero():
    def draw(generator):
        return np.exp(crossed(0.7, 0.7, 0.2, (5, 32))(generator) - 1.0)

    truth = interquartile_mean(draw_many(draw))
    found = [level(draw(np.random.default_rng(trial)), seed=trial) for trial in range(400)]
    assert 0.92 <= np.mean([each.low <= truth <= each.high for each in found]) <= 0.98
    assert all(each.low > 0 for each in found)


def draw_many(draw):
    """One value each of many independent seeds and problems."""
    return np.array([draw(np.random.default_rng(10_000 + trial))[0, 0] for trial in range(20_000)])


def test_a_level_that_is_not_above_zero_is_like_any_number():
    values = np.random.default_rng(3).normal(0.0, 1.0, (3, 8))
    assert level(values) == interval(values)
    assert level(np.exp(values)) != interval(np.exp(values))
    assert level(np.array([[2.0]])) == Estimate(2.0, -INF, INF)
