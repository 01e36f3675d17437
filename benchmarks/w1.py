"""W1: learning to learn on small problems, where what a step costs beside arithmetic shows.

See `benchmarks.peers_work` for a unit of the work. The task's gradient has a closed form on every side but `higher`'s,
which asks autograd itself, and JAX's, which derives the same.
"""

from typing import Any

from benchmarks import peers_sides, peers_work

TITLE = "128 ten-dimensional quadratics, LSTM 2x20, unroll 20, first order: meta-gradient and Adam's step"
VARIANTS: dict[str, dict[str, Any]] = {"1 thread": {"threads": 1}, "2 threads": {"threads": 2}}
TOLERANCE = peers_work.TOLERANCE
SIDES = peers_sides.sides(peers_work.Work("quadratic", 128))
IMPORTS = peers_sides.IMPORTS
