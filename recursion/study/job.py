"""One run of a study, from nothing to its rows, and the process that carries it out.

A tower that learns an optimizer is trained, and what it learned is used (`recursion.study.learning`). A tower that is
an optimizer itself is run on each problem. A hand-made optimizer is tuned. Each piece is made once and stored in the
folder, and a run that was killed goes on from there. It works on one thread and without a compiler, so its rows are the
same whenever it is repeated, but for seconds and bytes.

The process is `main`, with the pickled run and job, in hexadecimal digits, as its argument. It holds a lock on the
folder of its run: two processes never write to one. Its standard output has a JSON line for each message; what a run
prints goes to its standard error, which the pool appends to ``output.log``. When its standard input closes, because the
pool wants it to stop or is gone, the run is interrupted, keeps its state, and ends.
"""

import _thread
import contextlib
import errno
import faulthandler
import json
import os
import pickle
import platform
import resource
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from levels.base import Optimizer, Problem
from levels.hyper import HyperparamOptimizer
from levels.tasks.task import Task
from recursion.analysis.work import Work, lived_work
from recursion.evaluation import afresh
from recursion.evaluation.baselines import BASELINES
from recursion.files import is_users, reason
from recursion.notation import parse
from recursion.study import records
from recursion.study.bench import LEARNING, Bench, Row, Tell, parameters, row, rows_of
from recursion.study.learning import Learning
from recursion.study.request import Request, Run, plain
from recursion.study.search import search
from recursion.tower import Tower

PERFORM = "recursion.study.job.perform"
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # every other run would meet it too
PATIENCE = 30.0  # seconds that an interrupted run has to keep its state
OFTEN = 0.25  # seconds between two messages of progress


def perform(run: Run, request: Request, folder: Path, tell: Tell) -> dict[str, Any]:
    """One run from where its folder left off: ``rows`` and ``facts``; plain JSON.

    ``tell(what, fraction)`` hears of each step. Killed at any moment and called again, it ends with the same rows,
    seconds and bytes apart. Raises ValueError for a budget that is too small and for a folder of another run;
    NonFiniteError if training diverged before its first snapshot; OSError if the folder cannot be written.
    """
    with contextlib.ExitStack() as stack:
        stack.callback(torch.set_num_threads, torch.get_num_threads())
        torch.set_num_threads(1)
        tell("measuring", 0.0)
        store, ours = records.Store(folder), {"run": plain(run), "request": plain(request)}
        if store.numbers("of", lambda: ours) != ours:
            raise ValueError(f"{folder} holds a run of something else; choose another folder, or delete it")
        tower = parse(run.tower)
        if not isinstance(tower.task, Task):
            raise TypeError(f"a study needs a task with held-out splits, got {tower.task!r}")
        bench = Bench(tower.task, request, store, tell)
        if run.kind == "search":
            rows, facts = _tuned(run, tower, bench)
        elif afresh.is_optimizer(tower):
            rows, facts = _itself(run, tower, bench)
        else:
            rows, facts = Learning(run, tower, bench).perform()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0  # most bytes that this process ever had
        rows += [*bench.ledger(), row("training", "peak bytes", peak)]
        tell("done", 1.0)
        return {"rows": rows, "facts": facts | {"spent": bench.spent()}}


def _tuned(run: Run, tower: Tower, bench: Bench) -> tuple[list[Row], dict[str, Any]]:
    """A hand-made optimizer, or the best of some, with step size and schedule searched for the whole budget."""
    every: Sequence[Optimizer] = [tower.levels[0].optimizer] if run.depth else list(BASELINES.values())
    best = bench.store.numbers("search", lambda: _searched(run, every, bench))
    bench.book("search", Work(best["gradients"], (best["work"],)), best["seconds"])
    chosen = parse(f"{bench.task!r}: {best['setting']}").levels[0].optimizer
    start = next((one for one in every if repr(one) == "adam"), every[0])
    rows = [*bench.reported("start", "start", start, parameters(start, bench.task))]
    rows += bench.reported("chosen", "chosen", chosen, parameters(chosen, bench.task))
    rows += bench.use_rows(chosen, parameters(chosen, bench.task), set())
    return rows, {"steps": 0, "chosen": 0} | {name: best[name] for name in ("setting", "tried", "ended")}


