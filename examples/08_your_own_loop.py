"""A window as one autograd node in a loop of your own: the research interface, on a network of your own.

    python examples/08_your_own_loop.py

It takes 12 seconds of one core. You should see (last digits depend on the machine)

    hypergradient of the log step size: -0.99599, by central differences -0.99599
    outer loop, unroll 5: meta-loss 0.9919 per step
    outer loop, unroll 10: meta-loss 0.7981 per step
    outer loop, unroll 20: meta-loss 0.5695 per step
    learned step size 0.232, momentum 0.824
    the first network in evaluation mode: loss 0.2964

The parts: `meta_loss` is the estimator's meta-loss with its gradient; anything may be added to it, and any
`torch.optim` optimizer, schedule and clipping may stand on top. The unroll grows while the state goes on.
`started_at` sets starting weights; `unrolled` gives the final weights as a function of the hyperparameters.
"""

import torch
from torch import nn

from levels import SGD, Exact, Level, ModuleTask, keys, meta_loss, started_at, unrolled
from levels.tasks.data.scikit import digits
from recursion import Tower


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, 10))


def level(task: ModuleTask, unroll: int) -> Level:
    rule = SGD(lr=0.05, momentum=0.5)
    return Level(optimizer=rule, unroll=unroll, horizon=40, batch=2, gradient=Exact()).over(task)


def main() -> None:
    images, labels, _ = digits("train", torch.float64)
    task = ModuleTask(make=network, loss_function=nn.functional.cross_entropy, train=(images, labels), minibatch=64,
                      dtype="float64")  # fmt: skip

    # The hypergradient of one window, against central differences.
    short = level(task, 5)
    theta = short.init(keys.seed(0)).requires_grad_()  # [2]: the log of the step size, the logit of the momentum
    state = short.init_state(theta.detach(), keys.seed(1))
    loss, _ = meta_loss(short, theta, state)
    loss.backward()
    step = torch.tensor([1e-5, 0.0], dtype=torch.float64)
    up, down = (short.value(theta.detach() + sign * step, state)[0] for sign in (1, -1))
    slope = (up - down).item() / 2e-5
    print(f"hypergradient of the log step size: {theta.grad[0]:.5f}, by central differences {slope:.5f}")

    # An outer loop: torch's Adam, cosine schedule, clipping, a loss of one's own on top, and a growing unroll.
    theta.grad = None
    outer = torch.optim.Adam([theta], 0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(outer, 30)
    for unroll in (5, 10, 20):
        window = level(task, unroll)
        for _ in range(10):
            loss, state = meta_loss(window, theta, state)
            outer.zero_grad()
            (loss + 0.01 * theta.square().sum()).backward()
            nn.utils.clip_grad_norm_([theta], 1.0)
            outer.step()
            schedule.step()
        print(f"outer loop, unroll {unroll}: meta-loss {loss.item() / unroll:.4f} per step")
    print(f"learned step size {theta[0].exp():.3f}, momentum {theta[1].sigmoid():.3f}")

    # Weights of one's own to begin with, and a loss of one's own of the final ones.
    long = level(task, 20)
    state = started_at(long, theta, state, state.carry.x / 2)
    final, _ = unrolled(long, theta, state)
    final.square().mean().backward()

    # The trained network itself, with its running statistics.
    tower = Tower(task, level(task, 20))
    trained = tower.init(0, theta=theta.detach())
    trained, _ = tower.step(trained)
    model = tower.module(trained).eval()
    with torch.no_grad():
        print(f"the first network in evaluation mode: loss {nn.functional.cross_entropy(model(images), labels):.4f}")


if __name__ == "__main__":
    main()
