"""LSTM cells in C++ (``cells.cpp``): one step of all rows, and the derivative of a whole window.

They compute what `levels.optimizers.cells.Cells.step` computes. A block of rows goes through all steps of a window,
forward and back, before the next block does, so all intermediates stay in the processor's cache. The last digits of a
derivative depend on the number of threads, as torch's do, and on nothing else.
"""

import ctypes
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from levels.optimizers.cells import LSTMState
from recursion.accelerate.native import address, addresses, library

SOURCE = Path(__file__).with_name("cells.cpp")


class Call(ctypes.Structure):
    """The struct of this name in ``cells.cpp``."""

    _fields_ = [
        *[(name, ctypes.c_int) for name in ("groups", "inputs", "hidden", "layers", "threads", "bounded")],
        ("rows", ctypes.c_long),
        ("params", ctypes.c_void_p),
        ("p", ctypes.c_double),
    ]


def forward(weights: Tensor, inputs: Tensor, state: LSTMState, *, p: float = 0.0) -> tuple[Tensor, LSTMState]:
    """Outputs ``[*batch, copies, n]`` and the next state.

    ``weights``: ``[groups, m]``, all of a `Cells` in the order of its shapes. ``inputs``: ``[groups, inputs, rows]``
    or, with a ``p``, the gradients ``[groups, rows]`` that `log_and_sign` turns into inputs.
    """
    weights, inputs, old = weights.contiguous(), inputs.contiguous(), _ordered(state)
    shape, strides = old[0].shape, old[0].stride()
    new, out = [leaf.new_empty_strided(shape, strides) for leaf in old], inputs.new_empty(shape[:-1])
    call = _call(weights, inputs, old, p)
    _function("forward", weights.dtype)(call, address(inputs), addresses(old), addresses(new), address(out))
    return out, tuple(zip(new[::2], new[1::2]))


def window_vjp(
    weights: Tensor, inputs: Tensor, state: Sequence[Tensor], dout: Tensor,
    *, p: float = 0.0, bounded: bool = False, above: bool = False,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """Cotangents of ``weights`` ``[groups, m]`` and of ``inputs``, over a window that begins with ``state``.

    ``inputs``: ``[steps, ...]`` of those of `forward`. ``state``: h and c of each layer in turn, ``[groups, hidden,
    rows]``. ``dout``: ``[steps, groups, rows]``, cotangents of the outputs or, if ``bounded``, of their tanh. Those of
    the inputs are None unless ``above``; gradients have none.
    """
    assert not (above and p)
    weights, inputs, dout = weights.contiguous(), inputs.contiguous(), dout.contiguous()
    old = [leaf.contiguous() for leaf in state]
    dweights, dinputs = torch.empty_like(weights), torch.empty_like(inputs) if above else None
    function, call = _function("sweep", weights.dtype), _call(weights, inputs, old, p, bounded)
    ends = address(dout), address(dweights), None if dinputs is None else address(dinputs)
    function(call, ctypes.c_int(len(inputs)), address(inputs), addresses(old), *ends)
    return dweights, dinputs


def _ordered(state: LSTMState) -> list[Tensor]:
    """h and c of each layer in turn, as they are where they lie as `forward` makes them, else laid out so."""
    shape = state[0][0].shape
    strides = _strides(shape)
    return [leaf if leaf.stride() == strides else leaf.new_empty_strided(shape, strides).copy_(leaf)
            for layer in state for leaf in layer]  # fmt: skip


@cache
def _strides(shape: torch.Size) -> tuple[int, ...]:
    """Of ``[*batch, copies, n, hidden]`` that lies in memory as ``[*batch, hidden, copies, n]``."""
    *batch, copies, n, hidden = shape
    return torch.empty(*batch, hidden, copies, n, device="meta").movedim(-3, -1).stride()


def _call(weights: Tensor, inputs: Tensor, old: Sequence[Tensor], p: float, bounded: bool = False) -> Any:
    groups, rows, layers = len(weights), inputs.shape[-1], len(old) // 2
    hidden, read = old[0].numel() // (groups * rows), 2 if p else inputs.shape[-2]
    sizes = groups, read, hidden, layers, torch.get_num_threads(), bounded
    return ctypes.byref(Call(*sizes, rows, weights.data_ptr(), p))


@cache
def _function(name: str, dtype: torch.dtype) -> Any:
    return getattr(library(SOURCE), f"{name}_{str(dtype).removeprefix('torch.')}")
