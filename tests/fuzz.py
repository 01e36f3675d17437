"""Malformed towers, specs, checkpoints, exports, metrics and studies: each is read, or refused in one sentence.

    python -m tests.fuzz [--cases 2000] [--seed 0] [--kind notation ...] [--show 5]

A case is a good text or file with some pieces changed at random. It is wrong if reading it raises anything but a
ValueError, TypeError or OSError of one short line, takes longer than five seconds, imports a module that is not trusted,
or gives a tower whose text does not read back. Prints a line a kind and the seed of each case that is wrong.
"""

import argparse
import json
import os
import random
import re
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from recursion import Exported, Tower, checkpoint, parse
from recursion.exported import FORMAT as EXPORT
from recursion.files import is_memory, is_users, reason
from recursion.metrics import FILE, Metrics
from recursion.reports import Report
from recursion.sealed import Format, read_sealed, write_sealed
from recursion.spec import from_spec, loads, to_spec
from recursion.study.request import Request, plain
from recursion.study.results import load as load_study

SECONDS, LONGEST = 5, 2000  # of a case; characters of a sentence
TOWERS = (
    "quadratic(3): lstm(hidden=2, layers=1)@2[batch=2, clip=1, objective=discounted(0.9)] / adam(lr=log(0.1, per=tensor))",
    'digits-mlp(hidden=[3]): by-name(["*bias", "*"], [sgd, gated(sgd(momentum=0.5), price=1)])@2[gradient=exact] / sgd@1 / sgd',
    "held-out(digits-mlp(hidden=[2])): start(sgd(lr=0.1))@2[horizon=4, batch=2, gradient=mix(first-order, pes(sigma=0.1))] / adam",
    "quadratic(2): depth(sgd@1 / sgd@1, gates=adam, price=1e-3) / torch(adamw, betas=[0.8, 0.9])[nonfinite=skip]",
    "quadratic(2): relay(scheduled(sgd, warmup(cosine, warm=2), steps=5), adam, after=3)@2[ahead=4, stagger=false] / rmsprop",
)
WORDS = (
    "", "0", "-1", "1e400", "1e-400", str(2**63), "9" * 400, "nan", "inf", "-inf", "none", "true", "null", "lr", "sgd", "adam", "lstm",
    "exact", "quadratic", "@", "@0", "@" + "9" * 30, "/", ":", "(", ")", "[", "]", "[[", "=", ",", "...", '"', '"\\', "\x00", "\x1b[31m",
    "é", "𝔸", "\n", "a.b.c", "os.system", "venv.__main__.X", "x.py:y", "depth(", "[" * 400, "(" * 400, "lstm(" * 100, "1" * 10000,
    "fixed(-1)", "log(0)", "members=1000000000000", "hidden=99999999999999", "batch=99999999999", "horizon=1e18", "unroll=3",
)  # fmt: skip
NUMBERS = (
    "0",
    "-1",
    "0.5",
    "64",
    "65",
    "1000",
    "1000000",
    "1000000000",
    "1000000000000",
    "1e9",
    "1e-9",
    str(2**62),
    "1e300",
)
VALUES = (None, 10**6, 10**9, 10**12, True, -1, 0, 2**63, 2**200, 10**400, 1e308, float("nan"), "", "x" * 5000, [], {}, [[]], {"name": "sgd"},
          {"name": "os.system"}, {"float": "inf"}, {"float": "x"}, {"name": None}, {"name": "quadratic"})  # fmt: skip


