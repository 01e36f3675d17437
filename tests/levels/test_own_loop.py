"""A level in a loop of one's own: against what the level answers, differences, and nested autograd by hand."""

import pytest
import torch
from torch import nn

from levels import PES, SGD, Exact, FirstOrder, Level, ModuleTask, Quadratic, keys, meta_loss, started_at, unrolled
from levels.layout import Layout
from levels.tasks.task import LossTask

TASK = Quadratic(dims=3, dtype="float64")


def begun(gradient, **settings):
    level = Level(optimizer=SGD(lr=0.02, momentum=0.5), unroll=4, batch=2, gradient=gradient, **settings).over(TASK)
    theta = level.init(keys.seed(0)).requires_grad_()
    return level, theta, level.init_state(theta.detach(), keys.seed(1))


@pytest.mark.parametrize("gradient", [FirstOrder(), Exact(), PES()], ids=str)
def test_a_meta_loss_has_the_gradient_of_the_estimator(gradient):
    level, theta, state = begun(gradient)
    value, grad, after = level.value_and_grad(theta.detach(), state)
    loss, new = meta_loss(level, theta, state)
    (loss + 3 * theta.square().sum()).backward()
    assert torch.equal(loss, value)
    assert torch.allclose(theta.grad, grad + 6 * theta.detach(), rtol=1e-12)
    assert torch.equal(new.carry.x, after.carry.x)


def test_an_outer_loop_of_torch_with_a_schedule_and_clipping_lowers_the_meta_loss():
    level, theta, state = begun(Exact(), horizon=4)
    outer, losses = torch.optim.Adam([theta], 0.03), []
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(outer, 40)
    for _ in range(40):
        loss, state = meta_loss(level, theta, state)
        outer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([theta], 1.0)
        outer.step()
        schedule.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])


def by_hand(theta, state, data):
    """The updates of momentum SGD written out; the problem's gradient is data where ``data``."""
    rate, momentum = theta[0].exp(), theta[1].sigmoid()
    x, buffer, g, (w, y) = state.carry.x, state.carry.state, state.carry.g, state.carry.problem_state
    for _ in range(4):
        buffer = momentum * buffer + g
        x = x - rate * buffer
        residual = (w @ x[..., None]).squeeze(-1) - y
        g = 2 * (residual[..., None, :] @ w).squeeze(-2)
        g = g.detach() if data else g
    return x


@pytest.mark.parametrize(("gradient", "data"), [(FirstOrder(), True), (Exact(), False)], ids=str)
def test_a_loss_of_ones_own_of_the_final_parameters(gradient, data):
    level, theta, state = begun(gradient)
    x, new = unrolled(level, theta, state)
    (grad,) = torch.autograd.grad(x.abs().sum(), theta)
    expected = by_hand(theta, state, data)
    (slope,) = torch.autograd.grad(expected.abs().sum(), theta)
    assert torch.allclose(x, expected, rtol=1e-12)
    assert torch.allclose(grad, slope, rtol=1e-10)
    assert torch.equal(new.carry.x, x.detach())


def test_a_curriculum_of_unrolls_goes_on_from_one_state():
    _, theta, state = begun(FirstOrder(), horizon=None)
    for unroll in (1, 2, 4):
        longer = Level(optimizer=SGD(lr=0.02, momentum=0.5), unroll=unroll, batch=2, horizon=None).over(TASK)
        _, state = meta_loss(longer, theta, state)
    assert state.carry.age.tolist() == [7, 7]


def test_own_starting_parameters():
    level, theta, state = begun(Exact())
    x = torch.arange(6.0, dtype=torch.float64).reshape(2, 3)
    state = started_at(level, theta, state, x)
    f, g, _ = TASK.value_and_grad(x, state.carry.problem_state)
    assert torch.equal(state.carry.x, x)
    assert torch.equal(state.carry.f, f)
    assert torch.equal(state.carry.g, g)
    assert not state.carry.state.any()
    with pytest.raises(ValueError, match=r"works on parameters \[2, 3\] in torch.float64, got \[3\] in torch.float32"):
        started_at(level, theta, state, torch.zeros(3))


class Fit(LossTask):
    """A line through the minibatch that is the state: a batch of your own in each window."""

    name = "fit"
    layout = Layout.of({"w": (2,)}, torch.float64)

    def init(self, key):
        return keys.normal(key, (2,), torch.float64)

    def init_state(self, params, key):
        return torch.zeros(*params.shape[:-1], 5, 2, dtype=torch.float64)

    def loss(self, params, state):
        return (params[..., 0, None] * state[..., 0] + params[..., 1, None] - state[..., 1]).square().mean(-1), state


def test_a_batch_of_ones_own():
    level = Level(optimizer=SGD(lr=0.1), unroll=3, batch=1, gradient=Exact()).over(Fit())
    theta = level.init(keys.seed(0))
    state = level.init_state(theta, keys.seed(1))
    batch = torch.randn(1, 5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    state = started_at(level, theta, state._replace(carry=state.carry._replace(problem_state=batch)), state.carry.x)
    values = [meta_loss(level, theta + e, state)[0] for e in (1e-6, -1e-6)]
    theta = theta.requires_grad_()
    meta_loss(level, theta, state)[0].backward()
    assert float(theta.grad) == pytest.approx(float(values[0] - values[1]) / 2e-6, rel=1e-6)


def test_what_is_refused():
    level, theta, state = begun(PES())
    with pytest.raises(ValueError, match="pes.* does not follow the parameters; use first-order or exact"):
        unrolled(level, theta, state)
    with pytest.raises(ValueError, match=r"takes parameters \[..., 2\] in torch.float64, got \[2\] in torch.float32"):
        meta_loss(level, theta.float(), state)
    with pytest.raises(ValueError, match=r"stands on no problem; write level.over\(task\)"):
        meta_loss(Level(optimizer=SGD()), theta, state)
    flat = ModuleTask(make=lambda: nn.Sequential(nn.Linear(2, 3), nn.Hardsigmoid()), loss_function=nn.functional.mse_loss,
                      train=(torch.ones(4, 2), torch.ones(4, 3)), dtype="float64")  # fmt: skip
    level = Level(optimizer=SGD(), unroll=2, batch=1, gradient=Exact()).over(flat)
    theta = level.init(keys.seed(0))
    with pytest.raises(ValueError, match="the gradient of module"):
        meta_loss(level, theta, level.init_state(theta, keys.seed(1)))
