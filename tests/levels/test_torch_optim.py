"""TorchOptim against torch's own optimizers: every class of torch.optim runs, or is refused with its reason.

Oracles: the trajectory of torch's class over the same tensors, one param group for each tensor, and central
differences of that trajectory's end in each stored hyperparameter.
"""

import math
from collections.abc import Iterator

import higher
import pytest
import torch
from torch import nn

from levels import SGD, Adam, Fixed, Layout, Level, Linear, Log, Logit, Quadratic, TorchOptim
from levels.optimizers import torch_rules
from levels.optimizers.torch_names import classes
from levels.replay import update_vjp
from levels.testing import check_optimizer
from levels.tree import leaves, map_leaves
from recursion import Tower, spec
from recursion.notation import parse

BELOW = Layout.of({"weight": (2, 2), "bias": (2,), "scale": ()}, torch.float64)
MATRICES = Layout.of({"tall": (3, 1), "square": (2, 2)}, torch.float64)
N = 7
PER = "tensor"
RATES = (Logit(0.5, PER), Linear(0.7, PER))

# What each class is tried with; the first with torch's defaults.
CASES = {
    "adadelta": [{}, {"lr": Log(0.5, PER), "rho": Logit(0.7, PER), "eps": Log(1e-3, PER), "weight_decay": 0.1},
                 {"maximize": True}],
    "adafactor": [{}, {"lr": Log(0.05, PER), "weight_decay": Linear(0.1), "d": 2.0, "maximize": True}],
    "adagrad": [{}, {"lr": Log(0.1, PER), "lr_decay": 0.1, "initial_accumulator_value": Log(0.3, PER), "eps": 0.01,
                     "weight_decay": 0.1}],
    "adam": [{}, {"lr": Log(0.1, PER), "betas": RATES, "eps": Log(0.01, PER), "weight_decay": Log(0.1, PER)},
             {"lr": 0.1, "betas": (0.7, 0), "eps": Fixed(1e-3), "amsgrad": True, "maximize": True},
             {"lr": 0.1, "betas": (0, 0.9), "weight_decay": 0.3, "decoupled_weight_decay": True, "amsgrad": True}],
    "adamax": [{}, {"lr": Log(0.1, PER), "betas": RATES, "eps": Log(0.01, PER), "weight_decay": 0.1, "maximize": True}],
    "adamw": [{}, {"lr": Log(0.1, PER), "betas": RATES, "weight_decay": Log(0.3, PER), "amsgrad": True}],
    "asgd": [{}, {"lr": Log(0.1, PER), "lambd": Log(0.2, PER), "alpha": Log(0.6, PER), "t0": 4, "weight_decay": 0.1}],
    "lbfgs": "it asks for the loss several times a step and remembers more with every step",
    "muon": [{}, {"lr": Log(0.1, PER), "momentum": Logit(0.5, PER), "nesterov": False, "weight_decay": 0.2}],
    "nadam": [{}, {"lr": Log(0.1, PER), "betas": RATES, "eps": Log(0.01, PER), "momentum_decay": Log(0.2, PER)},
              {"lr": 0.1, "weight_decay": Log(0.2, PER), "decoupled_weight_decay": True, "maximize": True}],
    "radam": [{}, {"lr": Log(0.1, PER), "betas": (0.8, Logit(0.95, PER)), "eps": Log(0.01, PER), "weight_decay": 0.1},
              {"lr": 0.1, "betas": (0.9, 0.5), "weight_decay": 0.2, "decoupled_weight_decay": True, "maximize": True}],
    "rmsprop": [{}, {"lr": Log(0.1, PER), "alpha": Logit(0.7, PER), "eps": Log(0.1, PER), "weight_decay": 0.1},
                {"lr": 0.01, "alpha": 0.8, "centered": True, "momentum": Logit(0.6, PER), "maximize": True}],
    "rprop": [{}, {"lr": Log(0.1, PER), "etas": (Logit(0.6, PER), Log(1.3, PER)), "maximize": True},
              {"lr": 0.1, "step_sizes": (Log(0.08, PER), Log(0.13, PER))}],
    "sgd": [{}, {"lr": Log(0.05, PER), "momentum": Logit(0.9, PER), "weight_decay": Linear(0.1, PER)},
            {"lr": 0.05, "momentum": 0.8, "dampening": Linear(0.3, PER), "maximize": True},
            {"lr": 0.05, "momentum": 0.8, "nesterov": True, "foreach": False}],
    "sparseadam": "it takes sparse gradients only; use adam",
}  # fmt: skip
BLACK = ("adafactor", "muon")
RUNS = [
    (name, case) for name, cases in CASES.items() if isinstance(cases, list) and name in classes() for case in cases
]
RULES = [TorchOptim(name, **case) for name, case in RUNS]
SMOOTH = [rule for rule in RULES if rule.algorithm not in BLACK]


