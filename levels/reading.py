"""Reading: a part from its notation, the same text that the part prints.

    part   =  name ["(" settings ")"]                log(0.01, per=tensor), folder/mytask.py:wine
    value  =  number | true | false | none | word | "text" | part | "[" [value ("," value)*] "]"

Settings are separated by commas; those of a part may come without their names, first and in order. A name with dots,
or in a file, is a class, or a task, to import. White space is free. Whether a word is a part depends on what its
setting takes. A tokenizer and a recursive descent; nothing is evaluated. Every mistake is a ValueError of one line.
`recursion.notation` reads towers with it.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, NamedTuple, NoReturn

from levels import catalog
from levels.catalog import Setting
from levels.fields import alternatives, clear, require
from levels.importing import FILE, NAMES, require_trusted

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


class Token(NamedTuple):
    """A piece of the text; ``kind`` is a group of `TOKEN`, or ``end``."""

    kind: str
    text: str
    start: int
    end: int

    def __str__(self) -> str:
        return f"'{self.text}'" if self.text else "the end of the text"


def read_part(text: str, hint: Any, what: str) -> Any:
    """The part, for a setting of the type ``hint`` that is called ``what``. ValueError, in one line."""
    return read_value(text, Setting(what, hint))


def read_value(text: str, setting: Setting) -> Any:
    """The value of a setting that ``text`` writes, as it stands behind ``=``. ValueError, in one line."""
    reader = Reader(text)
    value = reader._value(setting)
    if reader.token.kind != "end":
        fail(f"the end behind the value of {setting.name}", reader.token, "one setting has one value")
    return value


def one_line(message: object) -> str:
    """A message with all white space made single spaces."""
    return " ".join(str(message).split())


@contextmanager
def located(where: object) -> Iterator[None]:
    """Put the place in front of a ValueError inside, and make it one short line."""
    try:
        yield
    except ValueError as error:
        raise ValueError(clear(f"{where}: {error}")) from error


class Reader:
    """Recursive descent over the tokens of one text."""

    written = "a part is written lstm(hidden=20)"
    outside: ClassVar[Mapping[str, str]] = {}  # settings of a level that stand elsewhere, and where

    def __init__(self, text: str, trust: Sequence[str] | None = None) -> None:
        self.text, self.trust = text, trust  # whose code it may name; None: any, for a user typed it
        matches = ((match, str(match.lastgroup)) for match in TOKEN.finditer(text))
        self.tokens = [Token(kind, match[kind], match.start(kind), match.end()) for match, kind in matches]
        self.tokens.append(Token("end", "", len(text), len(text)))
        self.at = 0

    def _part(self, *kinds: str) -> Any:
        name = self._next()
        if name.kind != "word":
            fail(catalog.article(" or ".join(kinds)), name, self.written)
        self._check_trust(name.text)
        cls = catalog.find(name.text, *kinds)
        if not isinstance(cls, type):  # a task
            known = catalog.task_settings(type(cls))
            return catalog.adjusted(cls, self._settings(type(cls), ")", known) if self._take("(") else {})
        catalog.require_plain(cls)
        return catalog.make(cls, self._settings(cls, ")") if self._take("(") else {})

    def _settings(self, cls: type, close: str, known: Mapping[str, Setting] | None = None) -> dict[str, Any]:
        """Settings of ``cls``, or those of them that are ``known`` here, up to the bracket that closes them."""
        known = catalog.settings_of(cls) if known is None else known
        given: dict[str, Any] = {}
        named = False
        while not self._take(close):
            if given and not self._take(","):
                fail(f"',' or '{close}' behind {list(given)[-1]}", self.token, "settings are written lr=0.1, eps=1e-8")
            if self.token.kind == "word" and self.tokens[self.at + 1].text == "=":
                setting, named = self._named(cls, known, given), True
            else:
                setting = self._positional(cls, known, given, named)
            given[setting.name] = self._value(setting)
        return given

    def _named(self, cls: type, known: Mapping[str, Setting], given: dict[str, Any]) -> Setting:
        name = self._next().text
        self._next()
        setting = catalog.setting_of(cls, name)
        if setting is None or (setting.name in catalog.settings_of(cls) and setting.name not in known):
            note = f"; {name}: {self.outside[name]}" if name in self.outside else ""
            raise ValueError(catalog.unknown_setting(cls, name, list(known)) + note)
        require(setting.name not in given, f"{catalog.label(cls)} is given {name} twice; leave one out")
        return setting

    def _positional(self, cls: type, known: Mapping[str, Setting], given: dict[str, Any], named: bool) -> Setting:
        label, names = catalog.label(cls), [setting.name for setting in known.values() if setting.positional]
        if self.token.kind in ("mark", "junk", "end") and self.token.text != "[":
            fail(f"a setting of {label}", self.token, f"it has {', '.join(known) or 'none'}")
        if named:
            fail(f"name=value in {label}", self.token, "values without a name come first")
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
                text = json.loads(token.text)
            except json.JSONDecodeError as error:
                raise ValueError(f"{token} is not a text as JSON writes it: {error.msg}") from error
            if setting.name in NAMES:
                self._check_trust(text)
            return text
        if token.text == "[":
            return self._list(setting)
        if token.kind != "word":
            fail(f"a value for {setting.name}", token, f"{setting.name} is {catalog.describe(setting.hint)}")
        return RESERVED[token.text] if token.text in RESERVED else self._word(token, setting)

    def _word(self, token: Token, setting: Setting) -> Any:
        """A part where the setting takes one and there is one of that name, else the word itself."""
        kinds, words = catalog.kinds_in(setting.hint), catalog.takes_words(setting.hint)
        called = self.token.text == "("
        dotted = "." in token.text and not words
        if (called or dotted) and not kinds:
            fail(f"{catalog.describe(setting.hint)} for {setting.name}", token, "it takes no part")
        if called or dotted or any(token.text in catalog.parts(kind) for kind in kinds) or (kinds and not words):
            self.at -= 1
            return self._part(*kinds)
        if setting.name in NAMES:
            self._check_trust(token.text)
        return token.text

    def _check_trust(self, name: str) -> None:
        if self.trust is not None:
            require_trusted({"name": name}, self.trust)

    def _list(self, setting: Setting) -> tuple[Any, ...]:
        hint = next((one for one in alternatives(setting.hint) if catalog.is_list(one)), setting.hint)
        good = hint is Any or catalog.is_list(hint)
        require(good, f"{setting.name} must be {catalog.describe(setting.hint)}, got a list")
        items: list[Any] = []
        while not self._take("]"):
            if items and not self._take(","):
                fail(f"',' or ']' in the list of {setting.name}", self.token, "a list is written [20, 20]")
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


def fail(expected: str, got: Token, fix: str) -> NoReturn:
    """Raise the sentence for a token that should be another one."""
    raise ValueError(f"expected {expected}, got {got}; {fix}")
