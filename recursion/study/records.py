"""The files of a study: what was asked for, and one result a run.

``study.json`` holds the request; ``runs/<id>/result.json`` what a run found, or why it failed. Each is written whole or
not at all, and nothing else says how a study stands: a run without a result is running if its folder exists, else
waiting. So a study that is killed at any moment goes on from its files.
"""

import contextlib
import fcntl
import json
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from recursion.files import explained, replace_file
from recursion.study.request import Request, Run, Terms, plain

STUDY, RESULT = "study.json", "result.json"
FORMAT, VERSION = "descent-tower study", 1
AGAIN = "delete it and run tower ablate again: finished runs stay"


def begin(folder: Path, request: Request, argv: Sequence[str] = ()) -> None:
    """Write what is asked for, or check that the study in ``folder`` was asked for the same. ValueError if not."""
    ours = plain(request)
    if not (folder / STUDY).exists():
        when = datetime.now(UTC).isoformat(timespec="seconds")
        return _write(folder / STUDY, request=ours, when=when, argv=list(argv))
    theirs = read(folder)["request"]
    for name in (name for name in ours if theirs.get(name) != ours[name]):
        field = f"its {name} is {theirs.get(name)!r}, got {ours[name]!r}"
        raise ValueError(f"{folder} is of another study: {field}; choose another folder")
    return None


def read(folder: Path) -> dict[str, Any]:
    """``request``, ``when`` and ``argv`` of a study. OSError or ValueError, in one line, if there is none there."""
    path = folder / STUDY
    with explained("read", path):
        text = path.read_bytes()
    try:
        study = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path} is {'garbled' if text else 'empty'}; {AGAIN}") from error
    if not isinstance(study, dict) or study.get("format") != FORMAT:
        raise ValueError(f"{path} is JSON of something else, not of a study; choose another folder")
    if study.get("version") != VERSION:
        theirs, ours = study.get("version"), f"this program reads version {VERSION}"
        raise ValueError(f"{path} has study version {theirs}, {ours}; update descent-tower")
    if not {"request", "when", "argv"} <= study.keys():
        raise ValueError(f"{path} is garbled; {AGAIN}")
    return study


def run_folder(folder: Path, run: Run) -> Path:
    """Where a run of the study in ``folder`` lives."""
    return folder / "runs" / run.id


def finish(folder: Path, run: Run, terms: Terms, result: dict[str, Any]) -> None:
    """Write the ``rows``, ``facts`` and ``about`` of a run that ended well."""
    place = run_folder(folder, run)
    with explained("make the run folder", place):
        place.mkdir(parents=True, exist_ok=True)
    _write(place / RESULT, run=plain(run), terms=plain(terms.terms), **{"status": "done", "why": ""} | result)


def fail(folder: Path, run: Run, terms: Terms, why: str) -> None:
    """Write why a run failed, in one line."""
    finish(folder, run, terms, {"status": "failed", "why": why, "rows": [], "facts": {}, "about": {}})


def result_of(folder: Path, run: Run, terms: Terms) -> dict[str, Any]:
    """The result of this very run on these very terms; if there is none, only the run's ``status``."""
    place = run_folder(folder, run)
    status = "running" if place.exists() else "waiting"
    empty: dict[str, Any] = {"status": status, "why": "", "rows": [], "facts": {}, "about": {}}
    try:
        result = json.loads((place / RESULT).read_bytes())
        ours = [FORMAT, VERSION, plain(run), plain(terms.terms)]
        same = [result[name] for name in ("format", "version", "run", "terms")] == ours
        return result if same and empty.keys() <= result.keys() else empty
    except (OSError, ValueError, KeyError, TypeError):
        return empty


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


def _write(path: Path, **data: Any) -> None:
    replace_file(path, json.dumps({"format": FORMAT, "version": VERSION} | data).encode())
