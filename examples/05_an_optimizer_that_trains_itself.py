"""An LSTM is trained by Adam for 100 updates, and by itself from then on. About a minute.

Its update rule is applied to its own weights. A guard gives what comes of 20 such updates a trial on validation
problems, beside what it was before, and drops it if it is no better. You should see about

    random weights           : mean meta-loss 1353.7
    after 100 updates by Adam: mean meta-loss 80.7
    after 300 by itself      : mean meta-loss 25.4, 7 of 15 blocks refused

on quadratics that were in neither: sums of 20 losses, over runs of 100 steps.
"""

from levels import LSTM, Adam, Level, Quadratic, Self, Skip, Switch, keys
from recursion import Tower, TowerState

if __name__ == "__main__":
    tower = Tower(
        Quadratic(),
        Level(optimizer=LSTM(), unroll=20, nonfinite=Skip()),
        Level(optimizer=Switch(Adam(lr=0.01), Self(every=20), after=100)),
    )
    unseen, key = tower.bound[0].on("test"), keys.seed(1)[None]

    def loss(state: TowerState) -> float:
        return unseen.evaluate_from_scratch(tower.result(state), key).item()

    state = tower.init(seed=0)
    print(f"random weights           : mean meta-loss {loss(state):.1f}")
    for state, report in tower.run(state, 400):
        if report.step == 100:
            print(f"after 100 updates by Adam: mean meta-loss {loss(state):.1f}")
    refused = next(value for name, value in report.metrics.items() if name.endswith("refused"))
    print(f"after 300 by itself      : mean meta-loss {loss(state):.1f}, {refused:.0f} of 15 blocks refused")
