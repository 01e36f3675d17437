"""Pieces in C++ equal the plain ones, of any size, and are built once."""

import ctypes
import math

import pytest
import torch
from live import LiveBytes

from levels import LSTM, Adam, Level, Quadratic, RNNProp, compiled, keys, native
from levels.compiled import compiling
from levels.layout import Layout
from levels.base import Optimizer
from levels.optimizers import cells_native
from levels.optimizers.cells import log_and_sign
from levels.tree import leaves
from levels.base import Step
from recursion.notation import parse
from recursion.tower import Tower

needs_compiler = pytest.mark.skipif(not compiled.has_compiler(), reason="no C++ compiler")
RULES = [LSTM(), LSTM(hidden=3, layers=3, p=5.0), LSTM(hidden=1, layers=1), RNNProp(), RNNProp(hidden=5, layers=1)]
TOLERANCE = {torch.float64: 1e-11, torch.float32: 2e-4}


def window(rule, dtype, batch, copies, n, steps=4):
    """A rule that is laid, its parameters, and what updates of a window read."""
    laid = rule.over(Layout.of({"x": (n,)}, dtype))
    key = keys.split(keys.seed(copies), 3 + steps)
    params = laid.init(keys.split(key[0], math.prod(batch)).reshape(batch))
    params = params + 0.3 * keys.normal(key[1], tuple(params.shape), dtype)
    x = keys.normal(key[2], (*batch, copies, n), dtype)
    state, f, read = laid.init_state(params, x), torch.zeros(*batch, copies, dtype=dtype), []
    for t in range(steps):
        g = keys.normal(key[3 + t], tuple(x.shape), dtype) * 10.0 ** -(3 * t)
        read.append(Step(f, g, state, x))
        x, state = laid.update(params, f, g, state, x)
    return laid, params, read, (x, *leaves(state))


def near(got, expected, dtype):
    scale = float(expected.abs().max()) + 1e-3
    torch.testing.assert_close(got, expected, rtol=0, atol=TOLERANCE[dtype] * scale)


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize(("batch", "copies", "n"), [((), 1, 1), ((2,), 3, 7), ((2, 2), 5, 9), ((), 11, 120)])
def test_native_updates_and_sweeps_equal_plain_ones(rule, dtype, batch, copies, n):
    with torch.no_grad():
        laid, params, read, end = window(rule, dtype, batch, copies, n)
        slopes = {t: keys.normal(keys.seed(t), tuple(end[0].shape), dtype) for t in (0, 2)}
        expected = Optimizer.sweep(laid, params, read, slopes.get)
        first = [step._replace(state=step.state if t == 0 else None) for t, step in enumerate(read)]
        plain = laid.sweep(params, first, slopes.get)
        with compiling():
            assert laid.replays(read[0].g)
            fast = laid.sweep(params, first, slopes.get)
            assert laid.sweep(params, first, {}.get) == (None, None)
            x, state = read[0].x, read[0].state
            for step in read:
                x, state = laid.update(params, step.f, step.g, state, x)
        for dparams, dx in (plain, fast):
            near(dparams, expected[0], dtype)
            near(dx, expected[1], dtype)
        for mine, theirs in zip((x, *leaves(state)), end, strict=True):
            near(mine, theirs, dtype)


@needs_compiler
def test_threads_change_the_last_digits_at_most():
    with torch.no_grad():
        laid, params, read, _ = window(LSTM(hidden=4), torch.float64, (), 40, 130)
        slopes, before, found = {3: torch.ones(40, 130, dtype=torch.float64)}, torch.get_num_threads(), []
        try:
            for threads in (1, 3, 3):
                torch.set_num_threads(threads)
                with compiling():
                    moved = laid.update(params, read[0].f, read[0].g, read[0].state, read[0].x)
                    found.append([laid.sweep(params, read, slopes.get)[0], moved[0], *leaves(moved[1])])
        finally:
            torch.set_num_threads(before)
        near(found[1][0], found[0][0], torch.float64)
        for once, again in zip(found[1], found[2], strict=True):
            assert torch.equal(once, again)
        for alone, together in zip(found[0][1:], found[1][1:], strict=True):
            assert torch.equal(alone, together)


