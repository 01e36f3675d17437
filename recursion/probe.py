"""A chaos probe: how fast do small differences grow at each level, and can backpropagation work there?

    for level in probe(tower, state):
        print(level.level, level.growth.value, level.over_window, level.advice)

Two runs of a level with the same optimizer parameters, keys and data differ by a perturbation of x and of everything
that the optimizer remembers. The rate at which they part is the largest Lyapunov exponent (Benettin, Galgani, Giorgilli
and Strelcyn 1980, Meccanica 15):

    growth = mean over updates and copies of  log(|delta after an update| / |delta before it|)

So over T updates a perturbation grows by about exp(growth T). Sensitivities to the optimizer's parameters are sums of
products of the same Jacobians, d x_T / d params = sum_t J_T ... J_(t+1) d update_t / d params, so a perturbation of the
parameters has this rate too where it is above 0, and no other one is measured.

**Two rates.** What grows in the run need not grow in the gradient. Exact gradients and forward mode follow J whole.
First order takes the gradients below as data, so what it multiplies is the Jacobian of the update alone. That is
measured as well: a perturbed run is fed the gradients of the other one. An LSTM that jumps about a minimum is chaotic
while its first-order gradients are tame; a rule that is chaotic by itself swamps both.

**What a factor means.** A gradient that is backpropagated through chaos spreads over copies and windows by about the
factor, while what one can use of it, the slope of the loss smoothed a little, stays of order one (Parmas et al. 2018,
"PIPPS"; Metz et al. 2021, arXiv 2111.05803; Vicol et al. 2021, arXiv 2112.13835). Averaging a factor F away takes about
F^2 windows. At `LIMIT` = 100 these are 10,000, and the probe warns: a rule of thumb, with no sharp edge. Growth is what
has its whole interval above 0; evolution reads losses only, and is never warned of.

**How it is measured.** Differences are finite, so they must be small against curvature and large against rounding. They
begin at the square root of the machine precision, relative to the typical size of each tensor (1.5e-8 in float64,
3.5e-4 in float32: half the digits on either side), and are scaled back to that after every update, not only where a
window ends; so no length of a window and no rate takes them out of that range. x, the optimizer's state, loss and
gradient are scaled alike, and so is what the problem below carries, but that is never stretched: it is no part of what
is kept at one size. A perturbation that one update shrinks to rounding counts as shrunk by that square root, and begins
anew. Within a window of a level *below* nothing is scaled: if that level is chaotic, differences are no longer small
when they come up, and the rate above it is too low, if anything. Restarts are the level's own, in both runs at once; a
copy that restarts is perturbed anew, and the update across a restart is not counted. Nothing is differentiated here, so
black boxes and all estimators can be probed.
"""

from __future__ import annotations

import dataclasses
import io
import math
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from levels import keys
from levels.gradients.bootstrapped import Bootstrapped
from levels.gradients.estimator import Estimator
from levels.gradients.evolution import Antithetic, ESSingle
from levels.gradients.exact import Exact
from levels.gradients.first_order import FirstOrder
from levels.gradients.forward import Forward
from levels.gradients.mixture import Mix
from levels.level import Carry, Laid, Level, Window
from levels.nonfinite import NonFiniteError, Skip
from levels.part import notate, require
from levels.tree import choose, leaves, map_leaves, with_leaves
from recursion.files import explained, replace_file
from recursion.reporting import COLOURS, DPI
from recursion.statistics import Estimate, estimate
from recursion.tower import Tower, TowerState

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LIMIT = 100.0  # factor that a gradient bears
ENOUGH = 20  # updates, if nobody says how many windows
ENDLESS = 10**6  # updates that stand for a trajectory without an end
Progress = Callable[[str, float], None]


@dataclass(frozen=True, kw_only=True)
class LevelGrowth:
    """What the probe found at one level. Rates are natural logarithms for each update, with 95% intervals."""

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


