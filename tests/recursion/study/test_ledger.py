"""The ledger: what is charged adds up, and a level's share is its own."""

from pathlib import Path

import pytest
from jobs import done, tiny, values

from recursion.analysis.work import own_work
from recursion.notation import parse
from recursion.study.learning import profile


def test_a_profile_says_the_same_work_as_a_count_and_shares_that_are_all():
    tower = parse("quadratic(4): lstm(hidden=4)@4[batch=2] / lstm(hidden=3)@2 / adam")
    found = profile(tower)
    assert tuple(found["work"]) == own_work(tower)
    assert len(found["shares"]) == 1 + tower.depth
    assert sum(found["shares"]) == pytest.approx(1.0)
    assert min(found["shares"]) >= 0
    assert found["bytes"] == profile(tower)["bytes"]


def test_bytes_of_a_level_grow_with_its_own_unroll_only():
    """And by as much for each update: what the pullback of an update keeps."""
    one, two, four = (
        profile(parse(f"quadratic(8): lstm(hidden=8)@{unroll}[batch=4] / adam"))["bytes"] for unroll in (4, 8, 16)
    )
    assert (four[0] - two[0]) == pytest.approx(2 * (two[0] - one[0]), rel=0.05)
    assert one[1] == two[1] == four[1]


def test_levels_split_the_seconds_of_a_training(tmp_path: Path):
    _, found = done(tiny(), tmp_path)
    seconds = {row[2]: row[6] for row in found["rows"] if row[0] == "training" and row[5] == "seconds"}
    assert sum(value for level, value in seconds.items() if level is not None) == pytest.approx(seconds[None])
    assert values(found, "training", "peak bytes")[-1] > 1e7  # of the whole process
