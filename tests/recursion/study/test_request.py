"""Requests: budgets, the runs that a request comes to, and what is refused."""

import json

import pytest

from recursion.study.request import BASELINE, Budget, Request, Run, plain


@pytest.mark.parametrize(("text", "amount", "unit"), [
    ("2e6", 2e6, "base steps"), ("1234567", 1234567.0, "base steps"), ("100000", 1e5, "base steps"),
    ("1.5e7", 1.5e7, "base steps"), ("0.3333333333333333", 1 / 3, "base steps"),
    ("90s", 90.0, "seconds"), ("0.5 s", 0.5, "seconds"),
])  # fmt: skip
def test_a_budget_is_read_and_written_as_people_type_it(text, amount, unit):
    budget, again = Budget.parse(text), text.replace(" ", "")
    assert (budget.amount, budget.unit, repr(budget)) == (amount, unit, again)
    assert Budget.parse(again) == budget


@pytest.mark.parametrize("text", ["", "x", "s", "2e6m", "0", "-1", "inf", "nan", "1e999"])
def test_a_bad_budget_is_refused_in_a_line(text):
    with pytest.raises(ValueError, match=r"^a budget (is written|must be).*2e6[^\n]*$"):
        Budget.parse(text)


def test_runs_are_all_cells_by_all_seeds(request_of):
    runs = request_of(seeds=3).runs()
    assert [run.id for run in runs[:3]] == ["depth-1-seed-0", "depth-2-seed-0", "baseline-seed-0"]
    assert len({run.id for run in runs}) == len(runs) == 9
    one, two, baseline = runs[3:6]
    task = "quadratic(dims=3): adam"
    common = {"kind": "search", "tower": task, "seed": 1}
    assert one == Run(id="depth-1-seed-1", cell="depth 1", depth=1, factors={"depth": "1"}, **common)
    assert (two.seed, two.kind, two.tower) == (1, "tower", request_of().tower)
    assert baseline == Run(id="baseline-seed-1", cell=BASELINE, depth=None, factors={}, **common)
    assert {run.cell for run in request_of(baseline=False).runs()} == {"depth 1", "depth 2"}


def test_a_lone_optimizer_whose_step_size_the_grid_sets_is_not_tuned(request_of):
    runs = request_of(grid=(("lr", ("0.1",)),), baseline=False, seeds=1).runs()
    assert (runs[0].kind, runs[0].tower) == ("tower", "quadratic(dims=3): adam(lr=0.1)")
    other = request_of(grid=(("1.unroll", ("2", "3")),), baseline=False, seeds=1).runs()
    assert [(run.kind, run.id) for run in other] == [
        ("search", "depth-1-seed-0"), ("tower", "depth-2-1.unroll-2-seed-0"), ("tower", "depth-2-1.unroll-3-seed-0"),
    ]  # fmt: skip


def test_ids_are_names_of_folders_and_differ(request_of):
    alike = ('by-name(["*"], [sgd])', 'by-name(["?*"], [sgd])')
    grid = (("1.optimizer", alike), ("gradient", ("pes(sigma=0.1)", "exact")), ("lr*", ("1e-3", "1")))
    runs = request_of(grid=grid).runs()
    assert len({run.id.lower() for run in runs}) == len(runs)
    assert all(set(run.id) <= set("abcdefghijklmnopqrstuvwxyz0123456789-._+") and len(run.id) < 110 for run in runs)


def test_requests_and_runs_go_to_json_and_back(request_of):
    request = request_of(grid=(("1.unroll", ("5", "10")), ("lr*", ("1e-1", "1"))), windows=3, baseline=False)
    assert Request.from_json(json.loads(json.dumps(plain(request)))) == request
    assert all(Run(**plain(run)) == run for run in request.runs())


@pytest.mark.parametrize(("settings", "line"), [
    ({"seeds": 0}, "seeds must be a whole number of at least 1, got 0"),
    ({"problems": 2.5}, "problems must be a whole number of at least 1, got 2.5"),
    ({"windows": True}, "windows must be a whole number of at least 1, got true"),
    ({"search": "random"}, "search must be grid or optuna, got 'random'"),
    ({"depths": (3,)}, "depth 3: the tower has 2 levels; write more, or '...' for one that is repeated"),
    ({"tower": "quadratic: adamm"}, r"level 1 \(adamm\): unknown optimizer 'adamm' \(did you mean adam\?\).*"),
])  # fmt: skip
def test_a_bad_request_is_refused_when_built(settings, line, request_of):
    with pytest.raises(ValueError, match=f"^{line}$"):
        request_of(**settings)


@pytest.mark.parametrize("changed", [None, {"more": 1}, {"grid": 3}, {"depths": None}])
def test_json_of_something_else_is_refused_in_a_line(changed, request_of):
    bad = {"budget": "2e6"} if changed is None else plain(request_of()) | changed
    with pytest.raises(ValueError, match=r"^this is not the request of a study: [^\n]*$"):
        Request.from_json(bad)
