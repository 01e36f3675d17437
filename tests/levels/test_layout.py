"""Layout: flat vectors and named views."""

import pytest
import torch

from levels import Layout

LAYOUT = Layout.of({"weight": (3, 2), "none": (0,), "scale": (), "bias": (2,)}, torch.float64)


def test_sizes():
    assert LAYOUT.sizes == (6, 0, 1, 2)
    assert LAYOUT.size == 9
    assert LAYOUT.dtype == torch.float64
    assert LAYOUT.device == torch.device("cpu")
    assert Layout.of({"x": (2,)}).dtype == torch.float32


@pytest.mark.parametrize("batch", [(), (4,), (2, 3)])
def test_views_by_hand_and_back(batch):
    flat = torch.arange(9 * int(torch.tensor(batch).prod())).reshape(*batch, 9)
    views = LAYOUT.unravel(flat)
    assert list(views) == ["weight", "none", "scale", "bias"]
    assert torch.equal(views["weight"], torch.stack([flat[..., 0:2], flat[..., 2:4], flat[..., 4:6]], -2))
    assert views["none"].shape == (*batch, 0)
    assert torch.equal(views["scale"], flat[..., 6])
    assert torch.equal(views["bias"], flat[..., 7:9])
    assert torch.equal(LAYOUT.ravel(views), flat)


def test_views_share_memory_and_carry_gradients():
    flat = torch.zeros(9, dtype=torch.float64)
    LAYOUT.unravel(flat)["bias"][0] = 5.0
    assert flat[7] == 5.0
    leaf = torch.ones(9, dtype=torch.float64, requires_grad=True)
    (LAYOUT.unravel(leaf)["scale"] * 3).backward()
    assert leaf.grad.tolist() == [0, 0, 0, 0, 0, 0, 3, 0, 0]


def test_flat_takes_names_not_order():
    views = LAYOUT.unravel(torch.arange(9))
    assert torch.equal(LAYOUT.ravel(dict(reversed(views.items()))), torch.arange(9))


def test_spread_repeats_one_number_per_tensor():
    per_tensor = torch.tensor([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]])
    assert LAYOUT.spread(per_tensor).tolist() == [[1] * 6 + [3, 4, 4], [5] * 6 + [7, 8, 8]]


def test_layouts_compare_by_content():
    assert Layout.of({"x": (2,)}) == Layout.of({"x": (2,)})
    assert hash(Layout.of({"x": (2,)})) == hash(Layout.of({"x": (2,)}))
    assert Layout.of({"x": (2,)}) != Layout.of({"x": (2, 1)})
    assert Layout.of({"a": (), "b": ()}) != Layout.of({"b": (), "a": ()})
    assert Layout.of({"x": (2,)}) != Layout.of({"x": (2,)}, torch.float64)


def test_mistakes():
    with pytest.raises(ValueError, match=r"^a layout's names must differ, got \['x', 'x'\]$"):
        Layout((("x", (1,)), ("x", (2,))))
    with pytest.raises(
        ValueError, match=r"^expected a last dimension of 9 \(weight\[3, 2\], none\[0\], scale\[\], bias"
    ):
        LAYOUT.unravel(torch.zeros(2, 8))
