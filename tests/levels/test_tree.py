"""Trees of tensors: names, choosing copies, putting copies in."""

import math
from typing import NamedTuple

import numpy as np
import torch

from levels.tree import choose, keep_named, leaves, map_leaves, named_leaves, scatter, with_leaves


class Inner(NamedTuple):
    skipped: torch.Tensor
    other: torch.Tensor


class Outer(NamedTuple):
    pair: tuple
    inner: Inner
    skipped: torch.Tensor
    nothing: None


def tree(shift=0, copies=(2, 3)):
    def numbers(start, *rest):
        return shift + start + torch.arange(math.prod((*copies, *rest))).reshape(*copies, *rest)

    return Outer((numbers(0), {"b": numbers(10, 2)}), Inner(numbers(100), numbers(200, 2, 2)), numbers(300), None)


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(leaves(a), leaves(b), strict=True))


def test_names_and_structure():
    assert list(named_leaves(tree())) == ["pair.0", "pair.1.b", "inner.skipped", "inner.other", "skipped"]
    assert list(named_leaves(torch.zeros(()))) == [""]
    assert leaves(None) == []
    again = with_leaves(tree(), leaves(tree(5)))
    assert isinstance(again, Outer)
    assert again.nothing is None
    assert equal(again, tree(5))
    assert equal(map_leaves(lambda a, b: a + b, tree(), map_leaves(lambda a: torch.full_like(a, 5), tree())), tree(5))


def test_choose_by_copy():
    mask = torch.tensor([[True, False, False], [False, True, False]])
    for ours, new, old in zip(*map(leaves, (choose(mask, tree(1000), tree()), tree(1000), tree())), strict=True):
        assert all(torch.equal(ours[at], (new if mask[at] else old)[at]) for at in np.ndindex(2, 3))


def test_scatter_by_row():
    old, new = tree(), tree(1000, (2, 1))
    merged = scatter(torch.tensor([4, 0]), new, old, 2)
    for ours, fresh, before in zip(*map(leaves, (merged, new, old)), strict=True):
        rows = {(1, 1): fresh[0, 0], (0, 0): fresh[1, 0]}
        assert all(torch.equal(ours[at], rows.get(at, before[at])) for at in np.ndindex(2, 3))
    assert equal(old, tree())


def test_keep_named_at_any_depth():
    old, new = tree(), tree(1000)
    expected = new._replace(skipped=old.skipped, inner=new.inner._replace(skipped=old.inner.skipped))
    assert equal(keep_named("skipped", new, old), expected)
