"""Means with intervals, by the percentile bootstrap (Efron 1979), over problems and training seeds.

Values are ``[seeds, problems]``. Problems are resampled, and training seeds as well where there are several, each
independently of the other (Owen 2007, "The pigeonhole bootstrap"): what is said then holds for other seeds and
other problems. With one seed it holds for that seed only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
LEVEL = 0.95

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A mean and the interval around it; infinite where runs diverged."""

    value: float
    low: float
    high: float

    @property
    def sign(self) -> int:
        """-1 or 1 if the whole interval lies below or above zero, else 0."""
        return int(self.low > 0) - int(self.high < 0)


def estimate(values: Values, *, seed: int = 0) -> Estimate:
    """Mean of ``values`` ``[seeds, problems]`` with its 95% interval from 2,000 resamples.

    A resample whose mean is no number (infinite gains and losses in one) widens the interval to both sides.
    """
    with np.errstate(invalid="ignore"):
        means = np.concatenate(list(_means(values, np.random.default_rng(seed))))
        value = float(values.mean())
    low = np.where(np.isnan(means), -np.inf, means)
    high = np.where(np.isnan(means), np.inf, means)
    tail = (1 - LEVEL) / 2
    return Estimate(
        value,
        float(np.quantile(low, tail, method="inverted_cdf")),
        float(np.quantile(high, 1 - tail, method="inverted_cdf")),
    )


def difference(ours: Values, theirs: Values) -> Values:
    """``ours`` ``[seeds, problems]`` less ``theirs`` ``[1, problems]``; 0 where both diverged."""
    both = np.isinf(ours) & np.isinf(theirs)
    with np.errstate(invalid="ignore"):
        return np.where(both, 0.0, ours - theirs)


def _means(values: Values, generator: np.random.Generator, at_once: int = 100) -> list[Values]:
    """Means of resamples, some at a time so that memory stays small."""
    seeds, problems = values.shape
    means = []
    for _ in range(RESAMPLES // at_once):
        rows = generator.integers(seeds, size=(at_once, seeds, 1))
        columns = generator.integers(problems, size=(at_once, 1, problems))
        means.append(values[rows, columns].mean((1, 2)))
    return means
