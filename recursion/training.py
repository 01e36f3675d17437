"""Training: step a tower, keep its state safe, write down what happened.

    state = train(tower, steps=500, seed=0, out="runs/first")
    state = train(tower, steps=800, seed=0, out="runs/first", resume=True)

A run folder holds ``spec.json`` (the tower in full), ``checkpoint.safetensors`` (the last state that was kept),
``metrics.jsonl`` and TensorBoard events, see `recursion.metrics`. Everything random comes from keys in the state, so
a run that was interrupted and resumed equals one that was not, bit for bit on one CPU with as many threads.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from levels import captured, native
from levels.compiled import compiling, has_compiler, is_compiling
from levels.gradients.exact import Exact
from levels.optimizers import cells_native
from recursion import checkpoint, fused
from recursion.files import explained, replace_file
from recursion.metrics import Metrics
from recursion.running import Running
from recursion.tower import Report, Tower, TowerState

CHECKPOINT = "checkpoint.safetensors"
SPEC = "spec.json"
REPAID = 10**8  # coordinates of the task updated in all, where torch compiles for tens of seconds
REPAID_NATIVE = 4 * 10**6  # coordinates updated by rules in C++: each saves 0.2 to 2 us, and building takes two seconds
EACH_UPDATE = 300  # how many coordinates more an update saves as much as: 0.3 ms, however few it is of
REPAID_FUSED = 10**5  # updates of levels where a step is compiled whole: each saves 0.06 ms or more


def train(
    tower: Tower,
    *,
    steps: int,
    seed: int,
    out: str | Path,
    resume: bool = False,
    every: float = 10.0,
    compile: bool | Literal["auto"] = "auto",  # noqa: A002, it is what the option is called
    on_report: Callable[[Report], None] | None = None,
    on_notice: Callable[[str], None] | None = None,
) -> TowerState:
    """Train to ``steps`` steps of the topmost level in all, and return the state there.

    ``seed``: any integer of 64 bits. ``out``: the run folder, made if need be. ``resume``: go on from the folder's
    checkpoint if it has one; a run that is already there is left as it is. ``every``: seconds between checkpoints, at
    least 0. ``compile``: whether to compile what can be (`levels.compiled`); ``auto`` if the run is long enough to
    repay it, see `repays_compiling`, and there is a compiler that can. On a GPU windows are recorded instead
    (`levels.captured`), which every run repays. ``on_report`` hears of each step, ``on_notice`` of what a user should
    know, in a sentence.

    Whatever ends a run early (KeyboardInterrupt, `NonFiniteError`, any error), the last whole state is saved first.
    Raises ValueError for settings out of range, and for a folder that holds a run when ``resume`` is false, or one of
    another tower or seed when it is true; OSError, with path and reason, if something cannot be written: what was saved
    before then stays.
    """
    _check(steps, seed, every)
    folder, notice = Path(out), on_notice or _ignore
    there = tower.top.layout.device.type == captured.KIND
    fast = (there or _compiles(tower, steps, notice)) if compile == "auto" else compile
    if fast and not there:
        notice(f"compiling; the first step takes up to a {'few seconds' if _native(tower) else 'minute'} longer")
    with compiling(fast and not there), captured.capturing(fast and there):
        return _train(tower, steps, seed, folder, resume, every, on_report or _ignore, notice)


def repays_compiling(tower: Tower, steps: int) -> bool:
    """Whether a run updates coordinates of the task `REPAID` times, by a rule that compiles or under exact gradients;
    or, by rules that all are in C++, any coordinates `REPAID_NATIVE` times; or levels `REPAID_FUSED` times, where a
    step is compiled whole (`recursion.fused`).

    It depends on the tower and ``steps`` alone, so that a run is the same wherever and whenever it is repeated.
    """
    if fused.eligible(tower):
        return steps * tower.depth >= REPAID_FUSED
    if _native(tower):
        return steps * _native_updates(tower) >= REPAID_NATIVE
    copies = math.prod(laid.batch for laid in tower.bound_levels)
    updates = steps * tower.base_steps * copies * tower.task.layout.size
    learned = any(level.optimizer.compiles for level in tower.levels)
    traced = getattr(tower.task, "traceable", False)
    exact = traced and any(isinstance(level.gradient, Exact) for level in tower.levels)
    return updates >= REPAID and (learned or exact)


def _native(tower: Tower) -> bool:
    """Whether rules compile, and all that is compiled of them is in C++ (`levels.native`): not where a window is a
    single update, whose derivative `torch.compile` makes, nor under exact gradients."""
    layout, learned = tower.task.layout, [laid for laid in tower.bound_levels if laid.optimizer.compiles]
    single = any(laid.plain for laid in learned if laid is not tower.top)
    exact = any(isinstance(level.gradient, Exact) for level in tower.levels)
    return bool(learned) and not (single or exact) and native.suits(layout.device, layout.dtype)


def _native_updates(tower: Tower) -> int:
    """Coordinates that rules in C++ update in a step of the topmost level, with what an update counts beside."""
    total = 0
    for number, laid in enumerate(tower.bound_levels):
        if laid.optimizer.compiles:
            updates = math.prod(level.unroll for level in tower.levels[number:])
            copies = math.prod(above.batch for above in tower.bound_levels[number:])
            total += updates * (copies * laid.problem.layout.size + EACH_UPDATE)
    return total


def _compiles(tower: Tower, steps: int, notice: Callable[[str], None]) -> bool:
    """Whether ``auto`` compiles: if it is repaid and can be done."""
    if not (has_compiler() and repays_compiling(tower, steps)):
        return False
    if _native(tower):
        try:
            native.library(cells_native.SOURCE)
        except (OSError, ValueError) as error:
            notice(f"not compiling: {error}")
            return False
    return True


def _train(
    tower: Tower,
    steps: int,
    seed: int,
    folder: Path,
    resume: bool,
    every: float,
    on_report: Callable[[Report], None],
    notice: Callable[[str], None],
) -> TowerState:
    with explained("make the run folder", folder):
        folder.mkdir(parents=True, exist_ok=True)
    state, seconds = _begin(tower, seed, folder / CHECKPOINT, resume, notice)
    if int(state.step) >= steps:
        notice(f"{folder} is already at step {int(state.step)} of {steps}; nothing left to train")
        return state
    with Metrics(folder, keep=int(state.step)) as metrics:
        if metrics.kept < int(state.step):
            notice(f"{metrics.path} has no lines for steps {metrics.kept + 1} to {int(state.step)}")
        run = _Run(tower.running(state), seed, folder, metrics, time.monotonic() - seconds)
        run.describe()
        run.go(steps, every, on_report)
    return run.running.state


@dataclass
class _Run:
    """A run in progress: ``running`` is always the last whole state."""

    running: Running
    seed: int
    folder: Path
    metrics: Metrics
    began: float  # in time.monotonic(), as if there had been one session

    def go(self, steps: int, every: float, on_report: Callable[[Report], None]) -> None:
        """Step until ``steps``; save at the start, so that a bad disk shows at once, by the clock, and at the end."""
        self.save()
        saved = time.monotonic()
        try:
            while self.running.done < steps:
                on_report(self.advance())
                if time.monotonic() - saved >= every:
                    self.save()
                    saved = time.monotonic()
            self.save()
        except BaseException:
            self.save()
            raise

    def advance(self) -> Report:
        """One step. Its line of metrics comes first: resuming cuts a line without a state, but cannot invent one."""
        running, report = self.running.step()
        base_steps = int(report.step * running.tower.base_steps)
        self.metrics.write(report, base_steps=base_steps, seconds=time.monotonic() - self.began)
        self.running = running
        return report

    def save(self) -> None:
        """Keep the state, its metrics first."""
        self.metrics.flush()
        extra = {"seconds": time.monotonic() - self.began, "made with": _surroundings(self.running.tower)}
        running = self.running
        checkpoint.save(self.folder / CHECKPOINT, running.tower, running.state, seed=self.seed, extra=extra)

    def describe(self) -> None:
        """Write the tower's spec for people and for ``tower train``, if notation knows all its parts."""
        if checkpoint.spec_of(self.running.tower) is not None:
            from recursion.spec import dumps

            replace_file(self.folder / SPEC, dumps(self.running.tower).encode())


