"""LSTM cells in C++ (``cells.cpp``): one step of all rows, and the derivative of a whole window.

They say what `levels.optimizers.cells.Cells` says. A block of rows goes through all steps of a window, there and back,
before the next one does, so that all that is made of it on the way stays in the processor's cache. The last digits of a
derivative depend on the number of threads, as torch's do, and on nothing else.
"""

import ctypes
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from levels.native import address, addresses, library

SOURCE = Path(__file__).with_name("cells.cpp")


class Call(ctypes.Structure):
    """What ``cells.cpp`` calls by this name."""

    _fields_ = [
        *[(name, ctypes.c_int) for name in ("groups", "inputs", "hidden", "layers", "threads", "bounded")],
        ("rows", ctypes.c_long),
        ("params", ctypes.c_void_p),
    ]


def forward(weights: Tensor, inputs: Tensor, state: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Outputs ``[groups, 1, rows]`` and the new h and c of each layer in turn.

    ``weights``: ``[groups, m]``, all of a `Cells` by its names in turn; ``inputs``: ``[groups, inputs, rows]``;
    ``state``: ``[groups, hidden, rows]`` each.
    """
    weights, inputs, state = weights.contiguous(), inputs.contiguous(), [leaf.contiguous() for leaf in state]
    out, new = inputs.new_empty(len(inputs), 1, inputs.shape[-1]), [torch.empty_like(leaf) for leaf in state]
    call = _call(weights, inputs, state)
    _function("forward", weights.dtype)(call, address(inputs), addresses(state), addresses(new), address(out))
    return out, new


def sweep(
    weights: Tensor,
    inputs: Tensor,
    state: Sequence[Tensor],
    dout: Tensor,
    *,
    bounded: bool = False,
    above: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Cotangents of the weights, ``[groups, m]``, and of the inputs, over a window that begins with ``state``.

    ``inputs``: ``[steps, groups, inputs, rows]``; ``dout``: ``[steps, groups, rows]``, of the outputs or, if
    ``bounded``, of their tanh; ``state``: as `forward`'s. Those of the inputs are None unless something ``above`` asks
    for them.
    """
    weights, inputs, dout = weights.contiguous(), inputs.contiguous(), dout.contiguous()
    state = [leaf.contiguous() for leaf in state]
    dweights, dinputs = torch.empty_like(weights), torch.empty_like(inputs) if above else None
    function, call = _function("sweep", weights.dtype), _call(weights, inputs[0], state, bounded)
    ends = address(dout), address(dweights), None if dinputs is None else address(dinputs)
    function(call, ctypes.c_int(len(inputs)), address(inputs), addresses(state), *ends)
    return dweights, dinputs


def log_and_sign(g: Tensor, p: float) -> Tensor:
    """`levels.optimizers.lstm.log_and_sign` of gradients ``[.., groups, rows]``: ``[.., groups, 2, rows]``."""
    g, rows, number = g.contiguous(), g.shape[-1], ctypes.c_float if g.dtype == torch.float32 else ctypes.c_double
    out = g.new_empty(*g.shape[:-1], 2, rows)
    sizes = ctypes.c_long(g.numel() // rows), ctypes.c_long(rows)
    _function("log_and_sign", g.dtype)(*sizes, number(p), address(g), address(out))
    return out


def _call(weights: Tensor, inputs: Tensor, state: Sequence[Tensor], bounded: bool = False) -> Any:
    groups, hidden, rows = state[0].shape
    sizes = groups, inputs.shape[-2], hidden, len(state) // 2, torch.get_num_threads(), bounded
    return ctypes.byref(Call(*sizes, rows, address(weights)))


@cache
def _function(name: str, dtype: torch.dtype) -> Any:
    return getattr(library(SOURCE), f"{name}_{str(dtype).removeprefix('torch.')}")