def _searched(run: Run, every: Sequence[Optimizer], bench: Bench) -> dict[str, Any]:
    request, began = bench.request, time.process_time()
    in_seconds, first = request.budget.unit == "seconds", list[float]()

    def over() -> bool:
        first.append(time.process_time())  # the clock starts with the first run; what is loaded before is not charged
        return in_seconds and first[-1] - first[0] >= request.budget.amount

    searched = search(
        [each for each in every if isinstance(each, HyperparamOptimizer)], bench.task, bench.key("select"),
        steps=request.steps, budget=1e15 if in_seconds else request.budget.amount, method=request.search, seed=run.seed,
        tell=lambda what, fraction: bench.tell(what, LEARNING * fraction), work=bench.work_of, over=over,
    )  # fmt: skip
    return searched._asdict() | {"tried": len(searched.scores), "seconds": time.process_time() - began}


def _itself(run: Run, tower: Tower, bench: Bench) -> tuple[list[Row], dict[str, Any]]:
    """A tower that is an optimizer: nothing to train."""
    lived, steps = lived_work(afresh.alone(tower)), bench.request.steps
    work = lived.start.plus(lived.step, steps + 1 - tower.depth)

    def use(task: Problem, key: Tensor, steps: int = steps) -> Tensor:
        return afresh.run_afresh(tower, task, len(key), steps, seed=run.seed, theta=None, key=key).losses

    def losses(split: str) -> Tensor:
        return bench.losses("afresh", "reporting", split, work.plus(work, len(bench.key(split)) - 1), use)

    task, one = bench.task.on("test"), bench.key("report")[:1]
    rows = [*rows_of("chosen", losses)]
    rows += bench.last_rows(sum(lived.step.optimizer), lambda steps: use(task, one, steps + tower.depth), set())
    return rows, {"steps": 0, "chosen": 0, "setting": str(tower), "ended": ""}


class Job(NamedTuple):
    """What all runs share: the request, the study's folder, and the dotted name of the function that performs one."""

    request: Request
    folder: Path
    perform: str = PERFORM


def main() -> None:
    """Carry out the run in ``sys.argv``."""
    run, job = pickle.loads(bytes.fromhex(sys.argv[1]))
    messages = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # it is ignored in a command that runs in the background
    faulthandler.enable()
    threading.Thread(target=_end_with_input, daemon=True).start()
    last: tuple[str, float] = "", 0.0

    def say(*message: object) -> None:
        with contextlib.suppress(BrokenPipeError):
            messages.write(json.dumps(message) + "\n")

    def tell(what: str, fraction: float) -> None:
        nonlocal last
        if what != last[0] or time.monotonic() - last[1] >= OFTEN:
            last = what, time.monotonic()
            say("at", what, fraction)

    with contextlib.suppress(KeyboardInterrupt):
        message = carry_out(run, job, tell)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        say(*message)


def carry_out(run: Run, job: Job, tell: Callable[[str, float], None]) -> tuple[object, ...]:
    """Carry out a run from where it was left, write its result if it ends well, and return the last message."""
    try:
        place = records.run_folder(job.folder, run)
        problem = f"another process is at work in {place}; stop it, then run this again"
        with records.locked(place, 2 * PATIENCE, problem):  # a process that was stopped a moment ago may hold it
            torch.set_num_threads(1)
            home, _, name = job.perform.rpartition(".")
            started, began = datetime.now(UTC).isoformat(timespec="seconds"), time.monotonic()
            done = getattr(import_module(home), name)(run, job.request, place, tell)
            about = surroundings() | {"started": started, "seconds": time.monotonic() - began}
            records.finish(job.folder, run, done | {"about": about})
    except Exception as error:
        traceback.print_exc()
        text, kind = reason(error), type(error).__name__
        return "failed", text if is_users(error) or text == kind else f"{kind}: {text}", 0.0, on_disk(error)
    return ("done",)


def surroundings() -> dict[str, Any]:
    """Versions and machine."""
    processor = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return {
        "version": version("descent-tower"), "torch": str(torch.__version__), "python": platform.python_version(),
        "machine": f"{platform.node()}, {processor}", "threads": torch.get_num_threads(),
    }  # fmt: skip


def on_disk(error: BaseException | None) -> bool:
    """Whether an error, or its cause, is a disk that takes nothing more."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in DISK:
            return True
        error = error.__cause__ or error.__context__
    return False


def _end_with_input() -> None:
    """End this process when its standard input closes."""
    os.read(0, 1)
    _thread.interrupt_main()
    time.sleep(PATIENCE)
    os._exit(1)
