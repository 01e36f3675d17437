"""A job that counts, or goes wrong as the file ``plan.json`` in the ablation's folder says."""

import errno
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from recursion.files import replace_file
from recursion.study.request import Request, Run

NAME = "fake_job.perform"


def perform(run: Run, request: Request, folder: Path, tell: Callable[[str, float], None]) -> dict[str, Any]:
    plan = folder.parent.parent / "plan.json"
    does = json.loads(plan.read_text()).get(run.id, "count") if plan.exists() else "count"
    with (folder / "sessions").open("a") as file:
        file.write(f"{os.getpid()} {torch.get_num_threads()}\n")
    sys.stdout.write(f"{run.id} begins\n")
    _go_wrong(does, folder)
    steps = request.steps
    kept = folder / "step"
    step = int(kept.read_text()) if kept.exists() else 0
    try:
        while step < steps:
            time.sleep(0.01 if does == "count" else 0.1)
            step += 1
            tell("counts", step / steps)
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
    if does == "raise":
        raise ZeroDivisionError("a bug\nin two lines")
    if does == "refuse":
        raise ValueError("level 1 (lstm@5): gradient is not finite")
    if does == "memory":
        raise MemoryError
    if does == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    if does == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if does == "exit":
        os._exit(3)
    if does == "full":
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as error:
            raise OSError(f"cannot write {folder}: {error.strerror}") from error
