"""The command line: ``tower train``, ``eval``, ``ablate``, ``report``, ``probe``, ``export``, ``prune`` and ``show``.

Mistakes of the user, non-finite numbers and disks that cannot be written end in one line on stderr and exit code 2;
Ctrl-C in one line that says how to go on, and 130. Anything else is a bug and shows its traceback. Nothing heavy is
imported before the arguments are understood.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

EPILOG = """\
examples:
  tower train "quadratic: lstm@20 / adam" --steps 500 --out runs/first
  tower train "quadratic: lstm@20 / adam" --steps 800 --out runs/first --resume
  tower eval runs/seed0 runs/seed1 runs/seed2 --problems 128
  tower export runs/first --out lstm.safetensors
  tower ablate "digits-mlp: lstm@20 / lstm@5 / adam" --depths 1-3 --seeds 5 --budget 2e6 --out runs/depths
"""
NOTATION = "a tower in notation, as 'quadratic: lstm@20 / adam', or the path of a spec that ends in .json"
ALIASES = {"ablate": ("study",)}  # other names of commands
INTERRUPTED = 130  # as a shell says it: 128 + SIGINT


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        args = build_parser().parse_args(words)
        args.words = words
        run(args)
    except SystemExit as done:  # argparse, after --help and --version
        return int(done.code or 0)
    except KeyboardInterrupt as stop:
        return _say(f"tower: {stop}" if stop.args else "tower: stopped", INTERRUPTED)
    except Exception as error:
        if not is_users(error):
            raise
        return _say(f"tower: error: {reason(error)}", 2)
    return 0


def run(args: argparse.Namespace) -> None:
    """Do what the arguments say; torch is imported here."""
    from recursion import commands

    command: Callable[[argparse.Namespace], None] = getattr(commands, args.command)
    command(args)


def is_users(error: Exception) -> bool:
    """Whether an error is one that a user can mend, rather than a bug."""
    if isinstance(error, (ValueError, TypeError, OSError)):
        return True
    from levels.nonfinite import NonFiniteError

    return isinstance(error, NonFiniteError)


def reason(error: Exception) -> str:
    """What went wrong, in one line."""
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    else:
        text = str(error) or type(error).__name__
    return " ".join(text.split())


class Parser(argparse.ArgumentParser):
    """Raises ValueError where argparse would print its usage and exit."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; see {self.prog} --help")


def whole(low: int, high: int) -> Callable[[str], int]:
    """A type for argparse: whole numbers from ``low`` to ``high``."""

    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = None
        if number is None or not low <= number <= high:
            upper = f" and at most {high}" if high < 2**31 else ""
            raise argparse.ArgumentTypeError(f"must be a whole number of at least {low}{upper}, got '{text[:40]}'")
        return number

    return read


COUNT = whole(1, 2**53)
SEED = whole(-(2**63), 2**63 - 1)


