"""Measures the tree against the limits it is built to; exits with 1 if one is passed.

    python -m tests.house [--all]       (every place that is over, not the first few)

Reads the source with `ast`; imports only the base classes, to count members. A missing file counts as over.
"""

import ast
import importlib
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

LINES = {"levels + recursion": 15_500, "levels": 8_500, "recursion": 7_000, "accelerate": 2_000, "tests": 14_000}
"""Source lines of folders; ``recursion`` is counted without ``recursion/accelerate``."""
LONGEST, MEDIAN = 300, 150  # lines of a Python file in levels and recursion
FILES = {"levels/level.py": 130, "recursion/tower.py": 150}
READING = 1_200  # lines of the afternoon's reading together
MEMBERS = {"base.Problem": 10, "base.Optimizer": 12, "base.Estimator": 8, "level.Level": 12}
NONE = 0  # import circles, imports inside functions, forbidden names, replaced words, repeated lines
SAME = 8  # this many equal lines are a repetition

AFTERNOON = (
    *("levels/base.py", "levels/level.py", "levels/restart.py", "levels/autodiff.py", "levels/objectives.py"),
    *("levels/gradients/first_order.py", "recursion/tower.py", "levels/hyper.py", "levels/optimizers/sgd.py"),
    *("levels/optimizers/lstm.py", "levels/tasks/quadratic.py"),
)
SOURCE = {".py", ".cpp", ".css", ".html", ".j2", ".js"}
START = "recursion/cli.py"  # its functions may import anything, so that ``tower --help`` starts without torch
EXTRAS = {
    r"mlxtend|mnist1d|ray|optuna|tensorboard|torch\.utils\.tensorboard|selenium|pytorch_optimizer": "levels|recursion",
    r"pandas|jinja2": "recursion/study",
    r"matplotlib": "recursion/(study|evaluation|analysis)",
}
"""What a function may import, and in which folders."""
FORBIDDEN = r"(.*\.)?(ContextVar|__init_subclass__)|torch\._C(\..*)?"
PRIVATE = r"torch\.(\w+\.)*_(?!_)\w+"  # in levels/
ANYWHERE = (
    r"bend|pull_update|pull_gradient|pull_all|start_pullback|linearized|linearizing|charge|outcome|judge|asking|laid|"
    r"hand_made|chooses_ahead|notate"
)
"""Replaced words that no name may contain: HOUSE section 7."""
WHOLE = (
    r"push|sweep|notes|life|ahead|due|begun|stood|settle|views|constant|below|rule|trial|scope|told|made|kept|found|"
    r"held|opened|closed|born|bred|met|Start|Part|Safe|Own|Relay|ByName|DropIn"
)
"""Replaced words that no name may be; they may be a part of one, where they can be plain English."""


TODAY = {
    "lines of levels + recursion": 18_410, "lines of levels": 9_880, "lines of recursion": 8_530,
    "lines of tests": 17_780,
}  # fmt: skip
"""The ratchet: where this tree is still over a limit, it may not get worse. Lower these; a wish that adds a part may
raise one by what the part needs, and says so in its commit."""


class Row(NamedTuple):
    """A line of the table; ``today`` is None where what is measured is missing."""

    what: str
    today: int | None
    limit: int
    places: tuple[str, ...] = ()

    @property
    def over(self) -> bool:
        return self.today is None or self.today > self.limit


class File:
    """A source file, parsed at first use."""

    def __init__(self, root: Path, path: Path) -> None:
        self.name = path.relative_to(root).as_posix()
        self.lines = path.read_text(encoding="utf-8").splitlines()
        self.module = self.name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")

    @cached_property
    def nodes(self) -> list[tuple[Any, bool]]:
        """Every node of the syntax tree, and whether it is inside a function."""
        todo: list[tuple[Any, bool]] = [(ast.parse("\n".join(self.lines), self.name), False)]
        for node, inside in todo:  # grows while it is read
            inside |= isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
            todo += [(child, inside) for child in ast.iter_child_nodes(node)]
        return todo

    @cached_property
    def imports(self) -> list[tuple[Any, bool, str]]:
        """Every import: its node, whether it is inside a function, and the full name."""
        package = self.name.rpartition("/")[0].split("/")
        found = []
        for node, inside in self.nodes:
            start = []
            if isinstance(node, ast.ImportFrom):
                above = package[: len(package) + 1 - node.level] if node.level else []
                start = [*above, *([node.module] if node.module else [])]
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                found += [(node, inside, ".".join([*start, alias.name])) for alias in node.names]
        return found


