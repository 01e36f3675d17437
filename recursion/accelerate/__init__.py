"""Accelerate: the same tower, faster. No twin stands here yet, so every tower takes the plain way."""

from recursion.tower import Tower


def accelerate(tower: Tower) -> Tower:
    """A tower with the same states and reports whose steps are faster where there is a twin for them."""
    return tower


def repays(tower: Tower, steps: int) -> bool:
    """Whether a run of so many steps is long enough to repay what accelerating it costs."""
    return False
