"""Layout: flat vectors and named tensors."""

import pytest
import torch

from levels import Layout

LAYOUT = Layout.of({"weight": (3, 2), "none": (0,), "scale": (), "bias": (2,)}, torch.float64)


@pytest.mark.parametrize("batch", [(), (4,), (2, 3)])
def test_tensors_by_hand_and_back(batch):
    assert LAYOUT.sizes == (6, 0, 1, 2)
    assert LAYOUT.size == 9
    flat = torch.arange(9 * int(torch.tensor(batch).prod())).reshape(*batch, 9)
    tensors = LAYOUT.unravel(flat)
    assert list(tensors) == ["weight", "none", "scale", "bias"]
    assert torch.equal(tensors["weight"], torch.stack([flat[..., 0:2], flat[..., 2:4], flat[..., 4:6]], -2))
    assert tensors["none"].shape == (*batch, 0)
    assert torch.equal(tensors["scale"], flat[..., 6])
    assert torch.equal(tensors["bias"], flat[..., 7:9])
    assert torch.equal(LAYOUT.ravel(dict(reversed(tensors.items()))), flat)


def test_tensors_share_memory_and_carry_gradients():
    flat = torch.zeros(9, dtype=torch.float64)
    LAYOUT.unravel(flat)["bias"][0] = 5.0
    assert flat[7] == 5.0
    leaf = torch.ones(9, dtype=torch.float64, requires_grad=True)
    (LAYOUT.unravel(leaf)["scale"] * 3).backward()
    assert leaf.grad.tolist() == [0, 0, 0, 0, 0, 0, 3, 0, 0]


def test_spread_repeats_one_number_per_tensor():
    per_tensor = torch.tensor([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]])
    assert LAYOUT.spread(per_tensor).tolist() == [[1] * 6 + [3, 4, 4], [5] * 6 + [7, 8, 8]]


def test_layouts_compare_by_content():
    same, *others = (Layout.of({"a": (2,), "b": ()}), Layout.of({"a": (2, 1), "b": ()}), Layout.of({"b": (), "a": (2,)}),
                     Layout.of({"a": (2,), "b": ()}, torch.float64))  # fmt: skip
    assert {same: 1}[Layout.of({"a": (2,), "b": ()}, torch.float32, "cpu")]
    assert same not in others


def test_mistakes():
    with pytest.raises(ValueError, match=r"^a layout's names must differ, got \['x', 'x'\]$"):
        Layout((("x", (1,)), ("x", (2,))))
    shapes = r"weight\[3, 2\], none\[0\], scale\[\], bias\[2\]"
    with pytest.raises(ValueError, match=rf"^expected a last dimension of 9 \({shapes}\), got shape \[2, 8\]$"):
        LAYOUT.unravel(torch.zeros(2, 8))
