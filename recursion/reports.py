"""What one step of a tower reports: plain numbers, or at which step something was not finite."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor

from levels.base import Carry
from levels.faults import NonFiniteError
from levels.level import Level


class Report(NamedTuple):
    """What one step reports, level 1 first."""

    step: int
    losses: list[float]  # of the problem below each level, mean over copies (for the topmost: over its window too)
    skipped: list[int]  # copies skipped so far at each level, as not finite
    metrics: Mapping[str, float] = MappingProxyType({})  # of parts, as "level 2 refused", mean over copies


def report_of(levels: Sequence[Level], carries: Sequence[Carry], losses: Tensor, step: int) -> Report:
    """The report of bound ``levels`` after a step that led to ``carries``; ``losses``: of the topmost window.

    Waits for the device once.
    """
    numbers: dict[str, Tensor] = {}
    for number, (level, carry) in enumerate(zip(levels, carries), 1):
        numbers |= {f"level {number} {name}": one for name, one in level.optimizer.metrics(carry.state).items()}
        if number < len(carries):
            metrics = level.gradient.metrics(carries[number].problem_state)
            numbers |= {f"level {number} {name}": one for name, one in metrics.items()}
    means = [*(carry.f for carry in carries[:-1]), losses, *numbers.values()]
    sums = [one.double().sum() for one in (*means, *(carry.skipped for carry in carries))]
    total = torch.stack(sums).tolist()
    values = [one / mean.numel() for one, mean in zip(total, means)]
    skipped = [int(one) for one in total[len(means) :]]
    return Report(step, values[: len(carries)], skipped, MappingProxyType(dict(zip(numbers, values[len(carries) :]))))


@contextmanager
def at_step(step: int) -> Iterator[None]:
    """Without a graph; a `NonFiniteError` gets the step, which levels do not know."""
    try:
        with torch.inference_mode(False), torch.no_grad():
            yield
    except NonFiniteError as error:
        raise NonFiniteError(error.level, error.what, error.fix, step) from error
