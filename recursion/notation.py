"""Notation: a tower from one line of text, the same line that a tower prints.

    tower  =  task ":" floor ("/" floor)*            digits-mlp: lstm@20 / lstm@5 / adam(lr=1e-3)
    floor  =  level | group
    group  =  "depth" "(" level ("/" level)+ ("," setting)* ")"        depth(sgd@1 / sgd@1, price=1e-3)
    level  =  part ["@" unroll] ["[" settings "]"]   lstm(hidden=20)@20[batch=64, objective=mean-log]
    part   =  name ["(" settings ")"]                log(0.01, per=tensor), folder/mytask.py:wine
    value  =  number | true | false | none | word | "text" | part | "[" [value ("," value)*] "]"

Settings are separated by commas; those of a part may come without their names, first and in order. A name with dots,
or in a file, is a class, or a task, to import. White space is free. A group is short for levels with gates
(`recursion.group`). Whether a word is a part depends on what its setting takes. A tokenizer and a recursive descent;
nothing is evaluated. Every mistake is a ValueError of one line that says where it is: ``level 2 (lstm@0): unroll must
be a whole number of at least 1, got 0``.
"""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple, NoReturn

from levels import catalog
from levels.catalog import Setting
from levels.config import alternatives, require
from levels.importing import FILE
from levels.level import Level
from levels.tasks.task import Task
from recursion.group import Depth, gated_levels
from recursion.tower import Tower

TOKEN = re.compile(
    r"""\s*(?:
        (?P<text>"(?:[^"\\]|\\.)*")
      | (?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?(?![\w.]) | [+-]?(?:inf|nan)(?![\w.-]))
      | (?P<word>FILE|[A-Za-z_][\w.-]*)
      | (?P<mark>[:/@()\[\],=])
      | (?P<junk>[^\s:/@()\[\],=]+)
    )""".replace("FILE", FILE),
    re.VERBOSE | re.ASCII,
)
RESERVED = {"true": True, "false": False, "none": None}
TOWERS = "a tower is written 'quadratic: lstm@20 / adam'"
LEVELS = "a level is written 'lstm(hidden=20)@20[batch=64]'"
GROUP = "depth"
GROUPS = "a group is written 'depth(sgd@1 / sgd@1, price=1e-3) / adam'"
WRITTEN_OUTSIDE = {"optimizer": "it stands before the brackets", "unroll": "it is written @20, before the brackets"}


class Token(NamedTuple):
    """A piece of the text; ``kind`` is a group of `TOKEN`, or ``end``."""

    kind: str
    text: str
    start: int
    end: int

    def __str__(self) -> str:
        return f"'{self.text}'" if self.text else "the end of the text"


def parse(text: str) -> Tower:
    """The tower that ``text`` describes. ValueError, in one line, for every mistake in it."""
    if not isinstance(text, str):
        raise TypeError(f"notation is text, got {type(text).__name__}; {TOWERS}")
    try:
        return _Reader(text).tower()
    except RecursionError as error:
        raise ValueError("task: this text is nested too deeply to be a tower") from error


def read_value(text: str, setting: Setting) -> Any:
    """The value of a setting that ``text`` writes, as it stands behind ``=``. ValueError, in one line."""
    reader = _Reader(text)
    value = reader._value(setting)
    if reader.token.kind != "end":
        _fail(f"the end behind the value of {setting.name}", reader.token, "one setting has one value")
    return value


def one_line(message: object) -> str:
    """A message with all white space made single spaces."""
    return " ".join(str(message).split())


