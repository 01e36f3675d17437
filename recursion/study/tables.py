"""The tables of a report, as plain data: `recursion.study.page` and the terminal show them."""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from recursion.statistics import Estimate
from recursion.study.comparing import BASELINES, PRIMARY, Comparison
from recursion.study.findings import Findings, Line
from recursion.study.request import Budget
from recursion.study.results import SPENT
from recursion.study.sensitivity import WITHIN, is_step_size
from recursion.study.words import MEASURES, listed, number, plural, seconds, share, size

SPENDING = (0.9, 1.05)  # of the budget: what counts as equal cost
LONG = 16  # rows from which a table is folded away


@dataclass(frozen=True)
class Entry:
    """``small``: an interval, below. ``look``: a class of the page's style."""

    text: str
    small: str = ""
    look: str = ""


@dataclass(frozen=True, kw_only=True)
class Table:
    """``open``: whether it is shown at once."""

    caption: str
    titles: tuple[str, ...]
    rows: tuple[tuple[Entry, ...], ...]
    open: bool = True

    @property
    def head(self) -> tuple[Entry, ...]:
        """Titles of the columns, words to the left as their entries are."""
        looks = [entry.look in ("words", "long") for entry in self.rows[0]] if self.rows else [False] * len(self.titles)
        return tuple(Entry(title, look="words" if words else "") for title, words in zip(self.titles, looks))


def of(section: str, findings: Findings) -> Iterator[Table]:
    """The tables of a section of the page; none without a row."""
    makers = {
        "results": (cells,), "sensitivity": (robust,), "cost": (break_even, ledger, levels), "honesty": (gaps,),
        "failed": (failed,),
    }  # fmt: skip
    for maker in makers.get(section, ()):
        made = maker(findings)
        if made.rows:
            yield dataclasses.replace(made, rows=tuple(_quieter(made.rows)))


def cells(findings: Findings) -> Table:
    """A row a cell: losses, against one level less, against the baseline, how many runs."""
    lines = findings.lines
    lowest = {measure: min((_value(line, measure) for line in lines), default=math.inf) for measure in MEASURES}
    rows = []
    for line in lines:
        losses = [_loss(line, measure, lowest[measure]) for measure in MEASURES]
        rows.append((Entry(line.cell.label), *losses, *_against(line.below), *_against(line.baseline), _runs(line)))
    versus = ("less one level lower", "P(lower)", "less tuned baseline", "P(lower)")
    return Table(
        caption="Interquartile means on report problems with 95% intervals; paired differences of the mean loss and "
        "probability of improvement",
        titles=("cell", *MEASURES.values(), *versus, "runs"),
        rows=tuple(rows),
        open=len(rows) < LONG,
    )


def robust(findings: Findings) -> Table:
    """A row a height."""
    rows = []
    for found in findings.sensitivities:
        for height in found.heights:
            shared = "".join(f", {name} {value}" for name, value in found.others.items())
            time = Entry("") if height.seconds is None else Entry(seconds(height.seconds.value))
            best = min((each.value for each in height.losses[PRIMARY]), default=math.inf)
            ranges = [_range(each.text) for each in height.ranges]
            rows.append((Entry(f"height {height.height}{shared}"), *ranges, Entry(number(best)), time))
    heads = [f"decades within {within:g} times the best" for within in WITHIN]
    return Table(
        caption="Robust range of step sizes, with the range over seeds",
        titles=("tower", *heads, "its best mean loss", "time of a step"),
        rows=tuple(rows),
    )


def break_even(findings: Findings) -> Table:
    """A row a cell and unit of cost."""
    rows = []
    for found in findings.break_even:
        for unit, each in found.uses.items():
            reached = number(found.reached) if math.isfinite(found.reached) else "not reached"
            uses, full = _uses(each.uses, each.range), _uses(each.in_full, each.full_range)
            saving = seconds(each.saving) if unit == "seconds" and each.saving >= 0 else number(each.saving)
            saved = saving if math.isfinite(each.saving) else "none"
            rows.append((Entry(found.cell.label), Entry(unit, look="words"), Entry(reached), Entry(saved), uses, full))
    return Table(
        caption="Uses to break even with the tuned baseline: median and range over seeds",
        titles=(
            "cell",
            "counted in",
            "step that reaches its loss",
            "saved in a use",
            "uses",
            "uses if its tuning is free",
        ),
        rows=tuple(rows),
    )


