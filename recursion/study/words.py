"""Numbers, intervals, times and sizes as people read them."""

import math
from collections.abc import Sequence

from recursion.evaluation.statistics import Estimate

SECONDS = ((1e-3, 1e-6, "µs"), (1.0, 1e-3, "ms"), (120.0, 1.0, "s"), (7200.0, 60.0, "min"), (math.inf, 3600.0, "h"))
BYTES = ((2**20, 2**10, "KiB"), (2**30, 2**20, "MiB"), (math.inf, 2**30, "GiB"))
"""Below each limit: a unit and its name."""


def number(value: float) -> str:
    """Three digits, thousands grouped; ``inf`` for runs that diverged, ``none`` for NaN."""
    if not math.isfinite(value):
        return "inf" if value > 0 else "-inf" if value < 0 else "none"
    if abs(value) >= 1e6:
        return f"{value:.3g}".replace("e+0", "e").replace("e+", "e")
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def bounds(estimate: Estimate) -> str:
    """``[0.1, 0.14]``, or words where the interval would be all numbers."""
    nothing = math.isfinite(estimate.value) and estimate.low == -math.inf and estimate.high == math.inf
    return "no interval" if nothing else f"[{number(estimate.low)}, {number(estimate.high)}]"


def interval(estimate: Estimate) -> str:
    """``0.12 [0.1, 0.14]``."""
    text = bounds(estimate)
    return f"{number(estimate.value)} {text if text.startswith('[') else f'[{text}]'}"


def share(estimate: Estimate) -> str:
    """A probability with its interval, in percent."""
    return f"{estimate.value:.0%} [{estimate.low:.0%}, {estimate.high:.0%}]"


def seconds(value: float) -> str:
    """A time in the unit that suits it."""
    return next(f"{value / unit:.3g} {name}" for limit, unit, name in SECONDS if value < limit)


def size(value: float) -> str:
    """Bytes in the unit that suits them; nothing for NaN."""
    return next((f"{value / unit:.3g} {name}" for limit, unit, name in BYTES if value < limit), "")


def uses(value: float) -> str:
    """How many uses, at least one."""
    return "never" if math.isinf(value) else number(max(1, math.ceil(value)))


def plural(count: int, noun: str) -> str:
    """``1 run``, ``2 runs``."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def capital(sentence: str) -> str:
    """The sentence with a capital letter in front."""
    return sentence[:1].upper() + sentence[1:]


def listing(words: Sequence[str]) -> str:
    """``a, b and c``."""
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))