def source(root: Path, folder: str) -> list[File]:
    """Every source file under a folder; none where there is no folder."""
    return [File(root, path) for path in sorted((root / folder).rglob("*")) if path.suffix in SOURCE and path.is_file()]


def sizes(levels: list[File], recursion: list[File], tests: list[File]) -> Iterator[Row]:
    """Lines of folders, of files and of the afternoon's reading."""
    fast = [file for file in recursion if file.name.startswith("recursion/accelerate/")]
    plain = [file for file in recursion if file not in fast]
    for (what, limit), files in zip(LINES.items(), ([*levels, *plain], levels, plain, fast, tests)):
        yield Row(f"lines of {what}", sum(len(file.lines) for file in files), limit)
    python = {file.name: len(file.lines) for file in (*levels, *recursion) if file.name.endswith(".py")}
    long = tuple(f"{name}: {n}" for name, n in sorted(python.items(), key=lambda item: -item[1]) if n > LONGEST)
    yield Row("longest Python file", max(python.values(), default=0), LONGEST, long)
    yield Row("median Python file", round(median(python.values() or [0])), MEDIAN)
    for name, limit in FILES.items():
        yield Row(f"lines of {name}", python.get(name), limit)
    missing = tuple(f"missing: {name}" for name in AFTERNOON if name not in python)
    together = None if missing else sum(python[name] for name in AFTERNOON)
    yield Row("lines of the afternoon's reading", together, READING, missing)


def members(cls: type) -> list[str]:
    """Public methods and properties, own and inherited; whatever a class annotates is a field, and no member."""
    fields = {name for base in cls.__mro__ for name in inspect.get_annotations(base)}
    found = {name: value for base in reversed(cls.__mro__) for name, value in vars(base).items()}
    return sorted(n for n, v in found.items() if n[0] != "_" and n not in fields and hasattr(type(v), "__get__"))


def interfaces() -> Iterator[Row]:
    """Members of the base classes of the package ``levels`` that Python finds."""
    for name, limit in MEMBERS.items():
        module, _, cls = name.partition(".")
        try:
            found = members(getattr(importlib.import_module(f"levels.{module}"), cls))
        except Exception as error:
            yield Row(f"members of {name}", None, limit, (f"{type(error).__name__}: {error}",))
        else:
            yield Row(f"members of {name}", len(found), limit, (", ".join(found),))


def circles(files: list[File]) -> list[str]:
    """Groups of modules that import each other, directly or not; imports inside functions are left out."""
    modules = {file.module for file in files}
    reached: dict[str, set[str]] = {module: set() for module in modules}
    for file in files:
        names = [name for _, inside, name in file.imports if not inside]
        reached[file.module] = {name if name in modules else name.rpartition(".")[0] for name in names} & modules
    for step in modules:
        for module in modules:
            reached[module] |= reached[step] if step in reached[module] else set()
    groups = {tuple(sorted(m for m in reached[module] if module in reached[m])) for module in modules}
    return sorted(" <-> ".join(group) for group in groups if group)


def hidden_imports(file: File) -> Iterator[str]:
    """Imports inside functions, but for `EXTRAS` and in `START`."""
    for node, inside, name in file.imports:
        homes = [home for extra, home in EXTRAS.items() if re.match(rf"({extra})(\.|$)", name)]
        if inside and file.name != START and not any(re.match(f"({home})/", file.name) for home in homes):
            yield f"{file.name}:{node.lineno}: {name}"


