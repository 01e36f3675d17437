"""Trees of tensors: names, choosing copies, putting copies in."""

from typing import NamedTuple

import torch

from levels.tree import choose, keep_named, leaves, map_leaves, named_leaves, scatter, with_leaves


class Inner(NamedTuple):
    skipped: torch.Tensor
    kept: torch.Tensor


class Outer(NamedTuple):
    pair: tuple
    inner: Inner
    skipped: torch.Tensor
    nothing: None


def tree(shift=0, copies=(2, 3)):
    count = int(torch.tensor(copies).prod())

    def numbers(start, *rest):
        size = count * int(torch.tensor(rest).prod())
        return shift + start + torch.arange(size).reshape(*copies, *rest)

    return Outer((numbers(0), {"b": numbers(10, 2)}), Inner(numbers(100), numbers(200, 2, 2)), numbers(300), None)


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(leaves(a), leaves(b), strict=True))


def test_names_and_structure():
    assert list(named_leaves(tree())) == ["pair.0", "pair.1.b", "inner.skipped", "inner.kept", "skipped"]
    assert list(named_leaves(torch.zeros(()))) == [""]
    assert leaves(None) == []
    again = with_leaves(tree(), leaves(tree(5)))
    assert isinstance(again, Outer)
    assert again.nothing is None
    assert equal(again, tree(5))
    assert equal(map_leaves(lambda a, b: a + b, tree(), map_leaves(lambda a: torch.full_like(a, 5), tree())), tree(5))


def test_choose_by_copy():
    mask = torch.tensor([[True, False, False], [False, True, False]])
    new, old = tree(1000), tree()
    chosen = choose(mask, new, old)
    for mine, fresh, before in zip(leaves(chosen), leaves(new), leaves(old), strict=True):
        for i in range(2):
            for j in range(3):
                assert torch.equal(mine[i, j], (fresh if mask[i, j] else before)[i, j])


def test_scatter_by_row():
    old, rows = tree(), torch.tensor([4, 0])
    new = tree(1000, (2, 1))
    put = scatter(rows, new, old, 2)
    for mine, fresh, before in zip(leaves(put), leaves(new), leaves(old), strict=True):
        assert torch.equal(mine[1, 1], fresh[0, 0])
        assert torch.equal(mine[0, 0], fresh[1, 0])
        for i, j in ((0, 1), (0, 2), (1, 0), (1, 2)):
            assert torch.equal(mine[i, j], before[i, j])
    assert equal(old, tree())


def test_keep_named_at_any_depth():
    kept = keep_named("skipped", tree(1000), tree())
    assert torch.equal(kept.skipped, tree().skipped)
    assert torch.equal(kept.inner.skipped, tree().inner.skipped)
    assert torch.equal(kept.inner.kept, tree(1000).inner.kept)
    assert equal(kept.pair, tree(1000).pair)
