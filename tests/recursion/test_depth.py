"""Groups with gates are ordinary levels, their gates can be read off, and what is pruned gives the same losses."""

import dataclasses

import pytest
import torch
from towers import after

from levels import LSTM, SGD, Adam, Fixed, Gated, Level, Linear, Partition, Quadratic
from levels.tree import named_leaves
from recursion import Tower, checkpoint, cli
from recursion.analysis.depth import gates, learned_depth
from recursion.analysis.pruning import prune
from recursion.group import Depth, gated_levels
from recursion.notation import parse

LEVEL = "sgd(lr=0.001)"
PATTERNS = ("*gate", "*")
DEEP = f"quadratic: depth({LEVEL}@1[batch=3] / {LEVEL}@2[batch=2,horizon=none] / {LEVEL}@1 / {LEVEL}@1) / sgd"


def group(*levels, **settings):
    return f"depth({' / '.join(levels)}{''.join(f', {key}={value}' for key, value in settings.items())})"


def test_a_group_is_levels_with_gates_between_them():
    text = "quadratic: depth(lstm@20 / adam@5 / sgd@2, gates=adam(lr=0.1), price=1e-3, start=0.7) / rmsprop / sgd"
    tower, mover = parse(text), Adam(lr=0.1)
    assert tower.levels == (
        Level(optimizer=LSTM(), unroll=20),
        Level(optimizer=Gated(Adam(), gate=0.7, price=1e-3 * 20 * 5), unroll=5),
        Level(optimizer=Partition(PATTERNS, (mover, Gated(SGD(), gate=0.7, price=1e-3 * 20 * 5 * 2))), unroll=2),
        Level(optimizer=Partition(PATTERNS, (mover, parse("quadratic: rmsprop").levels[0].optimizer))),
        Level(optimizer=SGD()),
    )
    assert parse(repr(tower)).levels == tower.levels
    levels = parse("quadratic: depth(sgd@1 / sgd@1 / sgd@1) / lstm / adam").levels  # the level above moves the gates
    above = [Gated(SGD()), Partition(PATTERNS, (LSTM(), Gated(SGD()))), LSTM(), Adam()]
    assert [level.optimizer for level in levels[1:]] == above


def test_a_group_may_stand_on_levels_and_on_another_group():
    tower = parse("quadratic: sgd@3 / depth(sgd@2 / adam@2, price=1, gates=sgd) / depth(rmsprop@2 / adam@2) / sgd")
    assert parse(repr(tower)).levels == tower.levels
    moved = 'by-name(["*gate", "*"], [sgd, rmsprop])'
    assert [repr(level.optimizer) for level in tower.levels] == [
        "sgd", "sgd", "gated(adam, price=12.0)", moved, "gated(adam)", "sgd",
    ]  # fmt: skip


def test_the_price_is_of_a_base_step_of_what_gradients_cost():
    exact = "sgd@2[gradient=exact, horizon=2, batch=2]"
    tower = parse(f"quadratic(dims=2): depth({exact} / {exact} / sgd@3, price=0.5) / sgd")
    prices = [tower.levels[1].optimizer.price, tower.levels[2].optimizer.optimizers[1].price]
    assert prices == [0.5 * cost for cost in tower.costs[1:3]]
    assert tower.costs[2] > 3 * tower.costs[1] / 2


def test_open_gates_are_as_good_as_none():
    """Bit for bit: a tower whose gates are open for good, and the same without."""
    plain = parse(f"quadratic: {LEVEL}@2[batch=2] / {LEVEL}@2[batch=2] / adam@2 / {LEVEL}")
    first, *rest = plain.levels
    gated = (dataclasses.replace(level, optimizer=Gated(level.optimizer, gate=Fixed(1.0))) for level in rest)
    other = Tower(plain.task, first, *gated)
    for (_, expected), (_, report) in zip(plain.run(plain.init(0), 4), other.run(other.init(0), 4)):
        assert report.losses == expected.losses


