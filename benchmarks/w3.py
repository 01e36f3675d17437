"""W3: learning to learn on a network, where arithmetic and memory decide: the LSTM runs on 38,560 coordinates.

See `benchmarks.peers_work` for a unit of the work. All copies see the same 128 images at each step, so that no side
pays for drawing them; they differ by where they start. The task's gradient is autograd's on every side.
"""

from typing import Any

from benchmarks import peers_sides, peers_work

TITLE = "16 copies of an MLP 64-32-10 on 8x8 digits, LSTM 2x20, unroll 20, first order: meta-gradient and Adam's step"
VARIANTS: dict[str, dict[str, Any]] = {"1 thread": {"threads": 1}, "2 threads": {"threads": 2}}
TOLERANCE = peers_work.TOLERANCE
SIDES = peers_sides.sides(peers_work.Work("perceptron", 16))
IMPORTS = peers_sides.IMPORTS
