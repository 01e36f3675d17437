"""The chaos probe against systems whose growth rates are known in closed form."""

import io
import math

import pytest
import torch
from maps import Bowl, ByGradient, Drifts, Fading, Forgets, Hidden, Logistic, chaotic, probe_of, run
from rich.console import Console
from towers import SMALL, after, assert_same

from levels import PES, SGD, Exact, FirstOrder, Forward, Level, Linear, Mix
from levels.gradients.bootstrapped import Bootstrapped
from levels.tree import map_leaves
from recursion import checkpoint, cli
from recursion.analysis.growth_report import write
from recursion.analysis.probe import LIMIT, probe
from recursion.notation import parse


@pytest.mark.parametrize("lr", [0.1, 1.2])
def test_sgd_on_a_quadratic(lr):
    """Each direction is multiplied by 1 - lr h; the largest wins."""
    known = max(math.log(abs(1 - lr * h)) for h in (2.0, 0.5))
    bottom = Level(optimizer=SGD(lr=lr), unroll=10, horizon=40, batch=4)
    first, top = run(Bowl(), bottom, Level(optimizer=SGD(lr=1e-9)), windows=8)
    assert first.growth.value == pytest.approx(known, abs=0.05)
    assert first.over_window == pytest.approx(math.exp(10 * first.growth.value))
    assert first.over_horizon == pytest.approx(math.exp(40 * first.growth.value))
    assert first.verdict == ("contracting" if known < 0 else "expanding")
    assert first.as_data.value == pytest.approx(0, abs=1e-6)  # x <- x - lr g with g a constant
    assert (top.as_data, top.in_gradient, top.warning) == (None, None, None)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("lr", "momentum"), [(0.4, 0.5), (1.905, 0.9)])
