"""Norms from plain operations: values of torch's own, and derivatives of third order by central differences."""

import pytest
import torch
from torch import nn

from levels import SGD, Exact, Last, Level, ModuleTask, keys
from levels.tasks.norms import PlainNorms

NORMS = {
    "layer": lambda: nn.LayerNorm(6),
    "layer over two": lambda: nn.Sequential(nn.Unflatten(1, (2, 3)), nn.LayerNorm((2, 3)), nn.Flatten()),
    "group": lambda: nn.GroupNorm(2, 6),
    "batch": lambda: nn.BatchNorm1d(6, track_running_stats=False),
    "batch, no scale": lambda: nn.BatchNorm1d(6, affine=False, track_running_stats=False),
    "instance": lambda: nn.Sequential(nn.Unflatten(1, (2, 3)), nn.InstanceNorm1d(2, affine=True), nn.Flatten()),
}


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("name", [*NORMS, "batch, evaluated"])
def test_values_are_those_of_torch(name):
    norm = nn.BatchNorm1d(6) if name not in NORMS else NORMS[name]()
    for number, part in enumerate(norm.double().state_dict().values()):
        if part.is_floating_point():
            part.copy_(random(*part.shape, seed=number + 1).abs() + 0.1)
    norm.train(name in NORMS)
    expected = norm(random(5, 6))
    with PlainNorms():
        ours = norm(random(5, 6))
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)
    for function in (torch.layer_norm, nn.functional.layer_norm):
        with PlainNorms():
            ours = function(random(5, 6), (6,), random(6, seed=1), None, 1e-3)
        torch.testing.assert_close(ours, function(random(5, 6), (6,), random(6, seed=1), None, 1e-3))


@pytest.mark.parametrize("name", NORMS)
def test_exact_over_exact_over_a_norm(name):
    """It asks for third derivatives of the network; with torch's own norms, the first is 1% off."""
    data = random(40, 4), torch.randint(3, (40,), generator=torch.Generator().manual_seed(0))
    task = ModuleTask(
        make=lambda: nn.Sequential(nn.Linear(4, 6), NORMS[name](), nn.Tanh(), nn.Linear(6, 3)),
        loss_function=nn.functional.cross_entropy, train=data, minibatch=8, dtype="float64",
    )  # fmt: skip
    level = task
    for unroll in (3, 2):
        settings = {"unroll": unroll, "horizon": unroll, "batch": 1, "gradient": Exact(), "objective": Last()}
        level = Level(optimizer=SGD(lr=0.5), **settings).over(level)
    theta = level.init(keys.seed(0))
    state = level.init_state(theta, keys.seed(1))
    up, down = (level.value(theta + sign * 1e-4, state)[0] for sign in (1, -1))
    grad = level.value_and_grad(theta, state)[1]
    torch.testing.assert_close(grad[0], (up - down) / 2e-4, rtol=1e-6, atol=1e-11)
