"""A chaos probe: how fast do small differences grow at each level, and can backpropagation work there?

    for level in probe(tower, state):
        print(level.level, level.growth.value, level.over_window, level.advice)

Two runs of a level with the same optimizer parameters, keys and data differ by a perturbation of x and of the
optimizer's state. Their distance grows at a rate that is the largest Lyapunov exponent (Benettin, Galgani, Giorgilli
and Strelcyn 1980, Meccanica 15):

    growth = mean over updates and copies of  log(|delta after an update| / |delta before it|)

So over T updates a perturbation grows by about exp(growth T). Sensitivities to the optimizer's parameters are sums of
products of the same Jacobians, d x_T / d params = sum_t J_T ... J_(t+1) d update_t / d params, so they have this rate
too where it is above 0.

**Two rates.** What grows in the run need not grow in the gradient. Exact gradients and forward mode follow J whole.
First order takes the gradients below as data, so it multiplies the Jacobian of the update alone. The probe measures
that too: it gives a perturbed run the gradients of the unperturbed one. An LSTM that jumps about a minimum is chaotic
while its first-order gradients are tame; a rule that is chaotic by itself swamps both.

**Advice.** A gradient that is backpropagated through chaos spreads over copies and windows by about the factor by which
perturbations grow, while its useful part, the slope of the smoothed loss, stays of order one (Parmas et al. 2018,
"PIPPS"; Metz et al. 2021, arXiv 2111.05803; Vicol et al. 2021, arXiv 2112.13835). Averaging a factor F away takes about
F^2 windows. At `LIMIT` = 100 these are 10,000, and the probe warns: a rule of thumb, with no sharp edge. A rate counts
as growth if its whole interval lies above 0. Evolution reads losses only, so it gets no warning.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

from levels import keys
from levels.base import Estimator
from levels.faults import NonFiniteError, Skip
from levels.fields import require
from levels.gradients.bootstrapped import Bootstrapped
from levels.gradients.evolution import Antithetic, ESSingle
from levels.gradients.exact import Exact
from levels.gradients.first_order import FirstOrder
from levels.gradients.forward import Forward
from levels.gradients.mixture import Mix
from levels.gradients.online import Online
from levels.level import Level
from recursion.analysis.growth import Logs, Plan, follow, path_of, rate
from recursion.evaluation.deploy import require_counts
from recursion.evaluation.statistics import Estimate
from recursion.tower import Tower, TowerState

LIMIT = 100.0  # largest factor with which a gradient is useful
ENDLESS = 10**6  # updates that stand for a trajectory without an end
Progress = Callable[[str, float], None]


@dataclass(frozen=True, kw_only=True)
class LevelGrowth:
    """The probe's finding at one level. Rates are natural logarithms for each update, with 95% intervals."""

    level: int  # from 1
    name: str  # of the optimizer
    unroll: int
    growth: Estimate  # of a perturbation in the run
    over_window: float  # factor, over all updates of a window
    over_horizon: float | None  # factor; None where trajectories never restart
    as_data: Estimate | None  # growth where gradients are data, as first order has it; None at the topmost level
    in_gradient: float | None  # factor over what the level's gradient follows; None if nothing is backpropagated
    longest: int | None  # updates over which the gradient's factor stays below `LIMIT`; None if there is no such limit
    verdict: str  # of the run: contracting, neutral, expanding, chaotic (above `LIMIT` in a window), or unknown
    advice: str
    warning: str | None  # where backpropagation cannot work
    path: tuple[float, ...]  # log growth since the first update, mean over copies; before `aligned` it is not counted
    path_as_data: tuple[float, ...] | None
    aligned: int  # updates


def probe(
    tower: Tower, state: TowerState, *, windows: int | None = None, seed: int = 0, progress: Progress | None = None
) -> list[LevelGrowth]:
    """Growth at each level, level 1 first, from ``state`` on; the tower and the state stay unchanged.

    ``windows``: how many of each level are counted; None for 20 updates, and at least 4 windows. A quarter as many run
    before, in which a perturbation turns to where growth is largest. ``seed``: of the perturbations. ``progress`` is
    called with what is probed and the share done. A level runs with what the level above carries (the topmost with
    ``state.theta``), without an evolution estimator's perturbations.

    Intervals are bootstraps over the level's copies, with one copy over windows (and with one window over updates).
    Copies that stop being finite are skipped at all levels, begin afresh, and are not counted at their own level; where
    nothing can be counted, rates are NaN. A trajectory of a single update is followed for a second one. Raises
    ValueError if ``windows`` is out of range or ``state`` is not of this tower; `NonFiniteError`, naming the level, if
    a problem is not finite where it begins, or a meta-loss is not.
    """
    require_counts("", windows=windows)
    carries = tower.carries(state)
    sizes = [*(carry.x.shape[-1] for carry in carries), state.theta.shape[-1]]
    fits = sizes == [tower.task.layout.size, *(level.layout.size for level in tower.bound)]
    require(fits, f"the state is of another tower than '{tower}'; give the one that it was made with")
    lenient = Tower(tower.task, *(replace(level, nonfinite=Skip()) for level in tower.levels))
    plans = [Plan.of(level.unroll, windows) for level in tower.levels]
    costs = [float(plan.updates * cost) for plan, cost in zip(plans, [1, *tower.costs])]
    growths: list[LevelGrowth] = []
    for number, (carry, plan) in enumerate(zip(carries, plans), 1):

        def tell(share: float, number: int = number) -> None:
            if progress is not None:
                done = sum(costs[: number - 1]) + share * costs[number - 1]
                progress(f"level {number} of {tower.depth}", done / sum(costs))

        theta = state.theta if number == tower.depth else carries[number].x
        key = keys.fold_in(keys.seed(seed, device=carry.x.device), number)
        try:
            logs = follow(lenient.bound[number - 1], theta, carry, key, plan.updates, tell)
        except NonFiniteError as error:
            what = f"level {error.number} ({tower.levels[error.number - 1]}): {error.what}"
            error.args = (f"{what} while level {number} was probed; {error.fix}",)
            raise
        growths.append(_judged(tower.levels[number - 1], number, number == tower.depth, plan, logs))
    return growths


def _judged(level: Level, number: int, top: bool, plan: Plan, logs: Logs) -> LevelGrowth:
    """What the numbers of one level mean."""
    growth, as_data = rate(logs.real, plan), None if top else rate(logs.as_data, plan)
    unknown = as_data is None or math.isnan(growth.value)
    followed = None if unknown else followed_by(level.gradient, level, growth, as_data)  # type: ignore[arg-type]
    advice, end = advised(level, growth, as_data, followed), level.episode_length
    return LevelGrowth(
        level=number, name=str(level.optimizer), unroll=level.unroll, growth=growth, as_data=as_data,
        over_window=Followed(growth, span(level)).factor,
        over_horizon=None if end is None else Followed(growth, end).factor,
        in_gradient=None if followed is None else followed.factor,
        longest=None if followed is None else longest_bearable(followed.rate),
        verdict=verdict(growth, span(level)), advice=advice, warning=warned(level, number, followed, advice),
        path=path_of(logs.real), path_as_data=None if top else path_of(logs.as_data),
        aligned=plan.aligned,
    )  # fmt: skip


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
