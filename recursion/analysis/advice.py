"""What a growth rate means for the gradient of a level: thresholds, a verdict, what to do, and when to warn.

A gradient that is backpropagated through chaos spreads over copies and windows by about the factor by which
perturbations grow, while what one can use of it, the slope of the loss smoothed a little, stays of order one (Parmas et
al. 2018, "PIPPS"; Metz et al. 2021, arXiv 2111.05803; Vicol et al. 2021, arXiv 2112.13835). Averaging a factor F away
takes about F^2 windows. At `LIMIT` = 100 these are 10,000, and the probe warns: a rule of thumb, with no sharp edge.
Growth is what has its whole interval above 0; evolution reads losses only, and is never warned of.
"""

from __future__ import annotations

import dataclasses
import math
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

LIMIT = 100.0  # factor that a gradient bears
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
        return _exp(self.exponent)


def followed_by(gradient: Estimator, level: Level, growth: Estimate, as_data: Estimate) -> Followed | None:
    """What ``gradient`` is backpropagated through; None if it is not, or not known to be.

    A mixture leans on the quieter of its two: on what grows less, and on evolution wherever it has that.
    """
    if isinstance(gradient, Bootstrapped):
        return followed_by(gradient.through, dataclasses.replace(level, lookahead=None), growth, as_data)
    if isinstance(gradient, Online):
        return followed_by(
            gradient.through, dataclasses.replace(level, lookahead=gradient.candidates[-1]), growth, as_data
        )
    if isinstance(gradient, FirstOrder):
        return Followed(as_data, _span(level))
    if isinstance(gradient, Exact):
        return Followed(growth, _span(level))
    if isinstance(gradient, Forward):
        return Followed(growth, level.episode_length or ENDLESS)
    if isinstance(gradient, Mix):
        both = [followed_by(each, level, growth, as_data) for each in (gradient.first, gradient.second)]
        known = [each for each in both if each is not None]
        return min(known, key=lambda each: each.exponent) if len(known) == 2 else None
    return None


def _span(level: Level) -> int:
    """Updates that a window runs."""
    return level.lookahead or level.unroll


def verdict(growth: Estimate, updates: int) -> str:
    """What the run of a level is, in a word, by its rate and what that comes to over ``updates``."""
    if math.isnan(growth.value):
        return "unknown"
    if growth.sign <= 0:
        return "contracting" if growth.sign < 0 else "neutral"
    return "chaotic" if _too_much(Followed(growth, updates)) else "expanding"


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
    if _too_much(followed):
        return f"use {', or '.join(_fixes(level, as_data, followed))}"
    longest, over = longest_bearable(followed.rate), f"over {followed.updates:,} updates"
    most = "longer is fine" if longest is None else f"at most {longest:,} updates"
    text = f"gradient={gradient} is fine as set: what it follows changes by a factor of {short(followed.factor)} {over}"
    whole = Followed(growth, _span(level))
    if followed.rate is as_data and _too_much(whole):
        left_out = f"It leaves out what grows: gradient=exact would follow a factor of {short(whole.factor)}"
        return f"{text}; {most}. {left_out}"
    return f"{text}; {most}"


def warned(level: Level, number: int, followed: Followed | None, advice: str) -> str | None:
    """A sentence for a level whose gradient is backpropagated through more than it bears; None for others."""
    if followed is None or not _too_much(followed):
        return None
    grows = f"what gradient={level.gradient} follows grows by a factor of {short(followed.factor)}"
    over = f"over {followed.updates:,} updates, so that noise swamps it"
    return f"level {number} ({level}): backpropagation cannot work here, {grows} {over}; {advice}"


def short(value: float) -> str:
    """Three digits."""
    return f"{value:.3g}"


def _fixes(level: Level, as_data: Estimate, followed: Followed) -> list[str]:
    """Levels in notation that get along with what grows."""
    episode_length, longest = level.episode_length, longest_bearable(followed.rate)
    evolved = dataclasses.replace(
        level, gradient=ESSingle(), horizon=level.horizon if episode_length else 5 * level.unroll
    )
    fixes = [evolved]
    if not isinstance(level.gradient, FirstOrder) and not _too_much(Followed(as_data, _span(level))):
        fixes.append(dataclasses.replace(level, gradient=FirstOrder()))
    if longest:
        unroll = min(level.unroll, longest)
        most = longest if isinstance(level.gradient, Forward) else episode_length
        horizon = None if most is None else max(1, most // unroll) * unroll
        looks = level.lookahead if isinstance(level.gradient, Bootstrapped) else max(unroll, min(_span(level), longest))
        lookahead = None if level.lookahead is None else looks
        fixes.append(dataclasses.replace(level, unroll=unroll, horizon=horizon, lookahead=lookahead))
    return list(map(str, fixes))


def _too_much(followed: Followed) -> bool:
    return followed.rate.low > 0 and followed.exponent > math.log(LIMIT)


def _exp(exponent: float) -> float:
    return math.inf if exponent > 700 else math.exp(exponent)
