"""The command line: ``tower train``, ``eval``, ``ablate``, ``report``, ``probe``, ``export``, ``prune`` and ``show``.

Mistakes of the user, non-finite numbers and disks that cannot be written end in one line on stderr and exit code 2;
Ctrl-C, SIGTERM and SIGHUP in one line that says how to go on, and 128 plus the signal's number. Anything else is a bug
and shows its traceback. Nothing heavy is imported before the arguments are understood.
"""

import argparse
import contextlib
import difflib
import os
import re
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib import import_module
from importlib.metadata import version
from typing import Any, NoReturn

from recursion.files import is_users, reason

EPILOG = """\
examples:
  tower train "quadratic: lstm@20 / adam" --steps 500 --out runs/first
  tower train "quadratic: lstm@20 / adam" --steps 800 --out runs/first --resume
  tower eval runs/seed0 runs/seed1 runs/seed2 --problems 128
  tower export runs/first --out lstm.safetensors
  tower ablate "digits-mlp: lstm@20 / lstm@5 / adam" --depths 1-3 --seeds 5 --budget 2e6 --out runs/depths
"""
NOTATION = "a tower in notation, as 'quadratic: lstm@20 / adam' or 'mytask.py:wine: lstm@20 / adam', or a spec in .json"
INTERRUPTED = 130  # as a shell says it: 128 + SIGINT


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    stopped: list[int] = []
    try:
        with interruptible(stopped):
            args, rest = build_parser().parse_known_args(words)
            if rest:
                raise ValueError(unknown(args.command, rest, words))
            args.words = words
            run(args)
    except SystemExit as done:  # argparse, after --help and --version
        return int(done.code or 0)
    except KeyboardInterrupt as interrupt:
        code = 128 + stopped[0] if stopped else INTERRUPTED
        return _say(f"tower: {interrupt}" if interrupt.args else "tower: stopped", code)
    except Exception as error:
        if not is_users(error):
            raise
        return _say(f"tower: error: {reason(error)}", 2)
    return 0


@contextlib.contextmanager
def interruptible(stopped: list[int]) -> Iterator[None]:
    """SIGTERM and SIGHUP, which schedulers send, raise KeyboardInterrupt; their number is added to ``stopped``.

    Unless they are ignored, as under nohup.
    """

    def stop(signum: int, _: object) -> None:
        stopped.append(signum)
        raise KeyboardInterrupt

    main_thread = threading.current_thread() is threading.main_thread()
    before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGHUP) if main_thread}
    for each, handler in before.items():
        signal.signal(each, handler if handler == signal.SIG_IGN else stop)
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def run(args: argparse.Namespace) -> None:
    """Do what the arguments say; torch is imported here. ValueError if a package of an extra is missing.

    Modules of the user's are also found in the current folder.
    """
    sys.path.append(os.getcwd())
    try:
        module = import_module(args.module)
    except ModuleNotFoundError as error:
        if error.name not in ("jinja2", "pandas"):
            raise
        raise ValueError(f"a study needs {error.name}, an extra: pip install 'descent-tower[study]'") from error
    getattr(module, args.function)(args)


class Parser(argparse.ArgumentParser):
    """Raises ValueError where argparse would print its usage and exit."""

    def error(self, message: str) -> NoReturn:
        wrong = re.match(r"argument COMMAND: invalid choice: '(.*)' \(choose from (.*)\)$", message)
        if wrong is not None:
            word, known = wrong[1], re.findall(r"[a-z]+", wrong[2])
            meant = f"a tower comes behind the command: tower train '{word}'" if ":" in word else ""
            message = f"there is no command {word!r}{closest(word, known)}; {meant or 'commands: ' + ', '.join(known)}"
        raise ValueError(f"{message}; see {self.prog} --help")


def unknown(command: str, rest: Sequence[str], words: Sequence[str]) -> str:
    """The sentence for arguments that a command does not take."""
    options = [word for word in rest if word.startswith("--")]
    if options:
        (group,) = (action for action in build_parser()._actions if action.dest == "command")
        known = dict(group.choices or {})[command]._option_string_actions
        return f"tower {command} has no option {options[0]}{closest(options[0], known)}; it has {', '.join(known)}"
    fix = "; put the tower in quotes: " + shlex.join(["tower", command, " ".join(words[1:])]) if "/" in rest else ""
    return f"tower {command} does not take {' '.join(rest)}{fix}"


