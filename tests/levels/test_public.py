"""What levels offers by name: all of it, and nothing else."""

import importlib
import pkgutil
from types import ModuleType

import levels
from levels.config import Config


def everything():
    names = [module.name for module in pkgutil.walk_packages(levels.__path__, "levels.")]
    return [importlib.import_module(name) for name in names]


def in_order(name):
    """Constants, then classes, then functions, as linters sort them."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2), name


def test_all_is_complete_sorted_and_real():
    offered = {name for name, value in vars(levels).items() if name[0] != "_" and not isinstance(value, ModuleType)}
    assert set(levels.__all__) == offered | {"keys"}
    assert levels.__all__ == sorted(levels.__all__, key=in_order)
    assert len(set(levels.__all__)) == len(levels.__all__)


def test_every_part_is_offered():
    parts = {
        name
        for module in everything()
        for name, value in vars(module).items()
        if isinstance(value, type)
        and issubclass(value, Config)
        and value.__module__ == module.__name__
        and name[0] != "_"
    }
    assert {"SGD", "LSTM", "Quadratic", "FirstOrder", "Sum", "Skip", "Log"} <= parts
    assert parts <= set(levels.__all__)


def test_what_is_offered_says_what_it_is():
    for name in levels.__all__:
        value = getattr(levels, name)
        assert value.__doc__, name
        assert not value.__doc__.startswith(f"{name}("), name


def test_levels_imports_nothing_of_recursion():
    for module in everything():
        assert not any(
            getattr(value, "__module__", "").startswith("recursion") or getattr(value, "__name__", "") == "recursion"
            for value in vars(module).values()
        ), module
        with open(module.__file__) as source:
            lines = [line.strip() for line in source]
        assert not [line for line in lines if line.startswith(("import recursion", "from recursion"))], module
