"""The examples: each part that one file adds, against a loop by hand; and, slowly, what each script prints."""

import importlib.util
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from levels import SGD, Adam, FirstOrder, Level, Quadratic, keys
from levels.testing import check_estimator, check_optimizer, check_problem
from recursion.notation import parse

FOLDER = Path(__file__).parents[1] / "examples"
PARTS = {"lion": "Lion", "factors": "Factors", "soft_best": "SoftBest", "random_unroll": "RandomUnroll",
         "lookahead": "Lookahead"}  # fmt: skip
TASK = Quadratic(dims=4, dtype="float64")


def part(name: str):
    """The class that an example adds."""
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    assert spec.loader is not None
    spec.loader.exec_module(module)
    return getattr(module, PARTS[name])


def begun(optimizer):
    rule = optimizer.bind(TASK)
    theta, key = rule.init(keys.seed(1)), keys.split(keys.seed(2), 3)
    x = TASK.init(key)
    return rule, theta, x, rule.init_state(theta, x, key)


def gradient(t: int) -> torch.Tensor:
    return keys.normal(keys.seed(t), (3, 4), torch.float64)


@pytest.mark.parametrize("name", PARTS)
def test_a_part_is_one_file_of_under_sixty_lines(name):
    assert len((FOLDER / f"{name}.py").read_text().splitlines()) < 60


def test_lion():
    rule, theta, x, state = begun(part("lion")(lr=0.1, beta1=0.8, beta2=0.9, weight_decay=0.01))
    y, m = x, torch.zeros_like(x)
    for t in range(5):
        g = gradient(t)
        x, state = rule.update(theta, x, state, g[:, 0], g)
        y, m = y - 0.1 * ((0.8 * m + 0.2 * g).sign() + 0.01 * y), 0.9 * m + 0.1 * g
        torch.testing.assert_close(x, y)
    check_optimizer(part("lion")(), steps=12)


def test_lookahead():
    fast, theta, y, state = begun(SGD(lr=0.1, momentum=0.5))
    rule, own, x, both = begun(part("lookahead")(SGD(lr=0.1, momentum=0.5), every=2, alpha=0.3))
    slow = y
    for t in range(1, 6):
        g = gradient(t)
        x, both = rule.update(own, x, both, g[:, 0], g)
        y, state = fast.update(theta, y, state, g[:, 0], g)
        if t % 2 == 0:
            slow = y = slow + 0.3 * (y - slow)
        torch.testing.assert_close(x, y)
    check_optimizer(part("lookahead")(SGD(lr=0.1), every=2), param_layout=TASK.layout)


def test_a_random_unroll_is_a_first_order_window_of_the_length_drawn():
    level = Level(optimizer=Adam(lr=0.1), unroll=5, horizon=None, batch=2).over(TASK)
    random = replace(level, gradient=part("random_unroll")())
    theta = level.init(keys.seed(1))
    state, lengths = random.init_state(theta, keys.seed(2)), set()
    for _ in range(12):
        before = int(state.carry.age[0])
        value, grad, new = random.value_and_grad(theta, state)
        length = int(new.carry.age[0]) - before
        same = replace(level, unroll=length, gradient=FirstOrder()).value_and_grad(theta, state._replace(memory=None))
        assert torch.equal(value, same[0])
        assert torch.equal(grad, same[1])
        lengths, state = lengths | {length}, new
    assert {1, 5} <= lengths <= {1, 2, 3, 4, 5}
    check_estimator(part("random_unroll")())


def test_the_best_loss_made_smooth():
    losses = keys.normal(keys.seed(1), (6, 3), torch.float64).square() + 0.1
    low, high = (part("soft_best")(sharpness).value(losses) for sharpness in (1e-6, 1e4))
    torch.testing.assert_close(low, losses.mean(0), atol=1e-5, rtol=0)
    torch.testing.assert_close(high, losses.min(0).values, atol=1e-3, rtol=0)
    torch.testing.assert_close(part("soft_best")(2.0).weights(losses).sum(0), torch.ones(3, dtype=torch.float64))
    followed = losses.requires_grad_()
    for function in (part("soft_best")(2.0).value, part("soft_best")(2.0).weights):  # as exact levels above need them
        assert torch.autograd.gradcheck(function, followed)


def test_factors():
    task = part("factors")(size=3, rank=1, dtype="float64")
    check_problem(task, order=1)


def test_the_command_line_knows_a_part_by_its_file(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    tower = parse("quadratic: lookahead.Lookahead(lion.Lion)@3[objective=soft_best.SoftBest(2.0)] / adam")
    _, report = tower.step(tower.init(0))
    assert all(abs(loss) < 1e6 for loss in report.losses)


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.stem)
def test_a_script_prints_about_what_it_says(path):
    run = subprocess.run([sys.executable, path.name], cwd=FOLDER, capture_output=True, text=True, check=True)
    shown = path.read_text()
    for line in run.stdout.splitlines():
        words = re.sub(r"[\d.,]+", "#", line).split()
        assert any(words == re.sub(r"[\d.,]+", "#", said).split() for said in shown.splitlines()) or "checks" in line
