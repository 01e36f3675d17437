"""The process that carries out one run: `main`, with the pickled run and job, in hexadecimal digits, as its argument.

It works on one thread, so that the numbers are the same wherever it runs, and holds a lock on the folder of its run:
two processes never write to one. Its standard output has a JSON line for each message; what a run prints goes to its
standard error, which the pool appends to ``output.log``. When its standard input closes, because the pool wants it to
stop or is gone, the run is interrupted, keeps its state, and ends.
"""

import _thread
import contextlib
import errno
import faulthandler
import json
import os
import pickle
import platform
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch

from recursion.files import is_users, reason
from recursion.study import records
from recursion.study.request import Request, Run

PERFORM = "recursion.study.job.perform"
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # every other run would meet it too
PATIENCE = 30.0  # seconds that an interrupted run has to keep its state
OFTEN = 0.25  # seconds between two messages of progress


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
