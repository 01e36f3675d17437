"""The files of a study: what was asked for, and one result a run.

``study.json`` holds the request; ``runs/<id>/result.json`` what a run found, or why it failed. Each is written whole or
not at all, and nothing else says how a study stands: a run without a result is running if its folder exists, else
waiting. So a study that is killed at any moment goes on from its files.
"""

import json
from collections.abc import Sequence
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
    path, ours = folder / STUDY, plain(request)
    if not path.exists():
        when = datetime.now(UTC).isoformat(timespec="seconds")
        _write(path, {"request": ours, "when": when, "argv": list(argv)})
        return
    theirs = read(folder)["request"]
    differ = [name for name in ours if theirs.get(name) != ours[name]]
    if differ:
        field = f"its {differ[0]} is {theirs.get(differ[0])!r}, got {ours[differ[0]]!r}"
        raise ValueError(f"{folder} is of another study: {field}; choose another folder")


def read(folder: Path) -> dict[str, Any]:
    """``request``, ``when`` and ``argv`` of a study. OSError or ValueError, in one line, if there is none there."""
    path = folder / STUDY
    with explained("read", path):
        text = path.read_bytes()
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path} is {'garbled' if text else 'empty'}; {AGAIN}") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise ValueError(f"{path} is JSON of something else, not of a study; choose another folder")
    if found.get("version") != VERSION:
        ours = f"this program reads version {VERSION}"
        raise ValueError(f"{path} has study version {found.get('version')}, {ours}; update descent-tower")
    if not {"request", "when", "argv"} <= found.keys():
        raise ValueError(f"{path} is garbled; {AGAIN}")
    return found


def run_folder(folder: Path, run: Run) -> Path:
    """Where a run of the study in ``folder`` lives."""
    return folder / "runs" / run.id


def finish(folder: Path, run: Run, terms: Terms, result: dict[str, Any]) -> None:
    """Write the ``rows``, ``facts`` and ``about`` of a run that ended well."""
    _write_result(folder, run, terms, {"status": "done", "why": ""} | result)


def fail(folder: Path, run: Run, terms: Terms, why: str) -> None:
    """Write why a run failed, in one line."""
    _write_result(folder, run, terms, {"status": "failed", "why": why, "rows": [], "facts": {}, "about": {}})


def forget(folder: Path, run: Run) -> None:
    """Remove the result of a run that is tried again."""
    (run_folder(folder, run) / RESULT).unlink(missing_ok=True)


def result_of(folder: Path, run: Run, terms: Terms) -> dict[str, Any] | None:
    """The result of this very run on these very terms; None if there is none."""
    try:
        found = json.loads((run_folder(folder, run) / RESULT).read_bytes())
        ours = [FORMAT, VERSION, plain(run), _terms(terms)]
        same = [found[name] for name in ("format", "version", "run", "terms")] == ours
        return found if same and {"status", "why", "rows", "facts", "about"} <= found.keys() else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def status_of(folder: Path, run: Run, terms: Terms) -> str:
    """``done`` or ``failed``; ``waiting`` if the run has not ended."""
    result = result_of(folder, run, terms)
    return "waiting" if result is None else str(result["status"])


def _write_result(folder: Path, run: Run, terms: Terms, result: dict[str, Any]) -> None:
    place = run_folder(folder, run)
    with explained("make the run folder", place):
        place.mkdir(parents=True, exist_ok=True)
    _write(place / RESULT, {"run": plain(run), "terms": _terms(terms)} | result)


def _terms(terms: Terms) -> dict[str, Any]:
    return plain(terms.terms if isinstance(terms, Request) else terms)


def _write(path: Path, data: dict[str, Any]) -> None:
    replace_file(path, json.dumps({"format": FORMAT, "version": VERSION} | data).encode())
