"""Random search: draw, judge, keep the best. The baseline for every other search.

    task: lstm@20 / random-search

Each generation judges ``x``, the best so far, beside new draws on the same problems. Draws are starts of the problem
(where these are all the same, ``sigma`` times normal noise is added), as in Bergstra and Bengio 2012 (Random search for
hyper-parameter optimization, JMLR 13); or, with ``around=best``, normal draws around ``x``, Rastrigin's (1963) walk.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor

from levels.fields import AtLeast
from levels.hyper import Hyper, Log, hyper
from levels.optimizers.search import Population, Search, best
from levels.tree import State


@dataclass(frozen=True, repr=False)
class RandomSearch(Search):
    """``population``: members judged at once, ``x`` among them. ``sigma``: of the noise, in units of the parameters,
    above 0. ``around``: the centre of the draws, ``start`` or ``best``.
    """

    name = "random-search"

    population: Annotated[int, AtLeast(2)] = 16
    sigma: Hyper | float = hyper(1.0, Log)
    around: Literal["start", "best"] = "start"

    @property
    def size(self) -> int:
        return self.population

    def ask(self, theta: Tensor, state: Population, x: Tensor, key: Tensor) -> Population:
        if self.around == "start":
            return state._replace(members=self.draw(theta, x, key))
        near = x[..., None, :] + self.noise(theta, key, self.size - 1)
        return state._replace(members=torch.cat((x[..., None, :], near), -2))

    def tell(self, theta: Tensor, state: Population) -> tuple[Tensor, State]:
        return best(state), None
