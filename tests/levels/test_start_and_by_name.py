import pytest
import torch

from levels import SGD, Adam, Partition, Last, Layout, Level, Linear, Log, Quadratic, LearnedInit, keys
from levels.optimizers.wrap import Wrapping
from levels.testing import check_optimizer
from recursion.notation import parse

LAYOUT = Layout.of({"conv.weight": (3, 2), "dense.weight": (2, 2), "conv.bias": (3,)}, torch.float64)


@pytest.mark.parametrize("rule", [SGD(momentum=0.9), Adam(), SGD(lr=Log(0.1, "coordinate"))], ids=repr)
def test_a_start_keeps_the_contract(rule):
    check_optimizer(LearnedInit(rule))


def test_an_untrained_start_is_one_draw_of_the_problem_for_all_copies():
    task = Quadratic(dims=4, dtype="float64")
    laid = Level(optimizer=LearnedInit(SGD(), seed=3), unroll=2, batch=5).over(task)
    params = laid.init(keys.seed(0))
    x = laid.init_state(params, keys.seed(1)).carry.x
    assert torch.equal(x, task.init(keys.seed(3)).expand(5, 4))
    moved = params.clone()
    moved[:4] += 1.5
    torch.testing.assert_close(laid.init_state(moved, keys.seed(1)).carry.x, x + 1.5)


def test_a_learned_start_is_the_same_place_on_every_split():
    task = Quadratic(dims=4, dtype="float64")
    draw = task.init(keys.seed(0))
    for split in ("train", "validation", "test"):
        laid = Level(optimizer=LearnedInit(SGD()), unroll=2, batch=3).over(task.on(split))
        params = laid.init(keys.seed(0)) + 1.5
        assert torch.equal(laid.init_state(params, keys.seed(1)).carry.x, (draw + 1.5).expand(3, 4))


def test_the_gradient_of_a_start_is_first_order_maml_by_hand():
    """x_0 = start, two SGD steps on each of three quadratics, gradients as data, the loss at the end."""
    task = Quadratic(dims=4, dtype="float64")
    level = Level(optimizer=LearnedInit(SGD(lr=Linear(0.01))), unroll=2, horizon=2, batch=3, objective=Last(), stagger=False)
    laid = level.over(task)
    params = laid.init(keys.seed(0))
    state = laid.init_state(params, keys.seed(1))
    for _ in range(3):  # each window is a trajectory of its own, and begins at the start
        value, grad, new = laid.value_and_grad(params, state)
        start = (task.init(keys.seed(0)) + params[:4]).requires_grad_()
        problem = new.carry.below  # the three quadratics of this window
        x = start.expand(3, 4)
        for _ in range(2):
            residual = torch.einsum("bij,bj->bi", problem.w, x) - problem.y
            x = x - params[4] * (2 * torch.einsum("bi,bij->bj", residual, problem.w)).detach()
        loss = (torch.einsum("bij,bj->bi", problem.w, x) - problem.y).square().sum(-1).mean()
        (expected,) = torch.autograd.grad(loss, start)
        torch.testing.assert_close(value, loss.detach())
        torch.testing.assert_close(grad[:4], expected, rtol=1e-12, atol=0)
        params, state = params - 0.001 * grad, new


def test_a_window_that_goes_on_does_not_move_the_start():
    task = Quadratic(dims=4, dtype="float64")
    laid = Level(optimizer=LearnedInit(SGD(lr=0.001)), unroll=2, horizon=4, batch=3, stagger=False).over(task)
    params = laid.init(keys.seed(0))
    state = laid.init_state(params, keys.seed(1))
    for begins in (True, False, True, False):
        _, grad, state = laid.value_and_grad(params, state)
        assert bool((grad[:4] != 0).all()) == begins
        assert grad[4] != 0


