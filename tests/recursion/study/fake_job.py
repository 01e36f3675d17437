"""A job that counts, or goes wrong as ``plan.json`` in the study's folder says; and a pool without processes."""

import contextlib
import errno
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from recursion.files import replace_file
from recursion.study.records import run_folder
from recursion.study.request import Request, Run
from recursion.study.worker import Job, carry_out

PERFORM = "fake_job.perform"


def perform(run: Run, request: Request, folder: Path, tell: Callable[[str, float], None]) -> dict[str, Any]:
    plan = folder.parent.parent / "plan.json"
    does = json.loads(plan.read_text()).get(run.id, "count") if plan.exists() else "count"
    with (folder / "sessions").open("a") as file:
        file.write(f"{os.getpid()} {torch.get_num_threads()}\n")
    sys.stdout.write(f"{run.id} begins\n")
    _go_wrong(does, folder)
    kept = folder / "step"
    step = int(kept.read_text()) if kept.exists() else 0
    try:
        while step < request.steps:
            time.sleep(0.001 if request.steps < 100 else 0.01)
            step += 1
            tell("counts", step / request.steps)
            if step % 5 == 0:
                replace_file(kept, str(step).encode())
    except KeyboardInterrupt:
        replace_file(kept, str(step).encode())
        (folder / "interrupted").touch()
        raise
    value = float(len(run.id) * 1000 + run.seed) if run.seed else float("inf")
    rows = [["chosen", "report", None, problem, None, "mean loss", value + problem] for problem in range(3)]
    return {"rows": rows, "facts": {"steps": step, "budget": repr(request.budget)}}


def _go_wrong(does: str, folder: Path) -> None:
    match does:
        case "raise":
            raise ZeroDivisionError("a bug\nin two lines")
        case "refuse":
            raise ValueError("level 1 (lstm@5): gradient is not finite")
        case "segfault" | "kill":
            os.kill(os.getpid(), signal.SIGSEGV if does == "segfault" else signal.SIGKILL)
        case "exit":
            os._exit(3)
        case "full":
            try:
                raise OSError(errno.ENOSPC, "No space left on device")
            except OSError as error:
                raise OSError(f"cannot write {folder}: {error.strerror}") from error


class Here:
    """Carries runs out in this process, one after the other."""

    size = 1

    def connected(self) -> contextlib.AbstractContextManager[int]:
        return contextlib.nullcontext(1)

    def start(self, run: Run, job: Job) -> "Calling":
        return Calling(run, job)


class Calling:
    def __init__(self, run: Run, job: Job) -> None:
        self.run, self.job, self.messages = run, job, list[Any]()

    def __iter__(self) -> Iterator[Any]:
        run_folder(self.job.folder, self.run).mkdir(parents=True, exist_ok=True)
        end = carry_out(self.run, self.job, lambda what, fraction: self.messages.append(("at", what, fraction)))
        yield from [*self.messages, end]

    def stop(self, at_once: bool = False) -> None:
        pass
