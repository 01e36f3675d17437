"""A step size 10,000 times too small, rescued by the levels above it. About 20 seconds.

Every level is SGD with unroll 1: the hyperoptimizers of Chandra et al. 2022. Level 1 starts with a step size of 1e-4,
at which a perceptron on digits learns nothing in 500 steps; each level above has 0.1. You should see

    height 1: final loss 2.494
    height 2: final loss 0.093
    height 3: final loss 0.080
    height 4: final loss 0.081

and 0.05 is what a well-tuned step size (1.0) reaches.
"""

from levels import SGD, DigitsMLP, Level, Linear
from recursion import Tower

STEPS, TAIL = 500, 50


def final_loss(height: int) -> float:
    """Mean loss over the last 50 of 500 steps."""
    bottom = Level(optimizer=SGD(lr=Linear(1e-4)))
    above = Level(optimizer=SGD(lr=Linear(0.1)))
    tower = Tower(DigitsMLP(), bottom, *[above] * (height - 1))
    reports = [report for _, report in tower.run(tower.init(seed=0), STEPS)]
    return sum(report.losses[0] for report in reports[-TAIL:]) / TAIL


if __name__ == "__main__":
    for height in range(1, 5):
        print(f"height {height}: final loss {final_loss(height):.3f}")