@pytest.fixture(autouse=True)
def _float64() -> Iterator[None]:
    """torch's ASGD and NAdam keep some of their numbers in the default dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


HESSIAN = random(N, N, seed=1) @ random(N, N, seed=1).T / N


def lay(rule):
    return rule.bind(MATRICES if rule.algorithm == "muon" else BELOW)


def shaken(rule):
    """Parameters that differ from one hyperparameter entry to the next."""
    params = rule.init(torch.tensor(0))
    return params * (1 + 0.1 * random(*params.shape, seed=2).clamp(-1, 1))


def torch_values(rule, params):
    """The hyperparameters of each tensor as plain numbers, reading the flat parameters by hand."""
    tensors = len(rule.param_layout.entries)
    values, position = [{} for _ in range(tensors)], 0
    for name, hyper in rule.hypers.items():
        if isinstance(hyper, Fixed):
            for one in values:
                one[name] = hyper.start
            continue
        turn = {"linear": float, "log": math.exp, "logit": lambda raw: 1 / (1 + math.exp(-raw))}[hyper.name]
        count = tensors if hyper.shared_over == "tensor" else 1
        stored = params[position : position + count].tolist()
        position += count
        for one, raw in zip(values, stored if count == tensors else stored * tensors):
            one[name] = turn(raw)
    assert position == len(params)
    return values


def torch_group(rule, values):
    """Settings of torch's optimizer for one tensor."""
    group = {name: given for name, given in rule.settings if name not in ("maximize", "foreach")}
    for name, value in values.items():
        key, _, item = name.partition(".")
        if not item:
            group[key] = value
            continue
        pair = list(group.get(key, torch_defaults(rule.kind)[key]))
        pair[int(item)] = value
        group[key] = tuple(float(one) if isinstance(one, int) else one for one in pair)
    return group


def torch_path(rule, params, x, grad, steps):
    """The trajectory of torch's own optimizer over one copy ``[n]``, a param group a tensor: ``[steps, n]``."""
    tensors = [nn.Parameter(view.clone()) for view in rule.param_layout.unravel(x).values()]
    groups = [torch_group(rule, values) for values in torch_values(rule, params)]
    maximize = {name: given for name, given in rule.settings if name == "maximize"}
    optimizer = rule.kind([{"params": [tensor], **group} for tensor, group in zip(tensors, groups)], **maximize)
    for tensor, group in zip(tensors, groups):
        if "initial_accumulator_value" in group:  # torch reads the constructor's only
            optimizer.state[tensor]["sum"].fill_(group["initial_accumulator_value"])
    path = []
    for t in range(steps):
        at = torch.cat([tensor.detach().flatten() for tensor in tensors])
        for tensor, slope in zip(tensors, rule.param_layout.unravel(grad(t, at)).values()):
            tensor.grad = slope.clone()
        optimizer.step()
        path.append(torch.cat([tensor.detach().flatten() for tensor in tensors]))
    return torch.stack(path)


def torch_defaults(kind):
    return kind([nn.Parameter(torch.zeros(2, 2))]).defaults


def slope_through(rule, params, start, grads, end_slope):
    """The loss's slope in params, through all steps, g being data; ``start`` ``[n]``."""
    leaf, x = params.clone().requires_grad_(), start[None]
    state = rule.init_state(leaf, x, None)
    for g in grads:
        x, state = rule.update(leaf, x, state, torch.zeros(1), g[None])
    return torch.autograd.grad(x, leaf, end_slope(x.detach()))[0]