@contextmanager
def limited(seconds: int) -> Iterator[None]:
    """TimeoutError if what is inside takes longer."""

    def stop(signum: int, frame: Any) -> None:
        raise TimeoutError(f"longer than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def torn(text: str, rng: random.Random) -> str:
    """A text with pieces cut out, doubled, moved, or put in."""
    numbers = [*re.finditer(r"(?<![\w.])\d+(?:\.\d+)?(?![\w.])", text)]
    if numbers and rng.random() < 0.3:
        one = rng.choice(numbers)
        return text[: one.start()] + rng.choice(NUMBERS) + text[one.end() :]
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        start, end = sorted(rng.randrange(len(text) + 1) for _ in range(2))
        end = min(end, start + rng.choice((1, 3, 10, 1000)))
        piece = rng.choice((rng.choice(WORDS), text[start:end] * 2, "", text[end:start:-1]))
        text = text[:start] + piece + text[end:]
    return text


def changed(data: Any, rng: random.Random) -> Any:
    """JSON data with one value replaced, removed or added, at any depth."""
    if rng.random() < 0.2 or not isinstance(data, (dict, list)) or not data:
        return rng.choice(VALUES)
    copied = dict(data) if isinstance(data, dict) else list(data)
    key = rng.choice(list(copied) if isinstance(copied, dict) else range(len(copied)))
    action = rng.random()
    if action < 0.1:
        del copied[key]
    elif action < 0.2 and isinstance(copied, dict):
        copied[rng.choice(("lr", "name", "unroll", "x", ""))] = rng.choice(VALUES)
    else:
        copied[key] = changed(copied[key], rng)
    return copied


def flipped(data: bytes, rng: random.Random) -> bytes:
    """Bytes with some changed, cut off or put in."""
    for _ in range(rng.choice((1, 1, 3, 20))):
        at, action = rng.randrange(len(data) + 1), rng.random()
        some = bytes(rng.randrange(256) for _ in range(rng.choice((1, 1, 8))))
        data = data[:at] if action < 0.2 else data[:at] + some + data[at + (0 if action < 0.4 else len(some)) :]
    return data


def damage(good: Path, bad: Path, rng: random.Random, form: Format) -> None:
    """A sealed file with changed bytes, or one with another content and a digest that fits it."""
    if rng.random() < 0.3:
        bad.write_bytes(flipped(good.read_bytes(), rng))
        return
    content, tensors = read_sealed(good, form)
    if rng.random() < 0.3:
        tensors[rng.choice(list(tensors))] = torch.zeros(rng.choice(((), (0,), (3, 1), (10**6,))))
    else:
        content = changed(content, rng)
    write_sealed(bad, form, content, tensors)


def check_tower(tower: Tower) -> None:
    """AssertionError unless its text and its spec read back."""
    assert to_spec(parse(str(tower))) == to_spec(tower), f"{tower} reads back as {parse(str(tower))}"
    assert to_spec(from_spec(json.loads(json.dumps(to_spec(tower), allow_nan=False)))) == to_spec(tower), (
        f"spec of {tower}"
    )


def notation(rng: random.Random, folder: Path) -> None:
    check_tower(parse(torn(rng.choice(TOWERS), rng)))


def spec(rng: random.Random, folder: Path) -> None:
    data = changed(to_spec(parse(rng.choice(TOWERS))), rng)
    check_tower(from_spec(data) if rng.random() < 0.5 else loads(torn(json.dumps(data), rng)))


def checkpoints(rng: random.Random, folder: Path) -> None:
    good = folder / "good"
    if not good.exists():
        checkpoint.save(good, parse(TOWERS[0]), parse(TOWERS[0]).init(0), seed=0)
    damage(good, folder / "bad", rng, checkpoint.FORMAT)
    checkpoint.load(folder / "bad")


def exports(rng: random.Random, folder: Path) -> None:
    good = folder / "export"
    if not good.exists():
        Exported.of(parse("quadratic: sgd(momentum=0.9)").levels[0].optimizer, torch.zeros(2)).save(good)
    damage(good, folder / "bad", rng, EXPORT)
    Exported.load(folder / "bad")


def metrics(rng: random.Random, folder: Path) -> None:
    """Lines that were cut or changed: the good ones before them stay, and a step is written behind them."""
    (folder / FILE).unlink(missing_ok=True)
    lines = "".join(json.dumps({"step": step, "losses": [1.0], "skipped": [0]}) + "\n" for step in range(1, 5))
    (folder / FILE).write_bytes(flipped(lines.encode(), rng))
    with Metrics(folder, keep=4) as opened:
        opened.write(Report(opened.last + 1, [1.0], [0]), base_steps=1, seconds=1.0)
    assert json.loads((folder / FILE).read_bytes().splitlines()[-1])["step"] == opened.last + 1


def studies(rng: random.Random, folder: Path) -> None:
    request = plain(Request(tower=TOWERS[0], depths=(1, 2), seeds=1))
    Request.from_json(changed(request, rng))
    (folder / "study.json").write_bytes(flipped(json.dumps(request).encode(), rng))
    load_study(folder)


KINDS: dict[str, Callable[[random.Random, Path], None]] = {
    each.__name__: each for each in (notation, spec, checkpoints, exports, metrics, studies)
}


def wrong(kind: str, seed: int, folder: Path) -> str:
    """What is wrong with a case; nothing if it was read, or refused in one sentence."""
    modules = {*sys.modules}
    try:
        with limited(SECONDS):
            KINDS[kind](random.Random(f"{kind} {seed}"), folder)
    except Exception as error:
        if not is_users(error):
            return f"{type(error).__name__}: {str(error)[:200]}"
        text = reason(error) if is_memory(error) else str(error)
        if not text or "\n" in text or len(text) > LONGEST or any(ord(sign) < 32 or sign == "\x7f" for sign in text):
            return f"{type(error).__name__} in {len(text)} characters: {text[:200]!r}"
    except BaseException as error:
        return f"{type(error).__name__}: {str(error)[:200]}"
    new = {name for name in {*sys.modules} - modules if name.partition(".")[0] in ("venv", "os", "antigravity")}
    return f"imported {new}" if new else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--cases", type=int, default=2000, help="of all kinds together; default 2000")
    parser.add_argument("--seed", type=int, default=0, help="of the first case; default 0")
    parser.add_argument("--kind", nargs="+", choices=list(KINDS), default=list(KINDS), help="default all")
    parser.add_argument("--show", type=int, default=5, help="cases of a kind that are shown; default 5")
    args = parser.parse_args()
    torch.set_num_threads(1)
    total = 0
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)
        for kind in args.kind:
            count, bad = -(-args.cases // len(args.kind)), []
            for seed in range(args.seed, args.seed + count):
                why = wrong(kind, seed, Path(scratch))
                bad += [(seed, why)] if why else []
            total += len(bad)
            lines = [f"{kind}: {count} cases from seed {args.seed}, {len(bad)} wrong"]
            lines += [f"  seed {seed}: {why}" for seed, why in bad[: args.show]]
            sys.stdout.write("\n".join([*lines, ""]))
            sys.stdout.flush()
    sys.exit(total > 0)


if __name__ == "__main__":
    main()
