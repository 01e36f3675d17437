"""What levels offers by name: all of it, and nothing else."""

import importlib
import pkgutil
from types import ModuleType

import levels
from levels.config import Config


def in_order(name):
    """Constants, then classes, then functions, as linters sort them."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2), name


def test_all_is_complete_sorted_and_says_what_it_is():
    offered = {name for name, value in vars(levels).items() if name[0] != "_" and not isinstance(value, ModuleType)}
    assert set(levels.__all__) == offered | {"keys"}
    assert levels.__all__ == sorted(set(levels.__all__), key=in_order)
    for name in levels.__all__:
        text = getattr(levels, name).__doc__
        assert text, name
        assert not text.startswith(f"{name}("), name


def test_every_part_is_offered():
    modules = [importlib.import_module(module.name) for module in pkgutil.walk_packages(levels.__path__, "levels.")]
    values = [(name, value, module.__name__) for module in modules for name, value in vars(module).items()]
    classes = [each for each in values if isinstance(each[1], type) and issubclass(each[1], Config)]
    parts = {name for name, cls, module in classes if cls.__module__ == module and name[0] != "_"}
    assert {"SGD", "LSTM", "Quadratic", "FirstOrder", "Sum", "Skip", "Log"} <= parts
    assert parts <= set(levels.__all__)
