"""Ablate: carry out all runs of a request.

    request = Request(tower="digits-mlp: lstm@20 / lstm@5 / adam", depths=(1, 2, 3))
    ablate(request, "runs/depths", pool=Local(workers=2))
    load("runs/depths").rows.query("stage == 'chosen' and split == 'report' and measure == 'mean loss'")

Calling it again with the same request goes on: runs that are done stay, those under way go on from their files, and
failed ones stay failed unless ``retry`` says otherwise. Only what would fail every run, such as a full disk, ends a
study, and loses nothing.
"""

import contextlib
import fcntl
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

from recursion.files import explained
from recursion.study import records
from recursion.study.pool import Event, Job, Local, Pool, events
from recursion.study.request import Request
from recursion.study.worker import PERFORM


def ablate(
    request: Request,
    out: str | Path,
    *,
    pool: Pool | None = None,
    retry: bool = False,
    perform: str = PERFORM,
    argv: Sequence[str] = (),
    on_begin: Callable[[dict[str, str]], object] = lambda _: None,
    on_event: Callable[[Event], object] = lambda _: None,
) -> None:
    """Carry out what is left of a study.

    ``out``: its folder, made if need be. ``pool``: where runs are carried out; None for `Local()`. ``retry``: whether
    failed runs are tried again. ``perform``: the dotted name of what carries out a run, see `recursion.study.job`.
    ``argv``: words to keep as those of the command. ``on_begin`` gets the status of each run by its id.

    Raises ValueError if the folder is of another request or in use; OSError if something cannot be written: what was
    found before stays, and calling it again goes on.
    """
    if request.search == "optuna" and find_spec("optuna") is None:
        raise ValueError("optuna is not installed; pip install 'descent-tower[tune]', or search=grid")
    folder = Path(out).absolute()
    with explained("make the folder", folder):
        folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        records.begin(folder, request, argv)
        runs, again = request.runs(), ("waiting", "failed") if retry else ("waiting",)
        status = {run.id: records.status_of(folder, run, request) for run in runs}
        left = [run for run in runs if status[run.id] in again]
        for run in left:
            records.forget(folder, run)
        on_begin(status | {run.id: "waiting" for run in left})
        with contextlib.closing(events(pool or Local(), left, Job(request.terms, folder, perform))) as happening:  # type: ignore[type-var]
            for event in happening:
                _record(folder, request, event)
                on_event(event)


def _record(folder: Path, request: Request, event: Event) -> None:
    """Write down why a run failed; a worker writes its own result."""
    if event.kind == "done" and records.status_of(folder, event.run, request) != "done":
        raise OSError(f"{records.run_folder(folder, event.run)} lost its result; run this again")
    if event.kind == "failed" and event.everywhere:
        raise OSError(f"{event.run.id}: {event.what}; what was found stays, make room and run this again")
    if event.kind == "failed":
        records.fail(folder, event.run, request, event.what)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, which goes with the process, however it ends."""
    path = folder / ".lock"
    with explained("write", path):
        file = path.open("a")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another study is at work in {folder}; wait for it, or stop it") from None
        yield
