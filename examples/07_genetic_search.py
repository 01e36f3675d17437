"""Hyperparameters of Adam by genetic search, without a gradient. About 5 seconds.

Sixteen sets of hyperparameters near a step size 1,000 times too small, each judged by a whole run on the same fresh
quadratics; the best two go on, the others are bred from tournaments. You should see

    start        : step size 0.0005, mean meta-loss 2003.0
    generation 5 : step size 0.0706, mean meta-loss 168.0
    generation 10: step size 0.427, mean meta-loss 40.5
    generation 15: step size 0.427, mean meta-loss 40.5

on quadratics that the search never saw: sums of 20 losses, over runs of 100 steps. The best of a fine grid has 0.56.
"""

from levels import GA, Adam, Level, Quadratic, keys
from recursion import Tower

GENERATIONS = 15

if __name__ == "__main__":
    tower = Tower(Quadratic(), Level(optimizer=Adam(lr=5e-4), unroll=20), Level(optimizer=GA(sigma=1.0)))
    unseen, key = tower.bound[0].on("test"), keys.seed(1)[None]
    state = tower.init(seed=0)

    def show(name: str) -> None:
        best = tower.result(state)
        rate = tower.bound[0].layout.unravel(best)["lr"].exp().item()
        print(f"{name:13}: step size {rate:.3g}, mean meta-loss {unseen.evaluate_from_scratch(best, key).item():.1f}")

    show("start")
    for state, report in tower.run(state, GENERATIONS):
        if report.step % 5 == 0:
            show(f"generation {report.step}")