@pytest.fixture(scope="module", params=[native.MACHINES, [()]], ids=["this machine", "any machine"])
def of_vectors(request, tmp_path_factory):
    """A function of `cells.cpp` that works on a vector, by its name: from a tensor to one with two rows."""
    if not compiled.has_compiler():
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
    laid = LSTM(hidden=2, layers=1).over(Layout.of({"x": (3,)}))
    params, x = laid.init(keys.seed(0)) * 1e4, torch.zeros(1, 3)
    g = torch.tensor([[1.0, -1.0, torch.nan]])
    with torch.no_grad():
        plain = laid.update(params, torch.zeros(1), g, laid.init_state(params, x), x)
        with compiling():
            fast = laid.update(params, torch.zeros(1), g, laid.init_state(params, x), x)
    for mine, theirs in zip((fast[0], *leaves(fast[1])), (plain[0], *leaves(plain[1])), strict=True):
        torch.testing.assert_close(mine, theirs, equal_nan=True)
    assert torch.isnan(fast[0]).tolist() == [[False, False, True]]


@needs_compiler
@pytest.mark.parametrize(
    "text",
    [
        "quadratic(dims=5): lstm(hidden=3)@4[batch=3, horizon=8] / adam",
        "quadratic(dims=5): rnnprop(hidden=3)@3[batch=3] / lstm(hidden=2)@2[batch=2] / sgd",
        "quadratic(dims=4): lstm(hidden=2)@2[ahead=5, gradient=bootstrapped] / adam",
        "quadratic(dims=4): lstm(hidden=2)@3[batch=4, nonfinite=skip, objective=last] / adam",
    ],
)
def test_towers_get_the_same_numbers(text):
    tower, ends = parse(text.replace("quadratic(", "quadratic(dtype=float64, ")), []
    for on in (False, True):
        state = tower.init(seed=0)
        if "skip" in text:  # a copy that goes wrong at once and stands still
            carry = state.carry.below.carry
            state = state._replace(carry=state.carry._replace(below=state.carry.below._replace(
                carry=carry._replace(x=carry.x.index_fill(1, torch.tensor(1), 1e200)))))  # fmt: skip
        with compiling(on):
            for _ in range(4):
                state, _ = tower.step(state)
        ends.append(state)
    assert not torch.equal(ends[0].carry.x, tower.init(seed=0).carry.x)
    for plain, fast in zip(leaves(ends[0].carry), leaves(ends[1].carry), strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-9, atol=1e-11)


@needs_compiler
def test_of_a_window_only_the_first_state_is_kept():
    tower = Tower(Quadratic(30), Level(optimizer=LSTM(hidden=20), unroll=20, batch=8), Level(optimizer=Adam(), batch=1))
    state_bytes, peaks = 4 * 20 * 2 * 2 * 30 * 8, []
    for on in (False, True):
        with LiveBytes() as live, compiling(on):
            state, _ = tower.step(tower.init(seed=0))
            before = live.reset_peak().bytes
            tower.step(state)
            peaks.append(live.peak - before)
    assert peaks[0] > 20 * state_bytes
    assert peaks[1] < 8 * state_bytes


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


def test_native_pieces_serve_only_where_they_may(monkeypatch):
    monkeypatch.setattr(compiled, "has_compiler", lambda: True)
    x = torch.zeros(2)
    with torch.no_grad():
        assert not native.serves(x)
        with compiling():
            assert native.serves(x)
            assert native.serves(x.double())
            assert not native.serves(x.half())
            assert not native.serves(x.to("meta"))
            torch.func.vjp(lambda y: y * native.serves(y), x)[0].sum()
            assert float(torch.func.vjp(lambda y: y + native.serves(y), x)[0].sum()) == 0
            with torch.enable_grad():
                assert not native.serves(x)
