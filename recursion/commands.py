"""What the commands of the command line do; imports torch, so `recursion.cli` imports it late."""

import argparse
import dataclasses
import shlex
import sys
from collections.abc import Iterator
from fractions import Fraction
from itertools import accumulate
from operator import mul
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console

from levels.faults import NonFiniteError, Skip, Stop
from levels.level import Level
from levels.optimizers.learned_init import LearnedInit
from recursion import checkpoint, training
from recursion.analysis import depth, growth_report, pruning
from recursion.analysis import probe as probing
from recursion.evaluation import exporting
from recursion.evaluation.reporting import draw_training, write
from recursion.evaluation.scenarios import evaluate
from recursion.files import RUNS, explained, folder_name, replace_file
from recursion.notation import parse
from recursion.progress import Stages, Steps, note
from recursion.spec import dumps, read_tower
from recursion.tower import Tower, TowerState

COMPILE: dict[str, bool | Literal["auto"]] = {"auto": "auto", "on": True, "off": False}
STEPS = 10  # before a tower in notation is probed


def train(args: argparse.Namespace) -> None:
    """``tower train``: train, then evaluate."""
    tower = read_tower(args.tower, args.trust)
    if args.nonfinite is not None:
        policy = Skip() if args.nonfinite == "skip" else Stop()
        tower = Tower(tower.task, *(dataclasses.replace(level, nonfinite=policy) for level in tower.levels))
    tower = tower.to(args.device)
    _use_threads(args)
    out = RUNS / f"{folder_name(str(tower))}-seed{args.seed}" if args.out is None else Path(args.out)
    note(f"{tower}: {args.steps} steps of {tower.costs[-1]} base steps, in {out}")
    state = _trained(tower, args, out)
    if args.no_eval:
        draw_training(str(tower), out)
    else:
        try:
            _report(tower, [state], out, 0, args)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"stopped; training is complete, evaluate it with: tower eval {out}") from None


def eval(args: argparse.Namespace) -> None:  # noqa: A001, it is what the command is called
    """``tower eval``: load runs of one tower, and evaluate them together."""
    _use_threads(args)
    saved = [_saved_in(run, args) for run in args.runs]
    first, seeds = saved[0].tower, dict[int, str]()
    for run, one in zip(args.runs, saved):
        if not checkpoint.same(first, one.tower):
            raise ValueError(f"{run} is of '{one.tower}', {args.runs[0]} of '{first}'; evaluate them one by one")
        if one.seed in seeds:
            raise ValueError(f"{seeds[one.seed]} and {run} have the same seed {one.seed}; give each seed once")
        seeds[one.seed] = run
    steps = sorted({int(one.state.step) for one in saved})
    if len(steps) > 1:
        note(f"the runs were trained for different numbers of steps: {', '.join(map(str, steps))}")
    on = None if args.on is None else parse(f"{args.on}: sgd").to(args.device).task
    out = Path(args.runs[0]) if len(saved) == 1 else RUNS / f"{folder_name(str(first))}-eval"
    _report(first, [one.state for one in saved], out if args.out is None else Path(args.out), args.seed, args, on)


def probe(args: argparse.Namespace) -> None:
    """``tower probe``: how fast perturbations grow at each level, and what that means for its gradient."""
    _use_threads(args)
    tower, state, out = _to_probe(args)
    with Stages(sys.stderr) as stages:
        growths = probing.probe(tower, state, windows=args.windows, seed=args.seed, progress=stages)
    growth_report.write(growths, str(tower), out, _console())
    sys.stdout.write(f"written to {out}: probe.png\n")
    for level in growths:
        if level.warning is not None:
            note(f"warning: {level.warning}")


def export(args: argparse.Namespace) -> None:
    """``tower export``: the optimizer that a run learned, in a file of its own."""
    saved = _saved_in(args.run, args)
    exported = exporting.export(
        saved.tower, saved.state, seed=saved.seed, copy=args.copy, windows=args.windows, deploy_seed=args.seed
    )
    out = Path(args.run) / "optimizer.safetensors" if args.out is None else Path(args.out)
    exported.save(out)
    if isinstance(exported.optimizer, LearnedInit):
        note("a learned start is where the tower's task begins; on a model of your own only the rule is at work")
    spent = f", {exported.source['base_steps']} base steps spent" if len(saved.tower.levels) > 2 else ""
    sys.stdout.write(
        f"{exported.optimizer}, {len(exported.weights)} parameters{spent}, written to {out}; use it with\n"
        f"  optimizer = recursion.Exported.load({str(out)!r})(model.parameters())\n"
    )


def prune(args: argparse.Namespace) -> None:
    """``tower prune``: the tower that a run's gates leave, as a run folder of its own."""
    saved = _saved_in(args.run, args)
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
    before, after = len(saved.tower.levels), len(tower.levels)
    sys.stdout.write(f"{tower}, of {before} levels {after} are left, written to {out}; go on with\n")
    sys.stdout.write(f"  tower train {spec} --seed {saved.seed} --resume\n")


def show(args: argparse.Namespace) -> None:
    """``tower show``: the tower in words, or its spec."""
    tower = read_tower(args.tower, args.trust)
    sys.stdout.write(dumps(tower) if args.json else "".join(f"{line}\n" for line in described(tower)))