def test_every_class_of_torch_is_here():
    assert set(classes()) <= set(CASES), "torch has new optimizers: say here what they are tried with, or why not"
    assert {rule.algorithm for rule in RULES} | {"lbfgs", "sparseadam"} == set(classes())
    for rule in RULES:
        assert rule.traits.differentiable == (rule.algorithm not in BLACK)


@pytest.mark.parametrize("name", [name for name, cases in CASES.items() if isinstance(cases, str)])
def test_refused_classes_say_why(name):
    with pytest.raises(ValueError) as caught:
        TorchOptim(name)
    assert str(caught.value) == f"torch({name}): {classes()[name].__name__} cannot run as a level: {CASES[name]}"


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_trajectories_equal_those_of_torch(rule):
    rule = lay(rule)
    params, x = shaken(rule), random(3, N, seed=3)
    expected = torch.stack([torch_path(rule, params, row, lambda t, at: HESSIAN @ at, 20) for row in x], 1)
    state = rule.init_state(params, x, None)
    for t in range(20):
        g = x @ HESSIAN
        x, state = rule.update(params, x, state, (x * g).sum(-1) / 2, g)
        assert torch.allclose(x, expected[t], rtol=1e-10, atol=1e-10), f"step {t + 1}"


@pytest.mark.parametrize("rule", SMOOTH, ids=str)
def test_hypergradients_equal_differences_of_runs_of_torch(rule):
    """With recorded gradients (so g is data), the loss where torch's optimizer ends, as a function of raw params."""
    rule = lay(rule)
    params, start, grads = shaken(rule), random(N, seed=3), random(10, N, seed=4)
    assert len(params) > 0

    def final_loss(raw):
        end = torch_path(rule, raw, start, lambda t, at: grads[t], 10)[-1]
        return float(end @ HESSIAN @ end) / 2

    slopes, width, seen = slope_through(rule, params, start, grads, lambda x: x @ HESSIAN), 1e-5, 0.0
    for i in range(len(params)):
        moved = torch.zeros_like(params)
        moved[i] = width
        measured = (final_loss(params + moved) - final_loss(params - moved)) / (2 * width)
        assert float(slopes[i]) == pytest.approx(measured, rel=1e-6, abs=2e-9), rule.layout.entries
        seen += abs(measured)
    assert seen > 1e-4


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_each_copy_counts_its_own_steps(rule):
    """A copy that starts afresh beside one that has run for 6 steps: both go on as they would alone."""
    rule = lay(rule)
    params, old, new = shaken(rule), random(1, N, seed=3), random(1, N, seed=5)
    old_state, new_state = rule.init_state(params, old, None), rule.init_state(params, new, None)
    for t in range(6):
        old, old_state = rule.update(params, old, old_state, torch.zeros(1), random(1, N, seed=10 + t))
    x, state = torch.cat((old, new)), map_leaves(lambda *pair: torch.cat(pair), old_state, new_state)
    for t in range(7):
        g = random(2, N, seed=20 + t)
        x, state = rule.update(params, x, state, torch.zeros(2), g)
        old, old_state = rule.update(params, old, old_state, torch.zeros(1), g[:1])
        new, new_state = rule.update(params, new, new_state, torch.zeros(1), g[1:])
    assert torch.allclose(x, torch.cat((old, new)), rtol=1e-12, atol=1e-13)
    assert state.t.tolist() == [13, 7]


@pytest.mark.parametrize("rule", [rule for rule, (_, case) in zip(RULES, RUNS) if not case], ids=str)
def test_conformance(rule):
    """Torch's defaults. Eight updates, for RAdam reads beta2 from the sixth on only."""
    below = MATRICES if rule.algorithm == "muon" else BELOW
    steps = 8 if rule.algorithm == "radam" else 3
    check_optimizer(rule, param_layout=below, steps=steps)


CONFORMING = [
    TorchOptim("sgd", momentum=Log(0.9, PER), dampening=0.3, weight_decay=0.1),
    TorchOptim("adam", betas=(0, Logit(0.9, "coordinate")), eps=0.1, amsgrad=True, weight_decay=0.1),
    TorchOptim("rmsprop", centered=True, momentum=0.9, maximize=True),
    TorchOptim("muon", lr=Log(0.1, PER), weight_decay=0.2),
]