def closest(word: str, known: Iterable[str]) -> str:
    """`` (did you mean train?)``, or nothing if nothing is close."""
    near = difflib.get_close_matches(word, list(known), 1, 0.7)
    return f" (did you mean {near[0]}?)" if near else ""


def whole(low: int, high: int) -> Callable[[str], int]:
    """A type for argparse: whole numbers from ``low`` to ``high``."""

    def read(text: str) -> int:
        with contextlib.suppress(ValueError, OverflowError):
            number = float(text) if "e" in text else int(text)  # 1e3 is a whole number, too
            if low <= number <= high and number == int(number):
                return int(number)
        upper = f" and at most {high}" if high < 2**31 else ""
        raise argparse.ArgumentTypeError(f"must be a whole number of at least {low}{upper}, got '{text[:40]}'")

    return read


Add = Callable[..., Any]
COUNT = whole(1, 2**53)
SEED = whole(-(2**63), 2**63 - 1)


def build_parser() -> Parser:
    """The parser of all commands."""
    summary = "Train towers of optimizers, and see whether what they learned beats tuned hand-made optimizers."
    style = argparse.RawDescriptionHelpFormatter
    parser = Parser(prog="tower", description=summary, epilog=EPILOG, formatter_class=style, allow_abbrev=False)
    shown = "print the version and exit"
    parser.add_argument("--version", action="version", version=f"tower {version('descent-tower')}", help=shown)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)

    add = _command(commands, "train", "train a tower, then evaluate it on held-out problems")
    add("tower", help=NOTATION)
    _number(add, "--steps", 500, "steps of the topmost level, in all sessions together")
    _seed(add, "of everything random")
    add("--out", metavar="DIR", help="run folder; default runs/ and the notation and seed")
    add("--resume", action="store_true", help="go on from the folder's checkpoint if it has one")
    bad = "on all levels: stop where a loss or gradient is not finite, or skip such copies and count them; "
    bad += "default as the notation says, which is stop unless it says skip"
    add("--nonfinite", choices=("stop", "skip"), help=bad)
    _where(add)
    quick = "step an accelerated copy of the tower, with the same states; default auto: if the run repays it"
    add("--compile", choices=("auto", "on", "off"), default="auto", help=quick)
    add("--no-eval", action="store_true", help="train only; default train and evaluate")
    also = "evaluate also on other problems and for ten times the steps; default on the task itself"
    add("--transfer", action="store_true", help=also)
    _evaluation_options(add)

    add = _command(commands, "eval", "evaluate trained runs of one tower together")
    add("runs", nargs="+", metavar="RUN", help="run folder of tower train, one for each seed")
    _seed(add, "of the held-out problems")
    add("--out", metavar="DIR", help="folder for the report; default the run's, or with several runs/ and the notation")
    _where(add)
    add("--on", metavar="TASK", help="another task to evaluate on; default the tower's own")
    add("--no-transfer", dest="transfer", action="store_false", help="leave out other problems and ten times the steps")
    _evaluation_options(add)

    add = _command(
        commands, "ablate", "say whether another level pays: cut a tower at each depth, at the same total cost"
    )
    add("tower", help=f"{NOTATION}; '...' in front of the last level repeats the one before it as often as needed")
    add("--depths", metavar="LIST", help="where to cut it, as 1-4 or 1-6,10,25,50; default each depth that is written")
    varied = "a setting and its values: 1.unroll=5,20 (of level 1), gradient=first-order,exact (of all below the top), "
    varied += "top.lr=1e-4..1e-1 (each decade), lr*=1e-3,1,1e3 (times what it is); can be given again; default none"
    add("--grid", action="append", default=[], metavar="NAME=LIST", help=varied)
    _number(add, "--seeds", 5, "training seeds, 0 and up")
    spent = "cost of each run in base steps, optimizer work counted, as 2e6; or in seconds, as 90s; default 2e6"
    add("--budget", default="2e6", metavar="COST", help=spent)
    _number(add, "--steps", 100, "base steps of a use of what was learned")
    _number(add, "--problems", 64, "problems that are reported on, once")
    _number(add, "--select", 32, "problems that snapshots of a training are compared on")
    _number(add, "--snapshots", 5, "snapshots of a training, beside its start")
    tuned = "how the hand-made rules are tuned, step size and schedule; optuna is an extra (tune); default grid"
    add("--search", choices=("grid", "optuna"), default="grid", help=tuned)
    alone = "leave out the hand-made rules tuned at the same cost"
    add("--no-baseline", dest="baseline", action="store_false", help=alone)
    _windows(add)
    add("--workers", type=whole(1, 1024), metavar="N", help="runs at a time; default one a processor")
    cluster = "on the Ray cluster at ADDRESS, or one that is there, or started here; an extra (ray); default processes"
    add("--ray", nargs="?", const="", metavar="ADDRESS", help=cluster)
    there = "folder of the study; default runs/ and the notation; in one that is begun, it goes on"
    add("--out", metavar="DIR", help=there)
    add("--retry", action="store_true", help="try failed runs again; default they stay failed")
    add("--no-report", action="store_true", help="run only; default run and write the report")

    add = _command(commands, "report", "write the page of a study, as far as it is")
    add("run", metavar="RUN", help="folder of tower ablate")
    add("--out", metavar="FILE", help="the page; default report.html in the folder")

    add = _command(
        commands, "probe", "say how fast perturbations grow at each level, and whether its gradient can bear it"
    )
    add("tower", metavar="RUN_OR_TOWER", help=f"run folder of tower train, or {NOTATION}")
    _number(add, "--windows", "as many as make 20 updates, at least 4", "windows of each level that are counted")
    _seed(add, "of everything random")
    _number(add, "--steps", "10", "steps that a tower in notation is trained for before")
    add("--out", metavar="DIR", help="folder for the picture; default the run's, or runs/ and the notation")
    _where(add)

    add = _command(commands, "export", "write what a run learned to a file, to use as a torch.optim.Optimizer")
    add("run", metavar="RUN", help="run folder of tower train")
    add("--out", metavar="FILE", help="default optimizer.safetensors in the run folder")
    _number(add, "--copy", 1, "which of the optimizers that the tower trained side by side, from 1")
    _seed(add, "of the runs below a trainer")
    _windows(add)

    add = _command(commands, "prune", "cut a run down to what its gates let through")
    add("run", metavar="RUN", help="run folder of tower train, of a tower with gates")
    add("--out", metavar="DIR", required=True, help="run folder for the pruned tower")
    half = "count gates that are neither open nor closed as open from a half on; default they stay where they are"
    add("--round", action="store_true", help=half)
    _number(add, "--copy", "all", "which of the towers that the topmost level holds side by side, from 1")

    add = _command(commands, "show", "say what a tower is")
    add("tower", metavar="RUN_OR_TOWER", help=f"run folder of tower train, or {NOTATION}")
    add("--json", action="store_true", help="print the spec in full instead; default words")
    return parser


