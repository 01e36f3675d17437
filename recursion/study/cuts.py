"""Cuts: a tower at each depth, with each value of a grid.

Depth d keeps levels 1 to d - 1 and always ends with the last optimizer: depth 2 of ``a / b / c`` is ``a / c``. ``...``
in front of the last level repeats the one before it as often as a depth needs: ``sgd@1 / ... / sgd``.

An entry of the grid is a setting and its values: ``1.unroll=5,20``. In front of the dot stands the level of each cut
that it changes, from 1, or ``top``; without one it changes all levels. ``unroll``, ``gradient`` and the like are
settings of the levels below the top, unless ``top`` says otherwise; ``lr`` or ``hidden`` belong to a level's optimizer,
or to one inside it. ``lr*=1e-3,1,1e3`` multiplies the value there. A hyperparameter keeps the space it is written in. A
cut without such a setting stands once, without the entry.
"""

import contextlib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, NamedTuple, NoReturn

from levels import catalog
from levels.base import Optimizer
from levels.catalog import Setting
from levels.fields import Count, closest, fits, format_value, require, settings
from levels.hyper import Hyper
from levels.importing import NAMES
from levels.level import Level
from levels.reading import Reader, located, one_line, read_value
from recursion.notation import parse
from recursion.reading import read
from recursion.tower import Tower

Grid = tuple[tuple[str, tuple[str, ...]], ...]
REPEAT = re.compile(r"/\s*\.\.\.\s*(?=/)")
REPEATS = "'...' repeats the level before it and stands in front of the last one, as in 'quadratic: sgd@1 / ... / sgd'"
NAME = re.compile(r"(?:(?P<where>\d+|top)\.)?(?P<name>[A-Za-z_]\w*)(?P<times>\*?)")
ENTRIES = "a grid entry is written 1.unroll=5,20 or lr*=1e-3,1,1e3"
OWN = tuple(catalog.settings_of(Level))  # settings of the level itself, its optimizer as a whole among them


class Cell(NamedTuple):
    """A cut with one value of each grid entry that concerns it. ``factors``: depth and values as typed."""

    label: str
    factors: Mapping[str, str]
    tower: Tower


@dataclass(frozen=True)
class Entry:
    """A setting that the grid changes. ``where``: level from 1, ``top``, or None for all; ``times``: it multiplies."""

    text: str
    where: str | None
    name: str
    times: str

    @property
    def label(self) -> str:
        """In words, in front of its value: ``level 1 unroll``."""
        whose = {None: "", "top": "top "}.get(self.where, f"level {self.where} ")
        return f"{whose}{self.name}{' times' if self.times else ''}"

    def apply(self, levels: Sequence[Level], text: str) -> list[Level] | None:
        """The levels with the setting at a value; None if it concerns none of them. ValueError, naming the level."""
        changed = {}
        for place in self.places(levels):
            with located(f"level {place + 1} ({levels[place]})"):
                changed[place] = self._changed(levels[place], text)
        replaced = [changed.get(place) or level for place, level in enumerate(levels)]
        return replaced if any(changed.values()) else None

    def places(self, levels: Sequence[Level]) -> range:
        """Indices of the levels that it looks at."""
        inside = len(levels) - (self.name in OWN and self.where != "top")
        if self.where is None:
            return range(inside)
        place = len(levels) - 1 if self.where == "top" else int(self.where) - 1
        return range(max(place, 0), min(place + 1, inside))

    def _changed(self, value: Any, text: str) -> Any:
        """A level, an optimizer, or several, with the setting changed, else in those inside; None if there is none."""
        if isinstance(value, (tuple, list)):
            items = [self._changed(item, text) for item in value]
            return tuple(new or old for new, old in zip(items, value)) if any(items) else None
        if not isinstance(value, (Level, Optimizer)):
            return None
        is_level = isinstance(value, Level)
        own = {word: each for word, each in settings(value).items() if word in OWN or not is_level}
        if self.name in own and (is_level or not self.times or own[self.name] is not None):
            new = {self.name: self._value(type(value), own, text)}
        else:
            inner = {name: self._changed(each, text) for name, each in own.items()}
            new = {name: each for name, each in inner.items() if each is not None}
        return catalog.make(type(value), own | new) if new else None

    def _value(self, cls: type, own: Mapping[str, Any], text: str) -> Any:
        """The setting's new value, in the space of the one that is there."""
        before = own[self.name]
        number = before.start if isinstance(before, Hyper) else before
        if self.times:
            value: Any = _product(self.name, number, read_value(text, Setting(self.name, float)))
        else:
            value = read_value(text, catalog.setting_of(cls, self.name) or Setting(self.name, Any))
        return replace(before, start=value) if isinstance(before, Hyper) and fits(value, float) else value


