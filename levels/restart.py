"""What a level does when a loss or gradient below it is not finite: stop and say where, or skip and count.

A window is vetted once, when it has run. `Stop` raises. `Skip` treats a copy that went wrong as one that stood
still: its losses are those that it began with, it moves no gradient, and it starts afresh in the next window.

To look at a number is to wait for it. Where every level stops, who runs them may put the looking off (`put_off`), look
once at all that was noted, and, if something is not finite, run them again to hear where.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor

from levels.autodiff import differentiated
from levels.config import Config


class NonFiniteError(ArithmeticError):
    """A loss or gradient is not finite. ``source`` is the laid level that saw it; a tower adds its number."""

    def __init__(self, source: object, what: str, fix: str) -> None:
        super().__init__(f"{what}; {fix}")
        self.source, self.what, self.fix = source, what, fix


class NonFinite(Config):
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


class Noted:
    """A running sum of answers, in which what is not finite stays."""

    def __init__(self) -> None:
        self.total: Tensor | None = None  # scalar

    def add(self, answer: Tensor) -> None:
        """Take an answer of any shape in."""
        one = answer.sum() if answer.numel() > 1 else answer.reshape(())
        self.total = one if self.total is None else self.total + one

    def finite(self) -> bool:
        """Whether all answers were finite (a false alarm if their sum is not)."""
        return self.total is None or math.isfinite(self.total.item())


_noted: ContextVar[Noted | None] = ContextVar("_noted", default=None)


def finite(*answers: Tensor) -> bool:
    """Whether all numbers are finite (a false alarm if their sum is not); within `put_off` they are noted instead."""
    noted = _noted.get()
    if noted is None or differentiated():
        return math.isfinite(torch.stack([answer.sum() for answer in answers]).sum().item())
    for answer in answers:
        noted.add(answer)
    return True


def looking_is_put_off() -> bool:
    """Whether `finite` notes what it is given, rather than look."""
    return _noted.get() is not None and not differentiated()


class put_off:  # noqa: N801, used as a verb
    """Within this context `finite` says yes to everything and notes it in what this yields."""

    def __enter__(self) -> Noted:
        noted = Noted()
        self.before = _noted.set(noted)
        return noted

    def __exit__(self, *_: object) -> None:
        _noted.reset(self.before)


@contextmanager
def looked_at() -> Iterator[None]:
    """Within this context `finite` looks at what it is given, whatever is put off around it."""
    before = _noted.set(None)
    try:
        yield
    finally:
        _noted.reset(before)
