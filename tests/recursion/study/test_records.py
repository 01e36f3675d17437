"""The files of a study, and the tables that are read from them."""

import dataclasses
import math

import pytest

from recursion.study import records
from recursion.study.results import load

ABOUT = {"version": "1", "torch": "2", "python": "3", "machine": "m", "threads": 1, "started": "now", "seconds": 1.5}
ROWS = [
    ["chosen", "report", None, 0, None, "mean loss", 0.25],
    ["chosen", "report", None, 1, None, "mean loss", math.inf],
    ["chosen", "report", None, 2, None, "mean loss", math.nan],
    ["training", None, 1, None, 7, "seconds", 3.0],
]
RESULT = {"rows": ROWS, "facts": {"steps": 7, "setting": "lstm"}, "about": ABOUT}


def test_tables_hold_what_was_found(request_of, tmp_path):
    request = request_of()
    records.begin(tmp_path, request, ["tower", "ablate"])
    assert load(tmp_path).rows.empty
    _, done, _, failed, begun, _ = request.runs()
    records.finish(tmp_path, done, RESULT)
    records.finish(tmp_path, failed, {"why": "out of luck"})
    records.run_folder(tmp_path, begun).mkdir()
    found = load(tmp_path)
    assert (found.request, found.argv) == (request, ["tower", "ablate"])
    assert list(found.runs["run"]) == [run.id for run in request.runs()]
    assert list(found.runs["status"]) == ["waiting", "done", "waiting", "failed", "running", "waiting"]
    one = found.runs.iloc[1]
    assert (one.facts, one.torch, one.seconds) == (RESULT["facts"], "2", 1.5)
    assert (found.runs["why"][3], found.runs["depth"].isna().sum()) == ("out of luck", 2)
    assert found.rows["value"].tolist() == [0.25, math.inf, math.inf, 3.0]
    assert found.rows.iloc[3].tolist()[:9] == [done.id, done.cell, 0, "training", "", 1, -1, 7, "seconds"]
    assert [len(row) for row in found.repeatable()] == [4] * 6 + [10] * 3


def test_a_result_counts_only_for_its_own_run(request_of, tmp_path):
    request = request_of()
    run, other, *_ = request.runs()
    records.finish(tmp_path, run, RESULT)
    assert records.result_of(tmp_path, run)["facts"] == RESULT["facts"]
    assert records.result_of(tmp_path, other)["status"] == "waiting"
    assert records.result_of(tmp_path, dataclasses.replace(run, tower="another"))["status"] == "running"
    path = records.run_folder(tmp_path, run) / records.RESULT
    for data in (b"", b"[]", b"{}", path.read_bytes()[:-5]):
        path.write_bytes(data)
        assert records.result_of(tmp_path, run)["status"] == "running"


@pytest.mark.parametrize(("text", "line"), [
    ("", "is empty; delete it and run tower ablate again: finished runs stay"),
    ("nonsense", "is garbled; delete it .*"),
    ("[]", "is JSON of something else, not of a study; choose another folder"),
    ('{"format": "descent-tower study", "version": 9}', "has study version 9, .* version 1; update descent-tower"),
    ('{"format": "descent-tower study", "version": 1}', "is garbled; .*"),
])  # fmt: skip
def test_what_is_no_study_is_said_in_a_line(text, line, request_of, tmp_path):
    with pytest.raises(OSError, match=f"^cannot read {tmp_path}/study.json: No such file or directory$"):
        load(tmp_path)
    (tmp_path / records.STUDY).write_text(text)
    for ask in (lambda: load(tmp_path), lambda: records.begin(tmp_path, request_of())):
        with pytest.raises(ValueError, match=f"^{tmp_path}/study.json {line}$"):
            ask()
    assert (tmp_path / records.STUDY).read_text() == text
