import io
import json
import math

import numpy as np
import pytest
from matplotlib.image import imread
from rich.console import Console
from test_deploy import Bowl
from test_evaluation import small, trained

from recursion.evaluate.reporting import losses_picture, training_picture, write


@pytest.fixture(scope="module")
def evaluation():
    tower, state = trained(Bowl(), 0.45)
    return small(tower, [state], transfer=True)


def written(evaluation, directory, width=120):
    out = io.StringIO()
    write(evaluation, directory, Console(file=out, width=width, force_terminal=False))
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
                if measured.step_size is not None:
                    assert f"{measured.step_size:.2g}" in row
        for comparison in scenario.comparisons:
            assert f"loss: {comparison.verdict}; difference {comparison.difference.value:.3g}" in text
    assert f"tuning {evaluation.base_steps['tuning']:,}" in text
    assert "diverged" not in text


def test_the_best_of_each_column_is_bold(evaluation, tmp_path):
    out = io.StringIO()
    write(evaluation, tmp_path, Console(file=out, width=120, force_terminal=True, color_system="standard"))
    bold = [line for line in out.getvalue().splitlines() if "\x1b[1m" in line and "[95%]" not in line]
    scenario = evaluation.scenarios[0]
    best = {min(scenario.results, key=lambda r: r.measures[m].mean.value).name for m in ("final", "mean")}
    assert {line.split()[0] for line in bold[: len(best)]} == {name.split()[0] for name in best}


def test_diverged_runs_are_told(tmp_path):
    tower, state = trained(Bowl(), 100.0)
    text = written(small(tower, [state], steps=60), tmp_path)
    row = next(line for line in text.splitlines() if line.strip().startswith("this tower"))
    assert "inf [inf, inf]" in row
    assert row.split()[-3:] == ["6", "/", "6"]


def test_the_files_are_written_and_replaced_whole(evaluation, tmp_path):
    target = tmp_path / "new" / "run"
    written(evaluation, target)
    assert {path.name for path in target.iterdir()} == {"evaluation.json", "losses.png"}
    assert json.loads((target / "evaluation.json").read_text()) == json.loads(evaluation.to_json())
    (target / "evaluation.json").write_text("older and longer" * 10000)
    written(evaluation, target)
    assert json.loads((target / "evaluation.json").read_text())["tower"] == evaluation.tower
    assert {path.name for path in target.iterdir()} == {"evaluation.json", "losses.png"}


def test_the_training_is_drawn_where_its_metrics_lie(evaluation, tmp_path):
    lines = [
        json.dumps({"step": i, "losses": [2.0 / i, None if i == 3 else 1.0], "skipped": [0, 0]}) for i in range(1, 9)
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 9, "los')
    written(evaluation, tmp_path)
    assert imread(tmp_path / "training.png").shape[1] > imread(tmp_path / "training.png").shape[0]


def dark(picture):
    """Pixels of a PNG that are nearly black."""
    pixels = imread(io.BytesIO(picture))[..., :3]
    return int((pixels < 0.1).all(-1).sum())


def test_pictures_draw_what_they_are_given(evaluation):
    assert losses_picture(evaluation) == losses_picture(evaluation)
    wave = [{"step": i, "losses": [1.0 + i % 2]} for i in range(1, 50)]
    none = [{"step": i, "losses": [math.inf]} for i in range(1, 50)]
    assert dark(training_picture("t", wave)) > dark(training_picture("t", none)) + 3000


def test_more_steps_than_fit_are_drawn_as_means():
    noisy = np.random.default_rng(0).normal(5.0, 1.0, 4000)
    many = [{"step": i, "losses": [value]} for i, value in enumerate(noisy, 1)]
    pixels = imread(io.BytesIO(training_picture("t", many)))
    assert pixels.shape[2] in (3, 4)
    assert training_picture("t", many) != training_picture("t", many[::10])


def test_a_folder_that_cannot_be_made_is_named(evaluation, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot make .*file/run"):
        written(evaluation, tmp_path / "file" / "run")