def test_momentum_has_the_spectral_radius_of_its_companion_matrix(lr, momentum, dtype):
    """(x, b) <- (x - lr (m b + h x), m b + h x): hidden variables count."""
    h = 2.0
    matrix = torch.tensor([[1 - lr * h, -lr * momentum], [h, momentum]], dtype=torch.float64)
    known = math.log(float(torch.linalg.eigvals(matrix).abs().max()))
    level = Level(optimizer=SGD(lr=lr, momentum=momentum), unroll=25, horizon=None, batch=6)
    (found,) = run(Bowl(curvatures=(h,), dtype=dtype), level, steps=1, windows=12)
    assert found.growth.value == pytest.approx(known, abs=0.01)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_logistic_map_has_the_exponent_ln_2_and_the_report_says_so(dtype, tmp_path):
    growths, out = chaotic(dtype=dtype, windows=4), io.StringIO()
    first = growths[0]
    assert first.growth.value == pytest.approx(math.log(2), abs=0.02)
    assert first.growth.low < math.log(2) < first.growth.high or dtype == "float32"
    assert first.over_window == pytest.approx(2.0**20, rel=0.5)
    assert first.as_data == first.growth  # it reads no gradient
    assert (first.longest, first.verdict) == (6, "chaotic")  # 2^6 < 100 < 2^7
    assert len(first.path) == 1 + first.aligned + 4 * 20
    assert first.warning.startswith("level 1 (maps.Logistic@20[horizon=100, batch=64]): backpropagation cannot")
    assert all(fix in first.advice for fix in ("use ", "@20[", "gradient=es-single", "@6["))
    write(growths, "bowl: logistic-map@20 / sgd", tmp_path / "new", Console(file=out, width=140))
    growth = f"{first.growth.value:.3g} [{first.growth.low:.3g}, {first.growth.high:.3g}]"
    for text in ("1 maps.Logistic", growth, f"{LIMIT:g}", f"level 1: {first.advice}"[:60]):
        assert text in out.getvalue()
    assert (tmp_path / "new" / "probe.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_evolution_is_not_warned_of_and_a_mixture_is_where_both_of_its_halves_would_be():
    bears = chaotic(PES(), Logistic(3.9))[0]  # whose particles stay below 4, where orbits escape
    assert (bears.warning, bears.in_gradient) == (None, None)
    x, logs = 0.3, []
    for _ in range(20000):
        x = 3.9 * x * (1 - x)
        logs.append(math.log(abs(3.9 * (1 - 2 * x))))
    assert bears.growth.value == pytest.approx(sum(logs) / len(logs), abs=0.03)
    assert "bears any growth" in bears.advice
    for gradient, warned in ((Exact(), True), (Forward(), True), (Mix(FirstOrder(), Exact()), True),
                             (Mix(FirstOrder(), PES()), False)):  # fmt: skip
        assert (chaotic(gradient, Logistic(3.9))[0].warning is not None) is warned, gradient


@pytest.mark.slow
def test_the_advice_is_taken():
    """Every level that it names is one, and a shorter window is quiet."""
    for gradient in (Exact(), Forward(), Bootstrapped()):
        found = chaotic(gradient, lookahead=40 if isinstance(gradient, Bootstrapped) else None)[0]
        assert found.warning is not None
        fixes = found.advice.removeprefix("use ").split(", or ")
        assert all(parse(f"quadratic: {text.replace('maps.Logistic', 'sgd')} / sgd").depth == 2 for text in fixes)
        assert f"@{found.longest}[" in fixes[-1]
    short, long = chaotic(unroll=6)[0], chaotic(unroll=7)[0]
    assert (short.warning, short.verdict) == (None, "expanding")
    assert "at most 6 updates" in short.advice
    assert long.warning is not None


def test_first_order_leaves_out_what_comes_by_the_gradient():
    """The run is chaotic; what first order multiplies is 1 at every update. Exact gradients follow the chaos."""
    tame, wild = (chaotic(gradient, ByGradient())[0] for gradient in (FirstOrder(), Exact()))
    for level in (tame, wild):
        assert level.growth.value == pytest.approx(math.log(2), abs=0.02)
        assert (level.as_data.value, level.verdict) == (pytest.approx(0, abs=1e-6), "chaotic")
    assert (tame.warning, tame.in_gradient) == (None, pytest.approx(1, abs=1e-3))
    assert "It leaves out what grows: gradient=exact would follow" in tame.advice
    assert wild.warning is not None
    assert wild.in_gradient == wild.over_window
    assert ", or maps.ByGradient@20[horizon=100, batch=64], or " in wild.advice


def test_what_a_gradient_follows():
    """2^5 in a window is bearable, 2^25 over the horizon is not; a window that looks ahead is as long as it looks."""
    window, whole = (chaotic(gradient, unroll=5)[0] for gradient in (Exact(), Forward()))
    assert window.warning is None
    assert whole.in_gradient == whole.over_horizon
    assert "over 25 updates" in whole.warning
    ahead = chaotic(unroll=5, lookahead=20)[0]
    assert ahead.over_window == pytest.approx(2.0**20, rel=0.5)
    assert ahead.warning is not None
    assert chaotic(Bootstrapped(), unroll=5, lookahead=20)[0].warning is None


@pytest.mark.parametrize("optimizer", [Logistic(), ByGradient()])
@pytest.mark.parametrize("horizon", [1, 3])
def test_trajectories_that_restart_all_the_time(horizon, optimizer):
    found = chaotic(unroll=1, horizon=horizon, optimizer=optimizer)[0]
    assert found.growth.value == pytest.approx(math.log(2), abs=0.35)  # from uniform starts, not from the map's own
    assert found.over_horizon == pytest.approx(math.exp(horizon * found.growth.value))


def test_perturbations_align_before_they_count():
    """One window of ten updates from a random direction would be off by the cosine to the slowest one, over ten."""
    level = Level(optimizer=SGD(lr=0.9), unroll=10, horizon=None, batch=16)
    (found,) = run(Bowl(curvatures=(2.0, *[0.5] * 10)), level, steps=0, windows=1)
    assert found.growth.value == pytest.approx(math.log(0.8), abs=0.02)


def test_what_vanishes_contracts_and_hidden_variables_are_perturbed_and_stay_possible():
    vanished = chaotic(optimizer=Forgets())[0]
    assert vanished.verdict == "contracting"
    assert vanished.growth.value == pytest.approx(math.log(torch.finfo(torch.float64).eps) / 2, rel=0.01)
    assert chaotic(optimizer=Hidden())[0].growth.value == pytest.approx(math.log(2), abs=0.02)
    for dtype in ("float32", "float64"):
        assert chaotic(optimizer=Fading(), dtype=dtype)[0].verdict == "contracting"
    assert abs(probe_of("quadratic(dims=4): adam(lr=0.1)@20[batch=8] / sgd", windows=5)[0].growth.value) < 0.5


@pytest.mark.parametrize("pair", [("first-order", "pes"), ("mix(first-order, pes)", "nres")], ids=str)
def test_depth_three_with_estimators_of_all_kinds(pair):
    lstm = "quadratic(3): lstm(hidden=3, layers=1)@3[batch=2, gradient={}]"
    found = probe_of(f"{lstm} / sgd@2[batch=2, gradient={{}}, horizon=4] / adam".format(*pair), steps=1, windows=2)
    assert [(each.level, each.unroll) for each in found] == [(1, 3), (2, 2), (3, 1)]
    assert all(each.growth.low <= each.growth.value <= each.growth.high for each in found)
    assert [each.in_gradient is None for each in found[:2]] == [gradient != "first-order" for gradient in pair]


def test_growth_two_levels_up():
    """SGD on the step size of an SGD, in closed form: from x, one update costs L(a) = h (x - a h x)^2 / 2.

    With unroll and horizon 1 every window starts at the same x, so the rate at level 2 is log|1 - lr d^2L/da^2|, where
    d^2L/da^2 = h (h x)^2.
    """
    h, x, lr = 1.0, 0.8, 0.5
    bottom = Level(optimizer=SGD(lr=Linear(0.3)), unroll=1, horizon=1, batch=1)
    above = Level(optimizer=SGD(lr=lr), unroll=5, horizon=None)
    found = run(Bowl(curvatures=(h,), at=x), bottom, above, steps=1, windows=6)
    assert found[1].growth.value == pytest.approx(math.log(abs(1 - lr * h * (h * x) ** 2)), abs=1e-6)


def test_what_the_level_below_carries_is_perturbed_too():
    """Level 1 adds r to x, level 2 moves r down the slope: (r, x) <- (r - c (x + r), x + r) with c = lr h = 4.5.

    That has the eigenvalues -2 and -1/2. If x were shared, r alone would be multiplied by 1 - c = -3.5.
    """
    bottom = Level(optimizer=Drifts(0.1), unroll=1, horizon=None, batch=1)
    found = run(Bowl(curvatures=(1.0,)), bottom, Level(optimizer=SGD(lr=4.5), unroll=5, horizon=None), windows=6)
    assert found[1].growth.value == pytest.approx(math.log(2), abs=1e-4)


def test_black_boxes_are_probed():
    """RMSprop as torch has it, which nothing here differentiates, against this project's own."""
    text = "quadratic(dims=3, dtype=float64): {}@4[batch=3, horizon=8, gradient=pes] / sgd"
    box, own = (probe_of(text.format(name), windows=4)[0]
                for name in ("torch(RMSprop, lr=0.05, differentiable=false)", "rmsprop(lr=0.05)"))  # fmt: skip
    assert box.growth.value == pytest.approx(own.growth.value, abs=0.05)


def test_nothing_is_changed_the_same_seed_gives_the_same_numbers_and_progress_ends():
    tower, calls = parse(SMALL), []
    state = after(tower, 1)
    before = map_leaves(torch.clone, state)
    one, two, other = (probe(tower, state, windows=2, seed=seed, progress=lambda *what: calls.append(what))
                       for seed in (3, 3, 4))  # fmt: skip
    assert one == two
    assert one[0].growth != other[0].growth
    assert_same(state, before)
    shares = [share for _, share in calls[: len(calls) // 3]]
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1)
    assert {what for what, _ in calls} == {"level 1 of 2", "level 2 of 2"}


def test_diverging_copies_are_not_counted_and_what_cannot_be_counted_is_unknown(tmp_path):
    """In the second tower the first update of level 2 takes r to where every orbit escapes, in the same window."""
    level = Level(optimizer=SGD(lr=50.0), unroll=100, horizon=400, batch=2)
    (diverging,) = run(Bowl(curvatures=(2.0,)), level, steps=0, windows=4)
    assert diverging.growth.value == pytest.approx(math.log(99), abs=0.05)
    level = Level(optimizer=Logistic(), unroll=20, horizon=20, batch=4)
    first, second = run(Bowl(curvatures=(1.0,)), level, Level(optimizer=SGD(lr=1e300)), steps=0, windows=2)
    assert first.growth.value == pytest.approx(math.log(2), abs=0.2)
    assert (second.verdict, math.isnan(second.growth.value)) == ("unknown", True)
    assert second.advice.startswith("all copies restarted or were not finite; probe more windows")
    write([first, second], "bowl", tmp_path, Console(file=io.StringIO()))


def test_mistakes_are_one_sentence():
    state = parse(SMALL).init(0)
    for windows in (0, -1, 1.5, True):
        with pytest.raises(ValueError, match=r"^windows must be a whole number of at least 1, got"):
            probe(parse(SMALL), state, windows=windows)
    for other in ("quadratic(dims=3): sgd@5[batch=2] / adam", "quadratic(dims=3): adam", SMALL + " / sgd"):
        with pytest.raises(ValueError, match=r"^the state is of another tower than .*; give the one"):
            probe(parse(other), state)


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["probe", SMALL, "--windows", "2", "--steps", "1"]) == 0
    told = capsys.readouterr()
    assert "growth [95%]" in told.out
    assert "warning" not in told.err
    (picture,) = (tmp_path / "runs").glob("*-probe/probe.png")
    assert f"written to {picture.parent.relative_to(tmp_path)}: probe.png" in told.out
    wild = "quadratic(1, dtype=float64): sgd(lr=10.0)@20[gradient=exact, horizon=20, batch=16] / sgd(lr=1e-100)"
    assert cli.main(["probe", wild, "--windows", "2", "--steps", "1"]) == 0
    assert "tower: warning: level 1 (sgd" in capsys.readouterr().err
    assert cli.main(["train", SMALL, "--steps", "2", "--out", "a", "--no-eval"]) == 0
    for words, folder in (([], "a"), (["--out", "b"], "b")):
        assert cli.main(["probe", "a", "--windows", "1", *words]) == 0
        assert (tmp_path / folder / "probe.png").exists()


@pytest.mark.parametrize(("words", "says"), [
    ([], "RUN_OR_TOWER"),
    (["nowhere"], "cannot read nowhere/checkpoint.safetensors: No such file"),
    (["kubic: adam"], "kubic"),
    (["missing.json"], "cannot read missing.json"),
    ([SMALL, "--windows", "0"], "at least 1, got '0'"),
    (["a", "--steps", "3"], "--steps is for a tower that is not trained yet"),
])  # fmt: skip
def test_mistakes_at_the_command_line(words, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tower = parse(SMALL)
    (tmp_path / "a").mkdir()
    checkpoint.save(tmp_path / "a" / "checkpoint.safetensors", tower, tower.init(0), seed=0)
    assert cli.main(["probe", *words]) == 2
    *_, line = capsys.readouterr().err.splitlines()
    assert line.startswith("tower: error: ")
    assert says in line