def set_gates(tower, state, values):
    """The state with gates of levels set: 0 and 1 well beyond the clip, others as they are stored."""
    carries = tower.carries(state)
    carry = carries[0]
    for number, bound in enumerate(tower.bound[:-1], 1):
        above = carries[number]
        x = above.x.clone()
        if number in values:
            tensors = bound.layout.unravel(x)
            (name,) = [name for name in tensors if name.endswith("gate")]
            value = {0: -5.0, 1: 5.0}.get(values[number], values[number])
            x = bound.layout.ravel(tensors | {name: torch.full_like(tensors[name], value)})
        carry = above._replace(x=x, problem_state=above.problem_state._replace(carry=carry))
    return state._replace(carry=carry)


def test_gates_are_read_off_by_level_and_copy_and_stand_in_the_reports():
    tower = parse(DEEP)
    state = tower.init(0)
    fresh = gates(tower, state)
    assert [(gate.level, tuple(gate.each.shape)) for gate in fresh] == [(2, (1, 1, 1)), (3, (1, 1)), (4, (1,))]
    assert all(gate.mean == pytest.approx(0.5, abs=0.05) and not gate.is_open and not gate.is_closed for gate in fresh)
    state = set_gates(tower, state, {2: 1, 3: 0, 4: 0.0})
    closed = [(gate.is_closed, gate.is_open) for gate in gates(tower, state)]
    assert closed == [(False, True), (True, False), (True, False)]
    _, report = tower.step(set_gates(tower, tower.init(0), {2: 1, 3: 0}))
    stand = {name: value for name, value in report.metrics.items() if "gate" in name}
    assert stand == pytest.approx({"level 2 gate": 1.0, "level 3 1.gate": 0.0, "level 4 1.gate": 0.5}, abs=0.02)


@pytest.mark.parametrize(
    ("values", "levels"), [({2: 0}, 1), ({3: 0}, 2), ({4: 0, 2: 1}, 3), ({2: 0, 4: 0}, 1), ({2: 1, 3: 1}, 5), ({}, 5)]
)
def test_depth_is_what_lies_under_the_lowest_closed_gate(values, levels):
    tower = parse(DEEP)
    assert learned_depth(tower, set_gates(tower, tower.init(0), values)) == levels


