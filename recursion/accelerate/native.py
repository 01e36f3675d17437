"""Native: pieces of the package written in C++, for CPUs, built when a tower is accelerated.

`torch.compile` fuses what stands between two matrix products, but passes over memory for each; where a whole window of
a small network fits in the processor's cache, a loop written for that is twice as fast and builds in two seconds.

Libraries are stored in ``descent-tower`` under ``XDG_CACHE_HOME`` (``~/.cache``), by what they are made of.
"""

import contextlib
import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

FLAGS = ("-O3", "-std=c++17", "-shared", "-fPIC", "-pthread", "-w")
MACHINES: tuple[tuple[str, ...], ...] = ("-march=native",), ("-mcpu=native",), ()  # the first that it knows


def compiler() -> str:
    """The C++ compiler that there is, where torch looks for one: ``CXX``, then g++, then clang++; or nothing."""
    return next((name for name in (os.environ.get("CXX", ""), "g++", "clang++") if name and shutil.which(name)), "")


def suits(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether native pieces serve such tensors."""
    return device.type == "cpu" and dtype in (torch.float32, torch.float64)


def is_built(source: Path) -> bool:
    """Whether the library of one C++ file is there, or could be built now; warns once if the compiler refuses."""
    if not compiler():
        return False
    try:
        library(source)
    except (OSError, ValueError) as error:
        warnings.warn(f"not accelerated: {error}", stacklevel=2)
        return False
    return True


@cache
def library(source: Path) -> ctypes.CDLL:
    """The library made of one C++ file. ValueError if the compiler refuses it, OSError if it cannot be loaded."""
    place = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "descent-tower"
    stored = place / f"{source.stem}-{_fingerprint(source)}.so"
    if stored.exists():
        return ctypes.CDLL(str(stored))
    with tempfile.TemporaryDirectory() as directory:
        built = Path(directory) / stored.name
        _build(source, built)
        beside = stored.with_suffix(f".{os.getpid()}")
        with contextlib.suppress(OSError):  # where nothing can be stored, the next process builds again
            place.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(built, beside)
            beside.replace(stored)  # whole or not at all, if other processes build it too
        return ctypes.CDLL(str(built))


def address(tensor: Tensor) -> ctypes.c_void_p:
    """Where the numbers of a contiguous tensor lie; the caller keeps the tensor alive until the call is over."""
    assert tensor.is_contiguous()
    return ctypes.c_void_p(tensor.data_ptr())


def addresses(tensors: Sequence[Tensor]) -> "ctypes.Array[ctypes.c_void_p]":
    """Those of several tensors, each dense in some order of its dimensions."""
    return (ctypes.c_void_p * len(tensors))(*(tensor.data_ptr() for tensor in tensors))


def _fingerprint(source: Path) -> str:
    """A digest of what a library depends on: the file, the compiler and the processor."""
    known = Path("/proc/cpuinfo")
    lines = known.read_text().splitlines() if known.exists() else [platform.processor()]
    processor = sorted({line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))})
    version = subprocess.run([compiler(), "--version"], capture_output=True, text=True, check=False).stdout
    made_of = [source.read_text(), version, *FLAGS, platform.machine(), *(processor or lines)]
    return hashlib.sha256("\n".join(made_of).encode()).hexdigest()[:16]


def _build(source: Path, built: Path) -> None:
    for machine in MACHINES:
        command = [compiler(), *FLAGS, *machine, str(source), "-o", str(built)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return
    said = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr[-200:])
    got = f"{compiler()} cannot build {source.name} ({said.strip()})"
    raise ValueError(f"{got}; let CXX name a newer g++ or clang++, or run the plain tower")
