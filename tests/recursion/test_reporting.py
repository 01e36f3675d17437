"""The report of an evaluation: tables hold the numbers, files replace older ones, pictures show the data."""

import io
import json
import math

import pytest
from matplotlib.image import imread
from rich.console import Console
from test_deploy import Bowl
from test_evaluation import small, trained

from recursion.evaluation.reporting import losses_picture, training_picture, write


@pytest.fixture(scope="module")
def evaluation():
    return small(*trained(Bowl(), 0.45), transfer=True)


def written(evaluation, directory, **terminal):
    out = io.StringIO()
    write(evaluation, directory, Console(file=out, width=120, **{"force_terminal": False, **terminal}))
    return out.getvalue()


def test_the_tables_hold_the_numbers_of_the_evaluation(evaluation, tmp_path):
    text = written(evaluation, tmp_path)
    lines = text.splitlines()
    for scenario in evaluation.scenarios:
        start = next(i for i, line in enumerate(lines) if line.startswith(f"{scenario.label}: "))
        for result in scenario.results:
            row = next(line for line in lines[start:] if line.strip().startswith(result.name))
            for measured in result.measures.values():
                mean = measured.mean
                assert f"{mean.value:.3g} [{mean.low:.3g}, {mean.high:.3g}]" in row
                assert measured.step_size is None or f"{measured.step_size:.2g}" in row
        for comparison in scenario.comparisons:
            assert f"loss: {comparison.verdict}; difference {comparison.difference.value:.3g}" in text
    assert f"tuning {evaluation.base_steps['tuning']:,}" in text
    assert "diverged" not in text


def test_the_best_of_each_column_is_bold(evaluation, tmp_path):
    text = written(evaluation, tmp_path, force_terminal=True, color_system="standard")
    bold = [line for line in text.splitlines() if "\x1b[1m" in line and "[95%]" not in line]
    results = evaluation.scenarios[0].results
    best = {min(results, key=lambda r: r.measures[m].mean.value).name for m in ("final", "mean")}
    assert {line.split()[0] for line in bold[: len(best)]} == {name.split()[0] for name in best}


def test_diverged_runs_are_told(tmp_path):
    text = written(small(*trained(Bowl(), 100.0), steps=60), tmp_path)
    row = next(line for line in text.splitlines() if line.strip().startswith("this tower"))
    assert "inf [inf, inf]" in row
    assert row.split()[-3:] == ["6", "/", "6"]


def test_the_files_are_written_and_replaced_whole(evaluation, tmp_path):
    target = tmp_path / "new" / "run"
    for _ in range(2):
        written(evaluation, target)
        assert {path.name for path in target.iterdir()} == {"evaluation.json", "losses.png"}
        assert json.loads((target / "evaluation.json").read_text()) == json.loads(evaluation.to_json())
        (target / "evaluation.json").write_text("older and longer" * 10000)
    lines = [{"step": i, "losses": [2.0 / i, None if i == 3 else 1.0], "skipped": [0, 0]} for i in range(1, 9)]
    (target / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + '\n{"step": 9, "los')
    written(evaluation, target)
    assert imread(target / "training.png").shape[1] > imread(target / "training.png").shape[0]
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot make .*file/run"):
        written(evaluation, tmp_path / "file" / "run")


def test_pictures_draw_what_they_are_given(evaluation):
    assert losses_picture(evaluation) == losses_picture(evaluation)
    wave, none = ([{"step": i, "losses": [loss(i)]} for i in range(1, 50)]
                  for loss in (lambda i: 1.0 + i % 2, lambda i: math.inf))  # fmt: skip
    dark = [
        int((imread(io.BytesIO(training_picture("t", each)))[..., :3] < 0.1).all(-1).sum()) for each in (wave, none)
    ]
    assert dark[0] > dark[1] + 3000
    many = [{"step": i, "losses": [math.sin(i)]} for i in range(1, 4000)]  # more than fit are drawn as means
    assert training_picture("t", many) != training_picture("t", many[::10])
