"""Native: pieces of the package written in C++, for CPUs, built at first use within `levels.compiled.compiling`.

`torch.compile` fuses what stands between two matrix products, but makes a pass over memory for each; where a whole
window of a small network fits in the processor's cache, a loop written for that is twice as fast and builds in
seconds. A piece in C++ stands beside the plain one that it equals to rounding, and never alone: the plain one runs
without the switch, where something is to be differentiated, and on other devices.

Libraries are kept by what they are made of, if they can be: in ``descent-tower`` under ``XDG_CACHE_HOME``
(``~/.cache``).
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from levels.compiled import compiler, is_compiling
from levels.autodiff import differentiated

FLAGS = ("-O3", "-std=c++17", "-shared", "-fPIC", "-pthread", "-w")
MACHINES: tuple[tuple[str, ...], ...] = ("-march=native",), ("-mcpu=native",), ()  # the first that it knows


def serves(tensor: Tensor) -> bool:
    """Whether work on tensors like this one is for native pieces, here and now."""
    if not is_compiling() or differentiated() or torch.is_grad_enabled():
        return False
    return suits(tensor.device, tensor.dtype)


def suits(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether native pieces are for such tensors at all."""
    return device.type == "cpu" and dtype in (torch.float32, torch.float64)


@cache
def library(source: Path) -> ctypes.CDLL:
    """The library made of one C++ file. ValueError if the compiler refuses it, OSError if it cannot be loaded."""
    place = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "descent-tower"
    made = place / f"{source.stem}-{_fingerprint(source)}.so"
    if made.exists():
        return ctypes.CDLL(str(made))
    with tempfile.TemporaryDirectory() as directory:
        fresh = Path(directory) / made.name
        _build(source, fresh)
        return ctypes.CDLL(str(_kept(fresh, made)))


def address(tensor: Tensor) -> ctypes.c_void_p:
    """Where the numbers of a tensor in one piece are; whoever passes it on keeps the tensor until the call is over."""
    assert tensor.is_contiguous()
    return ctypes.c_void_p(tensor.data_ptr())


def addresses(tensors: Sequence[Tensor]) -> "ctypes.Array[ctypes.c_void_p]":
    """Those of several, each in one piece in whatever order of its dimensions."""
    return (ctypes.c_void_p * len(tensors))(*[tensor.data_ptr() for tensor in tensors])


def _kept(fresh: Path, made: Path) -> Path:
    """Where to load a library from that is to be ``made``: there, or where it is ``fresh`` if it cannot be kept."""
    beside = made.with_suffix(f".{os.getpid()}")
    try:
        made.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(fresh, beside)
        beside.replace(made)  # whole or not at all, whoever else builds it
    except OSError:
        return fresh
    return made


def _fingerprint(source: Path) -> str:
    """Of all that a library is made of: the file, the compiler and the processor that it is made for."""
    known = Path("/proc/cpuinfo")
    lines = known.read_text().splitlines() if known.exists() else [platform.processor()]
    processor = sorted({line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))})
    version = subprocess.run([compiler(), "--version"], capture_output=True, text=True, check=False).stdout
    made_of = [source.read_text(), version, *FLAGS, platform.machine(), *(processor or lines)]
    return hashlib.sha256("\n".join(made_of).encode()).hexdigest()[:16]


def _build(source: Path, made: Path) -> None:
    for machine in MACHINES:
        command = [compiler(), *FLAGS, *machine, str(source), "-o", str(made)]
        found = subprocess.run(command, capture_output=True, text=True, check=False)
        if found.returncode == 0:
            return
    said = next((line for line in found.stderr.splitlines() if "error" in line), found.stderr[-200:])
    got = f"{compiler()} cannot build {source.name} ({said.strip()})"
    raise ValueError(f"{got}; let CXX name a newer g++ or clang++, or leave compiling off")
