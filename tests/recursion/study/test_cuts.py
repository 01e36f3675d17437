"""Cuts of a tower, with each value of a grid; and what is refused, in a line."""

import pytest

from recursion.notation import parse
from recursion.study.cuts import cells, every_depth, parse_depths, parse_grid, task_of

DEEP = "digits-mlp: lstm@20 / lstm(hidden=4)@5[batch=3] / lstm@2 / adam"
SMALL = "quadratic: lstm@5 / adam"


def towers(text, depths, *grid):
    return {cell.label: str(cell.tower) for cell in cells(text, parse_depths(depths), parse_grid(grid))}


def test_a_cut_has_the_first_levels_and_the_top():
    assert towers(DEEP, "1-4") == {
        "depth 1": "digits-mlp: adam",
        "depth 2": "digits-mlp: lstm@20 / adam",
        "depth 3": "digits-mlp: lstm@20 / lstm(hidden=4)@5[batch=3] / adam",
        "depth 4": DEEP,
    }


def test_dots_repeat_the_level_before_them():
    found = towers("quadratic: lstm@5 / sgd@1 / ... / adam", "1-3,5")
    assert list(found.values()) == [
        "quadratic: adam",
        "quadratic: lstm@5 / adam",
        "quadratic: lstm@5 / sgd@1 / adam",
        "quadratic: lstm@5 / sgd@1 / sgd@1 / sgd@1 / adam",
    ]
    assert cells("quadratic: sgd@1 / ... / sgd", (50,), ())[0].tower.depth == 50
    assert task_of("quadratic(dims=4): sgd@1 / ... / sgd") == "quadratic(dims=4)"
    assert every_depth(DEEP) == (1, 2, 3, 4)
    assert every_depth("quadratic: sgd@1 / ... / sgd") == (1, 2)


@pytest.mark.parametrize("levels", ["... / sgd", "sgd@1 / ... / sgd@1 / sgd", "sgd@1 / ...", "sgd@1 / ... / ... / sgd"])
def test_dots_elsewhere_are_refused(levels):
    with pytest.raises(ValueError, match=r"^'\.\.\.' repeats the level before it and stands in front of the last one"):
        cells(f"quadratic: {levels}", (1,), ())


def test_a_setting_of_one_level():
    found = cells(DEEP, (1, 2, 3), parse_grid(["1.unroll=5,10", "2.hidden=8"]))
    assert [(cell.label, dict(cell.factors)) for cell in found] == [
        ("depth 1", {"depth": "1"}),
        ("depth 2, level 1 unroll 5", {"depth": "2", "1.unroll": "5"}),
        ("depth 2, level 1 unroll 10", {"depth": "2", "1.unroll": "10"}),
        ("depth 3, level 1 unroll 5, level 2 hidden 8", {"depth": "3", "1.unroll": "5", "2.hidden": "8"}),
        ("depth 3, level 1 unroll 10, level 2 hidden 8", {"depth": "3", "1.unroll": "10", "2.hidden": "8"}),
    ]
    assert str(found[-1].tower) == "digits-mlp: lstm@10 / lstm(hidden=8)@5[batch=3] / adam"
    assert [level.batch for level in found[-1].tower.levels] == ["auto", 3, "auto"]


def test_settings_of_levels_concern_those_below_the_top():
    found = towers(SMALL, "1,2", "gradient=first-order,exact")
    assert found == {
        "depth 1": "quadratic: adam",
        "depth 2, gradient first-order": "quadratic: lstm@5 / adam",
        "depth 2, gradient exact": "quadratic: lstm@5[gradient=exact] / adam",
    }
    assert towers(SMALL, "2", "top.unroll=3") == {"depth 2, top unroll 3": "quadratic: lstm@5 / adam@3"}


def test_settings_of_optimizers_concern_all_that_have_them_and_keep_their_space():
    text = "quadratic: sgd(lr=linear(0.5), momentum=0.9)@1 / gated(adam)@1 / sgd(lr=fixed(0.1))"
    assert towers(text, "3", "lr=1e-3") == {
        "depth 3, lr 1e-3": "quadratic: sgd(lr=linear(0.001), momentum=0.9)@1 / gated(adam)@1 / sgd(lr=fixed(0.001))"
    }
    assert list(towers(text, "3", "lr*=1e-1,1,10").values()) == [
        "quadratic: sgd(lr=linear(0.05), momentum=0.9)@1 / gated(adam(lr=0.0001))@1 / sgd(lr=fixed(0.01))",
        text,
        "quadratic: sgd(lr=linear(5.0), momentum=0.9)@1 / gated(adam(lr=0.01))@1 / sgd(lr=fixed(1.0))",
    ]
    by_name = 'digits-mlp: by-name(["*bias", "*"], [sgd, lstm])@5 / adam'
    assert "[sgd(lr=0.1), lstm]" in str(cells(by_name, (2,), parse_grid(["1.lr=0.1"]))[0].tower)
    (halved,) = towers(text, "3", "momentum*=0.5").values()
    assert halved.startswith("quadratic: sgd(lr=linear(0.5), momentum=0.45)@1")


