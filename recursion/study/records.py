"""The files of a study: what was asked for, one result a run, and what a run under way has found so far.

``study.json`` holds the request; ``runs/<id>/result.json`` what a run found, or why it failed. Each is written whole or
not at all, and nothing else says how a study stands: a run without a result is running if its folder exists, else
waiting. So a study that is killed at any moment goes on from its files.
"""

import contextlib
import fcntl
import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from levels.fields import require
from recursion.files import explained, replace_file
from recursion.study.request import Request, Run, plain

STUDY, RESULT = "study.json", "result.json"
EMPTY: dict[str, Any] = {"why": "", "rows": [], "facts": {}, "about": {}}  # of a run
HEADER = {"format": "descent-tower study", "version": 1}
AGAIN = "delete it and run tower ablate again: finished runs stay"


def begin(folder: Path, request: Request, argv: Sequence[str] = ()) -> None:
    """Write what is asked for, or check that the study in ``folder`` was asked for the same. ValueError if not."""
    ours, path = plain(request), folder / STUDY
    if not path.exists():
        about = {"request": ours, "when": datetime.now(UTC).isoformat(timespec="seconds"), "argv": list(argv)}
        replace_file(path, json.dumps(HEADER | about).encode())
    theirs = read(folder)["request"]
    for name in (name for name in ours if theirs.get(name) != ours[name]):
        field = f"its {name} is {theirs.get(name)!r}, got {ours[name]!r}"
        raise ValueError(f"{folder} is of another study: {field}; choose another folder")


def read(folder: Path) -> dict[str, Any]:
    """``request``, ``when`` and ``argv`` of a study. OSError or ValueError, in one line, if there is none there."""
    path = folder / STUDY
    with explained("read", path):
        text = path.read_bytes()
    try:
        study: dict[str, Any] = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path} is {'garbled' if text else 'empty'}; {AGAIN}") from error
    is_study = isinstance(study, dict) and study.get("format") == HEADER["format"]
    require(is_study, f"{path} is JSON of something else, not of a study; choose another folder")
    ours = f"this program reads version {HEADER['version']}; update descent-tower"
    require(study.get("version") == HEADER["version"], f"{path} has study version {study.get('version')}, {ours}")
    require({"request", "when", "argv"} <= study.keys(), f"{path} is garbled; {AGAIN}")
    return study


def run_folder(folder: Path, run: Run) -> Path:
    """Where a run of the study in ``folder`` lives."""
    return folder / "runs" / run.id


def make_folder(what: str, path: Path) -> None:
    """Make a folder unless it is there; OSError, with ``what`` it is, if that fails."""
    with explained(f"make the {what}", path):
        path.mkdir(parents=True, exist_ok=True)


def finish(folder: Path, run: Run, result: dict[str, Any]) -> None:
    """Write the ``rows``, ``facts`` and ``about`` of a run that ended well, or ``why`` it failed."""
    make_folder("run folder", run_folder(folder, run))
    whole = HEADER | EMPTY | result | {"run": plain(run), "status": "failed" if "why" in result else "done"}
    replace_file(run_folder(folder, run) / RESULT, json.dumps(whole).encode())


def result_of(folder: Path, run: Run) -> dict[str, Any]:
    """The result of this very run; if there is none, only the run's ``status``."""
    place = run_folder(folder, run)
    with contextlib.suppress(AttributeError, OSError, ValueError, KeyError, TypeError):
        result: dict[str, Any] = json.loads((place / RESULT).read_bytes())
        ours = HEADER.items() <= result.items() and plain(run).items() <= result["run"].items()
        if ours and EMPTY.keys() <= result.keys():
            return result
    return EMPTY | {"status": "running" if place.exists() else "waiting"}


@contextlib.contextmanager
def locked(folder: Path, patience: float, problem: str) -> Iterator[None]:
    """Hold the folder's lock, which goes with the process; OSError after ``patience`` seconds if another holds it."""
    path, end = folder / ".lock", time.monotonic() + patience
    with explained("write", path):
        file = path.open("a")
    with file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= end:
                    raise OSError(problem) from None
                time.sleep(0.05)
        yield


class Store:
    """Pieces of a run in ``folder``, by name: each is a function of the run and of pieces before it, made once.

    A piece is written whole or not at all, and read ever after: also when it was just made, so that nothing depends on
    which process made it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        make_folder("folder", folder)

    def numbers(self, name: str, make: Callable[[], Any]) -> Any:
        """A piece of plain data: what JSON holds, and numbers that are not finite."""
        return self._once(f"{name}.json", lambda: json.dumps(make()).encode(), json.loads)

    def tensors(self, name: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """A piece that is tensors, by name."""

        def written() -> bytes:
            return bytes(save({key: tensor.detach().cpu().contiguous() for key, tensor in make().items()}))

        return dict(self._once(f"{name}.safetensors", written, load))

    def _once(self, name: str, make: Callable[[], bytes], read: Callable[[bytes], Any]) -> Any:
        path = self.folder / re.sub("[^a-z0-9.]+", "-", name.lower())
        if not path.exists():
            replace_file(path, make())
        with explained("read", path):
            data = path.read_bytes()
        try:
            return read(data)
        except (ValueError, SafetensorError) as error:
            raise ValueError(f"{path} is not a whole file ({error}); delete it and run again") from error