@cache
def cells(text: str, depths: tuple[int, ...], grid: Grid) -> tuple[Cell, ...]:
    """Each cut with each combination of values, all built. ValueError, in one line, for what cannot be."""
    written, repeats = _read(text)
    _check(depths, grid)
    entries = []
    for name, values in grid:
        matched = NAME.fullmatch(name) or _fail(f"grid {name}: {ENTRIES}")
        entries.append((Entry(name, *matched.groups()), values))
    cuts = {}
    for depth in depths:
        with located(f"depth {depth}"):
            cuts[depth] = _cut(written, repeats, depth)
    every = tuple(cell for depth, cut in cuts.items() for cell in _cells_of(depth, cut, entries))
    for entry, _ in entries:
        if not any(entry.text in cell.factors for cell in every):
            _refuse(entry, cuts[max(cuts)])
    return every


def require_trusted(text: str, grid: Grid, trust: Sequence[str]) -> None:
    """ValueError if a study names code outside of this package and of the modules in ``trust``, before any import."""
    read("".join(REPEAT.split(text)), trust)
    for _, values in grid:
        for value in values:
            Reader(value, trust)._value(Setting(NAMES[0], Any))


def task_of(text: str) -> str:
    """The task of notation that may hold ``...``."""
    return str(_read(text)[0].task)


def every_depth(text: str) -> tuple[int, ...]:
    """The depths of notation as far as it is written out; ``...`` adds none."""
    return tuple(range(1, _read(text)[0].depth + 1))


def parse_grid(words: Sequence[str]) -> Grid:
    """Entries as a command line has them: ``1.unroll=5,20``, ``lr=1e-4..1e2`` (decades). ValueError, in one line."""
    entries = []
    for word in words:
        name, equals, values = word.partition("=")
        require(bool(equals), f"grid {word}: it has no '='; {ENTRIES}")
        pieces, inside = [""], 0
        for sign in values:  # split at commas that stand in no bracket
            inside += (sign in "([") - (sign in ")]")
            pieces = [*pieces, ""] if sign == "," and inside == 0 else [*pieces[:-1], pieces[-1] + sign]
        entries.append((name.strip(), tuple(one for text in pieces for one in _decades(word, one_line(text)))))
    return tuple(entries)


def parse_depths(text: str) -> tuple[int, ...]:
    """Depths as a command line has them: ``1-6,10,25,50``. ValueError, in one line."""
    depths: list[int] = []
    for piece in text.split(","):
        ends = re.fullmatch(r"\s*(\d{1,6})(?:\s*-\s*(\d{1,6}))?\s*", piece)
        ends = ends or _fail(f"depths are written 1-4 or 1-6,10,25, got '{text}'")
        low, high = int(ends[1]), int(ends[2] or ends[1])
        require(low <= high, f"depths {low}-{high} are none; write {high}-{low}")
        depths += range(low, high + 1)
    return tuple(depths)


def _read(text: str) -> tuple[Tower, bool]:
    """The tower of notation that may hold ``...``, and whether it does."""
    parts = REPEAT.split(text)
    require(len(parts) <= 2 and "..." not in "".join(parts), REPEATS)
    tower = parse("".join(parts))
    require(len(parts) == 1 or parse(parts[0]).depth == tower.depth - 1, REPEATS)
    return tower, len(parts) == 2


def _cut(tower: Tower, repeats: bool, depth: int) -> Tower:
    *lower, top = tower.levels
    missing = depth - 1 - len(lower)
    more = f"the tower has {tower.depth} levels; write more, or '...' for one that is repeated"
    require(missing <= 0 or repeats, more)
    return Tower(tower.task, *lower[: depth - 1], *lower[-1:] * missing, top)


