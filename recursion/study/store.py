"""Store: what an ablation found, one row a measurement, in one SQLite file that anything reads.

    pandas.read_sql("select * from results", sqlite3.connect("runs/depths/ablation.db"))

``meta`` holds format, version and the request; ``runs`` one row a run, with its exact spec, seed, versions and
machine; ``measurements`` one row a measurement; the view ``results`` joins the two. Only the process that drives an
ablation writes, one transaction a run. A worker's result is a file in the run's folder first, ``result.json``: a store
that is lost, or was full, is filled from those again.
"""

import contextlib
import json
import os
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self, cast

from recursion.files import flush_folder
from recursion.study.request import Request, Run

FORMAT = "descent-tower ablation"
VERSION = 1
NAME = "ablation.db"
PATIENCE = 60.0  # seconds to wait for a reader
AGAIN = "delete it and run tower ablate again: finished runs are read from their result.json"
ABOUT = ("version", "torch", "python", "machine", "threads", "started", "seconds")  # a run's surroundings
COLUMNS = ("stage", "split", "level", "problem", "step", "measure", "value")
SCHEMA = """
create table meta(key text primary key, value text not null);
create table runs(
    id text primary key, kind text not null, cell text not null, depth integer, factors text not null,
    tower text not null, rules text not null, spec text not null, seed integer not null,
    status text not null, why text, facts text,
    version text, torch text, python text, machine text, threads integer, started text, seconds real);
create table measurements(
    run text not null references runs(id), stage text not null, split text, level integer, problem integer,
    step integer, measure text not null, value real);
create index by_run on measurements(run, stage, measure);
create view results as select
    m.run, r.kind, r.cell, r.depth, r.factors, r.seed, m.stage, m.split, m.level, m.problem, m.step, m.measure, m.value,
    r.status, r.why, r.tower, r.spec, r.facts, r.version, r.torch, r.python, r.machine, r.threads, r.started, r.seconds
    from measurements m join runs r on r.id = m.run order by r.rowid, m.rowid;
"""

Status = Literal["waiting", "running", "done", "failed"]


class Measurement(NamedTuple):
    """One row. None where something does not apply; ``value`` is None where it is not a number."""

    run: str
    stage: str
    split: str | None
    level: int | None
    problem: int | None
    step: int | None
    measure: str
    value: float | None


@dataclass(frozen=True, kw_only=True)
class Record:
    """A run as it stands. ``why``: in one line, if it failed. ``about``: versions, machine, threads, time."""

    run: Run
    status: Status
    why: str | None
    facts: dict[str, Any]
    about: dict[str, Any]


