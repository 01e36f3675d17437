"""Looking at towers: hyperparameters as numbers, modules of copies, descriptions; mistakes get sentences."""

import pytest
import torch
from torch import nn

from levels import SGD, Adam, DigitsMLP, LearnedInit, Level, ModuleTask
from recursion import Tower, load, parse, save, train
from recursion.looking import numbers

INPUTS = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))


def network():
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))


def task():
    return ModuleTask(make=network, loss_function=nn.functional.mse_loss, train=(INPUTS, INPUTS.sum(1, keepdim=True)),
                      minibatch=None)  # fmt: skip


def test_hyperparameters_are_those_that_the_rule_reads():
    tower = parse("quadratic: start(sgd(lr=0.01, momentum=0.9))@2[batch=3] / adam(lr=log(0.1, per=tensor))")
    first, second = tower.hypers(tower.init(0))
    assert {name: float(value) for name, value in first.items()} == pytest.approx(
        {"inner.lr": 0.01, "inner.momentum": 0.9}
    )
    assert second["lr"].shape == (tower.bound[0].layout.size,)
    assert torch.allclose(second["lr"], torch.tensor(0.1))
    lstm = parse("quadratic: lstm@2 / adam")
    assert lstm.hypers(lstm.init(0))[0] == {}


def test_numbers_of_a_step_have_the_norm_before_clipping_and_how_often_it_was_clipped():
    text = "quadratic(3, dtype=float64): lstm(hidden=2)@3[batch=2{}] / sgd(lr=1e-9)@2[batch=3, clip=1e9] / adam"
    free, clipped = (parse(text.format(clip)) for clip in ("", ", clip=1e-3"))
    steps = [tower.step(tower.init(0))[0] for tower in (free, clipped)]
    plain, short = (numbers(tower, state) for tower, state in zip((free, clipped), steps))
    assert set(plain) == {"level 2 lr", "level 3 lr", "level 3 beta1", "level 3 beta2", "level 3 eps",
                          "level 1 gradient norm", "level 2 gradient norm", "level 2 clip rate"}  # fmt: skip
    norm = free.carries(steps[0])[1].g.norm(dim=-1).mean().item()
    assert plain["level 1 gradient norm"] == pytest.approx(norm, rel=1e-12)
    assert short["level 1 gradient norm"] == pytest.approx(norm, rel=1e-3)  # before: the optimizer hardly moved
    assert (short["level 1 clip rate"], short["level 2 clip rate"]) == (1.0, 0.0)
    assert short["level 2 lr"] == pytest.approx(1e-9)


def test_a_state_prints_in_a_few_lines_and_a_tower_as_a_table():
    tower = parse("quadratic: lstm@20 / adam")
    lines = repr(tower.init(0)).splitlines()
    assert lines[:2] == ["TowerState: 23 tensors, 80,350 numbers", "  theta [4]"]
    assert len(lines) == 14
    table = tower._repr_html_()
    assert "<td>lstm</td>" in table
    assert table.count("<tr>") == 4


def test_the_module_of_a_copy_predicts_what_the_copy_was_trained_to():
    """Its loss is the copy's own, its running statistics are those of the copy; a learned start comes along."""
    tower = Tower(task(), Level(optimizer=LearnedInit(SGD(lr=0.1)), unroll=3, batch=2), Level(optimizer=Adam()))
    *_, (state, _) = tower.run(tower.init(0), 2)
    carry = tower.carries(state)[0]
    for copy in range(2):
        module = tower.module(state, copy)
        assert torch.equal(module[1].running_mean, carry.problem_state.buffers["1.running_mean"][0, copy])
        loss = nn.functional.mse_loss(module(INPUTS), INPUTS.sum(1, keepdim=True))
        assert loss.item() == pytest.approx(carry.f[0, copy].item(), rel=1e-5)
    with pytest.raises(ValueError, match="copy must be from 0 to 1, got 2"):
        tower.module(state, 2)
    digits = Tower(DigitsMLP(), Level(optimizer=SGD()))
    with pytest.raises(ValueError, match="digits-mlp is not over a module; ModuleTask and LoaderTask are"):
        digits.module(digits.init(0))


def test_a_description_says_what_trains_what():
    assert parse("quadratic: lstm(hidden=2)@5[batch=3] / adam").describe().splitlines() == [
        "task: quadratic, 10 parameters",
        "level 1: lstm(hidden=2) on the task; 3 copies, 5 updates a window, 5 task gradients; 83 parameters, "
        "trained by first-order",
        "level 2: adam on the 83 parameters of level 1; 1 copy, 1 update a window, 5 task gradients; 4 parameters, fixed",
    ]


def test_what_people_need_is_offered_in_one_place(tmp_path):
    tower = parse("quadratic: sgd@2[batch=2] / adam")
    state = train(tower, steps=2, seed=0, out=tmp_path / "run")
    save(tmp_path / "one", tower, state, seed=0)
    assert torch.equal(load(tmp_path / "one").state.theta, state.theta)
