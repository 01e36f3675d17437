"""Compiled pieces equal the plain ones, and run only where they may."""

import pytest
import torch
from torch import Tensor

from levels import LSTM, Quadratic, RNNProp, compiled, keys, native
from levels.compiled import compilable, compiling, is_compiling
from levels.autodiff import push
from levels.optimizers import cells_native
from recursion.notation import parse
from recursion.training import EACH_UPDATE, REPAID, REPAID_NATIVE, repays_compiling, train


@pytest.fixture
def compiler(monkeypatch) -> list[str]:
    """In place of torch's: its functions note their names and double what the plain ones say."""
    called: list[str] = []

    def fake(function):
        def run(*args):
            called.append(function.__name__)
            return 2 * function(*args)

        return run

    monkeypatch.setattr(torch, "compile", fake)
    monkeypatch.setattr(compiled, "has_compiler", lambda: True)
    return called


def test_the_switch(compiler):
    @compilable
    def square(x: Tensor) -> Tensor:
        return x * x

    x = torch.tensor(3.0)
    with torch.no_grad():
        assert square(x) == 9
        with compiling(False):
            assert square(x) == 9
            assert not is_compiling()
        with compiling():
            assert is_compiling()
            assert square(x) == 18
            assert square(x) == 18
            assert push(square, x, torch.tensor(1.0))[1] == 6  # what torch.func differentiates stays plain
            with torch.enable_grad():
                assert square(x) == 9
            with compiling(False):
                assert square(x) == 9
        assert square(x) == 9
    assert compiler == ["square", "square"]


def test_without_a_compiler_it_is_refused(monkeypatch):
    monkeypatch.setattr(compiled, "has_compiler", lambda: False)
    with pytest.raises(ValueError, match=r"needs a C\+\+ compiler, and there is none; install g"), compiling():
        pass
    with compiling(False):
        pass


def test_runs_that_are_long_enough_compile(tmp_path, compiler, monkeypatch):
    tower = parse("quadratic(dims=5): lstm(hidden=2)@2[batch=3] / adam")
    each = 2 * (3 * 5 + EACH_UPDATE)
    assert not repays_compiling(tower, (REPAID_NATIVE - 1) // each)
    assert repays_compiling(tower, REPAID_NATIVE // each + 1)
    assert not repays_compiling(parse("quadratic: adam@20 / adam"), REPAID)
    above = parse("quadratic(dims=5): adam@2[batch=3] / rnnprop(hidden=2)@4[batch=7] / adam")  # it updates Adam's rate
    each = 4 * (7 * above.bound_levels[0].layout.size + EACH_UPDATE)
    assert not repays_compiling(above, (REPAID_NATIVE - 1) // each)
    assert repays_compiling(above, REPAID_NATIVE // each + 1)
    notices: list[str] = []
    train(tower, steps=1, seed=0, out=tmp_path / "short", on_notice=notices.append)
    assert not compiler
    assert not notices
    monkeypatch.setattr("recursion.training.has_compiler", lambda: False)
    monkeypatch.setattr("recursion.training.REPAID_NATIVE", 1)
    train(tower, steps=1, seed=0, out=tmp_path / "without", on_notice=notices.append)
    assert not compiler


@pytest.mark.parametrize(
    "text",
    [
        "quadratic(dims=5): lstm(hidden=2)[batch=3, horizon=none] / adam",  # a derivative of single updates
        "quadratic(dims=5): lstm(hidden=2)@2[batch=3, gradient=exact] / adam",
    ],
)
def test_what_torch_compiles_takes_longer_to_repay(text):
    tower = parse(text)
    each = tower.base_steps * 3 * 5
    assert not repays_compiling(tower, (REPAID - 1) // each)
    assert repays_compiling(tower, REPAID // each + 1)


def test_a_run_that_cannot_be_compiled_says_so_and_is_plain(tmp_path, monkeypatch):
    """``false`` stands for a compiler that refuses all that it is given."""
    tower, notices = parse("quadratic(dims=5): lstm(hidden=2)@2[batch=3] / adam"), []
    plain = train(tower, steps=2, seed=0, out=tmp_path / "plain", compile=False)
    monkeypatch.setenv("CXX", "false")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("recursion.training.REPAID_NATIVE", 1)
    native.library.cache_clear()
    cells_native._function.cache_clear()
    state = train(tower, steps=2, seed=0, out=tmp_path / "auto", on_notice=notices.append)
    [said] = notices
    assert said.startswith("not compiling: false cannot build cells.cpp")
    assert torch.equal(state.carry.x, plain.carry.x)
    with pytest.raises(ValueError, match="cannot build"):
        train(tower, steps=2, seed=0, out=tmp_path / "on", compile=True)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch's, about itself
@pytest.mark.parametrize("rule", [LSTM(hidden=5), RNNProp(hidden=4, layers=1)], ids=["lstm", "rnnprop"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-12), ("float32", 1e-4)])
def test_compiled_updates_and_derivatives_equal_plain_ones(rule, dtype, tolerance):
    """Two sizes, the second compiled for any; states of None and of numbers behind the step."""
    if not compiled.has_compiler():
        pytest.skip("no C++ compiler")
    for copies in (3, 7):
        task = Quadratic(dims=6, dtype=dtype)
        laid, key = rule.over(task.layout), keys.split(keys.seed(copies), 4)
        params = laid.init(key[0])
        x, g, dx = (keys.normal(k, (copies, 6), params.dtype) for k in key[1:])
        f, state = torch.ones(copies, dtype=params.dtype), laid.init_state(params, x)
        with torch.no_grad():
            for dstate in (None, "some"):
                answers = []
                for on in (False, True):
                    with compiling(on):
                        new_x, new, pull = laid.linearized(params, f, g, state, x)
                        slopes = [leaf for pair in _cells(new) for leaf in pair] if dstate else None
                        moments = [] if isinstance(rule, LSTM) else [new.adam.m, new.adam.v, None]
                        dparams, dold, _ = pull(dx, None if slopes is None else [*moments, *slopes])
                        answers.append([new_x, *[leaf for pair in _cells(new) for leaf in pair], dparams, *dold])
                for plain, fast in zip(*answers, strict=True):
                    if plain is not None:
                        torch.testing.assert_close(fast, plain, rtol=tolerance, atol=tolerance)
                state = new


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_compiled_run_resumes_bit_for_bit(tmp_path):
    if not compiled.has_compiler():
        pytest.skip("no C++ compiler")
    tower = parse("quadratic(dims=5): lstm(hidden=3)@4[batch=3] / adam")
    whole = train(tower, steps=6, seed=0, out=tmp_path / "whole", compile=True)
    train(tower, steps=3, seed=0, out=tmp_path / "parts", compile=True)
    notices: list[str] = []
    parts = train(tower, steps=6, seed=0, out=tmp_path / "parts", resume=True, compile=True, on_notice=notices.append)
    assert torch.equal(whole.carry.x, parts.carry.x)
    assert not any("last digits" in notice for notice in notices)
    plain = train(tower, steps=9, seed=0, out=tmp_path / "parts", resume=True, compile=False, on_notice=notices.append)
    assert int(plain.step) == 9
    assert any("last digits may differ" in notice for notice in notices)


def _cells(state) -> tuple:
    return state if isinstance(state, tuple) and not hasattr(state, "cells") else state.cells
