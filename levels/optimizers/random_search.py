"""Random search: draw, judge, keep the best. The baseline for every other search.

    task: lstm@20 / random-search

Each generation judges ``x``, the best so far, beside new draws on the same problems. Drawn are starts of the problem
(where these are all the same, ``sigma`` times normal noise is added), as in Bergstra and Bengio 2012 (Random search for
hyper-parameter optimization, JMLR 13); or, with ``around=best``, normal draws around ``x``, Rastrigin's (1963) walk.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from levels.hyper import Hyper, Log, hyper
from levels.optimizers.search import Population, Search, best, require_sigma
from levels.config import format_value, require
from levels.tasks.nets import require_whole
from levels.tree import State

PLACES = ("start", "best")


@dataclass(frozen=True, repr=False)
class RandomSearch(Search):
    """``population``: members judged at once, ``x`` among them, at least 2. ``sigma``: of the noise, in units of the
    parameters, above 0. ``around``: what is drawn around, ``start`` or ``best``.
    """

    name = "random-search"

    population: int = 16
    sigma: float | Hyper = hyper(1.0, Log)
    around: Literal["start", "best"] = "start"

    def __post_init__(self) -> None:
        require_sigma(self.name, self.sigma)
        super().__post_init__()
        require_whole(self.name, 2, population=self.population)
        places = " or ".join(PLACES)
        require(self.around in PLACES, f"{self.name}: around must be {places}, got {notate(self.around)}")

    @property
    def size(self) -> int:
        """Members judged at once."""
        return self.population

    def first(self, params: Tensor, state: Population, x: Tensor) -> Population:
        return state

    def ask(self, params: Tensor, state: Population, x: Tensor, key: Tensor) -> Population:
        if self.around == "start":
            return state._replace(members=self.draw(params, x, key))
        near = x[..., None, :] + self.noise(params, key, self.size - 1)
        return state._replace(members=torch.cat((x[..., None, :], near), -2))

    def tell(self, params: Tensor, state: Population) -> tuple[Tensor, State]:
        return best(state), None
