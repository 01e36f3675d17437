"""Learning to learn by gradient descent by gradient descent, on quadratics. About 40 seconds.

An LSTM is trained by Adam on 64 random quadratics at a time (unroll 20, restarts after 100 steps), then frozen and
run on quadratics that it never saw, beside Adam with the best of 17 step sizes. You should see about

    adam, best step size 0.56: sum of losses 359.5, final loss 0.435
    lstm, learned            : sum of losses 140.9, final loss 0.485
"""

import torch

from levels import LSTM, Adam, Level, Optimizer, Quadratic, keys
from recursion import Tower
from recursion.evaluation.deploy import run

STEPS, PROBLEMS, UPDATES = 100, 64, 400


def measure(optimizer: Optimizer, params: torch.Tensor, split: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum of losses over 100 steps and final loss, for each set of parameters ``[S, m]``: two ``[S]``."""
    task = Quadratic().on(split)
    losses = run(optimizer, params, task, keys.split(keys.seed(12345), PROBLEMS), STEPS)  # [steps + 1, S, problems]
    return losses[1:].sum(0).mean(-1), losses[-1].mean(-1)


if __name__ == "__main__":
    sizes = torch.logspace(-3, 1, 17)
    grid = torch.cat([Adam(lr=float(lr)).bind(Quadratic()).init(keys.seed(0))[None] for lr in sizes])
    best = int(measure(Adam(), grid, "validation")[0].argmin())
    total, final = measure(Adam(), grid[best : best + 1], "test")
    print(f"adam, best step size {sizes[best]:.2f}: sum of losses {total.item():.1f}, final loss {final.item():.3f}")

    tower = Tower(Quadratic(), Level(optimizer=LSTM(), unroll=20, clip=1.0), Level(optimizer=Adam(lr=3e-3)))
    state = tower.init(seed=0)
    for state, _report in tower.run(state, UPDATES):
        pass
    total, final = measure(LSTM(), state.carry.x, "test")
    print(f"lstm, learned            : sum of losses {total.item():.1f}, final loss {final.item():.3f}")
