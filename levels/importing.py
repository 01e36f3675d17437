"""Importing: what a name with dots or a file names. The only place that runs code because a text names it.

    mypkg.mymodule.MyOptimizer        in a public module that Python can import
    folder/mytask.py:wine             in a file

A text that a user types is trusted. A file (a spec, a checkpoint, an export) is not: `require_trusted` checks what it
names before anything is imported.
"""

import importlib.util
import re
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from levels.fields import SHORT, clear, closest, require

FILE = r"(?:[\w.~-]*/)*[\w.-]+\.py:[A-Za-z_]\w*"  # of a name in a file, as a regular expression
OURS = ("levels", "recursion")
NAMES = ("algorithm", "rule")  # settings of torch optimizers that name a class


def imported(name: str) -> Any:
    """What a dotted name or a file's name stands for. ValueError, in one sentence, if it cannot be imported."""
    if ":" in name:
        path, _, what = name.rpartition(":")
        module = _from_file(Path(path).expanduser())
    else:
        steps = name.split(".")
        good = len(steps) > 1 and all(step.isidentifier() for step in steps)
        require(good, f"{name!r} is not the path of a class; write it as mypkg.mymodule.MyClass")
        hidden = ", ".join(step for step in steps if step.startswith("_"))
        require(not hidden, f"{name!r} is private ({hidden}); name a public module and class")
        home, what = name.rpartition(".")[::2]
        with_fix = f"cannot import {home!r} ({{}}); install it or put it on PYTHONPATH"
        module = run_users(lambda: import_module(home), with_fix)
    where = f"module {module.__name__!r}" if ":" not in name else path
    require(hasattr(module, what), f"{where} has no {what!r}{closest(what, vars(module))}")
    return getattr(module, what)


def require_trusted(data: Any, trust: Sequence[str]) -> None:
    """ValueError if JSON data of a file names code outside of this package and of the modules in ``trust``."""
    for name in _names(data):
        module = _home(name)
        known = any(module == one or module.startswith(f"{one}.") for one in (*OURS, *trust))
        module = clear(module, SHORT)
        risk = f"it names {clear(name, SHORT)!r}, whose code would run when it is read"
        require(known, f"{risk}; if you trust that, add --trust {module} (in Python trust=[{module!r}])")


def names_in(data: Any) -> list[str]:
    """The modules and files that JSON data of a spec names."""
    return [_home(name) for name in _names(data)]


def names_in_text(text: str) -> list[str]:
    """The modules and files that notation may name: all words with dots in it."""
    return [_home(name) for name in re.findall(rf"{FILE}|[A-Za-z_]\w*(?:\.\w+)+", text)]


def _home(name: str) -> str:
    """The module or file of a name."""
    return name.rpartition(":")[0] or name.rpartition(".")[0]


def _names(data: Any) -> Iterator[str]:
    """The names of parts with dots or files, and of torch optimizers elsewhere, in JSON data."""
    if isinstance(data, dict):
        named = [data.get(word) for word in ("name", *NAMES)]
        yield from (name for name in named if isinstance(name, str) and ("." in name or ":" in name))
    for inner in data.values() if isinstance(data, dict) else data if isinstance(data, list) else ():
        yield from _names(inner)


def _from_file(path: Path) -> ModuleType:
    """The module in a file, run once in a process. Its folder is added to the end of Python's path."""
    require(path.is_file(), f"there is no file {path}")
    require(
        re.fullmatch(r"[A-Za-z]\w*", path.stem) is not None, f"{path} is no module; rename it to letters and digits"
    )
    before = sys.modules.get(path.stem)
    if before is not None:
        same = getattr(before, "__file__", None) and Path(str(before.__file__)).resolve() == path.resolve()
        require(bool(same), f"a module {path.stem!r} is there already ({before.__name__}); give {path} another name")
        return before
    if str(path.parent.resolve()) not in sys.path:
        sys.path.append(str(path.parent.resolve()))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    sys.modules[path.stem] = module = importlib.util.module_from_spec(spec)
    try:
        run_users(lambda: spec.loader.exec_module(module), f"{path} fails when it is imported ({{}})")
    except ValueError:
        del sys.modules[path.stem]
        raise
    return module


def run_users(function: Any, sentence: str) -> Any:
    """What a function of the user's returns; whatever it raises, as a ValueError with that sentence."""
    try:
        return function()
    except (Exception, SystemExit) as error:
        what = str(error) if isinstance(error, ImportError) else f"{type(error).__name__}: {error}"
        raise ValueError(sentence.format(" ".join(what.split()))) from error
