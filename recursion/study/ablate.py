"""Ablate: carry out all runs of a request.

    request = Request(tower="digits-mlp: lstm@20 / lstm@5 / adam", depths=(1, 2, 3))
    ablate(request, "runs/depths", pool=Local(workers=2))
    load("runs/depths").rows.query("stage == 'chosen' and split == 'report' and measure == 'mean loss'")

Calling it again with the same request goes on: runs that are done stay, those under way go on from their files, and
failed ones stay failed unless ``retry`` says otherwise. Only what would fail every run, such as a full disk, ends a
study, and loses nothing.
"""

import contextlib
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

from recursion.files import explained
from recursion.study import records
from recursion.study.pool import Event, Local, Pool, events
from recursion.study.request import Request
from recursion.study.worker import PERFORM, Job


def ablate(
    request: Request, out: str | Path, *, pool: Pool | None = None, retry: bool = False, perform: str = PERFORM,
    argv: Sequence[str] = (), on_begin: Callable[[dict[str, str]], object] = lambda _: None,
    on_event: Callable[[Event], object] = lambda _: None,
) -> None:  # fmt: skip
    """Carry out what is left of a study.

    ``out``: its folder, made if need be. ``pool``: where runs are carried out; None for `Local()`. ``retry``: whether
    failed runs are tried again. ``perform``: the dotted name of what carries out a run, see `recursion.study.job`.
    ``argv``: words to keep as those of the command. ``on_begin`` gets the status of each run by its id.

    Raises ValueError if the folder is of another request; OSError if it is in use or something cannot be written: what
    was found before stays, and calling it again goes on.
    """
    if request.search == "optuna" and find_spec("optuna") is None:
        raise ValueError("optuna is not installed; pip install 'descent-tower[tune]', or search=grid")
    folder = Path(out).absolute()
    with explained("make the folder", folder):
        folder.mkdir(parents=True, exist_ok=True)
    with records.locked(folder, 0.0, f"another study is at work in {folder}; wait for it, or stop it"):
        records.begin(folder, request, argv)
        status = {run: records.result_of(folder, run)["status"] for run in request.runs()}
        left = [run for run in status if status[run] not in ({"done"} if retry else {"done", "failed"})]
        for run in left:
            (records.run_folder(folder, run) / records.RESULT).unlink(missing_ok=True)
        on_begin({run.id: "waiting" if run in left else status[run] for run in status})
        with contextlib.closing(events(pool or Local(), left, Job(request, folder, perform))) as happening:  # type: ignore[type-var]
            for run, kind, what, fraction, everywhere in happening:
                if kind == "failed" and everywhere:
                    raise OSError(f"{run.id}: {what}; what was found stays, make room and run this again")
                if kind == "failed":
                    records.finish(folder, run, {"why": what})
                if kind == "done" and records.result_of(folder, run)["status"] != "done":
                    raise OSError(f"{records.run_folder(folder, run)} lost its result; run this again")
                on_event(Event(run, kind, what, fraction, everywhere))
