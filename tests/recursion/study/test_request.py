import json
from collections.abc import Callable

import pytest

from recursion.study.request import BASELINE, Budget, Request, Run, plain

Make = Callable[..., Request]


@pytest.mark.parametrize(
    ("text", "amount", "unit"),
    [
        ("2e6", 2e6, "base steps"),
        ("1234567", 1234567.0, "base steps"),
        ("90s", 90.0, "seconds"),
        ("0.5 s", 0.5, "seconds"),
    ],
)
def test_a_budget_is_read_and_written(text: str, amount: float, unit: str) -> None:
    budget = Budget.parse(text)
    assert (budget.amount, budget.unit) == (amount, unit)
    assert Budget.parse(repr(budget)) == budget


def test_a_budget_is_written_as_people_type_it() -> None:
    assert [repr(Budget(amount=amount)) for amount in (2e6, 1e5, 1.5e7, 400.0, 1 / 3)] == [
        "2e6", "100000", "1.5e7", "400", "0.3333333333333333",
    ]  # fmt: skip


@pytest.mark.parametrize("text", ["", "x", "s", "2e6m", "0", "-1", "inf", "nan", "1e999"])
def test_a_bad_budget_is_refused_in_a_line(text: str) -> None:
    with pytest.raises(ValueError, match=r"^a budget (is written|must be).*2e6[^\n]*$"):
        Budget.parse(text)


def test_runs_are_all_cells_by_all_seeds(request_of: Make) -> None:
    runs = request_of(seeds=3).runs()
    assert [run.id for run in runs[:3]] == ["depth-1-seed-0", "depth-2-seed-0", "baseline-seed-0"]
    assert len(runs) == 9
    assert len({run.id for run in runs}) == 9
    one, two, baseline = runs[3:6]
    assert (one.seed, two.seed, baseline.seed) == (1, 1, 1)
    assert one == Run(
        id="depth-1-seed-1", kind="search", cell="depth 1", depth=1, factors={"depth": "1"},
        tower="quadratic(dims=3): adam", seed=1,
    )  # fmt: skip
    assert (two.kind, two.tower) == ("tower", request_of().tower)
    assert (baseline.kind, baseline.cell, baseline.depth, baseline.factors) == ("search", BASELINE, None, {})
    assert baseline.tower == "quadratic(dims=3): adam"


def test_no_baseline_no_run_of_it(request_of: Make) -> None:
    assert {run.cell for run in request_of(baseline=False).runs()} == {"depth 1", "depth 2"}


def test_a_lone_rule_whose_step_size_the_grid_sets_is_not_tuned(request_of: Make) -> None:
    runs = request_of(grid=(("lr", ("0.1",)),), baseline=False, seeds=1).runs()
    assert (runs[0].kind, runs[0].tower) == ("tower", "quadratic(dims=3): adam(lr=0.1)")
    other = request_of(grid=(("1.unroll", ("2", "3")),), baseline=False, seeds=1).runs()
    assert [(run.kind, run.id) for run in other] == [
        ("search", "depth-1-seed-0"), ("tower", "depth-2-1.unroll-2-seed-0"), ("tower", "depth-2-1.unroll-3-seed-0"),
    ]  # fmt: skip


def test_ids_are_names_of_folders_and_differ(request_of: Make) -> None:
    alike = ('by-name(["*"], [sgd])', 'by-name(["?*"], [sgd])')
    grid = (("1.optimizer", alike), ("gradient", ("pes(sigma=0.1)", "exact")), ("lr*", ("1e-3", "1")))
    runs = request_of(grid=grid).runs()
    assert len({run.id.lower() for run in runs}) == len(runs)
    assert all(set(run.id) <= set("abcdefghijklmnopqrstuvwxyz0123456789-._+") and len(run.id) < 110 for run in runs)


def test_requests_and_runs_go_to_json_and_back(request_of: Make) -> None:
    request = request_of(grid=(("1.unroll", ("5", "10")), ("lr*", ("1e-1", "1"))), windows=3, baseline=False)
    assert Request.from_json(json.loads(json.dumps(plain(request)))) == request
    assert all(Run(**plain(run)) == run for run in request.runs())


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"seeds": 0}, "seeds must be a whole number of at least 1, got 0"),
        ({"problems": 2.5}, "problems must be a whole number of at least 1, got 2.5"),
        ({"windows": True}, "windows must be a whole number of at least 1, got true"),
        ({"search": "random"}, "search must be grid or optuna, got 'random'"),
        ({"depths": (3,)}, "depth 3: the tower has 2 levels; write more, or '...' for one that is repeated"),
        ({"tower": "quadratic: adamm"}, r"level 1 \(adamm\): unknown optimizer 'adamm' \(did you mean adam\?\).*"),
    ],
)
def test_a_bad_request_is_refused_when_built(settings: dict[str, object], line: str, request_of: Make) -> None:
    with pytest.raises(ValueError, match=f"^{line}$"):
        request_of(**settings)


def test_json_of_something_else_is_refused_in_a_line(request_of: Make) -> None:
    good = plain(request_of())
    for bad in ({}, good | {"more": 1}, good | {"grid": 3}, {"budget": "2e6"}):
        with pytest.raises(ValueError, match=r"^this is not the request of a study: [^\n]*$"):
            Request.from_json(bad)
