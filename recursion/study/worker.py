"""Worker: a process that carries out runs, one after the other, for a parent on the other end of a pipe.

It runs on one thread, so that the numbers are the same wherever it runs. It dies with its parent, whatever ends that,
and holds a lock on the folder of its run: two processes never write to one. What a run prints, and the traceback of
one that fails, go to ``output.log`` in its folder. Its result is written whole, to ``result.json``.
"""

import contextlib
import ctypes
import errno
import faulthandler
import fcntl
import functools
import json
import os
import platform
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from importlib import import_module
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from recursion.files import explained, replace_file
from recursion.study.request import Request, Run

RESULT = "result.json"
LOG = "output.log"
FORMAT = "descent-tower result"
VERSION = 1
PERFORM = "recursion.study.job.perform"
THREADS = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # every other run would meet it too
PATIENCE = 60.0  # seconds for a killed process to let go of a folder
AT, ENDED = "at", "ended"  # what a message is about
OFTEN = 0.25  # seconds between two reports of progress
PDEATHSIG = 1  # of prctl(2)

Tell = Callable[[str, float], None]


class Job(NamedTuple):
    """What is the same for all runs: the request as JSON, the ablation's folder, and what performs a run, dotted."""

    request: str
    folder: str
    perform: str = PERFORM


class Outcome(NamedTuple):
    """How a run ended: well if ``why`` is None. ``everywhere``: whether all runs would end so, as on a full disk."""

    why: str | None = None
    everywhere: bool = False


def main() -> None:
    """Carry out runs as they come through the pipe, until it is closed."""
    mail, life = (int(word) for word in sys.argv[1:])
    _die_with_parent(life)
    faulthandler.enable()
    with contextlib.suppress(KeyboardInterrupt, EOFError, BrokenPipeError):
        connection = Connection(mail)
        job = Job(*connection.recv())
        while True:
            text = connection.recv()
            outcome = carry_out(text, job, lambda what, fraction: connection.send((AT, what, fraction)))
            connection.send((ENDED, *outcome))


def carry_out(text: str, job: Job, tell: Tell) -> Outcome:
    """Carry out a run, given as JSON, from where it was left; its result is in its folder if it ends well."""
    run = Run.from_json(text)
    folder = run_folder(Path(job.folder), run)
    try:
        with explained("make the run folder", folder):
            folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder), _output_to(folder / LOG):
            return _carry_out(run, job, folder, _seldom(tell))
    except OSError as error:
        return Outcome(_reason(error), _on_disk(error))


def _carry_out(run: Run, job: Job, folder: Path, tell: Tell) -> Outcome:
    if read_result(folder, run, job.request) is not None:
        return Outcome()
    try:
        import torch

        torch.set_num_threads(1)
        home, _, name = job.perform.rpartition(".")
        perform = getattr(import_module(home), name)
        started, began = datetime.now(UTC).isoformat(timespec="seconds"), time.monotonic()
        found = perform(run, _request(job.request), folder, tell)
        about = _surroundings() | {"started": started, "seconds": time.monotonic() - began}
        write_result(folder, run, job.request, found | {"about": about})
    except Exception as error:
        traceback.print_exc()
        return Outcome(_reason(error), _on_disk(error))
    return Outcome()


def run_folder(folder: Path, run: Run) -> Path:
    """Where a run of the ablation in ``folder`` lives."""
    return folder / "runs" / run.id


def write_result(folder: Path, run: Run, request: str, result: dict[str, Any]) -> None:
    """Write a run's ``rows``, ``facts`` and ``about``."""
    envelope = {"format": FORMAT, "version": VERSION, "run": run.to_json(), "request": request}
    replace_file(folder / RESULT, json.dumps(envelope | result).encode())


def read_result(folder: Path, run: Run, request: str) -> dict[str, Any] | None:
    """A run's result, if there is one of this very run of this very request."""
    try:
        found = json.loads((folder / RESULT).read_bytes())
        ours = (found["format"], found["version"], Run.from_json(found["run"])) == (FORMAT, VERSION, run)
        whole = ours and {"rows", "facts", "about"} <= found.keys()
        return dict(found) if whole and json.loads(found["request"]) == json.loads(request) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


@functools.cache
def _request(text: str) -> Request:
    return Request.from_json(text)


def _surroundings() -> dict[str, Any]:
    import torch

    return {
        "version": version("descent-tower"),
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "machine": f"{platform.node()}, {_processor()}",
        "threads": torch.get_num_threads(),
    }


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _reason(error: Exception) -> str:
    """What went wrong, in one line; with the kind of error where its message would not make sense alone."""
    from recursion.cli import is_users, reason

    said, kind = reason(error), type(error).__name__
    return said if is_users(error) or said == kind else f"{kind}: {said}"


def _on_disk(error: BaseException | None) -> bool:
    """Whether an error, or what it came from, is a disk that takes nothing more."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in DISK:
            return True
        error = error.__cause__ or error.__context__
    return False


def _seldom(tell: Tell) -> Tell:
    """``tell``, at most every `OFTEN` seconds for one thing."""
    last: list[Any] = ["", 0.0]

    def told(what: str, fraction: float) -> None:
        now = time.monotonic()
        if what != last[0] or now - last[1] >= OFTEN:
            last[:] = what, now
            tell(what, fraction)

    return told


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; a process that was killed a moment ago may still hold it."""
    with (folder / ".lock").open("w") as file:
        end = time.monotonic() + PATIENCE
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > end:
                    raise OSError(f"another process is at work in {folder}; stop it, then run this again") from None
                time.sleep(0.05)
        yield


@contextlib.contextmanager
def _output_to(path: Path) -> Iterator[None]:
    """Have all that is printed, by C code too, appended to a file."""
    before = [os.dup(number) for number in (1, 2)]
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        for number in (1, 2):
            os.dup2(file, number)
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, kept in zip((1, 2), before):
            os.dup2(kept, number)
            os.close(kept)
        os.close(file)


def _die_with_parent(life: int) -> None:
    """End this process when the parent ends, however it does: the other end of the pipe ``life`` is closed then.

    On Linux the kernel is asked too, which also works while this process is in the middle of a long operation.
    """
    parent = os.getppid()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)

    def watch() -> None:
        os.read(life, 1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    main()
