"""Metering: what each level of a tower does in one top step, without what the levels below it do.

    operations = Operations()
    (measured,) = measure(tower, Pass(operations, lambda: operations.count))

A reading is any number that grows: operations counted, seconds of the processor. Its gain in a call of a level or the
task is booked to it, less what was booked below. Peaks of living bytes are booked alike: those of a level's window,
less those of the largest window below.
"""

import math
import re
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from levels import keys, restart
from levels.autodiff import as_data
from levels.base import LevelState, Problem
from levels.faults import Skip
from levels.fields import unwritten
from levels.level import Level
from recursion.evaluation.observed import Observed, Tally
from recursion.tower import Tower

COPIES = 8  # on which a base step and an update are measured; members of a mixture differ
ASIDE = -1  # where whole episodes from scratch are booked
FREE = re.compile(
    r"\w+::(new_)?(empty|zeros|ones|full|_unsafe_view|scalar_tensor|lift_fresh_copy|arange)(_like|_strided)*"
)


class LiveBytes(TorchDispatchMode):
    """Within this context: ``bytes`` and ``count`` of storages first used in it that are alive, and ``peak`` bytes.

    Every storage that a torch operation returns, also as a view, is counted from then until it is freed; scratch space
    inside one operation is not. So numbers do not depend on the machine.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = self.count = self.peak = 0
        self._known: dict[int, Any] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        returned = function(*args, **(kwargs or {}))
        for tensor in returned if isinstance(returned, (tuple, list)) else (returned,):
            if isinstance(tensor, torch.Tensor):
                self._add(tensor.untyped_storage())
        return returned

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        for finalizer in list(self._known.values()):
            finalizer.detach()

    def reset_peak(self) -> Self:
        """Let the peak be what is alive now."""
        self.peak = self.bytes
        return self

    def _add(self, storage: torch.UntypedStorage) -> None:
        if id(storage) in self._known:
            return
        size = storage.nbytes()
        self.bytes, self.count = self.bytes + size, self.count + 1
        self.peak = max(self.peak, self.bytes)
        self._known[id(storage)] = weakref.finalize(storage, self._remove, id(storage), size)

    def _remove(self, name: int, size: int) -> None:
        del self._known[name]
        self.bytes, self.count = self.bytes - size, self.count - 1


class Operations(TorchDispatchMode):
    """Within this context, ``count`` operations, as `recursion.analysis.work` defines them."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0.0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        returned = function(*args, **(kwargs or {}))
        packet = function._overloadpacket
        if packet in flop_registry:
            self.count += flop_registry[packet](*args, **(kwargs or {}), out_val=returned)
        elif not function.is_view and not FREE.fullmatch(function._schema.name):
            self.count += _written(args[0] if returned is None and args else returned)
        return returned


def _written(returned: Any) -> int:
    if isinstance(returned, Tensor):
        return returned.numel()
    return sum(map(_written, returned)) if isinstance(returned, (tuple, list)) else 0


def base_flops(task: Problem) -> float:
    """Operations of one gradient of the task for one copy."""
    for_x, for_state = keys.split(keys.split(keys.seed(0, device=task.layout.device), COPIES), 2).unbind(-1)
    with torch.no_grad():
        x = task.init(for_x)
        _, _, state = task.value_and_grad(x, task.init_state(x, for_state))
        with Operations() as operations:
            task.value_and_grad(x, state)
    return float(operations.count / COPIES)


class Pass(NamedTuple):
    """One measurement of a step of a tower."""

    within: AbstractContextManager[object]  # the step runs in this context
    reading: Callable[[], float]  # whose gain is booked
    live: LiveBytes | None = None  # counts bytes, if they are wanted


class Measured(NamedTuple):
    """Of the task (place 0) and each level, without what is below."""

    own: tuple[float, ...]  # gain of the reading in one window of one copy
    peaks: tuple[int, ...]  # most bytes of tensors alive at once in a window of all copies

    def work(self, tower: Tower) -> tuple[float, ...]:
        """`recursion.analysis.work.own_work`, if operations were read."""
        unit = base_flops(tower.task)
        return tuple(each / unit for each in self.own[1:])


