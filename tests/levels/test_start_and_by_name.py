"""Learned starts against MAML by hand; optimizers by name against each of them alone."""

import pytest
import torch

from levels import SGD, Adam, Last, Layout, LearnedInit, Level, Linear, Log, Partition, Quadratic, keys
from levels.replay import update_vjp
from levels.testing import check_optimizer
from recursion.notation import parse

LAYOUT = Layout.of({"conv.weight": (3, 2), "dense.weight": (2, 2), "conv.bias": (3,)}, torch.float64)
TASK = Quadratic(dims=4, dtype="float64")


@pytest.mark.parametrize("rule", [SGD(momentum=0.9), Adam(), SGD(lr=Log(0.1, "coordinate"))], ids=repr)
def test_a_start_keeps_the_contract(rule):
    check_optimizer(LearnedInit(rule), param_layout=LAYOUT)


def test_an_untrained_start_is_one_draw_of_the_problem_for_all_copies():
    level = Level(optimizer=LearnedInit(SGD(), seed=3), unroll=2, batch=5).over(TASK)
    theta = level.init(keys.seed(0))
    x = level.init_state(theta, keys.seed(1)).carry.x
    assert torch.equal(x, TASK.init(keys.seed(3)).expand(5, 4))
    moved = theta.clone()
    moved[:4] += 1.5
    torch.testing.assert_close(level.init_state(moved, keys.seed(1)).carry.x, x + 1.5)


def test_a_learned_start_is_the_same_place_on_every_split():
    draw = TASK.init(keys.seed(0))
    for split in ("train", "validation", "test"):
        level = Level(optimizer=LearnedInit(SGD()), unroll=2, batch=3).over(TASK.on(split))
        theta = level.init(keys.seed(0)) + 1.5
        assert torch.equal(level.init_state(theta, keys.seed(1)).carry.x, (draw + 1.5).expand(3, 4))


def test_the_gradient_of_a_start_is_first_order_maml_by_hand():
    """x_0 = start, two SGD steps on each of three quadratics, gradients as data, the loss at the end."""
    settings = {"unroll": 2, "horizon": 2, "batch": 3, "objective": Last(), "stagger": False}
    level = Level(optimizer=LearnedInit(SGD(lr=Linear(0.01))), **settings).over(TASK)
    theta = level.init(keys.seed(0))
    state = level.init_state(theta, keys.seed(1))
    for _ in range(3):  # each window is a trajectory of its own, and begins at the start
        value, grad, new = level.value_and_grad(theta, state)
        start = (TASK.init(keys.seed(0)) + theta[:4]).requires_grad_()
        problem = new.carry.problem_state  # the three quadratics of this window
        x = start.expand(3, 4)
        for _ in range(2):
            residual = torch.einsum("bij,bj->bi", problem.w, x) - problem.y
            x = x - theta[4] * (2 * torch.einsum("bi,bij->bj", residual, problem.w)).detach()
        loss = (torch.einsum("bij,bj->bi", problem.w, x) - problem.y).square().sum(-1).mean()
        (expected,) = torch.autograd.grad(loss, start)
        torch.testing.assert_close(value, loss.detach())
        torch.testing.assert_close(grad[:4], expected, rtol=1e-12, atol=0)
        theta, state = theta - 0.001 * grad, new


def test_a_window_in_the_middle_of_training_does_not_move_the_start():
    level = Level(optimizer=LearnedInit(SGD(lr=0.001)), unroll=2, horizon=4, batch=3, stagger=False).over(TASK)
    theta = level.init(keys.seed(0))
    state = level.init_state(theta, keys.seed(1))
    for is_first in (True, False, True, False):
        _, grad, state = level.value_and_grad(theta, state)
        assert bool((grad[:4] != 0).all()) == is_first
        assert grad[4] != 0


def test_by_name_updates_each_tensor_as_its_optimizer_alone_would():
    """Updates and their derivatives."""
    parts = (SGD(lr=0.1, momentum=0.9), Adam(lr=0.01))
    both = Partition(("conv*", "*"), parts).bind(LAYOUT)
    key = keys.split(keys.seed(0), 2)
    theta = both.init(key)  # [2, m]
    x, g = (keys.normal(keys.split(keys.split(keys.seed(k), 2), 3), (13,), torch.float64) for k in (1, 2))
    state, f = both.init_state(theta, x, keys.split(key, 3)), x.sum(-1)
    rows = {"conv": [0, 1, 2, 3, 4, 5, 10, 11, 12], "dense": [6, 7, 8, 9]}
    shapes = {"conv": {"conv.weight": (3, 2), "conv.bias": (3,)}, "dense": {"dense.weight": (2, 2)}}
    expected, slopes, offset, dx = {}, [], 0, torch.ones_like(x)
    for rule, (name, own) in zip(parts, rows.items(), strict=True):
        alone = rule.bind(Layout.of(shapes[name], torch.float64))
        theirs = theta[:, offset : offset + alone.layout.size]
        offset += alone.layout.size
        y, s = x[..., own], alone.init_state(theirs, x[..., own], keys.split(key, 3))
        for _ in range(3):
            slope = update_vjp(alone, theirs, y, s, f, g[..., own], dx[..., own], [])[0]
            y, s = alone.update(theirs, y, s, f, g[..., own])
        expected[name] = y
        slopes.append(slope)
    for _ in range(3):
        slope = update_vjp(both, theta, x, state, f, g, dx, [])[0]
        x, state = both.update(theta, x, state, f, g)
    for name, own in rows.items():
        assert torch.equal(x[..., own], expected[name])
    torch.testing.assert_close(slope, torch.cat(slopes, dim=-1), rtol=1e-13, atol=0)


def test_by_name_keeps_the_contract():
    check_optimizer(Partition(("conv*", "*"), (SGD(momentum=0.5), LearnedInit(Adam()))), param_layout=LAYOUT)


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (("conv*",), "no pattern matches the tensor 'dense.weight'; end with \"\\*\" for the rest"),
        (("*", "conv*"), "no tensor is left for the pattern 'conv\\*'; there are conv.weight, dense.weight, conv.bias"),
    ],
)
def test_by_name_refuses_patterns_that_do_not_fit(patterns, message):
    with pytest.raises(ValueError, match=message):
        Partition(patterns, (SGD(),) * len(patterns)).bind(LAYOUT)


def test_by_name_refuses_other_counts():
    with pytest.raises(ValueError, match="2 patterns but 1 optimizers; give one optimizer a pattern"):
        Partition(("a", "b"), (SGD(),))


@pytest.mark.parametrize(
    "notation",
    [
        "quadratic: start(sgd(lr=log(0.001, per=coordinate)))@5[horizon=5, batch=4, objective=last] / adam",
        'digits-mlp(hidden=[3]): by-name(["layer0.*", "*"], [lstm(hidden=3), sgd(lr=0.1)])@5[batch=2] / adam(lr=0.01)',
    ],
)
def test_they_run_from_their_notation(notation):
    tower = parse(notation)
    assert repr(tower) == notation
    *_, (_, report) = tower.run(tower.init(0), 3)
    assert report.losses[0] < 100