def test_by_name_updates_each_tensor_as_its_optimizer_alone_would():
    parts = (SGD(lr=0.1, momentum=0.9), Adam(lr=0.01))
    both = Partition(("conv*", "*"), parts).over(LAYOUT)
    params = both.init(keys.split(keys.seed(0), 2))  # [2, m]
    x, g = (keys.normal(keys.split(keys.split(keys.seed(k), 2), 3), (13,), torch.float64) for k in (1, 2))
    state, f = both.init_state(params, x), x.sum(-1)
    rows = {"conv": [0, 1, 2, 3, 4, 5, 10, 11, 12], "dense": [6, 7, 8, 9]}
    shapes = {"conv": {"conv.weight": (3, 2), "conv.bias": (3,)}, "dense": {"dense.weight": (2, 2)}}
    expected, dx = {}, torch.ones_like(x)
    offset = 0
    for rule, (name, own) in zip(parts, rows.items(), strict=True):
        alone = rule.over(Layout.of(shapes[name], torch.float64))
        theirs = params[:, offset : offset + alone.layout.size]
        offset += alone.layout.size
        y, s = x[..., own], alone.init_state(theirs, x[..., own])
        for _ in range(3):
            slopes = alone.pullback(theirs, f, g[..., own], s, y, dx[..., own], None)
            y, s = alone.update(theirs, f, g[..., own], s, y)
        expected[name] = (y, slopes[0])
    for _ in range(3):
        pulled = both.pullback(params, f, g, state, x, dx, None)
        x, state = both.update(params, f, g, state, x)
    for name, own in rows.items():
        assert torch.equal(x[..., own], expected[name][0])
    assert torch.equal(pulled[0], torch.cat([slope for _, slope in expected.values()], dim=-1))


def test_by_name_keeps_the_contract():
    check_optimizer(Partition(("*",), (Adam(),)))
    check_optimizer(Partition(("conv*", "*"), (SGD(momentum=0.5), Adam())), below=LAYOUT)


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (("conv*",), "no pattern matches the tensor 'dense.weight'; end with \"\\*\" for the rest"),
        (("*", "conv*"), "no tensor is left for the pattern 'conv\\*'; there are conv.weight, dense.weight, conv.bias"),
    ],
)
def test_by_name_refuses_patterns_that_do_not_fit(patterns, message):
    with pytest.raises(ValueError, match=message):
        Partition(patterns, (SGD(),) * len(patterns)).over(LAYOUT)


def test_by_name_refuses_other_counts():
    with pytest.raises(ValueError, match="2 patterns but 1 optimizers; give one optimizer a pattern"):
        Partition(("a", "b"), (SGD(),))


@pytest.mark.parametrize(
    "notation",
    [
        "digits-mlp: start(sgd(lr=0.1))@5[horizon=5, batch=4, objective=last] / adam",
        "digits-mlp: start(sgd(lr=log(0.1, per=coordinate)))@5[horizon=5, batch=4, objective=last] / adam",
        'digits-mlp: by-name(["layer0.*", "*"], [lstm(hidden=3), sgd(lr=0.1)])@5[batch=2] / adam(lr=0.01)',
    ],
)
def test_they_run_from_their_notation(notation):
    tower = parse(notation)
    assert repr(tower) == notation
    state = tower.init(0)
    for state, report in tower.run(state, 3):  # noqa: B007, B020
        pass
    assert report.losses[0] < 5


@pytest.mark.parametrize("around", ["start({})", "scheduled({}, cosine, steps=9)", "gated({})", "start(gated({}))"])
class TestWhatIsAroundARule:
    """It passes on what it does not change: price, cost, what is read, and what a trajectory came to."""

    def both(self, around: str, rule: str):
        towers = (parse(f"quadratic(dims=3): {notation}") for notation in (rule, around.format(rule)))
        return [tower.bound_levels[0].optimizer for tower in towers]

    def test_price(self, around):
        rule, outer = self.both(around, "gated(sgd, price=0.5)")
        params = outer.init(keys.split(keys.seed(0), 2))
        inner = params[..., -rule.layout.size :]
        (value, slopes), (expected, inside) = outer.penalty(params), rule.penalty(inner)
        assert torch.equal(value, expected)
        assert torch.equal(slopes[..., -rule.layout.size :], inside)
        assert not slopes[..., : -rule.layout.size].any()
        assert inside.any()

    @pytest.mark.parametrize("of", ["random-search", "safe(sgd)", "lstm"])
    def test_what_it_reads_and_costs(self, around, of):
        rule, outer = self.both(around, of)
        for name in ("asking", "reads_loss", "reads_gradient", "differentiable", "compiles"):
            assert getattr(outer, name) == getattr(rule, name), name

    def test_what_a_trajectory_came_to(self, around):
        tower = parse(f"quadratic(dims=3): {around.format('guarded(sgd(lr=0.001))')}")
        *_, (state, _) = tower.run(tower.init(0), 3)
        rule, held = tower.top.optimizer, state.carry.state
        while isinstance(rule, Wrapping):
            rule, held = rule.rule, rule.held(held)
        assert torch.equal(tower.result(state), held.kept)
        assert not torch.equal(tower.result(state), state.carry.x)
