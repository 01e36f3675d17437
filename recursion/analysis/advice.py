"""What a growth rate means for the gradient of a level: thresholds, a verdict, what to do, and when to warn.

A gradient that is backpropagated through chaos spreads over copies and windows by about the factor by which
perturbations grow, while its useful part, the slope of the smoothed loss, stays of order one (Parmas et al. 2018,
"PIPPS"; Metz et al. 2021, arXiv 2111.05803; Vicol et al. 2021, arXiv 2112.13835). Averaging a factor F away takes about
F^2 windows. At `LIMIT` = 100 these are 10,000, and the probe warns: a rule of thumb, with no sharp edge. A rate counts
as growth if its whole interval lies above 0. Evolution reads losses only, so it gets no warning.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

from levels.base import Estimator
from levels.gradients.bootstrapped import Bootstrapped
from levels.gradients.evolution import Antithetic, ESSingle
from levels.gradients.exact import Exact
from levels.gradients.first_order import FirstOrder
from levels.gradients.forward import Forward
from levels.gradients.mixture import Mix
from levels.gradients.online import Online
from levels.level import Level
from recursion.evaluate.statistics import Estimate

LIMIT = 100.0  # largest factor with which a gradient is useful
ENDLESS = 10**6  # updates that stand for a trajectory without an end


class Followed(NamedTuple):
    """What a gradient is backpropagated through."""

    rate: Estimate
    updates: int  # `ENDLESS` for a trajectory that never ends

    @property
    def exponent(self) -> float:
        """Logarithm of the factor."""
        return self.rate.value * self.updates

    @property
    def factor(self) -> float:
        """By how much a perturbation grows."""
        return math.inf if self.exponent > 700 else math.exp(self.exponent)

    @property
    def is_too_much(self) -> bool:
        """Whether noise swamps a gradient that is backpropagated through this."""
        return self.rate.low > 0 and self.exponent > math.log(LIMIT)


def span(level: Level) -> int:
    """Updates that a window runs."""
    return level.lookahead or level.unroll


def followed_by(gradient: Estimator, level: Level, growth: Estimate, as_data: Estimate) -> Followed | None:
    """What ``gradient`` is backpropagated through; None if nothing is, or if it is not known.

    A mixture weights the quieter of its two estimators more, so the one with less growth counts, and evolution if it
    has that.
    """
    if isinstance(gradient, (Bootstrapped, Online)):
        lookahead = gradient.candidates[-1] if isinstance(gradient, Online) else None
        return followed_by(gradient.through, replace(level, lookahead=lookahead), growth, as_data)
    if isinstance(gradient, FirstOrder):
        return Followed(as_data, span(level))
    if isinstance(gradient, Exact):
        return Followed(growth, span(level))
    if isinstance(gradient, Forward):
        return Followed(growth, level.episode_length or ENDLESS)
    if isinstance(gradient, Mix):
        both = [followed_by(each, level, growth, as_data) for each in (gradient.first, gradient.second)]
        known = [each for each in both if each is not None]
        return min(known, key=lambda each: each.exponent) if len(known) == 2 else None
    return None


def verdict(growth: Estimate, updates: int) -> str:
    """The run of a level in a word, by its rate and the growth over ``updates``."""
    if math.isnan(growth.value):
        return "unknown"
    if growth.sign <= 0:
        return "contracting" if growth.sign < 0 else "neutral"
    return "chaotic" if Followed(growth, updates).is_too_much else "expanding"


def longest_bearable(rate: Estimate) -> int | None:
    """Updates over which a factor stays below `LIMIT`, by the rate, or by its interval's end if it may be 0."""
    fastest = rate.value if rate.low > 0 else rate.high
    longest = math.log(LIMIT) / fastest if fastest > 0 else math.inf
    return math.floor(longest) if longest < ENDLESS else None


def advised(level: Level, growth: Estimate, as_data: Estimate | None, followed: Followed | None) -> str:
    """What to do, in a sentence or two."""
    gradient = level.gradient
    if math.isnan(growth.value):
        return "all copies restarted or were not finite; probe more windows, or lower the learning rate"
    if as_data is None:
        return "nothing is backpropagated through the topmost level, whatever grows there"
    if followed is None:
        kinds = {Antithetic: "bears any growth, for it reads losses only", Mix: "can lean on evolution where it grows"}
        bears = next((text for kind, text in kinds.items() if isinstance(gradient, kind)), "is not known here")
        return f"gradient={gradient} {bears}"
    if followed.is_too_much:
        return f"use {', or '.join(_fixes(level, as_data, followed))}"
    longest, over = longest_bearable(followed.rate), f"over {followed.updates:,} updates"
    most = "longer is fine" if longest is None else f"at most {longest:,} updates"
    text = f"gradient={gradient} is fine as set: what it follows changes by a factor of {followed.factor:.3g} {over}"
    whole = Followed(growth, span(level))
    if followed.rate is as_data and whole.is_too_much:
        most += f". It leaves out what grows: gradient=exact would follow a factor of {whole.factor:.3g}"
    return f"{text}; {most}"


def warned(level: Level, number: int, followed: Followed | None, advice: str) -> str | None:
    """A sentence for a level whose gradient is backpropagated through too much growth; None for others."""
    if followed is None or not followed.is_too_much:
        return None
    grows = f"what gradient={level.gradient} follows grows by a factor of {followed.factor:.3g}"
    over = f"over {followed.updates:,} updates, so that noise swamps it"
    return f"level {number} ({level}): backpropagation cannot work here, {grows} {over}; {advice}"


def _fixes(level: Level, as_data: Estimate, followed: Followed) -> list[str]:
    """Levels in notation whose gradients work in spite of the growth."""
    end, longest = level.episode_length, longest_bearable(followed.rate)
    fixes = [replace(level, gradient=ESSingle(), horizon=level.horizon if end else 5 * level.unroll)]
    if not isinstance(level.gradient, FirstOrder) and not Followed(as_data, span(level)).is_too_much:
        fixes.append(replace(level, gradient=FirstOrder()))
    if longest:
        unroll = min(level.unroll, longest)
        most = longest if isinstance(level.gradient, Forward) else end
        horizon = None if most is None else max(1, most // unroll) * unroll
        looks = level.lookahead if isinstance(level.gradient, Bootstrapped) else max(unroll, min(span(level), longest))
        lookahead = None if level.lookahead is None else looks
        fixes.append(replace(level, unroll=unroll, horizon=horizon, lookahead=lookahead))
    return list(map(str, fixes))