def ledger(findings: Findings) -> Table:
    """A row a cell and stage."""
    rows = []
    for line in findings.lines:
        if line.ledger is None:
            continue
        for stage in line.ledger.stages:
            name = stage.name if stage.name in SPENT else f"{stage.name} (not in the budget)"
            work, total = number(sum(stage.work)), number(stage.total)
            cost = Entry(number(stage.gradients)), Entry(work), Entry(total), Entry(seconds(stage.seconds))
            rows.append((Entry(line.cell.label), Entry(name, look="words"), *cost))
    return Table(
        caption="Cost of a run by stage, mean over seeds, in base steps (one gradient of the task for one copy)",
        titles=("cell", "stage", "task gradients", "optimizer work", "together", "time"),
        rows=tuple(rows),
        open=len(rows) < LONG,
    )


def levels(findings: Findings) -> Table:
    """A row a cell and level: optimizer work, time and peak memory of training."""
    rows = []
    for line in findings.lines:
        if line.ledger is None or line.cell.kind != "tower":
            continue
        work = next((stage.work for stage in line.ledger.stages if stage.name == "training"), ())
        for level, (took, peak) in enumerate(line.ledger.levels, 1):
            done = number(work[level - 1]) if level <= len(work) else ""
            rows.append(
                (Entry(line.cell.label), Entry(f"level {level}", look="words"), Entry(done), _time(took), _size(peak))
            )
        if not math.isnan(line.ledger.peak):
            whole = Entry(""), _time(line.ledger.seconds), _size(line.ledger.peak)
            rows.append((Entry(line.cell.label), Entry("process", look="words"), *whole))
    return Table(
        caption="Training, level by level: mean over seeds",
        titles=("cell", "what", "optimizer work (base steps)", "time", "peak memory"),
        rows=tuple(rows),
        open=len(rows) < LONG,
    )


def gaps(findings: Findings) -> Table:
    """A row a cell: gains by split and the gap."""
    rows = tuple(
        (
            Entry(gap.cell.label),
            *(
                _estimate(gap.gains[split]) if split in gap.gains else Entry("")
                for split in ("train", "select", "report")
            ),
            Entry(number(gap.gap)),
            Entry("alarm" if gap.alarm else "no alarm", look="higher" if gap.alarm else "lower"),
        )
        for gap in findings.gaps
    )
    return Table(
        caption="Gains from the start of training to what was chosen (log of the ratio of mean losses), and the gap",
        titles=("cell", "train", "select", "report", "gap", ""),
        rows=rows,
        open=len(rows) < LONG,
    )


def failed(findings: Findings) -> Table:
    """A row a failed run, and why."""
    rows = tuple(
        (Entry(each.run), Entry(each.why, look="long"), Entry("infinite loss" if each.diverged else "left out"))
        for each in findings.failures
    )
    return Table(caption="Failed runs, and how they count", titles=("run", "why", "counts as"), rows=rows)


def caveats(budget: Budget, findings: Findings) -> Iterator[str]:
    """What the findings cannot say, and why: a sentence each."""
    done, total = findings.statuses.get("done", 0), sum(findings.statuses.values())
    if not findings.finished:
        yield f"This ablation is not finished: {done} of {plural(total, 'run')} done. Run its command again to go on."
    elif not done:
        yield "No run is done, so there is nothing to report but why."
    if findings.failures:
        diverged = sum(each.diverged for each in findings.failures)
        others = len(findings.failures) - diverged
        parts = [f"{plural(diverged, 'run')} diverged (infinite loss)"] if diverged else []
        parts += [f"{plural(others, 'run')} failed for another reason (left out)"] if others else []
        yield f"{' and '.join(parts)}, see the failed runs."
    if budget.unit == "base steps":
        yield from _unequal(budget.amount, findings)
    seeds = max((len(line.cell.runs) for line in findings.lines), default=0)
    if seeds == 1:
        yield "There is one training seed, so intervals are over problems and say nothing about another training."
    if all(line.cell.label != BASELINES for line in findings.lines):
        yield "There is no tuned baseline, so nothing is said about whether any depth beats a hand-made optimizer."
    towers = [line for line in findings.lines if line.cell.kind == "tower"]
    if findings.lines and not towers:
        yield "Nothing was trained: all cells are hand-made rules that were tuned."


