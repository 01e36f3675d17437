"""The alarm on real runs: an optimizer that was overfitted on purpose, and a sound one."""

from pathlib import Path

import pytest
from jobs import tiny

from recursion.study import records
from recursion.study.findings import Findings
from recursion.study.job import perform
from recursion.study.request import Request
from recursion.study.results import ABOUT, load

MAML = "start(sgd(lr=fixed(0.01)))@10[horizon=10, objective=last, batch=4] / adam(lr=0.05)"


def found(request: Request, folder: Path) -> Findings:
    records.begin(folder, request)
    for run in request.runs():
        result = perform(run, request, folder / run.id, lambda what, fraction: None)
        records.finish(folder, run, result | {"about": dict.fromkeys(ABOUT, 0)})
    return Findings(load(folder))


def test_a_start_that_knows_one_problem_sets_it_off(tmp_path: Path) -> None:
    """Chosen, too, by the one problem that it was trained on: only the report can tell."""
    request = tiny(f"few(quadratic, validation=same): {MAML}", budget="2e4", problems=16, select=4)
    (alarm,) = found(request, tmp_path).alarms
    assert alarm.startswith("depth 2 improves on train problems")
    assert "but not on report problems" in alarm


@pytest.mark.parametrize("task", ["quadratic", "few(quadratic, 64)"])
def test_a_step_size_that_was_learned_does_not(task: str, tmp_path: Path) -> None:
    request = tiny(
        f"{task}: sgd(lr=1e-3)@10[horizon=10, objective=last, batch=16] / adam(lr=0.1)",
        budget="3e4",
        problems=16,
        select=16,
    )
    findings = found(request, tmp_path)
    assert findings.alarms == []
    assert findings.gaps[0].gains["report"].sign > 0
