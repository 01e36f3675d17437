"""Accelerate: twins of parts and of whole towers, which answer what the plain ones answer, faster.

    fast = accelerate(tower)
    state, report = fast.step(state)

There are twins for first-order windows of small rules, by closed forms (`windows`, `closed_forms`); for LSTM and
RNNProp, in C++ (`learned`, built in 2 s); for the step of a tower whose unrolls are all 1 (`straight`), which is
compiled whole over a traceable task (`fused`, 10 to 40 s); and for what exact gradients ask of a traceable task
(`traced`, `followed`, compiled in 15 to 60 s). Each build is stored, and serves later runs.

Twins are chosen once, by exact types (`parts`); a subclass takes the plain way. Nothing outside knows of this folder.
"""

from recursion.accelerate.repaying import repays
from recursion.accelerate.running import Running
from recursion.accelerate.tower import accelerate

__all__ = ["Running", "accelerate", "repays"]