def probe(
    tower: Tower,
    state: TowerState,
    *,
    windows: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[LevelGrowth]:
    """Growth at each level, level 1 first, from where ``state`` stands; neither is changed.

    ``windows``: how many of each level are counted, at least 1; None for 20 updates, and at least 4 windows. A quarter
    as many run before, in which a perturbation turns to where growth is largest. ``seed``: of the perturbations, any
    integer of 64 bits. ``progress`` hears what is probed, and the share that is done. The topmost level runs with
    ``state.params``, one below with what the level above carries; perturbations of an evolution estimator are left out.

    Intervals are bootstraps over the level's copies, with one copy over windows (and with one window over updates).
    Copies that stop being finite are skipped, at all levels, begin afresh, and are not counted where it is the level's
    own; where nothing can be counted, rates are NaN. A trajectory of a single update is followed for a second one.
    Raises ValueError if ``windows`` is out of range or ``state`` is not of this tower; `NonFiniteError`, naming the
    level, if a problem is not finite where it begins, or a meta-loss is not.
    """
    good = windows is None or (isinstance(windows, int) and not isinstance(windows, bool) and windows >= 1)
    require(good, f"windows must be a whole number of at least 1, got {notate(windows)}")
    carries = _carries(tower, state)
    lenient = Tower(tower.task, *(dataclasses.replace(level, nonfinite=Skip()) for level in tower.levels))
    plans = [_Plan.of(level.unroll, windows) for level in tower.levels]
    costs = [plan.updates * cost for plan, cost in zip(plans, [1, *tower.costs])]
    found: list[LevelGrowth] = []
    for number, (carry, plan) in enumerate(zip(carries, plans), 1):
        params = state.params if number == tower.depth else carries[number].x
        key = keys.fold(keys.seed(seed, device=carry.x.device), number)

        def tell(share: float, number: int = number) -> None:
            if progress is not None:
                done = sum(costs[: number - 1]) + share * costs[number - 1]
                progress(f"level {number} of {tower.depth}", done / sum(costs))

        logs = _named(lenient, number, params, carry, key, plan.updates, tell)
        found.append(_judged(tower.levels[number - 1], number, number == tower.depth, plan, logs))
    return found


class _Plan(NamedTuple):
    """How many updates of a level are run, and how many of them are counted."""

    unroll: int
    aligning: int  # windows
    counted: int  # windows

    @classmethod
    def of(cls, unroll: int, windows: int | None) -> _Plan:
        count = max(4, math.ceil(ENOUGH / unroll)) if windows is None else windows
        return cls(unroll, math.ceil(count / 4), count)

    @property
    def updates(self) -> int:
        return (self.aligning + self.counted) * self.unroll


class _Ruler:
    """Measures how far two carries of a level lie apart in what the level itself moves: x and the optimizer's state.

    Each tensor counts alike, in units of its typical size when the probe began: the median over copies of the root of
    its mean square, or 1 where that is 0. Units stay as they are; they would hide growth if they grew along.
    """

    def __init__(self, carry: Carry) -> None:
        self.dims = carry.x.dim() - 1
        self.smooth = [i for i, leaf in enumerate(leaves((carry.x, carry.state))) if leaf.is_floating_point()]
        sizes = [self._mean_square(leaf).sqrt().flatten().nanmedian() for leaf in self._floats(carry)]
        self.sizes = [float(size) if 0 < float(size) < math.inf else 1.0 for size in sizes]
        self.step = math.sqrt(torch.finfo(carry.x.dtype).eps)

    def distance(self, one: Carry, other: Carry) -> Tensor:
        """Float64 ``[*batch, copies]``."""
        gaps = [b.double() - a.double() for a, b in zip(self._floats(one), self._floats(other))]
        squares = [self._mean_square(gap / size) for gap, size in zip(gaps, self.sizes)]
        return torch.stack(squares).mean(0).sqrt()

    def target(self, carry: Carry) -> Tensor:
        """The distance at which perturbations of a carry are kept: `step`, or more of one that has grown itself."""
        squares = [self._mean_square(leaf / size) for leaf, size in zip(self._floats(carry), self.sizes)]
        return self.step * torch.stack(squares).mean(0).sqrt().clamp_min(1.0)

    def kept(self, base: Carry, other: Carry) -> Carry:
        """``other`` brought back to the distance at which it is kept, if rounding has not swallowed the difference."""
        distance, target = self.distance(base, other), self.target(base)
        return _scaled(base, other, torch.where(distance >= target * self.step, target / distance, 1.0))

    def moved(self, carry: Carry, key: Tensor) -> Carry:
        """x and state perturbed at random by about `step`; the state's entries each in proportion, so none crosses 0."""
        old = leaves((carry.x, carry.state))
        new = list(old)
        for i in self.smooth:
            noise = keys.normal(keys.fold(key, i), tuple(old[i].shape), old[i].dtype)
            new[i] = old[i] + self.step * noise * old[i]
        size = self._mean_square(carry.x).sqrt().clamp_min(self.sizes[0])[..., None].to(carry.x.dtype)
        new[0] = carry.x + self.step * size * keys.normal(key, tuple(carry.x.shape), carry.x.dtype)
        x, state = with_leaves((carry.x, carry.state), new)
        return carry._replace(x=x, state=state)

    def _floats(self, carry: Carry) -> list[Tensor]:
        tensors = leaves((carry.x, carry.state))
        return [tensors[i] for i in self.smooth]

    def _mean_square(self, leaf: Tensor) -> Tensor:
        entries = leaf.double().reshape(*leaf.shape[: self.dims], -1)
        return entries.square().sum(-1) / max(1, entries.shape[-1])


class _Logs(NamedTuple):
    """Logarithms of one update's factor, ``[updates, copies]``, all batch dimensions in one; NaN where not counted."""

    real: Tensor
    as_data: Tensor


@torch.no_grad()
def _follow(
    laid: Laid, params: Tensor, carry: Carry, key: Tensor, updates: int, tell: Callable[[float], None]
) -> _Logs:
    """Run a level beside itself, perturbed: once as it is, once with the gradients of the unperturbed run.

    The first update is there to know with which state the problem below was asked, so that it can be asked again.
    """
    life = None if laid.level.life is None else max(laid.level.life, 2)
    level = dataclasses.replace(laid.level, unroll=1, horizon=life, ahead=None, nonfinite=Skip())
    single = level.over(laid.problem)
    base, window = single.window(params, carry, asked=True, judged=False)
    ruler = _Ruler(base)
    real = data = _beside(single, ruler, base, window, keys.fold(key, 0))
    logs: list[list[Tensor]] = []
    for t in range(1, updates + 1):
        before, skipped = [ruler.distance(base, each) for each in (real, data)], base.skipped
        base, window = single.window(params, base, asked=True, judged=False)
        real, _ = single.window(params, real, record=False, judged=False)
        read = window.steps[0]
        x, state = single.optimizer.update(params, read.f, read.g, data.state, data.x)
        data = base._replace(x=x, state=state)
        after = [ruler.distance(base, each) for each in (real, data)]
        new = window.begun | (base.skipped > skipped)
        least = ruler.target(base) * ruler.step
        fresh = [new | (b == 0) | ~torch.isfinite(a) for b, a in zip(before, after)]
        logs.append(
            [(torch.maximum(a, least) / b).log().masked_fill(f, math.nan) for b, a, f in zip(before, after, fresh)]
        )
        due = [again | (gap < least) for again, gap in zip(fresh, after)]
        real, data = (ruler.kept(base, each) for each in (real, data))
        if bool(due[0].any()) or bool(due[1].any()):
            anew = _beside(single, ruler, base, window, keys.fold(key, t))
            real, data = (choose(mask, anew, each) for mask, each in zip(due, (real, data)))
        tell(t / updates)
    real_logs, data_logs = (torch.stack(each).flatten(1) for each in zip(*logs))
    return _Logs(real_logs, data_logs)


def _beside(laid: Laid, ruler: _Ruler, base: Carry, window: Window, key: Tensor) -> Carry:
    """``base``, which ``window`` of one update led to, perturbed; the problem is asked there as it was asked before."""
    moved = ruler.moved(base, key)
    f, g, below = laid.problem.value_and_grad(moved.x, window.asked[0])
    moved = moved._replace(f=f, g=g, below=below)
    return ruler.kept(base, moved)


def _scaled(base: Carry, other: Carry, factor: Tensor) -> Carry:
    """``other``, its differences from ``base`` times ``factor`` ``[*batch, copies]``; those below are never stretched.

    What is stretched must stay on its side of 0, for it may be a running mean of squares: such an entry stays as it is.
    """

    def scale(a: Tensor, b: Tensor, factor: Tensor) -> Tensor:
        if a is b or not a.is_floating_point():
            return a
        moved = a + factor.reshape(factor.shape + (1,) * (a.dim() - factor.dim())).to(a.dtype) * (b - a)
        low, high = torch.minimum(a, b), torch.maximum(a, b)
        crossed = ((moved < 0) & (low >= 0)) | ((moved > 0) & (high <= 0))
        return torch.where(crossed, b, moved)

    scaled: Carry = map_leaves(lambda a, b: scale(a, b, factor), base, other._replace(below=base.below))
    below = map_leaves(lambda a, b: scale(a, b, factor.clamp_max(1.0)), base.below, other.below)
    return scaled._replace(below=below)


def _named(
    tower: Tower,
    number: int,
    params: Tensor,
    carry: Carry,
    key: Tensor,
    updates: int,
    tell: Callable[[float], None],
) -> _Logs:
    """`_follow`; what is not finite below is told with its level."""
    try:
        logs = _follow(tower.laid[number - 1], params, carry, key, updates, tell)
    except NonFiniteError as error:
        level = tower.laid.index(error.source) + 1 if error.source in tower.laid else number
        what = f"level {level} ({tower.levels[level - 1]}): {error.what} while level {number} was probed"
        error.args = (f"{what}; {error.fix}",)
        raise
    return logs


def _carries(tower: Tower, state: TowerState) -> list[Carry]:
    """What each level carries. ValueError if the state is not of this tower."""
    carries = tower.carries(state)
    fits = len(carries) == tower.depth and state.params.shape[-1:] == (tower.top.layout.size,)
    for laid, carry in zip(tower.laid, carries):
        fits = fits and carry.x.shape[-1] == laid.problem.layout.size
    require(fits, f"the state is of another tower than '{tower}'; give the one that it was made with")
    return carries


def _rate(logs: Tensor, plan: _Plan) -> Estimate:
    """The mean rate with its interval, of logs ``[updates, copies]`` without those that align; NaN if none is left."""
    counted = logs[plan.aligning * plan.unroll :]
    by_window = counted.reshape(plan.counted, -1)
    for units in (counted.nanmean(0), by_window.nanmean(1), counted.flatten()):
        units = units[~units.isnan()]
        if len(units) > 1:
            break
    return estimate(units.numpy(force=True)[None]) if len(units) else Estimate(math.nan, -math.inf, math.inf)


def _judged(level: Level, number: int, top: bool, plan: _Plan, logs: _Logs) -> LevelGrowth:
    """What the numbers of one level mean."""
    growth, as_data = _rate(logs.real, plan), None if top else _rate(logs.as_data, plan)
    followed = None if as_data is None else _followed(level.gradient, level, growth, as_data)
    if math.isnan(growth.value):
        followed = None
    advice = _advice(level, growth, as_data, followed)
    return LevelGrowth(
        level=number,
        name=str(level.optimizer),
        unroll=level.unroll,
        growth=growth,
        over_window=Followed(growth, level.reach).factor,
        over_horizon=None if level.life is None else Followed(growth, level.life).factor,
        as_data=as_data,
        in_gradient=None if followed is None else followed.factor,
        longest=None if followed is None else _longest(followed.rate),
        verdict=_verdict(growth, level.reach),
        advice=advice,
        warning=_warning(level, number, followed, advice),
        path=_path(logs.real),
        path_as_data=None if top else _path(logs.as_data),
        aligned=plan.aligning * plan.unroll,
    )


def _followed(gradient: Estimator, level: Level, growth: Estimate, as_data: Estimate) -> Followed | None:
    """What ``gradient`` is backpropagated through; None if it is not, or not known to be.

    A mixture leans on the quieter of its two: on what grows less, and on evolution wherever it has that.
    """
    if isinstance(gradient, Bootstrapped):
        return _followed(gradient.through, dataclasses.replace(level, ahead=None), growth, as_data)
    if isinstance(gradient, FirstOrder):
        return Followed(as_data, level.reach)
    if isinstance(gradient, Exact):
        return Followed(growth, level.reach)
    if isinstance(gradient, Forward):
        return Followed(growth, level.life or ENDLESS)
    if isinstance(gradient, Mix):
        both = [_followed(each, level, growth, as_data) for each in (gradient.first, gradient.second)]
        known = [each for each in both if each is not None]
        return min(known, key=lambda each: each.exponent) if len(known) == 2 else None
    return None


def _too_much(followed: Followed) -> bool:
    return followed.rate.low > 0 and followed.exponent > math.log(LIMIT)


def _verdict(growth: Estimate, updates: int) -> str:
    if math.isnan(growth.value):
        return "unknown"
    if growth.sign <= 0:
        return "contracting" if growth.sign < 0 else "neutral"
    return "chaotic" if _too_much(Followed(growth, updates)) else "expanding"


def _longest(rate: Estimate) -> int | None:
    """Updates over which a factor stays below `LIMIT`, by the rate, or by its interval's end if it may be 0."""
    fastest = rate.value if rate.low > 0 else rate.high
    longest = math.log(LIMIT) / fastest if fastest > 0 else math.inf
    return math.floor(longest) if longest < ENDLESS else None


def _advice(level: Level, growth: Estimate, as_data: Estimate | None, followed: Followed | None) -> str:
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
    longest, over = _longest(followed.rate), f"over {followed.updates:,} updates"
    most = "longer is fine" if longest is None else f"at most {longest:,} updates"
    text = (
        f"gradient={gradient} is fine as set: what it follows changes by a factor of {_short(followed.factor)} {over}"
    )
    whole = Followed(growth, level.reach)
    if followed.rate is as_data and _too_much(whole):
        left_out = f"It leaves out what grows: gradient=exact would follow a factor of {_short(whole.factor)}"
        return f"{text}; {most}. {left_out}"
    return f"{text}; {most}"


def _fixes(level: Level, as_data: Estimate, followed: Followed) -> list[str]:
    """Levels in notation that get along with what grows."""
    life, longest = level.life, _longest(followed.rate)
    evolved = dataclasses.replace(level, gradient=ESSingle(), horizon=level.horizon if life else 5 * level.unroll)
    fixes = [evolved]
    if not isinstance(level.gradient, FirstOrder) and not _too_much(Followed(as_data, level.reach)):
        fixes.append(dataclasses.replace(level, gradient=FirstOrder()))
    if longest:
        unroll = min(level.unroll, longest)
        most = longest if isinstance(level.gradient, Forward) else life
        horizon = None if most is None else max(1, most // unroll) * unroll
        looks = level.ahead if isinstance(level.gradient, Bootstrapped) else max(unroll, min(level.reach, longest))
        ahead = None if level.ahead is None else looks
        fixes.append(dataclasses.replace(level, unroll=unroll, horizon=horizon, ahead=ahead))
    return list(map(str, fixes))


def _warning(level: Level, number: int, followed: Followed | None, advice: str) -> str | None:
    if followed is None or not _too_much(followed):
        return None
    grows = f"what gradient={level.gradient} follows grows by a factor of {_short(followed.factor)}"
    over = f"over {followed.updates:,} updates, so that noise swamps it"
    return f"level {number} ({level}): backpropagation cannot work here, {grows} {over}; {advice}"


def _path(logs: Tensor) -> tuple[float, ...]:
    """Log growth after each update, from 0 on, mean over copies; updates that are not counted leave it as it is."""
    steps = logs.nanmean(1).nan_to_num(nan=0.0)
    return (0.0, *steps.cumsum(0).tolist())


def _exp(exponent: float) -> float:
    return math.inf if exponent > 700 else math.exp(exponent)


def _short(value: float) -> str:
    return f"{value:.3g}"


def table(found: Sequence[LevelGrowth]) -> Table:
    """One row a level; for those below the topmost, growth where gradients are data as well."""
    made = Table(box=SIMPLE_HEAD, pad_edge=False)
    for heading in ("level", "unroll", "growth [95%]", "as data [95%]", "window", "horizon", "gradient", "run is"):
        made.add_column(escape(heading), justify="left" if heading in ("level", "run is") else "right")
    for each in found:
        factors = (each.over_window, each.over_horizon, each.in_gradient)
        made.add_row(
            escape(f"{each.level} {each.name}"),
            str(each.unroll),
            escape(_interval(each.growth)),
            escape("" if each.as_data is None else _interval(each.as_data)),
            *("" if factor is None else _short(factor) for factor in factors),
            each.verdict,
        )
    return made


def write(found: Sequence[LevelGrowth], title: str, directory: Path, console: Console) -> None:
    """Print the table and a sentence a level, and write ``probe.png`` to ``directory``, made if missing.

    Raises OSError, saying which file, if it cannot be written.
    """
    with explained("make", directory):
        directory.mkdir(parents=True, exist_ok=True)
    console.print(table(found))
    for each in found:
        console.print(f"level {each.level}: {each.advice}", markup=False, highlight=False)
    note = (
        "Growth of a perturbation for each update, as a natural logarithm: in the run, and where gradients are data. "
        "Then by what factor it grows over a window, over the horizon, and over what the level's gradient is "
        f"backpropagated through; there, factors above {LIMIT:g} swamp it in noise."
    )
    console.print(note, style="dim", markup=False, highlight=False)
    replace_file(directory / "probe.png", picture(found, title))


def picture(found: Sequence[LevelGrowth], title: str) -> bytes:
    """PNG: size of the perturbation against updates, one panel a level, with the line of the measured rate."""
    from matplotlib.figure import Figure

    columns = min(len(found), 3)
    rows = math.ceil(len(found) / columns)
    figure = Figure(figsize=(4.6 * columns, 3.4 * rows + 1.0), layout="constrained")
    for place, each in enumerate(found, 1):
        _panel(figure.add_subplot(rows, columns, place), each)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(columns + 1, 4), frameon=False)
    figure.suptitle(textwrap.fill(title, 48 * columns), fontsize=11)
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=DPI)
    return png.getvalue()