def test_every_cell_reads_back():
    for cell in cells(DEEP, (1, 2, 3, 4), parse_grid(["lr*=1e-2,1,1e2", "1.horizon=none,100", "hidden=2,3"])):
        assert str(parse(str(cell.tower))) == str(cell.tower)


def test_ranges_are_decades():
    assert parse_grid(["lr = 1e-4..1e2", "a=2..200,7"]) == (
        ("lr", ("0.0001", "0.001", "0.01", "0.1", "1", "10", "100")), ("a", ("2", "20", "200", "7")),
    )  # fmt: skip
    assert parse_depths("1-6,10, 25 ,50") == (1, 2, 3, 4, 5, 6, 10, 25, 50)


@pytest.mark.parametrize(("grid", "line"), [
    ("1.hiden=3", r"grid 1.hiden: level 1 has no setting 'hiden' \(did you mean hidden\?\); there are ahead, .*"),
    ("hiden=3", r"grid hiden: no level has a setting 'hiden' \(did you mean hidden\?\); there are ahead, .*"),
    ("1.hidden=0", r"grid 1.hidden=0 at depth 2: level 1 \(lstm@5\): lstm: hidden must be .* at least 1, got 0"),
    ("1.unroll=0", r"grid 1.unroll=0 at depth 2: level 1 \(lstm@5\): unroll must be .* at least 1, got 0"),
    ("1.unroll=x", r"grid 1.unroll=x at depth 2: level 1 \(lstm@5\): .*unroll must be a whole number, got x"),
    ("1.horizon=7", r"grid 1.horizon=7 at depth 2: level 1 \(lstm@5\): horizon must be a multiple .*; use 5"),
    ("3.unroll=2", "grid 3.unroll: there is no level 3; the deepest cut has 2"),
    ("2.unroll=2", "grid 2.unroll: no cut has such a level below its top; name the topmost as top.unroll"),
    ("gradient=exct", r"grid gradient=exct at depth 2: level 1 \(lstm@5\): unknown gradient estimator 'exct' .*"),
    ("lr=-1", r"grid lr=-1 at depth 1: level 1 \(adam@1\): adam: lr=-1 is outside .*"),
    ("lr*=x", r"grid lr\*=x at depth 1: level 1 \(adam@1\): lr is multiplied by a number, got x"),
    ("lr*=0", r"grid lr\*=0 at depth 1: level 1 \(adam@1\): adam: lr=0.0 is outside .*"),
    ("horizon*=2", r"grid horizon\*=2 at depth 2: .*: horizon is auto, which cannot be multiplied; .*"),
    ("1.hidden*=0.33", r"grid 1.hidden\*=0.33 at depth 2: .*: hidden is the whole number 20, and 0.33 times .*"),
    ("lr=1e-3,0.001", "grid lr: 1e-3 and 0.001 are the same; leave one out"),
    ("lr=1 & lr=2", "grid lr is given twice; put all its values into one"),
    ("lr", "grid lr: it has no '='; a grid entry is written 1.unroll=5,20 or .*"),
    ("lr=", "grid lr: a value is missing; .*"),
    ("lr=1,,2", "grid lr: a value is missing; .*"),
    ("task.dims=3", "grid task.dims: a grid entry is written .*"),
    ("lr=1..50", "grid lr=1..50: 1..50 is no range of decades, as 1e-4..1e2 is"),
    ("lr=1e2..1e-2", "grid lr=1e2..1e-2: 1e2..1e-2 is no range of decades, .*"),
    ("lr=0..1", "grid lr=0..1: 0..1 is no range of decades, .*"),
    ("1.unroll=5 6", r"grid 1.unroll=5 6 at depth 2: .*: expected the end behind the value of unroll, got '6'; .*"),
])  # fmt: skip
def test_a_bad_grid_is_refused_in_a_line_with_entry_and_level(grid, line):
    with pytest.raises(ValueError, match=f"^{line}$"):
        towers(SMALL, "1,2", *grid.split(" & "))


@pytest.mark.parametrize(("depths", "line"), [
    ("", "depths are written 1-4 or 1-6,10,25, got ''"),
    ("1-", "depths are written .*"),
    ("4-1", "depths 4-1 are none; write 1-4"),
    ("0-2", "a depth must be a whole number of at least 1, got 0"),
    ("1,1-2", "depth 1 is given twice; leave one out"),
    ("1-9", "depth 3: the tower has 2 levels; .*"),
])  # fmt: skip
def test_bad_depths_are_refused_in_a_line(depths, line):
    with pytest.raises(ValueError, match=f"^{line}$"):
        towers(SMALL, depths)


def test_levels_with_gates_cannot_be_cut_apart():
    text = "quadratic: depth(sgd@1 / sgd@1 / sgd@1, gates=adam) / adam"
    assert len(towers(text, "4")) == 1
    with pytest.raises(ValueError, match=r"^depth 1: .*no tensor is left for the pattern '\*gate'"):
        towers(text, "1,4")
