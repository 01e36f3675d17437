"""A job that counts, or goes wrong as ``plan.json`` in the study's folder says; and a pool without processes."""

import contextlib
import errno
import json
import os
import signal
import sys
import time

import torch

from recursion.files import replace_file
from recursion.study.job import carry_out
from recursion.study.records import run_folder

PERFORM = "fake_job.perform"


def perform(run, request, folder, tell):
    plan = folder.parent.parent / "plan.json"
    does = json.loads(plan.read_text()).get(run.id, "count") if plan.exists() else "count"
    with (folder / "sessions").open("a") as file:
        file.write(f"{os.getpid()} {torch.get_num_threads()}\n")
    sys.stdout.write(f"{run.id} begins\n")
    _go_wrong(does, folder)
    path = folder / "step"
    step = int(path.read_text()) if path.exists() else 0
    try:
        while step < request.steps:
            time.sleep(0.001 if request.steps < 100 else 0.01)
            step += 1
            tell("counts", step / request.steps)
            if step % 5 == 0:
                replace_file(path, str(step).encode())
    except KeyboardInterrupt:
        replace_file(path, str(step).encode())
        (folder / "interrupted").touch()
        raise
    value = float(len(run.id) * 1000 + run.seed) if run.seed else float("inf")
    rows = [["chosen", "report", None, problem, None, "mean loss", value + problem] for problem in range(3)]
    return {"rows": rows, "facts": {"steps": step, "budget": repr(request.budget)}}


def _go_wrong(does, folder):
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
            raise OSError(f"cannot write {folder}: No space left on device") from OSError(errno.ENOSPC, "")


class Here:
    """Carries runs out in this process, one after the other."""

    size = 1

    def connected(self):
        return contextlib.nullcontext(1)

    def start(self, run, job):
        run_folder(job.folder, run).mkdir(parents=True, exist_ok=True)
        messages = Messages()
        messages.append(carry_out(run, job, lambda what, fraction: messages.append(("at", what, fraction))))
        return messages


class Messages(list):
    def stop(self, at_once=False):
        pass