def _cells_of(depth: int, cut: Tower, entries: Sequence[tuple[Entry, tuple[str, ...]]]) -> Iterator[Cell]:
    """A cut with each combination of the values of the entries that concern it."""
    grid: list[tuple[list[Level], dict[str, str], str]] = [([*cut.levels], {}, f"depth {depth}")]
    for entry, values in entries:
        before, grid = grid, []
        for levels, factors, label in before:
            for value in values:
                with located(f"grid {entry.text}={value} at depth {depth}"):
                    changed = entry.apply(levels, value)
                if changed is None:
                    grid.append((levels, factors, label))
                    break
                grid.append((changed, factors | {entry.text: value}, f"{label}, {entry.label} {value}"))
    for levels, factors, label in grid:
        with located(" ".join(["grid", *(f"{name}={value}" for name, value in factors.items()), f"at depth {depth}"])):
            tower = Tower(cut.task, *levels)
            same = str(parse(str(tower))) == str(tower)
            require(same, f"{tower} cannot be written down in full; runs are made from notation")
        yield Cell(label, {"depth": str(depth)} | factors, tower)


def _refuse(entry: Entry, deepest: Tower) -> NoReturn:
    """An entry that concerns no cut: say why."""
    grid, name, where = f"grid {entry.text}:", entry.name, entry.where
    if where not in (None, "top") and not 1 <= int(str(where)) <= deepest.depth:
        _fail(f"{grid} there is no level {where}; the deepest cut has {deepest.depth}")
    if name in OWN:
        _fail(f"{grid} no cut has such a level below its top; name the topmost as top.{name}")
    inside = (one for at in entry.places(deepest.levels) for one in _optimizers(deepest.levels[at].optimizer))
    known = sorted({*OWN, *(setting for optimizer in inside for setting in settings(optimizer))})
    has = {None: "no level has a", "top": "the top has no"}.get(where, f"level {where} has no")
    if name in known:
        _fail(f"{grid} {has} number {name} to multiply; write it in the tower")
    _fail(f"{grid} {has} setting '{name}'{closest(name, known)}; there are {', '.join(known)}")


def _check(depths: Sequence[int], grid: Grid) -> None:
    require(len(depths) > 0, "a study needs a depth, got none; as --depths 1-4")
    for depth in depths:
        require(fits(depth, Count), f"a depth must be a whole number of at least 1, got {depth!r}")
        require(list(depths).count(depth) == 1, f"depth {depth} is given twice; leave one out")
    names = [name for name, _ in grid]
    for name, values in grid:
        require(names.count(name) == 1, f"grid {name} is given twice; put all its values into one")
        require(bool(values) and all(map(str.strip, values)), f"grid {name}: a value is missing; {ENTRIES}")
        plain = list(map(_canonical, values))
        same = [value for value, each in zip(values, plain) if plain.count(each) > 1]
        require(not same, f"grid {name}: {' and '.join(same)} are the same; leave one out")


def _canonical(text: str) -> str | float:
    """A value such that two ways to write a number are one."""
    try:
        return float(text)
    except ValueError:
        return "".join(text.split())


def _product(name: str, number: Any, factor: Any) -> int | float:
    """A setting times a factor, without the noise of binary fractions."""
    require(fits(factor, float), f"{name} is multiplied by a number, got {format_value(factor)}")
    fix = "which cannot be multiplied; write a number in the tower"
    require(fits(number, float), f"{name} is {format_value(number)}, {fix}")
    product = float(f"{number * factor:.12g}")
    if isinstance(number, float):
        return product
    require(product.is_integer(), f"{name} is the whole number {number}, and {factor} times that is not whole")
    return int(product)


def _decades(word: str, text: str) -> list[str]:
    """``1e-1..1e1`` as each decade from the one to the other; anything else as it is."""
    low, dots, high = text.partition("..")
    if not dots:
        return [text]
    with contextlib.suppress(ValueError, ZeroDivisionError, OverflowError):
        first, last = float(low), float(high)
        count = round(math.log10(last / first))
        if count >= 0 and math.isclose(first * 10.0**count, last, rel_tol=1e-9):
            return [f"{first * 10.0**place:.12g}" for place in range(count + 1)]
    return _fail(f"grid {word}: {text} is no range of decades, as 1e-4..1e2 is")


def _optimizers(value: Any) -> Iterator[Optimizer]:
    """The optimizers in a setting's value: itself, and those inside it."""
    if isinstance(value, Optimizer):
        yield value
        value = tuple(settings(value).values())
    for each in value if isinstance(value, (tuple, list)) else ():
        yield from _optimizers(each)


def _fail(message: str) -> NoReturn:
    raise ValueError(message)
