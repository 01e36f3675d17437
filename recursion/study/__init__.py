"""Ablation: does another level pay? A tower is cut at each depth, and all cuts are given the same total cost.

    request = Request(tower="digits-mlp: lstm@20 / lstm@5 / adam", depths=(1, 2, 3))
    with ablate(request, "runs/depths", pool=Local(workers=2)) as store:
        store.rows(stage="chosen", split="report", measure="mean loss")

A `Request` (`request`, `cuts`) comes to runs; a pool (`pool`, `worker`) carries each out (`job`); what they find is
kept in one store (`store`) and reported (`findings`, `report`). ``tower ablate`` and ``tower report`` do the same.
"""

from recursion.study.ablate import ablate
from recursion.study.pool import Local, Ray
from recursion.study.request import Budget, Request, Run
from recursion.study.store import Store

__all__ = ["Budget", "Local", "Ray", "Request", "Run", "Store", "ablate"]