@pytest.mark.parametrize("rule", CONFORMING, ids=str)
def test_conformance_with_options(rule):
    below = MATRICES if rule.algorithm == "muon" else BELOW
    check_optimizer(rule, param_layout=below, steps=3)


@pytest.mark.parametrize("name", sorted({rule.algorithm for rule in SMOOTH}))
def test_second_derivatives_are_finite_where_a_gradient_is_always_0(name):
    """Exact gradients ask for them; with higher's own Adagrad they are nan."""
    rule = TorchOptim(name).bind(BELOW)
    params, x = rule.init(torch.tensor(0)).requires_grad_(), random(2, N, seed=3)
    state = rule.init_state(params, x, None)
    for t in range(7):
        g = (random(2, N, seed=10 + t) * (torch.arange(N) > 0)).requires_grad_()
        firsts = update_vjp(rule, params, x, state, torch.zeros(2), g, torch.ones_like(x), [])
        slopes = [one for one in leaves(list(firsts)) if one is not None]
        seconds = torch.autograd.grad(
            sum(one.sum() for one in slopes if one.requires_grad), (params, g), allow_unused=True
        )
        found = [*slopes, *(one for one in seconds if one is not None)]
        assert all(bool(torch.isfinite(one).all()) for one in found), f"step {t + 1}"
        with torch.no_grad():
            x, state = rule.update(params, x, state, torch.zeros(2), g)


def test_a_number_of_0_is_left_out_and_linear_0_is_learned():
    assert list(TorchOptim("sgd", momentum=0, weight_decay=0.0).hypers) == ["lr"]
    assert list(TorchOptim("adamw", betas=(0, 0.9), weight_decay=0).hypers) == ["lr", "betas.1", "eps"]
    rule = TorchOptim("sgd", lr=Fixed(0.1), momentum=Linear(0), weight_decay=Linear(0)).bind(BELOW)
    assert list(rule.hypers) == ["lr", "momentum", "weight_decay"]
    params, start, grads = rule.init(torch.tensor(0)), random(N, seed=3), random(6, N, seed=4)
    slopes = slope_through(rule, params, start, grads, lambda x: x @ HESSIAN)

    def final_loss(momentum, decay):
        tensor = nn.Parameter(start.clone())
        optimizer = torch.optim.SGD([tensor], 0.1, momentum=momentum, weight_decay=decay)
        for g in grads:
            tensor.grad = g.clone()
            optimizer.step()
        return float(tensor.detach() @ HESSIAN @ tensor.detach()) / 2

    base, width = final_loss(0, 0), 1e-7  # torch takes no number below 0
    measured = [(final_loss(width, 0) - base) / width, (final_loss(0, width) - base) / width]
    assert slopes.tolist() == pytest.approx(measured, rel=1e-5)


def test_a_whole_problem_and_single_coordinates_share_hyperparameters_too():
    x, g = random(2, N, seed=3), random(2, N, seed=4)
    for per in ("value", "coordinate"):
        settings = {"lr": Log(0.1, per), "betas": (Logit(0.8, per), Logit(0.9, per)), "eps": Log(0.01, per)}
        ours = Adam(lr=Log(0.1, per), beta1=Logit(0.8, per), beta2=Logit(0.9, per), eps=Log(0.01, per)).bind(BELOW)
        rule = TorchOptim("adam", **settings).bind(BELOW)
        params = shaken(rule)
        expected, theirs = ours.update(params, x, ours.init_state(params, x, None), torch.zeros(2), g)
        new, state = rule.update(params, x, rule.init_state(params, x, None), torch.zeros(2), g)
        assert torch.allclose(new, expected, rtol=1e-13)
        assert torch.allclose(state.slots["exp_avg_sq"], theirs.v, rtol=1e-13)


def test_centered_rmsprop_has_finite_hypergradients_behind_dead_units():
    """higher's own gives nan there."""
    rule = TorchOptim("rmsprop", centered=True, momentum=0.9).bind(Layout.of({"x": (2,)}))
    params, x = rule.init(torch.tensor(0)), torch.ones(1, 2, dtype=torch.float32)
    state = rule.init_state(params, x, None)
    for _ in range(3):
        g = torch.tensor([[0.0, 1.0]], dtype=torch.float32)
        slope, *_ = update_vjp(rule, params.requires_grad_(), x, state, x[:, 0], g, torch.ones_like(x), [])
        assert torch.isfinite(slope).all()
        params = params.detach()
        x, state = rule.update(params, x, state, x[:, 0], g)
    assert x[0, 0] == 1.0
    assert x[0, 1] < 1.0