def measure(tower: Tower, *passes: Pass) -> list[Measured]:
    """What each pass measures in the tower's first top step, at its own shapes.

    Nothing that is counted depends on a seed, or on whether numbers are finite.
    """
    meter = Meter()
    problem: Problem = Observed(tower.task, meter)
    for number, level in enumerate(tower.levels, 1):
        given = {field.name: getattr(level, field.name) for field in fields(level) if field.init}
        problem = _Metered(**given | {"nonfinite": Skip()}, number=number, meter=meter).over(problem)
    assert isinstance(problem, Level)
    top, passed, device = problem, [], problem.layout.device
    evaluate = partial(as_data, outer=False, grad=top.optimizer.traits.reads_grad)
    with torch.no_grad():
        theta = top.init(keys.seed(0, device=device))
        carry = restart.started(top, theta, keys.seed(1, device=device))
        top.optimizer.update(theta, carry.x, carry.state, carry.f, carry.g)  # first calls may do more
        meter.starting = False
        for look in passes:
            meter.reset(look)
            with look.within, meter.at(tower.depth, 1):
                restart.run(top, theta, carry, evaluate, keep=False)
            passed.append(meter.measured(tower.depth))
    return passed


class Meter(Tally):
    """Books what a reading gains in a call of a level, less what it gains in calls of the levels below.

    It observes the task (place 0); levels report by `at`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.starting = True  # while levels answer without running a window
        self.reset(Pass(nullcontext(), lambda: 0.0))

    def reset(self, look: Pass) -> None:
        """Forget everything, and measure by ``look``."""
        self.reading, self.live = look.reading, look.live
        self.own: defaultdict[int, float] = defaultdict(float)
        self.windows: defaultdict[int, float] = defaultdict(float)
        self.peaks: defaultdict[int, int] = defaultdict(int)
        self.inside = 0.0  # gained below, since the present call began

    def measured(self, depth: int) -> Measured:
        """What was booked, the task and ``depth`` levels."""
        peaks = [self.peaks[place] for place in range(depth + 1)]
        own = tuple(self.own[place] / max(1.0, self.windows[place]) for place in range(depth + 1))
        return Measured(own, tuple(max(0, peak - under) for peak, under in zip(peaks, [0, *peaks])))

    @contextmanager
    def at(self, place: int, windows: float) -> Iterator[None]:
        """The level in this place is called for so many windows."""
        outer, self.inside = self.inside, 0.0
        before, alive, most = self.reading(), 0, 0
        if self.live is not None:
            alive, most = self.live.bytes, self.live.peak
            self.live.reset_peak()
        try:
            yield
        finally:
            gained = self.reading() - before
            self.own[place] += gained - self.inside
            self.windows[place] += windows
            self.inside = outer + gained
            if self.live is not None:
                self.peaks[place] = max(self.peaks[place], self.live.peak - alive)
                self.live.peak = max(most, self.live.peak)

    def asked(self, gradients: float) -> AbstractContextManager[object]:
        return self.at(0, gradients)


@dataclass(frozen=True, kw_only=True, repr=False)
class _Metered(Level):
    """A level whose windows are booked."""

    number: int = unwritten(0)
    meter: Meter = unwritten(None)

    def value_and_grad(self, params: Tensor, state: LevelState) -> tuple[Tensor, Tensor, LevelState]:
        if self.meter.starting:
            return torch.ones_like(params[..., 0]), params, state
        with self.meter.at(self.number, math.prod(params.shape[:-1])):
            return super().value_and_grad(params, state)

    def value(self, params: Tensor, state: LevelState) -> tuple[Tensor, LevelState]:
        with self.meter.at(self.number, math.prod(params.shape[:-1])):
            return super().value(params, state)

    def evaluate_from_scratch(self, params: Tensor, key: Tensor) -> Tensor:
        with self.meter.at(ASIDE, 1):
            return super().evaluate_from_scratch(params, key)
