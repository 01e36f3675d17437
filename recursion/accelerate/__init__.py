"""Accelerate: twins of parts and of whole towers, which answer what the plain ones answer, faster.

fast = accelerate(tower)
state, report = fast.step(state)
"""

from recursion.accelerate.tower import accelerate
from recursion.tower import Tower

__all__ = ["accelerate", "repays"]


def repays(tower: Tower, steps: int) -> bool:
    """Whether a run of so many steps is long enough to repay what accelerating it costs."""
    return False