@pytest.mark.parametrize("name", sorted({rule.algorithm for rule in SMOOTH}))
def test_the_rules_serve_higher_as_well(name):
    """From a torch optimizer that has stepped already, in an ordinary loop of higher's."""
    torch_rules.register()
    tensor = nn.Parameter(random(N))
    optimizer = classes()[name]([tensor], lr=0.1, **({} if name == "rprop" else {"weight_decay": 0.1}))
    for t in range(8):
        if t == 2:
            differentiable = higher.get_diff_optim(optimizer, [tensor])
            fast = [tensor.detach().clone().requires_grad_()]
        tensor.grad = HESSIAN @ tensor.detach()
        optimizer.step()
        if t >= 2:
            fast = differentiable.step(fast[0] @ HESSIAN @ fast[0] / 2, params=fast)
    assert torch.allclose(fast[0], tensor, rtol=1e-12, atol=1e-12)
    assert fast[0].requires_grad


# Options, names, towers.


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("torch", "torch is missing its setting algorithm, a word or a Python object"),
        ("torch(sgdd)", "torch: torch.optim has no 'sgdd'; it has adadelta, ada"),
        ("torch(math.pi)", "torch: math.pi is not a subclass of torch.optim.Optimizer"),
        ("torch(no.Such)", "torch: cannot import 'no' (No module named 'no'); install it or put it on PYTHONPATH"),
        ("torch(sgd, lrr=1)", "torch(sgd, lrr=1): SGD has no setting 'lrr'; it has lr, momentum, dampening, weight_d"),
        ("torch(sgd, lr=0)", "torch(sgd, lr=0): lr=0 cannot be learned in log; use linear(0)"),
        ("torch(sgd, momentum=-1)", "torch(sgd, momentum=-1): momentum=-1 cannot be learned in logit; use linear(-1)"),
        ("torch(sgd, lr=fast)", "torch(sgd, lr=fast): lr must be a number, got fast"),
        ("torch(adam, betas=0.9)", "torch(adam, betas=0.9): betas must be a list of 2, got 0.9"),
        ("torch(adam, betas=[0.9])", "torch(adam, betas=[0.9]): betas must be a list of 2, got [0.9]"),
        ("torch(adam, lr=[0.9])", "torch(adam, lr=[0.9]): lr must be one value, got [0.9]"),
        ("torch(adam, amsgrad=1)", "torch(adam, amsgrad=1): amsgrad must be true or false, got 1"),
        ("torch(asgd, t0=log(3))", "torch(asgd, t0=log(3)): t0 cannot be learned; give it a plain value"),
        ("torch(sgd, nesterov=true)", "torch(sgd, nesterov=true): Nesterov momentum requires a momentum and zero damp"),
        *(
            (
                f"torch(adam, {name}=true)",
                f"torch(adam, {name}=true): {name} says how torch computes and has no place he",
            )
            for name in ("foreach", "fused", "capturable", "differentiable")
        ),
        (
            "torch(muon, lr=log(0.1, per=coordinate))",
            "torch(muon, lr=log(0.1, per=coordinate)): a black box has one lr for each tensor at most; use per=tensor",
        ),
        ("torch(muon)", "torch(muon) does not run over x[10]: Muon only supports 2D parameters whereas we found"),
    ],
)
def test_what_is_refused_by_name(text, sentence):
    with pytest.raises(ValueError) as caught:
        parse(f"quadratic: {text}")
    assert str(caught.value).startswith(f"level 1 ({text}")
    assert f": {sentence}" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [torch.tensor(0.1), {"a": 1}, lambda: 1])
def test_settings_that_cannot_be_written_down_are_refused(value):
    with pytest.raises(ValueError, match=r": lr must be a number, a word or a hyperparameter, got "):
        TorchOptim("sgd", lr=value)