def _begin(
    tower: Tower, seed: int, path: Path, resume: bool, notice: Callable[[str], None]
) -> tuple[TowerState, float]:
    """The state to go on from, and the seconds that led to it."""
    with explained("read", path):
        exists = path.exists()
    if not exists:
        with compiling(False), captured.capturing(False):  # a few evaluations
            return tower.init(seed), 0.0
    if not resume:
        raise ValueError(f"{path.parent} already holds a run; resume it (--resume) or choose another folder (--out)")
    with compiling(False), captured.capturing(False):
        saved = checkpoint.load(path, tower)
    if saved.seed != seed:
        raise ValueError(f"{path.parent} holds a run with seed {saved.seed}, got seed {seed}; resume it with its own")
    before, now = saved.extra["made with"], _surroundings(tower)
    if before != now:
        notice(f"the run was made with {_in_words(before)}, it goes on with {_in_words(now)}: last digits may differ")
    return saved.state, float(saved.extra["seconds"])


def _surroundings(tower: Tower) -> dict[str, str]:
    """What rounding depends on beside the state."""
    surroundings = {"torch": str(torch.__version__), "threads": str(torch.get_num_threads())}
    device = tower.top.layout.device.type
    surroundings |= {} if device == "cpu" else {"device": device}
    return surroundings | {"updates": "compiled"} if is_compiling() else surroundings


def _in_words(surroundings: dict[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in surroundings.items())


def _check(steps: int, seed: int, every: float) -> None:
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
        raise ValueError(f"steps must be a whole number of at least 1, got {steps}")
    if not isinstance(seed, int) or isinstance(seed, bool) or not -(2**63) <= seed < 2**63:
        raise ValueError(f"seed must be a whole number of 64 bits, got {seed}")
    if not every >= 0:
        raise ValueError(f"every must be a number of seconds of at least 0, got {every}")


def _ignore(_: object) -> None:
    return None
