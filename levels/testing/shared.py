"""What all suites ask: tensors and states of the right kind, inputs left alone, the same answer twice, derivatives.

Derivatives are compared with central differences along a random direction that leans towards the claimed gradient:

    <claimed, d>  =  (f(x + h d) - f(x - h d)) / 2h + O(h^2),        h about eps^(1/3)

Three widths h are tried and one must agree, so that a kink next to x (a relu, a maximum) does no harm.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from levels import keys
from levels.config import Config
from levels.fields import settings
from levels.layout import Layout
from levels.tree import State, leaves, map_leaves, named_leaves

BATCHES = ((), (3,), (2, 3))
T = TypeVar("T")


class ConformanceError(AssertionError):
    """A part breaks its contract; the message says what was got, what was expected, and how to mend it."""


def expect(condition: Any, part: object, got: str, expected: str, fix: str) -> None:
    """Raise `ConformanceError` unless ``condition``."""
    if not condition:
        raise ConformanceError(f"{part}: got {got}, expected {expected}; {fix}")


def some_keys(layout: Layout, seed: int, batch: tuple[int, ...]) -> Tensor:
    """Different keys ``[*batch]`` of one seed."""
    return keys.split(keys.seed(seed, device=layout.device), math.prod(batch)).reshape(batch)


def check_part(part: object, layout: Any, least: int) -> None:
    """A layout of at least so many entries; a part that is the same when it is built again from its settings."""
    good = isinstance(layout, Layout) and layout.size >= least and layout.dtype.is_floating_point
    expect(good, part, f"{layout} as layout", f"a Layout of at least {least} entries in a floating dtype", "mend it")
    if isinstance(part, Config) and dataclasses.is_dataclass(part):
        bare, fix = repr(part).startswith(f"{type(part).__qualname__}("), "decorate it with @dataclass(..., repr=False)"
        expect(not bare, part, "the repr of a plain dataclass", "the one that notation reads", fix)
        free = any("free" in field.metadata for field in dataclasses.fields(part))
        again = repr(type(part)(**settings(part)) if free else dataclasses.replace(part))
        fix = "let __post_init__ leave settings that are in their final form"
        expect(again == repr(part), part, f"{again} when built from its settings", "itself", fix)


def check_tensor(part: object, what: str, tensor: Any, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """A tensor of the right shape and dtype, finite, without a graph."""
    expect(isinstance(tensor, Tensor), part, f"{type(tensor).__name__} as {what}", "a tensor", "return a tensor")
    fix = "keep the leading batch dimensions, whatever their number, and the dtype of the layout"
    got = f"{list(tensor.shape)} in {tensor.dtype} as {what}"
    expect(tensor.shape == shape and tensor.dtype == dtype, part, got, f"{list(shape)} in {dtype}", fix)
    _check_plain(part, what, tensor, finite=True)


def check_state(part: object, what: str, state: State, lead: tuple[int, ...], before: State = None) -> None:
    """Constants, not NaN, that begin with the dimensions ``lead``, with structure, shapes and dtypes of ``before``."""
    for path, leaf in named_leaves(state).items():
        name = f"{what}.{path}".rstrip(".")
        expect(isinstance(leaf, Tensor), part, f"{type(leaf).__name__} as {name}", "a tensor", "make it a tensor")
        fix = "every copy must own its part of the state"
        expect(leaf.shape[: len(lead)] == lead, part, f"{list(leaf.shape)} as {name}", f"{list(lead)} first", fix)
        _check_plain(part, name, leaf, finite=False)  # a best loss may begin at inf
    if before is not None:
        new, old = (map_leaves(lambda leaf: f"{list(leaf.shape)} in {leaf.dtype}", tree) for tree in (state, before))
        fix = "return the state with the structure, shapes and dtypes that it came with"
        expect(new == old and type(new) is type(old), part, f"an advanced state {new}", f"{old} as it was", fix)


def _check_plain(part: object, what: str, tensor: Tensor, *, finite: bool) -> None:
    fix = "start smaller, or guard the division, root or logarithm that it comes from"
    good = (torch.isfinite(tensor) if finite else ~torch.isnan(tensor)).all()
    expect(good, part, f"{what} that is not finite", "finite numbers", fix)
    fix = "detach it, or compute it under torch.no_grad"
    expect(not tensor.requires_grad, part, f"{what} with an autograd graph", "none", fix)


def check_same(part: object, got: State, wanted: State, what: str, expected: str, fix: str) -> None:
    """The same state but for rounding; ``what`` follows the name of a tensor that differs."""
    for (path, leaf), other in zip(named_leaves(got).items(), leaves(wanted), strict=True):
        expect(close(leaf, other), part, f"another {path} {what}", expected, fix)


@contextmanager
def untouched(part: object, what: str, **inputs: State) -> Iterator[None]:
    """Inside, neither the inputs nor torch's global generator may change. Autograd is on."""
    frozen, paths, generator = map_leaves(torch.clone, inputs), list(named_leaves(inputs)), torch.get_rng_state()
    with torch.enable_grad():
        yield
    same, fix = list(named_leaves(inputs)) == paths, "build a new state"
    expect(same, part, f"a state that {what} rebuilt in place", "an unchanged one", fix)
    for (path, was), leaf in zip(named_leaves(frozen).items(), leaves(inputs), strict=True):
        fix = "write x = x + step, never x += step"
        expect(torch.equal(was, leaf), part, f"{path} changed in place by {what}", "unchanged inputs", fix)
    moved = not torch.equal(generator, torch.get_rng_state())
    fix = "draw with levels.keys from the key that it is given"
    expect(not moved, part, f"a draw from torch's global generator in {what}", "none", fix)