def task_losses(tower, state, base_steps):
    """Losses of the task, each copy, whenever so many base steps are done."""
    states = (state for state, _ in tower.run(state, base_steps // int(tower.costs[-1])))
    return [tower.carries(state)[0].f.flatten().tolist() for state in states]


HELD = "sgd(lr=fixed(0))"  # gates stay where they are
NESTED = {
    "hyperoptimizers": [f"{LEVEL}@1[batch=3]", "adam@1", "sgd(momentum=0.9)@1"],
    "unrolls": [f"{LEVEL}@2[batch=3]", "adam@3[horizon=none]", "sgd(momentum=0.9)@2[horizon=none]"],
    "lstm": ["lstm(hidden=3)@2[batch=3]", "sgd(lr=1e-3)@2[horizon=none]", "adam@1"],
}


@pytest.mark.parametrize("values", [{2: 0}, {2: 1, 3: 0}, {2: 1, 3: 1}, {2: 0.3, 3: 0}, {2: 0.3, 3: 1}], ids=str)
@pytest.mark.parametrize("levels", NESTED)
def test_a_pruned_tower_gives_the_losses_of_the_whole_one(levels, values):
    """Bit for bit: trained for a while, gates set, and both go on."""
    tower = parse(f"quadratic(dims=3, dtype=float64): {group(*NESTED[levels], gates=HELD, price=0.1)} / adam(lr=0.01)")
    state = set_gates(tower, after(tower, 3), values)
    shallow, left = prune(tower, state)
    assert shallow.depth == min((level - 1 for level, gate in values.items() if gate == 0), default=tower.depth)
    assert (gates(shallow, left), int(left.step)) == ([], 0)
    every, often = int(tower.costs[-1]), int(tower.costs[-1]) // int(shallow.costs[-1])
    long, short = task_losses(tower, state, 4 * every), task_losses(shallow, left, 4 * every)
    assert long == short[often - 1 :: often]
    assert long[0] != long[-1]
    again = parse(repr(shallow))
    assert again.levels == shallow.levels
    fresh, have = ({name: leaf.shape for name, leaf in named_leaves(one).items()} for one in (again.init(0), left))
    assert have == fresh


def test_what_is_left_of_a_tower_says_how_it_was_pruned():
    tower = parse(f"quadratic: {group(f'{LEVEL}@1', 'sgd@1', 'adam@1', gates=HELD)} / rmsprop")
    half = 1e-9
    for notation, values in {
        "quadratic: sgd(lr=0.001)": {2: 0, 3: 1},
        "quadratic: sgd(lr=0.001)@1 / sgd": {2: 1, 3: 0},
        "quadratic: sgd(lr=0.001)@1 / gated(sgd, gate=fixed(0.5))": {2: half, 3: 0},
        "quadratic: sgd(lr=0.001)@1 / sgd@1 / adam@1 / rmsprop": {2: 1, 3: 1},
    }.items():
        assert repr(prune(tower, set_gates(tower, tower.init(0), values))[0]) == notation


def test_movers_with_parameters_are_taken_from_beneath_adam():
    """Level 4 moves the parameters of what moved the gate of level 2, too; its moments lose them."""
    tower = parse(f"quadratic(dims=3, dtype=float64): {group(*[f'{LEVEL}@1'] * 3, gates='adam')} / adam(lr=0.01)")
    state = set_gates(tower, after(tower, 3), {2: 1, 3: 1})
    shallow, left = prune(tower, state)
    assert repr(shallow).endswith(f"{LEVEL}@1 / {LEVEL}@1 / {LEVEL}@1 / adam(lr=0.01)")
    moments = state.carry.state[2]  # of "*"
    assert moments.m.shape[-1] == 5  # four of the mover, and the step size
    assert torch.equal(left.carry.state.m, moments.m[..., -1:])
    assert torch.equal(left.carry.x, state.carry.x[..., -1:])


def test_movers_stay_under_what_mixes_coordinates():
    levels = group(*[f"{LEVEL}@1"] * 3, gates="adam")
    tower = parse(f"quadratic(dims=3): {levels} / sgd(lr=log(0.1, per=coordinate))")
    with pytest.raises(ValueError, match=r"^level 4 \(by-name.*does not treat each coordinate by itself.*lr=fixed"):
        prune(tower, set_gates(tower, tower.init(0), {2: 1, 3: 1}))


def test_levels_with_nothing_left_to_train_go_too():
    """The LSTM that moved the gate was all that Adam trained."""
    tower = parse("quadratic(dims=3): depth(sgd@1 / sgd@2, gates=lstm(hidden=2)) / sgd(lr=fixed(0))@2 / adam")
    shallow, left = prune(tower, set_gates(tower, tower.init(0), {2: 1}))
    assert repr(shallow) == "quadratic(dims=3): sgd@1 / sgd@2 / sgd(lr=fixed(0))@2"
    shallow.step(left)


def test_rounding_decides_what_is_neither_open_nor_closed():
    tower = parse(DEEP)
    state = set_gates(tower, tower.init(0), {2: 0.1, 3: -0.1, 4: 0.1})
    shallow, left = prune(tower, state, rounded=True)
    assert repr(shallow).count("sgd") == shallow.depth == 2
    assert not gates(shallow, left)
    shallow, _ = prune(tower, state)
    assert (repr(shallow).count("gate=fixed("), shallow.depth) == (3, 5)


def test_one_of_several_towers_side_by_side():
    tower = parse(f"quadratic(dims=3): depth({LEVEL}@1 / {LEVEL}@1, gates=sgd(lr=fixed(0))) / sgd[batch=2]")
    state = tower.init(0)
    x = state.carry.x.clone()
    x[:, 0] = torch.tensor([5.0, -5.0])
    state = state._replace(carry=state.carry._replace(x=x))
    with pytest.raises(ValueError, match=r"^level 2 .*its gates stand at 0 to 1 in several copies; train on, choose"):
        prune(tower, state)
    with pytest.raises(ValueError, match="there are 2 towers side by side, counted from 1; got copy 3"):
        prune(tower, state, copy=3)
    pairs = [(tower, state), prune(tower, state, copy=1), prune(tower, state, copy=2)]
    assert [one.depth for one, _ in pairs] == [3, 3, 1]
    f, first, second = (one.carries(list(one.run(each, 2))[-1][0])[0].f for one, each in pairs)
    assert torch.equal(first, f[:1])
    assert torch.equal(second, f[1, 0])


def test_towers_that_cannot_be_pruned_are_refused():
    plain, tower = parse("quadratic: sgd@1 / sgd"), parse("quadratic: depth(sgd@2[gradient=pes] / sgd@2) / sgd")
    with pytest.raises(ValueError, match="has no gates; there is nothing to prune"):
        prune(plain, plain.init(0))
    with pytest.raises(ValueError, match=r"^level 1 \(sgd@2.*perturbed parameters, which cannot go on; build the"):
        prune(tower, set_gates(tower, tower.init(0), {2: 0}))


def test_a_gate_closes_under_a_price_and_opens_where_its_level_helps():
    """A step size that is far too small, and a level that raises it; the gate of level 2 alone has anything to say."""
    levels = [Level(optimizer=SGD(lr=Linear(1e-5)), batch=8), Level(optimizer=SGD(lr=Linear(1e-7)))]
    task, above = Quadratic(dims=3, dtype="float64"), Level(optimizer=SGD(lr=Fixed(0)))
    for price, depth in ((1.0, 1), (0.0, 3)):
        tower = Tower(task, *gated_levels(task, levels, above, Depth(gates=SGD(lr=Fixed(10.0)), price=price)))
        state = after(tower, 100)
        assert learned_depth(tower, state) == depth
    assert gates(tower, state)[0].mean > 0.6


def test_tower_prune_writes_a_run_that_goes_on(tmp_path, monkeypatch, capsys):
    def saved(run):
        return checkpoint.load(f"{run}/checkpoint.safetensors")

    monkeypatch.chdir(tmp_path)
    notation = f"quadratic(dims=3): depth({LEVEL}@1[batch=2] / {LEVEL}@1, gates=sgd(lr=fixed(0.5)), price=100) / sgd"
    assert cli.main(["train", notation, "--steps", "40", "--seed", "4", "--out", "run", "--no-eval"]) == 0
    assert cli.main(["prune", "run", "--out", "pruned"]) == 0
    printed = capsys.readouterr().out
    assert "gate on what level 1 takes from level 2: 0\n" in printed
    assert "of 3 levels 1 are left, written to pruned" in printed
    pruned = saved("pruned")
    assert (repr(pruned.tower), pruned.seed, int(pruned.state.step)) == (f"quadratic(dims=3): {LEVEL}[batch=2]", 4, 0)
    words = ["train", "pruned/spec.json", "--out", "pruned", "--seed", "4", "--resume", "--steps", "3", "--no-eval"]
    assert cli.main(words) == 0
    whole = saved("run")
    *_, (state, _) = whole.tower.run(whole.state, 3)
    assert torch.equal(saved("pruned").state.carry.x, whole.tower.carries(state)[0].x[0, 0])
    assert cli.main(["prune", "run", "--out", "pruned"]) == 2
    assert "already holds a run; choose another folder (--out)" in capsys.readouterr().err


@pytest.mark.parametrize(("text", "message"), [
    ("depth(sgd) / sgd", "level 1 (depth(sgd)): a group of one level has no depth to learn; put another level into it"),
    ("depth(sgd / sgd)", "level 1 to 2 (depth(sgd / sgd)): expected '/' and a level that moves the gates"),
    ("sgd / depth(sgd / sgd, price=-1) / sgd", "level 2 to 3 (depth(sgd / sgd, price=-1)): depth: price must be a"),
    ("depth(sgd / sgd, start=1) / sgd", "(depth(sgd / sgd, start=1)): depth: start must be a number between 0 and 1"),
    ("depth(sgd / sgd, gates=3) / sgd", "(depth(sgd / sgd, gates=3)): depth: gates must be an optimizer or none"),
    ("depth(sgd / sgd, prize=3) / sgd", "depth has no setting 'prize' (did you mean price?); it has gates, price"),
    ("depth(sgd / sgd@0, price=1) / sgd", "level 2 (sgd@0): unroll must be a whole number of at least 1, got 0"),
    ("depth(sgd / sgd / sgd", "expected '/', ',' or ')' behind a level of the group, got the end of the text"),
    ("depth(sgd / sgd)@2 / sgd", "expected '/' and a level that moves the gates behind the group, got '@'"),
    ("depth(sgd / depth(sgd / sgd)) / sgd", "level 2 (depth(sgd / sgd)): unknown optimizer 'depth'"),
])  # fmt: skip
def test_a_group_that_is_none_is_refused_in_one_line(text, message):
    with pytest.raises(ValueError) as caught:
        parse(f"quadratic: {text}")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