class Store:
    """The store of one ablation, open. Close it, or use it in a ``with``."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path = path
        self.connection = connection

    @classmethod
    def create(cls, path: Path, request: Request, argv: Sequence[str] = ()) -> Self:
        """A new store with all runs waiting; there at once and whole, or not at all."""
        temporary = path.with_name(f".{path.name}.tmp")
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        meta = {
            "format": FORMAT,
            "version": str(VERSION),
            "request": request.to_json(),
            "when": datetime.now(UTC).isoformat(timespec="seconds"),
            "argv": json.dumps(list(argv)),
        }
        with _told("write", path):
            try:
                with contextlib.closing(sqlite3.connect(temporary)) as connection, connection:
                    connection.executescript(SCHEMA)
                    connection.executemany("insert into meta values (?, ?)", meta.items())
                    connection.executemany(f"insert into runs values ({', '.join('?' * 19)})", _fresh(request))
                os.replace(temporary, path)
                flush_folder(path.parent)
            except BaseException:
                with contextlib.suppress(OSError):
                    temporary.unlink()
                raise
        return cls.open(path)

    @classmethod
    def open(cls, path: str | Path, readonly: bool = False) -> Self:
        """The store at a path, or in the folder there. Raises OSError if it cannot be read; ValueError, in one line,
        if it is empty, garbled, something else, or of a newer version.
        """
        path = Path(path)
        path = path / NAME if path.is_dir() else path
        with _told("read", path):
            with path.open("rb") as file:
                if not file.read(1):
                    raise ValueError(f"{path} is empty; {AGAIN}")
            connection = _connected(path, readonly)
            try:
                _check(path, connection)
            except BaseException:
                connection.close()
                raise
        return cls(path, connection)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self.connection.close()

    def meta(self) -> dict[str, str]:
        """Format, version, request, when it was begun, and the words of its command."""
        return dict(self._select("select key, value from meta"))

    def request(self) -> Request:
        """What was asked for."""
        return Request.from_json(self.meta()["request"])

    def runs(self, status: Status | None = None) -> list[Record]:
        """All runs in the order of the request; or those of one status."""
        return [_record(row) for row in self._select("select * from runs order by rowid") if status in (None, row[9])]

    def rows(self, **where: object) -> list[Measurement]:
        """Measurements for which these columns of ``results`` have these values: ``rows(stage="chosen", seed=0)``."""
        columns = ", ".join(Measurement._fields)
        text = f"select {columns} from results" + (" where " if where else "")
        found = self._select(text + " and ".join(f"{name} is ?" for name in where), tuple(where.values()))
        return [Measurement(*row) for row in found]

    def repeatable(self) -> list[tuple[Any, ...]]:
        """All that was found but seconds and bytes: what the same request comes to wherever it is repeated."""
        runs = [(one.run.id, one.status, one.why, json.dumps(one.facts, sort_keys=True)) for one in self.runs()]
        return [*runs, *(row for row in self.rows() if not {"seconds", "bytes"} & set(row.measure.split()))]

    def set_status(self, run: str, status: Status, why: str | None = None) -> None:
        """How a run stands; why, in one line, if it failed."""
        with self._writing() as connection:
            connection.execute("update runs set status = ?, why = ? where id = ?", (status, why, run))

    def finish(self, run: str, result: dict[str, Any]) -> None:
        """Keep a run's result, in place of anything there is of it: its ``rows``, ``facts`` and ``about``."""
        about = [result["about"][name] for name in ABOUT]
        with self._writing() as connection:
            connection.execute("delete from measurements where run = ?", (run,))
            rows = [(run, *row) for row in result["rows"]]
            connection.executemany(f"insert into measurements values ({', '.join('?' * 8)})", rows)
            settings = ", ".join(f"{name} = ?" for name in ABOUT)
            connection.execute(
                f"update runs set status = 'done', why = null, facts = ?, {settings} where id = ?",
                (json.dumps(result["facts"]), *about, run),
            )

    def _select(self, text: str, values: tuple[object, ...] = ()) -> list[tuple[Any, ...]]:
        with _told("read", self.path):
            return self.connection.execute(text, values).fetchall()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction: on the disk when this ends, or undone."""
        with _told("write", self.path), self.connection:
            yield self.connection


@contextlib.contextmanager
def _told(doing: str, path: Path) -> Iterator[None]:
    """What goes wrong with the file, in one sentence: an OSError about the disk, a ValueError about what is in it."""
    try:
        yield
    except sqlite3.OperationalError as error:
        kept = "; what was stored stays" if doing == "write" else ""
        raise OSError(f"cannot {doing} {path}: {error}{kept}") from error
    except sqlite3.DatabaseError as error:
        if type(error) is not sqlite3.DatabaseError:  # a mistake of ours
            raise
        raise ValueError(f"{path} is garbled or no SQLite file ({error}); {AGAIN}") from error
    except OSError as error:
        if error.errno is None:
            raise
        raise type(error)(f"cannot {doing} {path}: {error.strerror}") from error


def _connected(path: Path, readonly: bool) -> sqlite3.Connection:
    """A connection; a reader's may undo a transaction that a crash left behind, where it may write the file at all."""
    uri = path.absolute().as_uri()
    if not readonly:
        return sqlite3.connect(f"{uri}?mode=rw", uri=True, timeout=PATIENCE)
    mode = "rw" if os.access(path, os.W_OK) and os.access(path.parent, os.W_OK) else "ro"
    connection = sqlite3.connect(f"{uri}?mode={mode}", uri=True, timeout=PATIENCE)
    connection.execute("pragma query_only = 1")
    return connection


def _check(path: Path, connection: sqlite3.Connection) -> None:
    tables = {row[0] for row in connection.execute("select name from sqlite_master")}
    meta = dict(connection.execute("select key, value from meta")) if "meta" in tables else {}
    if meta.get("format") != FORMAT:
        raise ValueError(f"{path} is an SQLite file of something else, not of an ablation; choose another folder")
    version = str(meta.get("version"))
    if version.isdecimal() and int(version) > VERSION:
        reads = f"this program reads up to {VERSION}"
        raise ValueError(f"{path} has ablation version {version}, {reads}; update descent-tower")
    if version != str(VERSION) or not {"runs", "measurements", "results"} <= tables or "request" not in meta:
        raise ValueError(f"{path} is garbled, it lacks some of its tables; {AGAIN}")


def _fresh(request: Request) -> Iterator[tuple[Any, ...]]:
    """A row for each run, waiting."""
    specs = {str(cell.tower): cell.tower for cell in request.cells()}
    for run in request.runs():
        yield (
            run.id, run.kind, run.cell, run.depth, json.dumps(run.factors), run.tower, json.dumps(run.rules),
            _spec(run.tower, specs), run.seed, "waiting", *(None,) * 9,
        )  # fmt: skip


def _spec(text: str, built: dict[str, Any]) -> str:
    from recursion.notation import parse
    from recursion.spec import to_spec

    return json.dumps(to_spec(built.get(text) or parse(text)))


def _record(row: tuple[Any, ...]) -> Record:
    key, kind, cell, depth, factors, tower, rules, _, seed, status, why, facts, *about = row
    run = Run(
        id=key, kind=kind, cell=cell, depth=depth, factors=json.loads(factors), tower=tower,
        rules=tuple(json.loads(rules)), seed=seed,
    )  # fmt: skip
    return Record(
        run=run, status=cast(Status, status), why=why, facts=json.loads(facts or "{}"), about=dict(zip(ABOUT, about))
    )
