"""What the commands of the command line do; imports torch, so `recursion.cli` imports it late."""

import argparse
import dataclasses
import hashlib
import re
import shlex
import sys
from pathlib import Path
from types import ModuleType
from typing import Literal

import torch
from rich.console import Console

from levels.captured import capturing
from levels.nonfinite import NonFiniteError, Skip, Stop
from levels.optimizers.start import Start
from levels.task import Task
from recursion import checkpoint, training
from recursion.describe import describe
from recursion.files import explained, replace_file
from recursion.notation import parse
from recursion.progress import Stages, display
from recursion.spec import dumps, loads
from recursion.tower import Tower, TowerState

POLICIES = {"stop": Stop(), "skip": Skip()}
COMPILE: dict[str, bool | Literal["auto"]] = {"auto": "auto", "on": True, "off": False}
RUNS = Path("runs")
STEPS = 10  # before a tower in notation is probed
LONGEST = 100  # characters of a notation in a folder's name


def train(args: argparse.Namespace) -> None:
    """``tower train``: train, then evaluate."""
    tower = read_tower(args.tower)
    if args.nonfinite is not None:
        levels = (dataclasses.replace(level, nonfinite=POLICIES[args.nonfinite]) for level in tower.levels)
        tower = Tower(tower.task, *levels)
    tower = tower.to(args.device)
    _use_threads(args)
    out = RUNS / f"{slug(tower)}-seed{args.seed}" if args.out is None else Path(args.out)
    _note(f"{tower}: {args.steps} steps of {tower.base_steps} base steps, in {out}")
    state = _trained(tower, args, out)
    if not args.no_eval:
        try:
            _report(tower, [state], out, 0, args)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"stopped; training is complete, evaluate it with: tower eval {out}") from None


def eval(args: argparse.Namespace) -> None:  # noqa: A001, it is what the command is called
    """``tower eval``: load runs of one tower, and evaluate them together."""
    _use_threads(args)
    saved = [checkpoint.load(Path(run) / training.CHECKPOINT, device=args.device) for run in args.runs]
    first = saved[0].tower
    for i, (run, one) in enumerate(zip(args.runs, saved)):
        if not checkpoint.same(first, one.tower):
            raise ValueError(f"{run} is of '{one.tower}', {args.runs[0]} of '{first}'; evaluate them one by one")
        for earlier, other in zip(args.runs[:i], saved):
            if other.seed == one.seed:
                raise ValueError(f"{earlier} and {run} have the same seed {one.seed}; give each seed once")
    steps = sorted({int(one.state.step) for one in saved})
    if len(steps) > 1:
        _note(f"the runs were trained for different numbers of steps: {', '.join(map(str, steps))}")
    on = None if args.on is None else read_task(args.on).to(args.device)
    several = Path(args.runs[0]) if len(saved) == 1 else RUNS / f"{slug(first)}-eval"
    _report(first, [one.state for one in saved], several if args.out is None else Path(args.out), args.seed, args, on)


def probe(args: argparse.Namespace) -> None:
    """``tower probe``: how fast perturbations grow at each level, and what that means for its gradient."""
    from recursion import growth_report
    from recursion import probe as probing

    _use_threads(args)
    tower, state, out = _to_probe(args)
    with Stages(sys.stderr) as stages:
        found = probing.probe(tower, state, windows=args.windows, seed=args.seed, progress=stages)
    growth_report.write(found, str(tower), out, Console(width=None if sys.stdout.isatty() else 120))
    sys.stdout.write(f"written to {out}: probe.png\n")
    for level in found:
        if level.warning is not None:
            _note(f"warning: {level.warning}")


def export(args: argparse.Namespace) -> None:
    """``tower export``: the optimizer that a run came to, in a file of its own."""
    from recursion.export import learned_by

    saved = checkpoint.load(Path(args.run) / training.CHECKPOINT)
    exported = learned_by(
        saved.tower, saved.state, seed=saved.seed, copy=args.copy, windows=args.windows, deploy_seed=args.seed
    )
    out = Path(args.run) / "optimizer.safetensors" if args.out is None else Path(args.out)
    exported.save(out)
    if isinstance(exported.optimizer, Start):
        _note("a learned start is where the tower's task begins; on a model of your own only the rule is at work")
    spent = f", {exported.source['base_steps']} base steps spent" if saved.tower.depth > 2 else ""
    sys.stdout.write(
        f"{exported.optimizer}, {len(exported.weights)} parameters{spent}, written to {out}; use it with\n"
    )
    sys.stdout.write(f"  optimizer = recursion.export.load({str(out)!r})(model.parameters())\n")