@pytest.mark.parametrize(
    "text",
    [
        "torch(sgd)",
        "torch(adamw, lr=0.01, betas=[0.8, logit(0.95, per=tensor)], amsgrad=true, weight_decay=0)",
        "torch(rprop, etas=[0.5, log(1.1)])",
        "torch(adafactor, lr=log(0.01, per=tensor), eps=[none, 0.001])",
        "torch(torch.optim.sgd.SGD, lr=0.1)",
        'torch("AdamW")',
    ],
)
def test_notation_and_specs_round_trip(text):
    tower = parse(f"quadratic: sgd / {text}")
    assert parse(str(tower)).levels == tower.levels
    assert spec.loads(spec.dumps(tower)).levels == tower.levels
    assert hash(tower.levels[1]) == hash(parse(str(tower)).levels[1])
    if "torch.optim" not in text and '"' not in text:
        assert str(tower) == f"quadratic: sgd@1 / {text}"


def test_names_are_the_shortest_that_lead_back():
    assert (
        TorchOptim(torch.optim.NAdam, lr=0.1) == TorchOptim("NAdam", lr=0.1) == TorchOptim("torch.optim.NAdam", lr=0.1)
    )
    assert str(TorchOptim(Strange)) == f"torch({__name__}.Strange)"
    assert not TorchOptim(Strange).traits.differentiable, "a subclass may step otherwise"

    class Local(torch.optim.SGD):
        pass

    tower = Tower(Quadratic(), Level(optimizer=TorchOptim(Local, lr=0.1)))
    tower.step(tower.init(0))
    with pytest.raises(ValueError, match="a spec holds only numbers, words, lists and parts"):
        spec.dumps(tower)


class Strange(torch.optim.SGD):
    """Counts in plain numbers, in its state and in its group, and remembers its start."""

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            group["calls"] = group.get("calls", 0) + 1
            for tensor in group["params"]:
                memory = self.state[tensor]
                if not memory:
                    memory |= {"start": tensor.clone(), "rate": 1.0, "moved": False, "name": "strange"}
                memory["rate"] *= 0.5
                memory["moved"] = True
                step = group["calls"] * memory["rate"] * tensor.grad + 0.1 * memory["start"]
                tensor.sub_(group["lr"] * step)


class Fault(torch.optim.SGD):
    """What a black box cannot be; ``fault`` says which."""

    def __init__(self, params, lr=0.1, fault=""):
        super().__init__(params, lr)
        self.fault, self.calls = fault, 0

    def step(self, closure=None):
        tensor = self.param_groups[0]["params"][0]
        if self.fault == "hidden":
            self.calls += 1
        elif self.fault == "random":
            torch.rand(1)
        elif self.fault == "grows":
            self.state[tensor].setdefault("old", []).append(tensor.clone())
        elif self.fault == "object":
            self.state[tensor]["thing"] = object()
        elif self.fault == "late" and bool((tensor.grad > 5).any()):
            self.state[tensor]["late"] = 1
        elif self.fault == "global":
            self.state["all"] = 3
        elif self.fault == "closure":
            closure()


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ("hidden", "keeps calls where a copy's state cannot be read and put back"),
        ("global", "keeps all where a copy's state cannot be read and put back"),
        ("object", "keeps object where a copy's state cannot be read and put back"),
        ("random", "draws random numbers from torch's global generator; runs could not be repeated"),
        ("grows", "changes what it remembers from step to step"),
        ("closure", "does not run over x[3]: 'NoneType' object is not callable"),
    ],
)
def test_black_boxes_that_cannot_run_are_refused_when_laid(fault, sentence):
    generator = torch.get_rng_state()
    with pytest.raises(ValueError) as caught:
        TorchOptim(Fault, fault=fault).bind(Layout.of({"x": (3,)}))
    assert str(caught.value) == f"torch({__name__}.Fault, fault={fault}) {sentence}"
    assert torch.equal(torch.get_rng_state(), generator)


def test_a_black_box_that_remembers_something_new_later_is_refused_then():
    rule = TorchOptim(Fault, fault="late").bind(Layout.of({"x": (3,)}, torch.float64))
    params, x = rule.init(torch.tensor(0)), torch.ones(1, 3)
    _, state = rule.update(params, x, rule.init_state(params, x, None), torch.zeros(1), x)
    with pytest.raises(ValueError, match="remembers something else than at its first steps; it cannot run here"):
        rule.update(params, x, state, torch.zeros(1), 10 * x)


