"""Means, interquartile means, their intervals and probabilities of improvement: scipy, counts by hand and coverage."""

import math

import numpy as np
import pytest
from scipy.stats import trim_mean

from recursion.evaluation.statistics import Estimate, difference, estimate, improvement, interquartile_mean

from recursion.evaluation.statistics import interval, level, lower, mean  # isort: skip

INF = np.inf


def crossed(seed_effect, problem_effect, noise, shape):
    """Values with an effect of the seed, an effect of the problem, and noise."""

    def draw(generator):
        seeds = generator.normal(0.0, seed_effect, (shape[0], 1))
        problems = generator.normal(0.0, problem_effect, (1, shape[1]))
        return 1.0 + seeds + problems + generator.normal(0.0, noise, shape)

    return draw


def covered(draw, truth, of, trials=400):
    found = [of(draw(np.random.default_rng(trial)), seed=trial) for trial in range(trials)]
    return np.mean([each.low <= truth <= each.high for each in found])


def test_the_bootstrap_interval_is_the_normal_one_for_many_values_and_resamples_seeds_too():
    values = np.random.default_rng(1).normal(3.0, 2.0, (1, 400))
    plain, half = estimate(values), 1.96 * values.std() / math.sqrt(400)
    assert plain.value == values.mean()
    assert plain.low == pytest.approx(values.mean() - half, abs=0.12 * half)
    assert plain.high == pytest.approx(values.mean() + half, abs=0.12 * half)
    assert 0.9 <= covered(crossed(0.0, 1.0, 0.0, (1, 60)), 1.0, estimate, 200) <= 0.985
    generator = np.random.default_rng(3)
    seeds, problems = generator.normal(0, 1.0, (8, 1)), generator.normal(0, 0.5, (1, 100))
    both, half = estimate(seeds + problems), 1.96 * math.sqrt(seeds.var() / 8 + problems.var() / 100)
    assert (both.high - both.low) / 2 == pytest.approx(half, rel=0.15)


def test_an_interval_with_diverged_runs_does_not_pretend():
    values = np.ones((1, 50))
    values[0, 0] = INF
    assert estimate(values) == Estimate(INF, 1.0, INF)
    values[0, 1] = -INF
    found = estimate(values)
    assert (found.low, found.high, found.sign) == (-INF, INF, 0)


def test_signs_and_differences():
    values = np.random.default_rng(4).normal(0.0, 1.0, (1, 50))
    signs = [estimate(each).sign for each in (values + 5, values - 5, values - values.mean(), np.zeros((1, 5)))]
    assert signs == [1, -1, 0, 0]
    ours, theirs = np.array([[1.0, INF, INF], [2.0, 1.0, 5.0]]), np.array([[3.0, INF, 2.0]])
    assert difference(ours, theirs).tolist() == [[-2.0, 0.0, INF], [-1.0, -INF, 3.0]]


@pytest.mark.parametrize("runs", [1, 2, 3, 4, 5, 7, 8, 320])
def test_the_interquartile_mean_is_scipys(runs):
    values = np.random.default_rng(runs).exponential(1.0, (6, runs))
    assert interquartile_mean(values) == pytest.approx(trim_mean(values, 0.25, axis=-1), rel=1e-12)


def test_a_diverged_run_is_among_the_worst_and_never_dropped():
    assert interquartile_mean(np.array([1.0, 2.0, 3.0, INF])) == 2.5  # not the 2 of the three that are finite
    assert interquartile_mean(np.array([1.0, 2.0, INF, INF])) == INF
    assert np.isnan(interquartile_mean(np.array([-INF, -INF, INF, INF])))
    found = interval(np.array([[1.0, 2.0, 3.0, 4.0, INF, INF], [1.1, 2.1, 3.1, 4.1, INF, 2.0]]))
    assert np.isfinite([found.value, found.low]).all()
    assert found.high == INF


@pytest.mark.parametrize(("effects", "shape"), [
    ((1.0, 1.0, 0.5), (5, 32)), ((1.0, 0.0, 0.3), (5, 32)), ((0.2, 1.0, 0.5), (5, 32)), ((0.0, 1.0, 0.0), (1, 32)),
])  # fmt: skip
def test_a_95_percent_interval_covers_the_truth_that_often(effects, shape):
    assert 0.92 <= covered(crossed(*effects, shape), 1.0, interval) <= 0.98


def test_the_interval_of_a_probability_covers_it():
    def draw(generator):
        return lower(*(crossed(1.0, 2.0, 1.0, (8, 32))(generator) for _ in range(2)))

    of = lambda values, seed: interval(values, mean, seed=seed)  # noqa: E731
    assert 0.92 <= covered(draw, 0.5, of) <= 0.99  # each value is 0 or 1, so that most of it is noise of the pair


def test_equal_values_have_no_width_and_an_interval_moves_with_its_values():
    assert interval(np.array([[3.0]])) == Estimate(3.0, -INF, INF)
    assert interval(np.full((3, 4), 2.0)) == Estimate(2.0, 2.0, 2.0)
    values = np.random.default_rng(1).normal(0.0, 1.0, (4, 9))
    here, there = interval(values), interval(3 * values + 5)
    assert (there.value, there.low, there.high) == pytest.approx([3 * x + 5 for x in (here.value, here.low, here.high)])
    values = crossed(1.0, 0.01, 0.01, (4, 8))(np.random.default_rng(0))  # more problems do not stand for more seeds
    few, many = interval(values), interval(np.tile(values, (1, 8)))
    assert many.high - many.low == pytest.approx(few.high - few.low, rel=0.15)


def test_probability_of_improvement_counts_pairs_and_halves_ties():
    ours, theirs = np.array([[1.0, 2.0, INF, INF], [3.0, 1.0, 1.0, INF]]), np.array([[2.0, 2, INF, 1], [1, 2, INF, 5]])
    assert lower(ours, theirs).tolist() == [[1.0, 0.5, 0.5, 0.0], [0.0, 1.0, 1.0, 0.0]]
    found = improvement(ours, theirs)
    assert 0.0 <= found.low < found.value == 0.5 < found.high <= 1.0
    assert improvement(theirs, ours).value == pytest.approx(0.5)
    sure = np.random.default_rng(2).uniform(0.0, 1.0, (3, 10))
    assert improvement(sure, sure + 0.1) == Estimate(1.0, 1.0, 1.0)
    assert interval(difference(sure, sure + 0.1)).sign == -1


def test_the_interval_of_a_level_covers_and_stays_above_zero():
    def draw(generator):
        return np.exp(crossed(0.7, 0.7, 0.2, (5, 32))(generator) - 1.0)

    many = np.array([draw(np.random.default_rng(10_000 + trial))[0, 0] for trial in range(20_000)])
    assert 0.92 <= covered(draw, interquartile_mean(many), level) <= 0.98
    assert all(level(draw(np.random.default_rng(trial))).low > 0 for trial in range(20))
    values = np.random.default_rng(3).normal(0.0, 1.0, (3, 8))
    assert level(values) == interval(values)
    assert level(np.exp(values)) != interval(np.exp(values))
    assert level(np.array([[2.0]])) == Estimate(2.0, -INF, INF)