def prune(args: argparse.Namespace) -> None:
    """``tower prune``: the tower that a run's gates leave, as a run folder of its own."""
    from recursion import depth, pruning

    saved = checkpoint.load(Path(args.run) / training.CHECKPOINT)
    out = Path(args.out)
    if (out / training.CHECKPOINT).exists():
        raise ValueError(f"{out} already holds a run; choose another folder (--out)")
    for gate in depth.gates(saved.tower, saved.state):
        low, high = float(gate.each.min()), float(gate.each.max())
        stands = f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g} in {gate.each.numel()} copies"
        sys.stdout.write(f"gate on what level {gate.level - 1} takes from level {gate.level}: {stands}\n")
    tower, state = pruning.prune(saved.tower, saved.state, rounded=args.round, copy=args.copy)
    with explained("make", out):
        out.mkdir(parents=True, exist_ok=True)
    extra = saved.extra | {"seconds": 0.0}  # as its steps do, its time begins anew
    checkpoint.save(out / training.CHECKPOINT, tower, checkpoint.settled(state), seed=saved.seed, extra=extra)
    replace_file(out / training.SPEC, dumps(tower).encode())
    spec = f"{shlex.quote(str(out / training.SPEC))} --out {shlex.quote(str(out))}"
    sys.stdout.write(f"{tower}, of {saved.tower.depth} levels {tower.depth} are left, written to {out}; go on with\n")
    sys.stdout.write(f"  tower train {spec} --seed {saved.seed} --resume\n")


def show(args: argparse.Namespace) -> None:
    """``tower show``: the tower in words, or its spec."""
    tower = read_tower(args.tower)
    sys.stdout.write(dumps(tower) if args.json else describe(tower))


def ablate(args: argparse.Namespace) -> None:
    """``tower ablate``: cut a tower at each depth, give all cuts the same total cost, and compare what they learn."""
    _study().ablate(args)


study = ablate  # the command's other name


def report(args: argparse.Namespace) -> None:
    """``tower report``: the page of a study."""
    _study().report(args)


def _study() -> ModuleType:
    """`recursion.study.commands`. ValueError, in one line, if a package of the extra is missing."""
    try:
        from recursion.study import commands
    except ModuleNotFoundError as error:
        if error.name not in ("jinja2", "pandas"):
            raise
        raise ValueError(f"a study needs {error.name}, an extra: pip install 'descent-tower[study]'") from error
    return commands


def read_tower(text: str) -> Tower:
    """The tower of a notation, or of a spec file if ``text`` ends in ``.json``."""
    if not text.endswith(".json"):
        tower: Tower = parse(text)
        return tower
    path = Path(text)
    with explained("read", path):
        data = path.read_bytes()
    try:
        return loads(data)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def read_task(text: str) -> Task:
    """The task of a notation."""
    task = parse(f"{text}: sgd").task
    if not isinstance(task, Task):
        raise ValueError(f"--on takes a task, got '{text}'")
    return task


def slug(tower: Tower) -> str:
    """The notation as the name of a folder; a long one is cut and ends in eight digits of its hash."""
    return folder_name(str(tower))


def folder_name(text: str) -> str:
    """Notation as the name of a folder, as `slug` has it."""
    name = re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-")
    if len(name) <= LONGEST:
        return name
    return f"{name[:LONGEST]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _to_probe(args: argparse.Namespace) -> tuple[Tower, TowerState, Path]:
    """A run's tower and state, or a tower in notation after some steps; and where the picture goes."""
    run = Path(args.tower)
    if run.is_dir() or not (":" in args.tower or args.tower.endswith(".json")):
        if args.steps is not None:
            raise ValueError(f"--steps is for a tower that is not trained yet; {run} is probed where its checkpoint is")
        saved = checkpoint.load(run / training.CHECKPOINT, device=args.device)
        return saved.tower, saved.state, run if args.out is None else Path(args.out)
    tower, steps = read_tower(args.tower).to(args.device), args.steps or STEPS
    state = tower.init(args.seed)
    with display(steps, sys.stderr) as shown:
        for _ in range(steps):
            state, report = tower.step(state)
            shown(report)
    return tower, state, RUNS / f"{slug(tower)}-probe" if args.out is None else Path(args.out)


def _trained(tower: Tower, args: argparse.Namespace, out: Path) -> TowerState:
    """The state after training; what interrupts it says how to go on."""
    try:
        with display(args.steps, sys.stderr) as shown:
            return training.train(
                tower,
                steps=args.steps,
                seed=args.seed,
                out=out,
                resume=args.resume,
                compile=COMPILE[args.compile],
                on_report=shown,
                on_notice=_note,
            )
    except KeyboardInterrupt:
        words = args.words if args.resume else [*args.words, "--resume"]
        raise KeyboardInterrupt(f"stopped; go on with: {shlex.join(['tower', *words])}") from None
    except NonFiniteError as error:
        if (out / training.CHECKPOINT).exists():
            error.args = (f"{error}; the state before it is kept in {out}",)
        raise


def _report(
    tower: Tower, states: list[TowerState], out: Path, seed: int, args: argparse.Namespace, on: Task | None = None
) -> None:
    from recursion.evaluation import evaluate
    from recursion.reporting import write

    with Stages(sys.stderr) as stages, capturing():
        evaluation = evaluate(
            tower,
            states,
            on=on,
            seed=seed,
            problems=args.problems,
            steps=args.eval_steps,
            windows=args.windows,
            transfer=args.transfer,
            progress=stages,
        )
    write(evaluation, out, Console(width=None if sys.stdout.isatty() else 120))
    sys.stdout.write(f"written to {out}: evaluation.json, losses.png\n")


def _use_threads(args: argparse.Namespace) -> None:
    if args.threads is not None:
        torch.set_num_threads(args.threads)


def _note(text: str) -> None:
    sys.stderr.write(f"tower: {text}\n")
