"""Reading towers: the task and the levels of a text, for `recursion.notation`, which says how it is written."""

from collections.abc import Sequence
from typing import Any, ClassVar

from levels import catalog
from levels.catalog import Setting
from levels.fields import require
from levels.level import Level
from levels.reading import Reader, fail, located
from recursion.group import Depth, gated_levels

TOWERS = "a tower is written 'quadratic: lstm@20 / adam'"
LEVELS = "a level is written 'lstm(hidden=20)@20[batch=64]'"
OUTSIDE = {"optimizer": "it stands before the brackets", "unroll": "it is written @20, before the brackets"}
GROUP = "depth"
GROUPS = "a group is written 'depth(sgd@1 / sgd@1, price=1e-3) / adam'"


def read(text: str, trust: Sequence[str] | None = None) -> tuple[Any, list[Level]]:
    """The task and the levels that ``text`` describes. ValueError, in one line, for every mistake in it.

    ``trust``: modules and files whose code it may name (`levels.importing`); None: any, for a user typed it.
    """
    if not isinstance(text, str):
        raise TypeError(f"notation is text, got {type(text).__name__}; {TOWERS}")
    try:
        return TowerReader(text, trust).tower()
    except RecursionError as error:
        raise ValueError("task: this text is nested too deeply to be a tower") from error


def read_level(text: str, number: int) -> Level:
    """One level; ``number`` is its place, for messages. ValueError, in one line."""
    reader = TowerReader(text)
    level = reader._level(number)
    if reader.token.kind != "end":
        fail("one level", reader.token, "give levels one by one, or the whole tower as one text")
    return level


class TowerReader(Reader):
    """Reads towers; parts are read as any reader does."""

    written = TOWERS
    outside: ClassVar = {
        "optimizer": "it stands before the brackets",
        "unroll": "it is written @20, before the brackets",
    }

    def tower(self) -> tuple[Any, list[Level]]:
        with located(self._where("task")):
            if self.token.kind == "end":
                fail("a task", self.token, TOWERS)
            task = self._part("task")
            if not self._take(":"):
                fail("':' behind the task", self.token, TOWERS)
        levels: list[Level] = []
        groups: list[tuple[int, int, Depth]] = []
        self._floor(levels, groups)
        while self._take("/"):
            self._floor(levels, groups)
        for first, end, settings in groups:
            gated = gated_levels(task, levels[first:end], levels[end], settings, under=levels[:first])
            levels[first : end + 1] = gated
        return task, levels

    def _floor(self, levels: list[Level], groups: list[tuple[int, int, Depth]]) -> None:
        """The next level, or those of the next group, which has the places of its first and behind its last, from 0."""
        if self.token.text != GROUP or self.tokens[self.at + 1].text != "(":
            levels.append(self._level(len(levels) + 1))
            return
        first, piece = len(levels), self._piece("/:", nested=True)
        self.at += 2
        levels.append(self._level(first + 1, grouped=True))
        while self._take("/"):
            levels.append(self._level(len(levels) + 1, grouped=True))
        alone = len(levels) == first + 1
        with located(f"level {first + 1}" + ("" if alone else f" to {len(levels)}") + f" ({piece})"):
            groups.append((first, len(levels), self._group_settings()))
            require(not alone, "a group of one level has no depth to learn; put another level into it")
            if self.token.text != "/":
                fail("'/' and a level that moves the gates behind the group", self.token, GROUPS)

    def _group_settings(self) -> Depth:
        if self._take(")"):
            return Depth()
        if not self._take(","):
            fail("'/', ',' or ')' behind a level of the group", self.token, GROUPS)
        settings: Depth = catalog.make(Depth, self._settings(Depth, ")"))
        return settings

    def _level(self, number: int, grouped: bool = False) -> Level:
        with located(self._where(f"level {number}", grouped)):
            given = {"optimizer": self._part("optimizer")}
            if self._take("@"):
                if self.token.kind != "number":
                    fail("the unroll, a whole number, behind '@'", self.token, LEVELS)
                given["unroll"] = self._value(Setting("unroll", int))
            if self._take("["):
                known = {name: one for name, one in catalog.settings_of(Level).items() if name not in self.outside}
                given |= self._settings(Level, "]", known)
            level: Level = catalog.make(Level, given)
            if not grouped and self.token.text not in ("/", ""):
                fail("'/' or the end behind a level", self.token, LEVELS)
        return level