def _command(commands: Any, name: str, does: str) -> Add:
    """``add_argument`` of a new command, which is a function of that name in `recursion.commands` or the study's."""
    command: Parser = commands.add_parser(
        name, help=does, description=does[0].upper() + does[1:] + ".", epilog=EPILOG, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter, aliases=("study",) if name == "ablate" else (),
    )  # fmt: skip
    package = "recursion.study" if name in ("ablate", "report") else "recursion"
    command.set_defaults(module=f"{package}.commands", function=name)
    trusted = "run the code of this module or file if a spec or run names it; can be given again; default none"
    command.add_argument("--trust", action="append", default=[], metavar="MODULE", help=trusted)
    return command.add_argument


def _evaluation_options(add: Add) -> None:
    _number(add, "--problems", 64, "held-out problems in each comparison")
    _number(add, "--eval-steps", 100, "base steps on each of them")
    _windows(add)


def _where(add: Add) -> None:
    add("--threads", type=whole(1, 1024), metavar="N", help="CPU threads; default as torch chooses")
    device = "where to compute, as torch names it: cpu, cuda, cuda:1; default cpu"
    add("--device", default="cpu", metavar="NAME", help=device)


def _seed(add: Add, what: str) -> None:
    add("--seed", type=SEED, default=0, metavar="N", help=f"{what}; default 0")


def _windows(add: Add) -> None:
    trains = "depth 3 and up: updates that the learned trainer makes when it trains a fresh optimizer for evaluation"
    _number(add, "--windows", "as it was trained", trains)


def _number(add: Add, name: str, default: int | str, what: str) -> None:
    """An option that takes a count; a default in words stands for None."""
    value = default if isinstance(default, int) else None
    add(name, type=COUNT, default=value, metavar="N", help=f"{what}; default {default}")


def _say(line: str, code: int) -> int:
    sys.stderr.write(line + "\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