def check_repeats(part: object, answer: Callable[[], State]) -> None:
    """The same answer twice, whatever the global generator's state."""
    first = answer()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(1)
        second = answer()
    fix = "let it depend on its inputs and levels.keys alone"
    check_same(part, second, first, "for the same key and inputs", "the same answer twice", fix)


def check_slope(
    part: object, what: str, terms: Callable[[Tensor], Tensor], x: Tensor, claimed: Tensor, scale: Tensor, fix: str
) -> None:
    """Whether ``claimed`` ``[*rows, n]`` is the derivative in ``x`` ``[*rows, n]`` of the sum of ``terms(x)``
    ``[*rows, k]``, for each row by itself. ``scale``: the size of a direction, for each entry or each row."""
    eps, tiny = torch.finfo(x.dtype).eps, torch.finfo(x.dtype).tiny
    random = keys.normal(keys.seed(x.shape[-1], device=x.device), tuple(x.shape), x.dtype)
    along = scale * (normalize(scale * random, dim=-1, eps=tiny) + normalize(scale * claimed, dim=-1, eps=tiny))
    expected = (claimed * along).sum(-1)
    allowed, near_enough = 4 * eps ** (1 / 3) * torch.linalg.vector_norm(claimed * scale, dim=-1), None
    for width in (eps ** (1 / 3), eps ** (1 / 3) / 16, 4 * eps ** (1 / 3)):
        up, down = terms(x + width * along), terms(x - width * along)
        measured = (up - down).sum(-1) / (2 * width)
        near = (measured - expected).abs() <= allowed + 8 * eps * up.abs().sum(-1) / width
        near_enough = near if near_enough is None else near_enough | near
        if near_enough.all():
            return
    worst = int((measured - expected).abs().masked_fill(near_enough, -1).flatten().nan_to_num(nan=math.inf).argmax())
    got = f"a {what} with slope {float(expected.flatten()[worst]):.6g} along a direction"
    expect(False, part, got, f"{float(measured.flatten()[worst]):.6g} as central differences say", fix)


def attempt(part: object, what: str, derivative: Callable[[], T], fix: str) -> T:
    """What ``derivative`` returns; `ConformanceError` if autograd fails."""
    try:
        return derivative()
    except RuntimeError as error:
        raise ConformanceError(f"{part}: got a {what} that fails ({error}), expected one by autograd; {fix}") from error


def close(got: Tensor, expected: Tensor) -> bool:
    """Whether two tensors of one shape are the same but for rounding."""
    if not got.is_floating_point():
        return torch.equal(got, expected)
    eps = torch.finfo(got.dtype).eps
    return bool(torch.linalg.vector_norm(got - expected) <= eps**0.5 * torch.linalg.vector_norm(expected) + eps)
