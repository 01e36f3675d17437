"""What a level does when a loss or gradient below it is not finite: stop and say where, or skip and count.

A window is vetted once, when it has run. `Stop` raises. `Skip` treats a copy that went wrong as one that stood
still: its losses are those that it began with, it moves no gradient, and it starts afresh in the next window.
"""

from abc import abstractmethod
from dataclasses import dataclass

from levels.part import Part


class NonFiniteError(ArithmeticError):
    """A loss or gradient is not finite. ``source`` is the laid level that saw it; a tower adds its number."""

    def __init__(self, source: object, what: str, fix: str) -> None:
        super().__init__(f"{what}; {fix}")
        self.source, self.what, self.fix = source, what, fix


class NonFinite(Part):
    """Policy; abstract."""

    @abstractmethod
    def handle(self, source: object, what: str, fix: str) -> None:
        """Raise, or return to have the copies concerned skipped and counted."""


@dataclass(frozen=True, repr=False)
class Stop(NonFinite):
    """Raise `NonFiniteError` with the level, what was not finite, and what to change."""

    name = "stop"

    def handle(self, source: object, what: str, fix: str) -> None:
        raise NonFiniteError(source, what, fix)


@dataclass(frozen=True, repr=False)
class Skip(NonFinite):
    """Go on without the copies concerned; each window in which a copy was skipped adds one to its count."""

    name = "skip"

    def handle(self, source: object, what: str, fix: str) -> None:
        return None
