"""How deep should a tower be? Gates between its levels find out. About a minute.

Three levels of SGD on noisy quadratics: level 1 trains for 100 steps, level 2 moves its step size on the way, level 3
the step size of level 2. Each update passes a gate, an open gate has a price, and one more level moves the gates. You
should see

    step size right          : gates 0.00, 0.00, so depth 1
    step size 1,000 too small: gates 0.94, 0.00, so depth 2

`recursion.analysis.pruning.prune` then cuts the tower to that depth, and `tower prune` does it for a run.
"""

from levels import SGD, Fixed, Level, Linear, MeanLog, NoisyQuadratic
from recursion import Tower
from recursion.analysis.depth import gates, learned_depth
from recursion.group import Depth, gated_levels

TASK = NoisyQuadratic(noise=2.0)
STEPS = 240


def gated(rate: float) -> Tower:
    """Three levels with gates between them, and one above that moves the gates and nothing else."""
    group = [
        Level(optimizer=SGD(lr=Linear(rate)), objective=MeanLog()),
        Level(optimizer=SGD(lr=Linear(0.01)), unroll=50, horizon=100, batch=32),
        Level(optimizer=SGD(lr=Linear(2e-4))),
    ]
    settings = Depth(gates=SGD(lr=Fixed(8.0)), price=0.0003)
    return Tower(TASK, *gated_levels(TASK, group, Level(optimizer=SGD(lr=Fixed(0.0))), settings))


if __name__ == "__main__":
    for name, rate in (("step size right", 0.1), ("step size 1,000 too small", 1e-4)):
        tower = gated(rate)
        state = tower.init(seed=0)
        for state, _report in tower.run(state, STEPS):
            pass
        opened = ", ".join(f"{gate.mean:.2f}" for gate in gates(tower, state))
        print(f"{name:25}: gates {opened}, so depth {min(3, learned_depth(tower, state))}")
