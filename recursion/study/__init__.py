"""The study: does another level pay? A tower is cut at each depth, and all cuts get the same total cost.

    request = Request(tower="digits-mlp: lstm@20 / lstm@5 / adam", depths=(1, 2, 3))
    ablate(request, "runs/depths", pool=Local(workers=2))
    results.load("runs/depths").rows        # a pandas table, one row a measurement

A `Request` (`request`, `cuts`) comes to runs; a pool (`pool`) carries each out (`job`) and leaves one file
a run (`records`), which are read (`results`) and reported (`findings`, `report`). ``tower ablate`` and ``tower report``
do the same.
"""

from recursion.study.pool import Local, Ray, ablate
from recursion.study.request import Budget, Request, Run

__all__ = ["Budget", "Local", "Ray", "Request", "Run", "ablate"]