@contextmanager
def located(where: object) -> Iterator[None]:
    """Put the place in front of a ValueError inside, and make it one line."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{where}: {one_line(error)}") from error


class _Reader:
    """Recursive descent over the tokens of one text."""

    def __init__(self, text: str) -> None:
        self.text = text
        matches = ((match, str(match.lastgroup)) for match in TOKEN.finditer(text))
        self.tokens = [Token(kind, match[kind], match.start(kind), match.end()) for match, kind in matches]
        self.tokens.append(Token("end", "", len(text), len(text)))
        self.at = 0

    def tower(self) -> Tower:
        with located(self._where("task")):
            if self.token.kind == "end":
                _fail("a task", self.token, TOWERS)
            task = self._part("task")
            if not self._take(":"):
                _fail("':' behind the task", self.token, TOWERS)
        levels: list[Level] = []
        groups: list[tuple[int, int, Depth]] = []
        self._floor(levels, groups)
        while self._take("/"):
            self._floor(levels, groups)
        for first, end, settings in groups:
            gated = gated_levels(task, levels[first:end], levels[end], settings, under=levels[:first])
            levels[first : end + 1] = gated
        return Tower(task, *levels)

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
                _fail("'/' and a level that moves the gates behind the group", self.token, GROUPS)

    def _group_settings(self) -> Depth:
        if self._take(")"):
            return Depth()
        if not self._take(","):
            _fail("'/', ',' or ')' behind a level of the group", self.token, GROUPS)
        settings: Depth = catalog.make(Depth, self._settings(Depth, ")"))
        return settings

    def _level(self, number: int, grouped: bool = False) -> Level:
        with located(self._where(f"level {number}", grouped)):
            given = {"optimizer": self._part("optimizer")}
            if self._take("@"):
                if self.token.kind != "number":
                    _fail("the unroll, a whole number, behind '@'", self.token, LEVELS)
                given["unroll"] = self._value(Setting("unroll", int))
            if self._take("["):
                given |= self._settings(Level, "]")
            level: Level = catalog.make(Level, given)
            if not grouped and self.token.text not in ("/", ""):
                _fail("'/' or the end behind a level", self.token, LEVELS)
        return level

    def _part(self, *kinds: str) -> Any:
        name = self._next()
        if name.kind != "word":
            _fail(catalog.article(" or ".join(kinds)), name, TOWERS)
        cls = catalog.find(name.text, *kinds)
        if isinstance(cls, Task):
            return catalog.adjusted(cls, self._settings(Task, ")") if self._take("(") else {})
        catalog.require_plain(cls)
        return catalog.make(cls, self._settings(cls, ")") if self._take("(") else {})

    def _settings(self, cls: type, close: str) -> dict[str, Any]:
        """Settings of ``cls`` up to the bracket that closes them."""
        known = {k: v for k, v in catalog.settings_of(cls).items() if cls is not Level or k not in WRITTEN_OUTSIDE}
        given: dict[str, Any] = {}
        named = False
        while not self._take(close):
            if given and not self._take(","):
                _fail(f"',' or '{close}' behind {list(given)[-1]}", self.token, "settings are written lr=0.1, eps=1e-8")
            if self.token.kind == "word" and self.tokens[self.at + 1].text == "=":
                setting, named = self._named(cls, known, given), True
            else:
                setting = self._positional(cls, known, given, named)
            given[setting.name] = self._value(setting)
        return given

    def _named(self, cls: type, known: Mapping[str, Setting], given: dict[str, Any]) -> Setting:
        name = self._next().text
        self._next()
        setting = known.get(name) if cls is Level else catalog.setting_of(cls, name)
        if setting is None:
            note = f"; {name}: {WRITTEN_OUTSIDE[name]}" if cls is Level and name in WRITTEN_OUTSIDE else ""
            raise ValueError(catalog.unknown_setting(cls, name, list(known)) + note)
        require(setting.name not in given, f"{catalog.label(cls)} is given {name} twice; leave one out")
        return setting

    def _positional(self, cls: type, known: Mapping[str, Setting], given: dict[str, Any], named: bool) -> Setting:
        label, names = catalog.label(cls), [setting.name for setting in known.values() if setting.positional]
        if self.token.kind in ("mark", "junk", "end") and self.token.text != "[":
            _fail(f"a setting of {label}", self.token, f"it has {', '.join(known) or 'none'}")
        if named:
            _fail(f"name=value in {label}", self.token, "values without a name come first")
        if len(given) >= len(names):
            takes = f"takes only {', '.join(names) or 'named values'}{' without a name' if names else ''}"
            has = f"{takes}, got one more, {self.token}; it has {', '.join(known)}"
            raise ValueError(f"{label} {has if known else f'has no settings, got {self.token}'}")
        return known[names[len(given)]]

    def _value(self, setting: Setting) -> Any:
        """The next value, read as one of the setting's type; its kind is checked when the part is made."""
        token = self._next()
        if token.kind == "number":
            return int(token.text) if token.text.lstrip("+-").isdecimal() else float(token.text)
        if token.kind == "text":
            try:
                return json.loads(token.text)
            except json.JSONDecodeError as error:
                raise ValueError(f"{token} is not a text as JSON writes it: {error.msg}") from error
        if token.text == "[":
            return self._list(setting)
        if token.kind != "word":
            _fail(f"a value for {setting.name}", token, f"{setting.name} is {catalog.describe(setting.hint)}")
        return RESERVED[token.text] if token.text in RESERVED else self._word(token, setting)

    def _word(self, token: Token, setting: Setting) -> Any:
        """A part where the setting takes one and there is one of that name, else the word itself."""
        kinds, words = catalog.kinds_in(setting.hint), catalog.takes_words(setting.hint)
        called = self.token.text == "("
        if called and not kinds:
            _fail(f"{catalog.describe(setting.hint)} for {setting.name}", token, "it takes no part")
        dotted = "." in token.text and not words
        if called or dotted or any(token.text in catalog.parts(kind) for kind in kinds) or (kinds and not words):
            self.at -= 1
            return self._part(*kinds)
        return token.text

    def _list(self, setting: Setting) -> tuple[Any, ...]:
        hint = next((one for one in alternatives(setting.hint) if catalog.is_list(one)), setting.hint)
        good = hint is Any or catalog.is_list(hint)
        require(good, f"{setting.name} must be {catalog.describe(setting.hint)}, got a list")
        items: list[Any] = []
        while not self._take("]"):
            if items and not self._take(","):
                _fail(f"',' or ']' in the list of {setting.name}", self.token, "a list is written [20, 20]")
            kinds = catalog.items_of(hint, len(items) + 1)
            items.append(self._value(setting._replace(hint=kinds[min(len(items), len(kinds) - 1)])))
        return tuple(items)

    @property
    def token(self) -> Token:
        """The token to read next."""
        return self.tokens[self.at]

    def _next(self) -> Token:
        token = self.token
        self.at += token.kind != "end"
        return token

    def _take(self, mark: str) -> bool:
        """Whether ``mark`` is next; if so it is read."""
        is_next = self.token.kind == "mark" and self.token.text == mark
        self.at += is_next
        return is_next

    def _where(self, what: str, grouped: bool = False) -> str:
        """``level 2 (lstm@0)``: the piece from here to the next slash or colon, as typed; in a group, to its end."""
        piece = self._piece("/:,)", nested=True) if grouped else self._piece("/:")
        return f"{what} ({piece})" if piece else what

    def _piece(self, marks: str, nested: bool = False) -> str:
        """The text from here to the next of these marks; with ``nested``, to the next that is in no bracket."""
        inside, end = 0, self.tokens[-1]
        for token in self.tokens[self.at :]:
            if token.kind == "end" or (token.text in marks and inside <= 0):
                end = token
                break
            if nested and token.kind == "mark":
                inside += (token.text in "([") - (token.text in ")]")
        return one_line(self.text[self.token.start : end.start])


def _fail(expected: str, got: Token, fix: str) -> NoReturn:
    raise ValueError(f"expected {expected}, got {got}; {fix}")