def test_a_black_box_remembers_numbers_groups_and_its_start():
    rule = TorchOptim(Strange, lr=Log(0.1)).bind(BELOW)
    params, x = rule.init(torch.tensor([0, 1])) + torch.tensor([[0.0], [1.0]]), random(2, 3, N)
    state = rule.init_state(params, x, None)
    rates = params.exp()[:, None]
    expected, start = x, x
    for t in range(1, 6):
        g = random(2, 3, N, seed=t)
        x, state = rule.update(params, x, state, torch.zeros(2, 3), g)
        expected = expected - rates * (t * 0.5**t * g + 0.1 * start)
        assert torch.allclose(x, expected, rtol=1e-13, atol=1e-13)
    assert {tuple(leaf.shape[:2]) for leaf in leaves(state)} == {(2, 3)}
    check_optimizer(TorchOptim(Strange, lr=Log(0.1, PER)), param_layout=BELOW)


def test_black_boxes_stand_at_the_top_and_not_where_a_gradient_passes():
    tower = Tower(Quadratic(4), Level(optimizer=SGD(lr=0.01)), Level(optimizer=TorchOptim(Strange, lr=0.01)))
    losses = [report.losses[0] for _, report in tower.run(tower.init(0), 5)]
    assert len(set(losses)) == 5
    with pytest.raises(ValueError, match=r"cannot be differentiated by first-order; let it be the topmost level"):
        Tower(Quadratic(4), Level(optimizer=TorchOptim(Strange)), Level(optimizer=SGD()))


THEIRS = [("Lion", {"lr": 0.05}), ("DAdaptAdam", {}), ("ScheduleFreeAdamW", {"lr": 0.1, "warmup_steps": 3})]


@pytest.mark.parametrize(("name", "settings"), THEIRS)
def test_optimizers_of_another_package_run_as_black_boxes(name, settings):
    """At the bottom of a tower and at its top, and step for step as they do alone."""
    theirs = getattr(pytest.importorskip("pytorch_optimizer"), name)
    mine = TorchOptim(theirs, **settings)
    assert str(mine).startswith(f"torch(pytorch_optimizer.{name}")
    assert not mine.differentiable
    for levels in ([mine], [SGD(lr=0.01), mine]):
        tower = Tower(Quadratic(4), *(Level(optimizer=optimizer) for optimizer in levels))
        losses = [report.losses[0] for _, report in tower.run(tower.init(0), 8)]
        assert len(set(losses)) > 4
        assert parse(str(Tower(Quadratic(4), *tower.levels))).levels == tower.levels
    rule, x = mine.bind(BELOW), random(2, N, seed=3)
    params = rule.init(torch.tensor(0))
    expected = torch.stack([torch_path(rule, params, row, lambda t, at: HESSIAN @ at, 20) for row in x], 1)
    state = rule.init_state(params, x, None)
    for t in range(20):
        x, state = rule.update(params, x, state, torch.zeros(2), x @ HESSIAN)
        assert torch.allclose(x, expected[t], rtol=1e-10, atol=1e-10), f"step {t + 1}"


def test_torchs_optimizers_train_each_other_in_a_tower():
    """The same tower of our own rules and of torch's, to rounding; copies restart at different times."""
    task = Quadratic(4, dtype="float64")
    ours = Tower(task, Level(optimizer=Adam(lr=0.05), unroll=4, batch=3), Level(optimizer=SGD(lr=0.01)))
    adam, sgd = TorchOptim("adam", lr=0.05), TorchOptim("sgd", lr=0.01)
    torchs = Tower(task, Level(optimizer=adam, unroll=4, batch=3), Level(optimizer=sgd))
    for (first, _), (second, _) in zip(ours.run(ours.init(0), 12), torchs.run(torchs.init(0), 12)):
        assert torch.allclose(first.carry.x, second.carry.x, rtol=1e-10)
        assert torch.allclose(first.carry.g, second.carry.g, rtol=1e-8, atol=1e-10)
