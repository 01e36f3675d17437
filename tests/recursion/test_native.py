"""Pieces in C++: their functions of vectors are right to a few last digits, whatever the threads; built once."""

import ctypes
import math

import pytest
import torch

from levels import LSTM, keys
from levels.layout import Layout
from levels.optimizers.cells import log_and_sign
from levels.tree import leaves
from recursion.accelerate import cells_native, native
from recursion.accelerate.learned import NativeLSTM
from recursion.accelerate.sweeps import SWEEPS, Read

needs_compiler = pytest.mark.skipif(not native.compiler(), reason="no C++ compiler")


@needs_compiler
def test_threads_change_the_last_digits_at_most():
    rule = NativeLSTM(hidden=4).bind(Layout.of({"x": (130,)}, torch.float64))
    theta, x = rule.init(keys.seed(0)), keys.normal(keys.seed(1), (40, 130), torch.float64)
    read = Read(x, rule.init_state(theta, x, keys.seed(2)), x[:, 0], keys.normal(keys.seed(3), (40, 130), x.dtype))
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 3, 3):
            torch.set_num_threads(threads)
            sweep = SWEEPS[NativeLSTM](rule, theta)
            moved = sweep.update(read)
            found.append([sweep.vjp([read], torch.ones_like(x)[None]), moved[0], *leaves(moved[1])])
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(found[1][0], found[0][0], rtol=1e-11, atol=1e-11)
    for once, again in zip(found[1], found[2], strict=True):
        assert torch.equal(once, again)
    for alone, together in zip(found[0][1:], found[1][1:], strict=True):
        assert torch.equal(alone, together)