def forbidden(file: File) -> Iterator[str]:
    """Uses of `FORBIDDEN`, and in levels of private names of torch."""
    used = {(node.lineno, name) for node, _, name in file.imports}
    for node, _ in file.nodes:
        if isinstance(node, (ast.Attribute, ast.Name)):
            used.add((node.lineno, ast.unparse(node)))
        elif isinstance(node, ast.FunctionDef):
            used.add((node.lineno, node.name))
    pattern = re.compile(f"{FORBIDDEN}|{PRIVATE}" if file.name.startswith("levels/") else FORBIDDEN)
    return (f"{file.name}:{line}: {name}" for line, name in sorted(used) if pattern.fullmatch(name))


def old_words(file: File) -> Iterator[str]:
    """Replaced words among the names of the file, its classes, functions, arguments, variables and attributes."""
    given = {(1, Path(file.name).stem)}
    for node, _ in file.nodes:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            given.add((node.lineno, node.name))
        elif isinstance(node, ast.arg):
            given.add((node.lineno, node.arg))
        elif isinstance(node, (ast.Name, ast.Attribute)) and isinstance(node.ctx, ast.Store):
            given.add((node.lineno, node.id if isinstance(node, ast.Name) else node.attr))
    for line, name in sorted(given):
        snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
        if re.search(f"_({ANYWHERE})_", f"_{snake}_") or re.fullmatch(WHOLE, name.strip("_")):
            yield f"{file.name}:{line}: {name}"


def repetitions(files: list[File]) -> Iterator[str]:
    """Where `SAME` or more lines stand a second time; blank lines, comments and imports are left out."""
    seen: dict[tuple[str, ...], tuple[File, int, int]] = {}
    for file in files:
        imports = {line for node, _, _ in file.imports for line in range(node.lineno, node.end_lineno + 1)}
        lines = [(number, line.strip()) for number, line in enumerate(file.lines, 1) if number not in imports]
        lines = [(number, line) for number, line in lines if line and line[0] != "#"]
        before: tuple[File, int] | None = None
        for at in range(len(lines) - SAME + 1):
            numbers, run = zip(*lines[at : at + SAME])
            first, place, line = seen.setdefault(run, (file, at, numbers[0]))
            again = first is not file or place + SAME <= at
            if again and before != (first, place - 1):
                yield f"{file.name}:{numbers[0]} repeats {first.name}:{line}"
            before = (first, place) if again else None


def measure(root: Path) -> list[Row]:
    """Every row for the tree at ``root``."""
    levels, recursion, tests = (source(root, folder) for folder in ("levels", "recursion", "tests"))
    python = [file for file in (*levels, *recursion) if file.name.endswith(".py")]

    def none_of(what: str, find: Callable[[File], Iterator[str]]) -> Row:
        places = tuple(place for file in python for place in find(file))
        return Row(what, len(places), NONE, places)

    rings, again = tuple(circles(python)), tuple(repetitions(python))
    return [
        *sizes(levels, recursion, tests),
        *interfaces(),
        Row("import circles", len(rings), NONE, rings),
        none_of("imports inside functions", hidden_imports),
        none_of("forbidden names", forbidden),
        none_of("replaced words", old_words),
        Row(f"runs of {SAME} equal lines", len(again), NONE, again),
    ]


def table(rows: list[Row], most: int) -> str:
    """The rows, and under each that is over at most so many places."""
    lines = [f"{'what':34}{'today':>8}{'limit':>8}"]
    for row in rows:
        today = "missing" if row.today is None else f"{row.today:,}"
        lines.append(f"{row.what:34}{today:>8}{row.limit:>8,}  {'over' if row.over else 'ok'}")
        if row.over:
            more = len(row.places) - most
            lines += [f"    {place}" for place in row.places[:most]] + [f"    and {more} more"] * (more > 0)
    return "\n".join(lines)


def main() -> int:
    """Exit status: 1 where a limit is passed by more than the ratchet allows."""
    rows = measure(Path(__file__).parents[1])
    sys.stdout.write(table(rows, 10_000 if "--all" in sys.argv[1:] else 8) + "\n")
    return int(any(worse(row) for row in rows))


def worse(row: Row) -> bool:
    """Whether this tree passes a limit by more than the ratchet allows."""
    return row.today is None or row.today > max(row.limit, TODAY.get(row.what, 0))


if __name__ == "__main__":
    sys.exit(main())
