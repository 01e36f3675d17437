"""Ablate: carry out all runs of a request, and keep what they find in one store.

    request = Request(tower="digits-mlp: lstm@20 / lstm@5 / adam", depths=(1, 2, 3))
    with ablate(request, "runs/depths", pool=Local(workers=2)) as store:
        store.rows(stage="chosen", split="report", measure="mean loss")

The folder holds ``ablation.db`` (`recursion.study.store`) and a folder for each run. Calling it again with the same
request goes on: runs that are done stay, those under way go on from what they kept, and failed ones stay failed
unless ``retry`` says otherwise. A run that fails is a row that says why. Only what would fail every run, such as a full
disk, ends an ablation, and loses nothing.
"""

import contextlib
import dataclasses
import fcntl
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

from recursion.files import explained
from recursion.study.pool import Event, Failed, Finished, Local, Pool, Progress, Started
from recursion.study.request import Request, Run
from recursion.study.store import NAME, Record, Store
from recursion.study.worker import PERFORM, Job, read_result, run_folder


def ablate(
    request: Request,
    out: str | Path,
    *,
    pool: Pool | None = None,
    retry: bool = False,
    perform: str = PERFORM,
    argv: Sequence[str] = (),
    on_begin: Callable[[list[Record]], object] | None = None,
    on_event: Callable[[Event], object] | None = None,
) -> Store:
    """Carry out what is left of an ablation, and return its store.

    ``out``: its folder, made if need be. ``pool``: who does the work; None for `Local()`. ``retry``: whether failed
    runs are tried again. ``perform``: the dotted name of what carries out a run, see `recursion.study.job.perform`.
    ``argv``: words to keep as those of the command. ``on_begin`` hears how all runs stand, ``on_event`` what happens.

    Raises ValueError if the folder is of another request or in use, or for a store that is not one; OSError if
    something cannot be written: what was found before stays, and calling it again goes on.
    """
    if request.search == "optuna" and find_spec("optuna") is None:
        raise ValueError("optuna is not installed; pip install 'descent-tower[tune]', or search=grid")
    folder = Path(out).absolute()
    with explained("make the folder", folder):
        folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        store = _opened(folder / NAME, request, argv)
        try:
            job = Job(request.to_json(), str(folder), perform)
            left = _left(store, job, retry)
            if on_begin is not None:
                on_begin(store.runs())
            _drive(store, left, job, pool or Local(), on_event or _ignore)
        except BaseException:
            store.close()
            raise
    return store


def _drive(store: Store, runs: Sequence[Run], job: Job, pool: Pool, on_event: Callable[[Event], object]) -> None:
    """Carry out runs, and store what becomes of each before anybody hears of it."""
    events = pool.events(runs, job)
    with contextlib.closing(events):  # type: ignore[type-var]
        for event in events:
            if isinstance(event, Started):
                store.set_status(event.run.id, "running")
            elif isinstance(event, Finished):
                if not _keep(store, event.run, job):
                    raise OSError(f"{run_folder(Path(job.folder), event.run)} lost its result; run this again")
            elif isinstance(event, Failed):
                if event.everywhere:
                    raise OSError(f"{event.run.id}: {event.why}; what was found stays, make room and run this again")
                store.set_status(event.run.id, "failed", event.why)
            elif not isinstance(event, Progress):
                raise TypeError(f"a pool yields events, got {event!r}")
            on_event(event)


def _keep(store: Store, run: Run, job: Job) -> bool:
    """Store a run's result if there is one."""
    result = read_result(run_folder(Path(job.folder), run), run, job.request)
    if result is not None:
        store.finish(run.id, result)
    return result is not None


def _left(store: Store, job: Job, retry: bool) -> list[Run]:
    """The runs to carry out. Those that a session before this one had under way wait again; results are read in."""
    found = []
    for record in store.runs():
        if record.status == "done" or _keep(store, record.run, job):
            continue
        if record.status == "running" or (retry and record.status == "failed"):
            store.set_status(record.run.id, "waiting")
        if retry or record.status != "failed":
            found.append(record.run)
    return found


def _opened(path: Path, request: Request, argv: Sequence[str]) -> Store:
    """The folder's store; a new one if it has none."""
    with explained("read", path):
        exists = path.exists()
    if not exists:
        return Store.create(path, request, argv)
    store = Store.open(path)
    theirs = store.request()
    if theirs != request:
        store.close()
        raise ValueError(f"{path.parent} is of another ablation: {_differ(theirs, request)}; choose another folder")
    return store


def _differ(theirs: Request, ours: Request) -> str:
    """The first field in which two requests differ."""
    names = [field.name for field in dataclasses.fields(Request)]
    name = next(name for name in names if getattr(theirs, name) != getattr(ours, name))
    return f"its {name} is {getattr(theirs, name)!r}, got {getattr(ours, name)!r}"


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
            raise ValueError(f"another ablation is at work in {folder}; wait for it, or stop it") from None
        yield


def _ignore(_: object) -> None:
    return None
