"""Numbers, intervals, times and sizes as people read them."""

import math
from collections.abc import Sequence

from recursion.statistics import Estimate

MEASURES = {"mean loss": "mean loss", "final loss": "final loss"}
ORDINALS = ("", "first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")


def number(value: float) -> str:
    """Three digits; thousands grouped; ``diverged`` runs are ``inf``."""
    if not math.isfinite(value):
        return "inf" if value > 0 else "-inf" if value < 0 else "none"
    if abs(value) >= 1e6:
        return f"{value:.3g}".replace("e+0", "e").replace("e+", "e")
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def interval(found: Estimate) -> str:
    """``0.12 [0.1, 0.14]``, or without an interval where it would be all numbers."""
    if found.low == -math.inf and found.high == math.inf and math.isfinite(found.value):
        return f"{number(found.value)} [no interval]"
    return f"{number(found.value)} [{number(found.low)}, {number(found.high)}]"


def share(found: Estimate) -> str:
    """A probability with its interval, in percent."""
    return f"{found.value:.0%} [{found.low:.0%}, {found.high:.0%}]"


def seconds(value: float) -> str:
    """A time in the unit that suits it."""
    for limit, unit, name in ((1e-3, 1e-6, "µs"), (1.0, 1e-3, "ms"), (120.0, 1.0, "s"), (7200.0, 60.0, "min")):
        if value < limit:
            return f"{value / unit:.3g} {name}"
    return f"{value / 3600:.3g} h"


def size(value: float) -> str:
    """Bytes in the unit that suits them."""
    for limit, unit, name in ((2**20, 2**10, "KiB"), (2**30, 2**20, "MiB")):
        if value < limit:
            return f"{value / unit:.3g} {name}"
    return f"{value / 2**30:.3g} GiB"


def plural(count: int, noun: str) -> str:
    """``1 run``, ``2 runs``."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def listed(words: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1]))) if words else ""


def capital(sentence: str) -> str:
    """With a capital letter in front."""
    return sentence[:1].upper() + sentence[1:]


def ordinal(count: int) -> str:
    """``third``, ``25th``."""
    return ORDINALS[count] if 0 < count < len(ORDINALS) else f"{count}th"