class Version(argparse.Action):
    """Prints the version of the installed package and exits."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from importlib.metadata import version

        sys.stdout.write(f"tower {version('descent-tower')}\n")
        parser.exit()


def build_parser() -> Parser:
    """The parser of all commands."""
    summary = "Train towers of optimizers, and see whether what they learned beats tuned hand-made optimizers."
    style = argparse.RawDescriptionHelpFormatter
    parser = Parser(prog="tower", description=summary, epilog=EPILOG, formatter_class=style, allow_abbrev=False)
    parser.add_argument("--version", action=Version, nargs=0, help="print the version and exit")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)
    for name, does, fill in (
        ("train", "train a tower, then evaluate it on held-out problems", _train_options),
        ("eval", "evaluate trained runs of one tower together", _eval_options),
        (
            "ablate",
            "say whether another level pays: cut a tower at each depth, at the same total cost",
            _ablate_options,
        ),
        ("report", "write the page of a study, as far as it is", _report_options),
        (
            "probe",
            "say how fast perturbations grow at each level, and whether its gradient can bear it",
            _probe_options,
        ),
        ("export", "write what a run learned to a file, to use as a torch.optim.Optimizer", _export_options),
        ("prune", "cut a run down to what its gates let through", _prune_options),
        ("show", "say what a tower is", _show_options),
    ):
        made = commands.add_parser(
            name, help=does, description=does[0].upper() + does[1:] + ".", epilog=EPILOG, formatter_class=style,
            allow_abbrev=False, aliases=ALIASES.get(name, ()),
        )  # fmt: skip
        fill(made)
    return parser


def _train_options(parser: Parser) -> None:
    parser.add_argument("tower", help=NOTATION)
    _number(parser, "--steps", 500, "steps of the topmost level, in all sessions together")
    parser.add_argument("--seed", type=SEED, default=0, metavar="N", help="of everything random; default 0")
    parser.add_argument("--out", metavar="DIR", help="run folder; default runs/ and the notation and seed")
    parser.add_argument("--resume", action="store_true", help="go on from the folder's checkpoint if it has one")
    parser.add_argument(
        "--nonfinite",
        choices=("stop", "skip"),
        help="on all levels: stop where a loss or gradient is not finite, or skip such copies and count them; "
        "default as the notation says, which is stop unless it says skip",
    )
    _where(parser)
    quick = "compile what can be, on a GPU record windows as graphs; default auto: if the run repays it, and it works"
    parser.add_argument("--compile", choices=("auto", "on", "off"), default="auto", help=quick)
    parser.add_argument("--no-eval", action="store_true", help="train only; default train and evaluate")
    also = "evaluate also on other problems and for ten times the steps; default on the task itself"
    parser.add_argument("--transfer", action="store_true", help=also)
    _evaluation_options(parser)


def _eval_options(parser: Parser) -> None:
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folder of tower train, one for each seed")
    parser.add_argument("--seed", type=SEED, default=0, metavar="N", help="of the held-out problems; default 0")
    parser.add_argument(
        "--out", metavar="DIR", help="folder for the report; default the run's, or with several runs/ and the notation"
    )
    _where(parser)
    parser.add_argument("--on", metavar="TASK", help="another task to evaluate on; default the tower's own")
    less = "leave out other problems and ten times the steps"
    parser.add_argument("--no-transfer", dest="transfer", action="store_false", help=less)
    _evaluation_options(parser)


def _probe_options(parser: Parser) -> None:
    parser.add_argument("tower", metavar="RUN_OR_TOWER", help=f"run folder of tower train, or {NOTATION}")
    _number(
        parser, "--windows", None, "windows of each level that are counted", "as many as make 20 updates, at least 4"
    )
    parser.add_argument("--seed", type=SEED, default=0, metavar="N", help="of everything random; default 0")
    _number(parser, "--steps", None, "steps that a tower in notation is trained for before", "10")
    parser.add_argument(
        "--out", metavar="DIR", help="folder for the picture; default the run's, or runs/ and the notation"
    )
    _where(parser)


def _export_options(parser: Parser) -> None:
    parser.add_argument("run", metavar="RUN", help="run folder of tower train")
    parser.add_argument("--out", metavar="FILE", help="default optimizer.safetensors in the run folder")
    _number(parser, "--copy", 1, "which of the optimizers that the tower trained side by side, from 1")
    parser.add_argument("--seed", type=SEED, default=0, metavar="N", help="of the runs below a trainer; default 0")
    _windows(parser)


def _prune_options(parser: Parser) -> None:
    parser.add_argument("run", metavar="RUN", help="run folder of tower train, of a tower with gates")
    parser.add_argument("--out", metavar="DIR", required=True, help="run folder for the pruned tower")
    half = "count gates that are neither open nor closed as open from a half on; default they stay where they are"
    parser.add_argument("--round", action="store_true", help=half)
    side = "which of the towers that the topmost level holds side by side, from 1"
    _number(parser, "--copy", None, side, "all")


def _ablate_options(parser: Parser) -> None:
    repeated = "; '...' in front of the last level repeats the one before it as often as a depth needs"
    parser.add_argument("tower", help=NOTATION + repeated)
    where = "where to cut it, as 1-4 or 1-6,10,25,50; default each depth that is written"
    parser.add_argument("--depths", metavar="LIST", help=where)
    varied = "a setting and its values: 1.unroll=5,20 (of level 1), gradient=first-order,exact (of all below the top), "
    varied += "top.lr=1e-4..1e-1 (each decade), lr*=1e-3,1,1e3 (times what it is); can be given again; default none"
    parser.add_argument("--grid", action="append", default=[], metavar="NAME=LIST", help=varied)
    _number(parser, "--seeds", 5, "training seeds, 0 and up")
    spent = "cost of each run in base steps, optimizer work counted, as 2e6; or in seconds, as 90s; default 2e6"
    parser.add_argument("--budget", default="2e6", metavar="COST", help=spent)
    _number(parser, "--steps", 100, "base steps of a use of what was learned")
    _number(parser, "--problems", 64, "problems that are reported on, once")
    _number(parser, "--select", 32, "problems that snapshots of a training are compared on")
    _number(parser, "--snapshots", 5, "snapshots of a training, beside its start")
    tuned = "how the hand-made rules are tuned, step size and schedule; optuna is an extra (tune); default grid"
    parser.add_argument("--search", choices=("grid", "optuna"), default="grid", help=tuned)
    alone = "leave out the hand-made rules tuned at the same cost"
    parser.add_argument("--no-baseline", dest="baseline", action="store_false", help=alone)
    _windows(parser)
    parser.add_argument("--workers", type=whole(1, 1024), metavar="N", help="runs at a time; default one a processor")
    cluster = "on the Ray cluster at ADDRESS, or one that is there, or started here; an extra (ray); default processes"
    parser.add_argument("--ray", nargs="?", const="", metavar="ADDRESS", help=cluster)
    there = "folder of the study; default runs/ and the notation; in one that is begun, it goes on"
    parser.add_argument("--out", metavar="DIR", help=there)
    parser.add_argument("--retry", action="store_true", help="try failed runs again; default they stay failed")
    parser.add_argument("--no-report", action="store_true", help="run only; default run and write the report")


def _report_options(parser: Parser) -> None:
    parser.add_argument("run", metavar="RUN", help="folder of tower ablate")
    parser.add_argument("--out", metavar="FILE", help="the page; default report.html in the folder")


def _show_options(parser: Parser) -> None:
    parser.add_argument("tower", help=NOTATION)
    parser.add_argument("--json", action="store_true", help="print the spec in full instead; default words")


def _evaluation_options(parser: Parser) -> None:
    _number(parser, "--problems", 64, "held-out problems in each comparison")
    _number(parser, "--eval-steps", 100, "base steps on each of them")
    _windows(parser)


def _where(parser: Parser) -> None:
    parser.add_argument("--threads", type=whole(1, 1024), metavar="N", help="CPU threads; default as torch chooses")
    device = "where to compute, as torch names it: cpu, cuda, cuda:1; default cpu"
    parser.add_argument("--device", default="cpu", metavar="NAME", help=device)


def _windows(parser: Parser) -> None:
    _number(
        parser, "--windows", None, "windows that a learned trainer trains for, at depth 3 and up", "as it was trained"
    )


def _number(parser: Parser, name: str, default: int | None, what: str, words: str | None = None) -> None:
    parser.add_argument(name, type=COUNT, default=default, metavar="N", help=f"{what}; default {words or default}")


def _say(line: str, code: int) -> int:
    sys.stderr.write(line + "\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