def _panel(axes: Axes, each: LevelGrowth) -> None:
    axes.plot(_factors(each.path), color="black", linewidth=1.8, label="perturbation of the run")
    line = [each.path[each.aligned] + each.growth.value * t for t in range(len(each.path) - each.aligned)]
    axes.plot(range(each.aligned, len(each.path)), _factors(line), color=COLOURS[5], linestyle="--", linewidth=1.4,
              label="exp(growth t)")  # fmt: skip
    if each.path_as_data is not None:
        axes.plot(_factors(each.path_as_data), color=COLOURS[0], linestyle="-.", linewidth=1.4,
                  label="with gradients as data")  # fmt: skip
    axes.axvspan(0, each.aligned, color="0.93", linewidth=0, label="aligning, not counted")
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, 0.3), max(high, 3.0))
    axes.set_title(f"level {each.level}: {each.name}@{each.unroll}, {each.verdict}", fontsize=10)
    axes.set_xlabel("updates")
    axes.set_ylabel("size, 1 at the start")
    axes.grid(alpha=0.25)
    axes.margins(x=0.01)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _factors(logs: Sequence[float]) -> list[float]:
    """Factors of logs; gaps where a picture cannot hold them."""
    return [math.exp(log) if abs(log) < 600 else math.nan for log in logs]


def _interval(rate: Estimate) -> str:
    return f"{rate.value:.3g} [{rate.low:.3g}, {rate.high:.3g}]"
