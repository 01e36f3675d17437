"""An objective of your own: the best loss of a window, made smooth. About 15 seconds.

    L = -1/s log mean_t exp(-s f_t),     which goes from the mean of the losses (s = 0) to their minimum (s = inf)

An objective is one method; the weights w_t = dL/df_t that the gradient needs are autograd's. You should see

    checks passed
    sum      : step size 0.022, best loss in 20 steps 1.12
    soft-best: step size 0.048, best loss in 20 steps 0.78

From the command line, in this folder: tower train "quadratic: adam@20[objective=soft_best.SoftBest(2.0)] / adam"
"""

import math
from dataclasses import dataclass

from torch import Tensor

from levels import SGD, Adam, Exact, Level, Objective, Quadratic, Sum, keys
from levels.fields import Positive
from levels.testing import check_problem
from recursion import Tower
from recursion.evaluation.deploy import run


@dataclass(frozen=True, repr=False)
class SoftBest(Objective):
    """``sharpness``: s, above 0."""

    name = "soft-best"

    sharpness: Positive = 1.0

    def value(self, losses: Tensor) -> Tensor:
        return (math.log(len(losses)) - (-self.sharpness * losses).logsumexp(0)) / self.sharpness


if __name__ == "__main__":
    task = Quadratic(dims=4, dtype="float64")
    level = Level(optimizer=SGD(lr=0.01), unroll=3, horizon=3, objective=SoftBest(), gradient=Exact())
    check_problem(level.over(task), exact_gradient=True)
    print("checks passed")
    for name, objective in (("sum", Sum()), ("soft-best", SoftBest(2.0))):
        bottom = Level(optimizer=SGD(lr=1e-3), unroll=20, horizon=20, batch=64, objective=objective)
        tower = Tower(task, bottom, Level(optimizer=Adam(lr=0.1)))
        *_, (state, _report) = tower.run(tower.init(seed=0), 100)
        losses = run(SGD(), tower.result(state), task.on("test"), keys.split(keys.seed(1), 64), 20)
        best = losses.min(0).values.mean().item()
        print(f"{name:9}: step size {tower.result(state)[0, 0].exp():.3f}, best loss in 20 steps {best:.2f}")
