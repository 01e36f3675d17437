"""Level: an optimizer with an unroll and a gradient estimator, as it is before it is laid over a problem.

    Level(optimizer=LSTM(), unroll=20, clip=1.0).over(Quadratic())

What it does there is in `levels.laid`.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal

from levels.gradients.estimator import Estimator
from levels.gradients.first_order import FirstOrder
from levels.laid import Laid
from levels.nonfinite import NonFinite, Stop
from levels.objectives import Objective, Sum
from levels.optimizer import Optimizer
from levels.part import notate, require
from levels.problem import Problem


@dataclass(frozen=True, kw_only=True, repr=False)
class Level:
    """One level.

    ``optimizer``: the update rule. ``unroll``: updates in a window, at least 1. ``horizon``: updates after which the
    trajectory below restarts, a multiple of ``unroll``; None never; ``auto`` is 5 windows where ``unroll`` is above 1
    (the 2016 paper's 100 steps of 20) and None where it is 1. ``batch``: copies of the problem below, at least 1;
    ``auto`` is what the problem suggests (`Problem.copies`) where ``unroll`` is above 1, and 1 where it is 1.
    ``stagger``: whether first restarts are spread over the copies. ``ahead``: updates that a window looks on, at least
    ``unroll``; the trajectory goes on from where it was after ``unroll`` of them, the others are looked at and given
    up. None for ``unroll``. ``objective``: how losses become a meta-loss. ``gradient``: how the meta-loss is
    differentiated. ``clip``: largest norm of that gradient, None for any; the levels above take what is left for the
    gradient, in their own gradients too. ``nonfinite``: what to do about losses and gradients that are not finite.
    """

    optimizer: Optimizer
    unroll: int = 1
    horizon: int | None | Literal["auto"] = "auto"
    batch: int | Literal["auto"] = "auto"
    stagger: bool = True
    ahead: int | None = None
    objective: Objective = Sum()
    gradient: Estimator = FirstOrder()
    clip: float | None = None
    nonfinite: NonFinite = Stop()

    def __post_init__(self) -> None:
        for name in ("unroll", "batch"):
            value = getattr(self, name)
            good = (_whole(value) and value >= 1) or (name == "batch" and value == "auto")
            require(good, f"{name} must be a whole number of at least 1, got {notate(value)}")
        horizon = self.horizon
        if horizon is not None and horizon != "auto":
            good = _whole(horizon) and horizon > 0 and horizon % self.unroll == 0
            near = max(1, round(horizon / self.unroll)) * self.unroll if _whole(horizon) else 5 * self.unroll
            require(good, f"horizon must be a multiple of the unroll {self.unroll}, got {notate(horizon)}; use {near}")
        ahead = self.ahead
        good = ahead is None or (_whole(ahead) and ahead >= self.unroll)
        require(
            good, f"ahead must be a whole number of at least the unroll {self.unroll}, or none, got {notate(ahead)}"
        )
        clip = self.clip
        good = clip is None or (isinstance(clip, (int, float)) and not isinstance(clip, bool) and 0 < clip < math.inf)
        require(good, f"clip must be a number above 0 or none, got {notate(clip)}")
        require(isinstance(self.stagger, bool), f"stagger must be true or false, got {notate(self.stagger)}")
        for name, kind in (
            ("optimizer", Optimizer),
            ("objective", Objective),
            ("gradient", Estimator),
            ("nonfinite", NonFinite),
        ):
            value = getattr(self, name)
            require(isinstance(value, kind), f"{name} must be {_article(kind)}, got {notate(value)}")

    @property
    def life(self) -> int | None:
        """The horizon with ``auto`` resolved: updates from a start to the next restart, or None."""
        if self.horizon == "auto":
            return 5 * self.unroll if self.unroll > 1 else None
        return self.horizon

    @property
    def reach(self) -> int:
        """Updates that a window runs: ``ahead``, or the unroll."""
        return self.ahead or self.unroll

    def over(self, problem: Problem) -> Laid:
        """This level laid over ``problem``: itself a problem, whose parameters are the optimizer's."""
        return Laid(self, problem)

    def __repr__(self) -> str:
        settings = {k: v for k, v in changed_settings(self).items() if k not in ("optimizer", "unroll")}
        brackets = ", ".join(f"{key}={notate(value)}" for key, value in settings.items())
        return f"{self.optimizer}@{self.unroll}" + (f"[{brackets}]" if brackets else "")


def changed_settings(level: Level) -> dict[str, object]:
    """Settings of a level that differ from the defaults, by name."""
    return {
        field.name: getattr(level, field.name)
        for field in dataclasses.fields(level)
        if notate(getattr(level, field.name)) != notate(field.default)
    }


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _article(kind: type) -> str:
    return ("an " if kind.__name__[0] in "AEIO" else "a ") + kind.__name__
