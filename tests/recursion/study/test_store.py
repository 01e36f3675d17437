import json
import math
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pandas
import pytest

from recursion.notation import parse
from recursion.spec import from_spec
from recursion.study.request import Request
from recursion.study.store import NAME, Measurement, Store

Make = Callable[..., Request]
ABOUT = {"version": "1", "torch": "2", "python": "3", "machine": "m", "threads": 1, "started": "now", "seconds": 1.5}
RESULT = {
    "rows": [
        ["chosen", "report", None, 0, None, "mean loss", 0.25],
        ["chosen", "report", None, 1, None, "mean loss", math.inf],
        ["chosen", "report", None, 2, None, "mean loss", math.nan],
        ["training", "train", 1, None, 7, "loss", 3.0],
    ],
    "facts": {"steps": 7, "setting": "lstm"},
    "about": ABOUT,
}


def test_a_store_holds_what_it_was_given(request_of: Make, tmp_path: Path) -> None:
    request = request_of()
    with Store.create(tmp_path / NAME, request, ["tower", "ablate"]) as store:
        assert store.request() == request
        assert json.loads(store.meta()["argv"]) == ["tower", "ablate"]
        assert [record.run for record in store.runs()] == request.runs()
        assert {record.status for record in store.runs()} == {"waiting"}
        store.finish("depth-2-seed-0", RESULT)
        store.set_status("depth-2-seed-1", "failed", "out of luck")
    with Store.open(tmp_path, readonly=True) as store:
        (done,), (failed,) = store.runs("done"), store.runs("failed")
        assert (done.run.id, done.facts, done.about) == ("depth-2-seed-0", RESULT["facts"], ABOUT)
        assert (failed.run.id, failed.why) == ("depth-2-seed-1", "out of luck")
        assert len(store.runs("waiting")) == 4
        found = store.rows(stage="chosen", seed=0)
        assert [row.value for row in found] == [0.25, math.inf, None]
        assert store.rows(level=1) == [Measurement("depth-2-seed-0", "training", "train", 1, None, 7, "loss", 3.0)]
        with pytest.raises(OSError, match="readonly"):
            store.finish("depth-2-seed-1", RESULT)


def test_pandas_reads_it_in_a_line(request_of: Make, tmp_path: Path) -> None:
    with Store.create(tmp_path / NAME, request_of()) as store:
        store.finish("depth-2-seed-1", RESULT)
    frame = pandas.read_sql("select * from results", sqlite3.connect(tmp_path / NAME))
    assert len(frame) == 4
    assert set(frame["run"]) == {"depth-2-seed-1"}
    assert (frame["seed"] == 1).all()
    assert frame["value"].tolist()[:2] == [0.25, math.inf]
    spec = from_spec(json.loads(frame["spec"][0]))
    assert str(spec) == frame["tower"][0] == str(parse(request_of().tower))
    assert {"version", "torch", "python", "machine", "threads", "started", "seconds", "cell", "kind"} <= set(frame)


def test_a_run_is_stored_once_and_in_whole(request_of: Make, tmp_path: Path) -> None:
    with Store.create(tmp_path / NAME, request_of()) as store:
        for _ in range(2):
            store.finish("depth-1-seed-0", RESULT)
        assert len(store.rows()) == 4
        bad = RESULT | {"rows": [*RESULT["rows"], ["chosen", None, None, None, None, None, 1.0]]}
        with pytest.raises(sqlite3.IntegrityError):
            store.finish("depth-2-seed-0", bad)
        assert len(store.rows()) == 4
        assert [record.run.id for record in store.runs("done")] == ["depth-1-seed-0"]


def _foreign(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("create table meta(key, value)")
    connection.close()


def _newer(path: Path) -> None:
    connection = sqlite3.connect(path)
    with connection:
        connection.execute("create table meta(key, value)")
        connection.execute("insert into meta values ('format', 'descent-tower ablation'), ('version', '2')")
    connection.close()


def _partial(path: Path) -> None:
    _newer(path)
    connection = sqlite3.connect(path)
    with connection:
        connection.execute("update meta set value = '1' where key = 'version'")
    connection.close()


def _cut_short(path: Path) -> None:
    request = Request(tower="quadratic: adam", depths=(1,))
    Store.create(path, request).close()
    path.write_bytes(path.read_bytes()[:5000])


@pytest.mark.parametrize(
    ("spoil", "kind", "line"),
    [
        (lambda path: path.touch(), ValueError, "is empty; delete it and run tower ablate again: finished runs are .*"),
        (lambda path: path.write_text("nonsense " * 99), ValueError, "is garbled or no SQLite file .*; delete it .*"),
        (_cut_short, ValueError, "is garbled or no SQLite file .*malformed.*; delete it .*"),
        (_foreign, ValueError, "is an SQLite file of something else, not of an ablation; choose another folder"),
        (_newer, ValueError, "has ablation version 2, this program reads up to 1; update descent-tower"),
        (_partial, ValueError, "is garbled, it lacks some of its tables; delete it .*"),
        (lambda path: None, OSError, "No such file or directory"),
    ],
)
@pytest.mark.parametrize("readonly", [False, True])
def test_what_is_no_store_is_said_in_a_line(
    spoil: Callable[[Path], None], kind: type[Exception], line: str, readonly: bool, tmp_path: Path
) -> None:
    path = tmp_path / NAME
    spoil(path)
    before = path.read_bytes() if path.exists() else None
    start = f"cannot read {path}: " if kind is OSError else f"{path} "
    with pytest.raises(kind, match=f"^{start}{line}$"):
        Store.open(path, readonly=readonly)
    assert (path.read_bytes() if path.exists() else None) == before


def test_a_full_disk_is_said_and_loses_nothing(request_of: Make, tmp_path: Path) -> None:
    with Store.create(tmp_path / NAME, request_of()) as store:
        store.finish("depth-1-seed-0", RESULT)
        pages = store.connection.execute("pragma page_count").fetchone()[0]
        store.connection.execute(f"pragma max_page_count = {pages}")
        large = RESULT | {"rows": RESULT["rows"] * 5000}
        with pytest.raises(
            OSError, match=f"^cannot write {store.path}: database or disk is full; what was stored stays$"
        ):
            store.finish("depth-2-seed-0", large)
        assert len(store.rows()) == 4
        store.connection.execute("pragma max_page_count = 1000000")
        store.finish("depth-2-seed-0", large)
        assert len(store.rows()) == 20004


def test_a_store_that_cannot_be_made_is_not_there(
    request_of: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match=r"^cannot write .*: No space left on device$"):
        Store.create(tmp_path / NAME, request_of())
    assert list(tmp_path.iterdir()) == []
