"""A task of your own: factors of a matrix, which an LSTM learns to find. About 30 seconds.

    f(U, V) = mean |U V^T - M|^2,     M a product of random factors, another one for every key

A task says which tensors it has, where they begin, what a copy carries, and its loss; autograd does the rest.
You should see

    checks passed
    untrained: loss after 40 steps 1.877
    trained  : loss after 40 steps 0.002

From the command line, in this folder: tower train "factors.Factors: lstm@20[clip=1] / adam(lr=3e-3)"
"""

from dataclasses import dataclass

from torch import Tensor

from levels import LSTM, Adam, Layout, Level, LossTask, keys
from levels.fields import Count
from levels.testing import check_problem
from recursion import Tower
from recursion.evaluation.deploy import run


@dataclass(frozen=True, repr=False)
class Factors(LossTask):
    """``size``: rows and columns of the matrix. ``rank``: columns of each factor."""

    name = "factors"

    size: Count = 6
    rank: Count = 2

    @property
    def layout(self) -> Layout:
        return Layout.of({"u": (self.size, self.rank), "v": (self.size, self.rank)}, self.torch_dtype, self.device)

    def init(self, key: Tensor) -> Tensor:
        return 0.1 * keys.normal(self.own(key), (self.layout.size,), self.torch_dtype)

    def init_state(self, params: Tensor, key: Tensor) -> Tensor:
        u, v = keys.normal(self.own(key), (2, self.size, self.rank), self.torch_dtype).unbind(-3)
        return u @ v.mT  # M [*batch, size, size]

    def loss(self, params: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        parts = self.layout.unravel(params)
        return (parts["u"] @ parts["v"].mT - state).square().mean((-2, -1)), state


if __name__ == "__main__":
    check_problem(Factors())
    print("checks passed")
    tower = Tower(Factors(), Level(optimizer=LSTM(), unroll=20, batch=32, clip=1.0), Level(optimizer=Adam(lr=3e-3)))
    start = tower.init(seed=0)
    *_, (state, _report) = tower.run(start, 100)
    for name, each in (("untrained", start), ("trained", state)):
        losses = run(LSTM(), tower.result(each), Factors().on("test"), keys.split(keys.seed(1), 64), 40)
        print(f"{name:9}: loss after 40 steps {losses[-1].mean():.3f}")