def _unequal(budget: float, findings: Findings) -> Iterator[str]:
    """Cells that cost something else than the budget: towers that learn nothing cost nothing, and are not meant."""
    lines = [line for line in findings.lines if plain(line)]
    ledgers = [line.ledger for line in lines if line.ledger is not None and line.ledger.spent > 0]
    off = [each for each in ledgers if not SPENDING[0] <= each.spent / budget <= SPENDING[1]]
    if off:
        parts = listed([f"{each.cell.label} {number(100 * each.spent / budget)}%" for each in off[:8]])
        more = f" and {plural(len(off) - 8, 'cell')} more" if len(off) > 8 else ""
        yield f"Not every cell spent the whole budget: {parts}{more}. A search ends early when nothing is left to try."


def sentences(findings: Findings) -> Iterator[str]:
    """All that is said of pairs, uses, sensitivity and the guard, in order."""
    yield from (each.sentence for each in findings.comparisons)
    yield from (each.sentence for each in findings.break_even)
    yield from (sentence for found in findings.sensitivities for sentence in found.sentences)
    yield from (f"Guard: {each.sentence}." for each in findings.guards if each.rescued)


def plain(line: Line) -> bool:
    """Whether a cell is of no grid of step sizes, of which there are many."""
    return not any(map(is_step_size, line.cell.factors))


def _quieter(rows: Sequence[tuple[Entry, ...]]) -> Iterator[tuple[Entry, ...]]:
    """Rows that go on about the same as the one before say so less loudly."""
    before = ""
    for first, *rest in rows:
        yield (dataclasses.replace(first, look="same") if first.text == before else first, *rest)
        before = first.text


def _value(line: Line, measure: str) -> float:
    return line.losses[measure].value if measure in line.losses else math.inf


def _loss(line: Line, measure: str, lowest: float) -> Entry:
    if measure not in line.losses:
        return Entry("")
    return _estimate(line.losses[measure], look="best" if line.losses[measure].value == lowest < math.inf else "")


def _against(comparison: Comparison | None) -> tuple[Entry, Entry]:
    """The difference, and the probability of improvement."""
    if comparison is None:
        return Entry(""), Entry("")
    main = comparison.contrasts[PRIMARY]
    look = {-1: "lower", 0: "", 1: "higher"}[comparison.sign]
    value, interval = share(main.improvement).split(" ", 1)
    return _estimate(main.difference, look=look), Entry(value, interval)


def _runs(line: Line) -> Entry:
    done = len(line.cell.done)
    diverged = sum(run.diverged for run in line.cell.runs)
    return Entry(f"{done} of {len(line.cell.runs)}", f"{diverged} diverged" if diverged else "")


def _estimate(found: Estimate, *, look: str = "") -> Entry:
    nothing = math.isfinite(found.value) and found.low == -math.inf and found.high == math.inf
    small = "no interval" if nothing else f"[{number(found.low)}, {number(found.high)}]"
    return Entry(number(found.value), small, look)


def _uses(value: float, spread: Sequence[float]) -> Entry:
    low, high = (_count(each) for each in spread)
    return Entry(_count(value), "" if low == high else f"{low} to {high}")


def _count(value: float) -> str:
    return "never" if math.isinf(value) else number(max(1, math.ceil(value)))


def _range(text: str) -> Entry:
    value, _, spread = text.partition(" (")
    return Entry(value, spread.removesuffix(")"))


def _time(value: float) -> Entry:
    return Entry("" if math.isnan(value) else seconds(value))


def _size(value: float) -> Entry:
    return Entry("" if math.isnan(value) else size(value))
