"""A few malformed towers and files of each kind; `python -m tests.fuzz --cases 20000` tries more."""

import importlib.util
import sys
from pathlib import Path

import pytest

SPEC = importlib.util.spec_from_file_location("fuzz", Path(__file__).with_name("fuzz.py"))
fuzz = importlib.util.module_from_spec(SPEC)
sys.modules["fuzz"] = fuzz
SPEC.loader.exec_module(fuzz)


@pytest.mark.parametrize("kind", fuzz.KINDS)
def test_what_is_malformed_is_read_or_refused_in_one_sentence(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cases = {seed: fuzz.wrong(kind, seed, tmp_path) for seed in range(10_000, 10_060)}
    assert not {seed: why for seed, why in cases.items() if why}


def test_what_is_wrong_is_found(tmp_path, monkeypatch):
    for error in (
        KeyError("x"),
        ValueError("two\nlines"),
        ValueError("x" * 5000),
        ValueError("\x1b[31m"),
        SystemExit(0),
    ):

        def broken(rng, folder, error=error):
            raise error

        monkeypatch.setitem(fuzz.KINDS, "notation", broken)
        assert fuzz.wrong("notation", 0, tmp_path)
