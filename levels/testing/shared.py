"""What both suites ask: tensors and states of the right kind, inputs left alone, the same answer twice."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import optree
import torch
from torch import Tensor

from levels import keys
from levels.layout import Layout
from levels.tree import State, leaves, map_leaves, named_leaves

BATCHES = ((), (3,), (2, 3))


class ConformanceError(AssertionError):
    """A part breaks its contract; the message says what was got, what was expected, and how to mend it."""


def expect(condition: Any, part: object, got: str, expected: str, fix: str) -> None:
    """Refuse ``part`` unless ``condition``."""
    if not condition:
        raise ConformanceError(f"{part}: got {got}, expected {expected}; {fix}")


def some_keys(layout: Layout, seed: int, batch: tuple[int, ...]) -> Tensor:
    """Different keys ``[*batch]`` of one seed."""
    return keys.split(keys.seed(seed, device=layout.device), math.prod(batch)).reshape(batch)


def check_layout(part: object, layout: Any, least: int) -> None:
    """A layout of at least so many entries, in a floating dtype."""
    expect(isinstance(layout, Layout), part, f"a layout of type {type(layout).__name__}", "a Layout", "use Layout.of")
    fix = "mend its layout"
    expect(layout.size >= least, part, f"a layout of {layout.size} entries", f"at least {least}", fix)
    expect(layout.dtype.is_floating_point, part, f"a layout in {layout.dtype}", "a floating dtype", fix)


def check_tensor(part: object, what: str, tensor: Any, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """A tensor of the right shape and dtype, finite, without a graph."""
    expect(isinstance(tensor, Tensor), part, f"{type(tensor).__name__} as {what}", "a tensor", "return a tensor")
    fix = "keep the leading batch dimensions, whatever their number, and the dtype of the layout"
    got = f"{list(tensor.shape)} in {tensor.dtype} as {what}"
    expect(tensor.shape == shape and tensor.dtype == dtype, part, got, f"{list(shape)} in {dtype}", fix)
    check_plain(part, what, tensor)


def check_state(part: object, what: str, state: State, lead: tuple[int, ...]) -> None:
    """Tensors that begin with the dimensions ``lead``, finite, without a graph."""
    for path, leaf in named_leaves(state).items():
        name = f"{what}.{path}".rstrip(".")
        expect(isinstance(leaf, Tensor), part, f"{type(leaf).__name__} as {name}", "a tensor", "make it a tensor")
        fix = "every copy must own its part of the state"
        expect(leaf.shape[: len(lead)] == lead, part, f"{list(leaf.shape)} as {name}", f"{list(lead)} first", fix)
        check_plain(part, name, leaf)


def check_plain(part: object, what: str, tensor: Tensor) -> None:
    """Finite, without a graph."""
    fix = "start smaller, or guard the division, root or logarithm that it comes from"
    expect(torch.isfinite(tensor).all(), part, f"{what} that is not finite", "finite numbers", fix)
    fix = "detach it, or compute it under torch.no_grad"
    expect(not tensor.requires_grad, part, f"{what} with an autograd graph", "none", fix)


def check_advanced(part: object, before: State, after: State) -> None:
    """An advanced state looks as it did: structure, shapes, dtypes."""
    fix = "return the state with the structure, shapes and dtypes that it came with"
    old, new = _structure(before), _structure(after)
    expect(old == new, part, f"an advanced state {new}", f"its structure {old}", fix)
    for (path, was), leaf in zip(named_leaves(before).items(), leaves(after), strict=True):
        got = f"{list(leaf.shape)} in {leaf.dtype} as advanced state {path}"
        same = leaf.shape == was.shape and leaf.dtype == was.dtype
        expect(same, part, got, f"{list(was.shape)} in {was.dtype}", fix)


@contextmanager
def untouched(part: object, what: str, **inputs: State) -> Iterator[None]:
    """Inside, neither the inputs nor torch's global generator may change."""
    frozen, structure = map_leaves(torch.clone, inputs), _structure(inputs)
    generator = torch.get_rng_state()
    yield
    same = _structure(inputs) == structure
    expect(same, part, f"a state that {what} rebuilt in place", "an unchanged one", "build a new state")
    for (path, was), leaf in zip(named_leaves(frozen).items(), leaves(inputs), strict=True):
        fix = "write x = x + step, never x += step"
        expect(torch.equal(was, leaf), part, f"{path} changed in place by {what}", "unchanged inputs", fix)
    moved = not torch.equal(generator, torch.get_rng_state())
    fix = "draw with levels.keys from the key that it is given"
    expect(not moved, part, f"a draw from torch's global generator in {what}", "none", fix)


def check_repeats(part: object, answer: Callable[[], State], said: str = "") -> None:
    """The same answer twice, whatever the global generator's state; ``said`` stands before what differs."""
    runs = []
    for number in (1, 2):
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(number)
            runs.append(answer())
    fix = "let it depend on its inputs and levels.keys alone"
    for (path, first), second in zip(named_leaves(runs[0]).items(), leaves(runs[1]), strict=True):
        same = torch.equal(first, second) if first.device.type == "cpu" else close(first, second)
        expect(same, part, f"another {said}{path} for the same key and inputs", "the same answer twice", fix)


def close(got: Tensor, expected: Tensor) -> bool:
    """Whether two tensors of one shape are the same but for rounding."""
    if not got.is_floating_point():
        return torch.equal(got, expected)
    eps = torch.finfo(got.dtype).eps
    return bool(torch.linalg.vector_norm(got - expected) <= eps**0.5 * torch.linalg.vector_norm(expected) + eps)


def _structure(state: State) -> optree.PyTreeSpec:
    return optree.tree_structure(state)