@pytest.fixture(scope="module", params=[native.MACHINES, [()]], ids=["this machine", "any machine"])
def of_vectors(request, tmp_path_factory):
    """A function of `cells.cpp` that works on a vector, by its name: from a tensor to one with two rows."""
    if not native.compiler():
        pytest.skip("no C++ compiler")
    source = tmp_path_factory.mktemp("functions") / "functions.cpp"
    source.write_text(FUNCTIONS.replace("CELLS", str(cells_native.SOURCE)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "MACHINES", request.param)
        native._build(source, source.with_suffix(".so"))
    library = ctypes.CDLL(str(source.with_suffix(".so")))

    def apply(name, x):
        padded = torch.nn.functional.pad(x, (0, -len(x) % 32))
        out = padded.new_empty(2, len(padded))
        function = getattr(library, f"{name}_{str(x.dtype).removeprefix('torch.')}")
        function(ctypes.c_long(len(padded)), native.address(padded), native.address(out))
        return out[:, : len(x)]

    return apply


FUNCTIONS = """
#include "CELLS"
#define FUNCTION(NAME, TYPE, F, DO)                                             \\
    extern "C" void NAME##_##TYPE(long count, const F *x, F *out) {             \\
        using V = Vectors<F>;                                                   \\
        for (long i = 0; i < count; i += V::ROWS) {                             \\
            V::Row from, to[2];                                                 \\
            V::load(&from, x + i, 1, 0, V::ROWS);                               \\
            DO;                                                                 \\
            V::store(out + i, to, 2, count, V::ROWS);                           \\
        }                                                                       \\
    }
#define BOTH(NAME, DO) FUNCTION(NAME, float32, float, DO) FUNCTION(NAME, float64, double, DO)
BOTH(sigmoid, to[0] = to[1] = V::sigmoid(from))
BOTH(tanh, to[0] = to[1] = V::tanh(from))
BOTH(log, to[0] = to[1] = (V::Row{V::log(from.a), V::log(from.b)}))
BOTH(log_and_sign, V::log_and_sign(from, 10, std::exp(-10.), std::exp(10.), to))
"""


def all_sizes(dtype):
    """Numbers above 0 from the least to the largest, dense around 1, and infinity."""
    least, most = torch.finfo(dtype).smallest_normal, torch.finfo(dtype).max
    spread = torch.logspace(math.log10(least) - 5, math.log10(most) - 0.01, 100_000, dtype=torch.float64)
    ends = torch.tensor([least, most, torch.inf, 1.0, 0.70710678, 1.41421356], dtype=torch.float64)
    return torch.cat((spread, torch.linspace(0.5, 2, 10_001, dtype=torch.float64), ends)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_functions_of_vectors_are_right_to_a_few_last_digits(of_vectors, dtype):
    eps, sizes = torch.finfo(dtype).eps, all_sizes(dtype)
    x = torch.cat((sizes, -sizes, torch.zeros(1, dtype=dtype)))
    exact = torch.sigmoid(x.double())
    limit = 43 if dtype == torch.float32 else 354  # of the exponential's argument: beyond, sigmoids stay as there
    torch.testing.assert_close(of_vectors("sigmoid", x)[0].double(), exact, rtol=4 * eps, atol=1.01 * math.exp(-limit))
    torch.testing.assert_close(of_vectors("tanh", x)[0].double(), torch.tanh(x.double()), rtol=0, atol=3 * eps)
    torch.testing.assert_close(of_vectors("log", sizes)[0].double(), sizes.double().log(), rtol=3 * eps, atol=0)
    still = torch.zeros(1, dtype=dtype)
    assert (of_vectors("sigmoid", still)[0], of_vectors("tanh", still)[0]) == (0.5, 0)
    assert of_vectors("log", still)[0] == -torch.inf
    for name in ("sigmoid", "tanh"):
        assert of_vectors(name, still + torch.nan).isnan().all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_log_and_sign_of_all_sizes(of_vectors, dtype):
    edge, sizes = math.exp(-10), all_sizes(dtype)
    g = torch.tensor([0.0, 1e-30, -1e-30, edge * 0.999, -edge * 1.001, 1.0, -3e30], dtype=dtype)
    g = torch.cat((g, sizes, -sizes, keys.normal(keys.seed(0), (1000,), dtype)))
    close = {"rtol": 4 * torch.finfo(dtype).eps, "atol": 0}
    torch.testing.assert_close(of_vectors("log_and_sign", g), log_and_sign(g, 10.0, dim=0), **close)
    nothing = torch.full((1,), torch.nan, dtype=dtype)
    torch.testing.assert_close(of_vectors("log_and_sign", nothing), log_and_sign(nothing, 10.0, dim=0), equal_nan=True)


@needs_compiler
def test_gates_at_their_limits_and_what_is_not_a_number():
    found = []
    for kind in (LSTM, NativeLSTM):
        rule = kind(hidden=2, layers=1).bind(Layout.of({"x": (3,)}))
        theta, x, g = rule.init(keys.seed(0)) * 1e4, torch.zeros(1, 3), torch.tensor([[1.0, -1.0, torch.nan]])
        moved = rule.update(theta, x, rule.init_state(theta, x, keys.seed(0)), torch.zeros(1), g)
        found.append([moved[0], *leaves(moved[1])])
    for plain, fast in zip(*found, strict=True):
        torch.testing.assert_close(fast, plain, equal_nan=True)
    assert torch.isnan(found[1][0]).tolist() == [[False, False, True]]


@needs_compiler
def test_a_library_is_built_once(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    source = tmp_path / "seven.cpp"
    source.write_text('extern "C" int seven() { return 7; }')
    assert native.library(source).seven() == 7
    monkeypatch.setattr(native, "_build", None)  # not asked again
    native.library.cache_clear()
    assert native.library(source).seven() == 7
    [kept] = (tmp_path / "cache" / "descent-tower").iterdir()
    assert ctypes.CDLL(str(kept)).seven() == 7
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(source))  # a file, in which nothing can be kept
    native.library.cache_clear()
    assert native.library(source).seven() == 7
    broken = tmp_path / "broken.cpp"
    broken.write_text("int seven( { }")
    with pytest.raises(ValueError, match=r"cannot build broken.cpp \(.*error.*\); let CXX name a newer g\+\+"):
        native.library(broken)
    with pytest.warns(UserWarning, match="not accelerated"):
        assert not native.is_built(broken)
