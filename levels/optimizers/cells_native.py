"""LSTM cells in C++ (``cells.cpp``): one step of all rows, and the derivative of a whole window.

They say what `levels.optimizers.cells.Cells` says. A window is made again from its first state, a block of rows at a
time over all steps, so that nothing of it is kept but what fits in the processor's cache. Results do not depend on
what ran before, but for their last digits on the number of threads, as all of torch's do.
"""

import ctypes
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
        *[(name, ctypes.c_int) for name in ("groups", "inputs", "hidden", "layers", "threads")],
        *[(name, ctypes.c_long) for name in ("rows", "stride")],
        ("params", ctypes.c_void_p),
    ]


def forward(weights: Tensor, inputs: Tensor, state: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Outputs ``[groups, 1, rows]`` and the new h and c of each layer in turn.

    ``weights``: ``[groups, m]``, all of a `Cells` by its names in turn; ``inputs``: ``[groups, inputs, rows]``;
    ``state``: ``[groups, hidden, rows]`` each.
    """
    state = [leaf.contiguous() for leaf in state]
    out, new = torch.empty_like(inputs[:, :1]), [torch.empty_like(leaf) for leaf in state]
    call = _call(weights, inputs, state)
    _function("forward", weights.dtype)(call, address(inputs), addresses(state), addresses(new), address(out))
    return out, new


def sweep(weights: Tensor, inputs: Tensor, state: list[Tensor], dout: Tensor) -> Tensor:
    """Cotangent ``[groups, m]`` of the weights, over a window that begins with ``state``.

    ``inputs``: ``[steps, groups, inputs, rows]``; ``dout``: ``[steps, groups, rows]``, of the outputs; ``state``: as
    `forward`'s, where rows may be a piece of what lies in memory together.
    """
    slopes, steps = torch.empty_like(weights), ctypes.c_int(len(inputs))
    call = _call(weights, inputs[0], state)
    function = _function("sweep", weights.dtype)
    function(call, steps, address(inputs), addresses(state), address(dout), address(slopes))
    return slopes


def _call(weights: Tensor, inputs: Tensor, state: list[Tensor]) -> Any:
    groups, hidden, rows = state[0].shape
    threads, layers, stride = torch.get_num_threads(), len(state) // 2, state[0].stride(-2)
    return ctypes.byref(Call(groups, inputs.shape[-2], hidden, layers, threads, rows, stride, weights.data_ptr()))


@cache
def _function(name: str, dtype: torch.dtype) -> Any:
    return getattr(library(SOURCE), f"{name}_{str(dtype).removeprefix('torch.')}")