def described(tower: Tower) -> Iterator[str]:
    """A tower in words: what each level is, how much it learns and what it costs, in lines, the task first."""
    costs, levels = tower.costs, tower.bound
    copies = list(accumulate((level.copies for level in reversed(levels)), mul))[::-1]
    layout = tower.task.layout
    yield str(tower)
    yield f"task: {tower.task}"
    yield f"  parameters  {layout.size:,}: {', '.join(f'{name} {list(shape)}' for name, shape in layout.entries)}"
    for number, (level, cost, copy) in enumerate(zip(levels, costs, copies), 1):
        problem = "the task" if number == 1 else f"level {number - 1}"
        fate = "fixed, for it is the topmost" if level is tower.top else f"trained by level {number + 1}"
        further = f", the meta-loss over {_count(level.lookahead, 'update')}" if level.lookahead else ""
        yield f"level {number}: {level}"
        yield f"  optimizer   {level.optimizer}, updates the {level.problem.layout.size:,} parameters of {problem}"
        yield f"  parameters  {level.layout.size:,}, {fate}"
        yield f"  unroll      {_count(level.unroll, 'update')} a window{further}"
        yield f"  horizon     {_horizon(level)}"
        yield f"  batch       {_count(level.copies, 'copy', 'copies')} of {problem}; {copy:,} below in all"
        yield f"  cost        {_count(cost, 'base step')} a window"
    startup = 1 + sum(costs[:-1])
    yield f"one step: {_count(costs[-1], 'base step')}, each on {_count(copies[0], 'copy', 'copies')} of the task"
    yield f"start-up: {_count(startup, 'base step')}; a restart of a level costs one evaluation of the problem below it"


def _horizon(level: Level) -> str:
    if level.episode_length is None:
        return "none, trajectories never restart"
    windows = _count(level.episode_length // level.unroll, "window")
    return f"{_count(level.episode_length, 'update')}, trajectories restart after {windows}"


def _count(number: int | Fraction, one: str, many: str = "") -> str:
    shown = f"{number:,}" if isinstance(number, int) else f"{float(number):,.1f}"
    return f"{shown} {one if number == 1 else many or one + 's'}"


def _to_probe(args: argparse.Namespace) -> tuple[Tower, TowerState, Path]:
    """A run's tower and state, or a tower in notation after some steps; and the folder of the picture."""
    out = run = Path(args.tower)
    if run.is_dir() or not (":" in args.tower or args.tower.endswith(".json")):
        if args.steps is not None:
            raise ValueError(f"--steps is for a tower that is not trained yet; {run} is probed where its checkpoint is")
        tower, state, *_ = _saved_in(run, args)
    else:
        tower, steps = read_tower(args.tower, args.trust).to(args.device), args.steps or STEPS
        state, out = tower.init(args.seed), RUNS / f"{folder_name(str(tower))}-probe"
        with Steps(steps, sys.stderr) as shown:
            for state, report in tower.run(state, steps):  # noqa: B007, B020
                shown(report)
    return tower, state, out if args.out is None else Path(args.out)


def _saved_in(run: str | Path, args: argparse.Namespace) -> checkpoint.Saved:
    """The checkpoint of a run folder. ValueError for a tower in notation, which has none."""
    if ":" in str(run) and not Path(run).exists():
        first = f"train it first: tower train {shlex.quote(str(run))} --out runs/first"
        raise ValueError(f"this takes a run folder of tower train, got the tower {str(run)!r}; {first}")
    device = getattr(args, "device", "cpu")
    return checkpoint.load(Path(run) / training.CHECKPOINT, device=device, trust=args.trust)


def _trained(tower: Tower, args: argparse.Namespace, out: Path) -> TowerState:
    """The state after training; what interrupts it says how to go on."""
    try:
        return training.train(
            tower, steps=args.steps, seed=args.seed, out=out, resume=args.resume, compile=COMPILE[args.compile]
        )
    except KeyboardInterrupt:
        words = args.words if args.resume else [*args.words, "--resume"]
        raise KeyboardInterrupt(f"stopped; go on with: {shlex.join(['tower', *words])}") from None
    except NonFiniteError as error:
        if (out / training.CHECKPOINT).exists():
            error.args = (f"{error}; the state before it is kept in {out}",)
        raise


def _report(
    tower: Tower, states: list[TowerState], out: Path, seed: int, args: argparse.Namespace, on: Any = None
) -> None:
    """Evaluate, on another task if ``on`` is one, and write the report."""
    with Stages(sys.stderr) as stages:
        evaluation = evaluate(
            tower, states, on=on, seed=seed, problems=args.problems, steps=args.eval_steps, windows=args.windows,
            transfer=args.transfer, progress=stages,
        )  # fmt: skip
    write(evaluation, out, _console())
    sys.stdout.write(f"written to {out}: evaluation.json, losses.png\n")


def _console() -> Console:
    return Console(width=None if sys.stdout.isatty() else 120)


def _use_threads(args: argparse.Namespace) -> None:
    if args.threads is not None:
        torch.set_num_threads(args.threads)
