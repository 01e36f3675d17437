"""What one level of a tower is, and everything it can be made of."""
# TEMPORARY while parts are being moved to the new interfaces: modules that do not import yet are skipped.
import importlib as _importlib

from levels import keys

_NAMES = {
    "levels.base": "Answer Carry Estimator EstimatorTraits LevelState Objective Optimizer OptimizerTraits Problem ProblemTraits Step Window",
    "levels.config": "Config", "levels.layout": "Layout", "levels.faults": "NonFinite NonFiniteError Skip Stop",
    "levels.objectives": "Discounted Last MeanLog Sum TimeTo Weighted", "levels.level": "Level",
    "levels.hyper": "Fixed Hyper HyperparamOptimizer Linear Log Logit hyper",
    "levels.schedules": "Constant Cosine Exponential LinearDecay Schedule Warmup",
    "levels.gradients.bootstrapped": "Bootstrapped", "levels.gradients.evolution": "NRES PES Antithetic ESSingle Evolution FullES TruncatedES",
    "levels.gradients.exact": "Exact", "levels.gradients.first_order": "Backpropagation FirstOrder", "levels.gradients.forward": "Forward",
    "levels.gradients.mixture": "Mix", "levels.gradients.online": "Online", "levels.gradients.recomputed": "Recomputed",
    "levels.optimizers.adagrad": "Adagrad", "levels.optimizers.adam": "Adam", "levels.optimizers.adamw": "AdamW",
    "levels.optimizers.partition": "Partition", "levels.optimizers.cma": "CMA", "levels.optimizers.ensemble": "Ensemble",
    "levels.optimizers.ga": "GA", "levels.optimizers.gated": "Gated", "levels.optimizers.guarded": "Guarded Self",
    "levels.optimizers.lstm": "LSTM", "levels.optimizers.mlp": "MLPOptimizer", "levels.optimizers.module": "ModuleOptimizer",
    "levels.optimizers.muon": "Muon", "levels.optimizers.self_update": "SelfUpdate", "levels.optimizers.random_search": "RandomSearch",
    "levels.optimizers.switch": "Switch", "levels.optimizers.rmsprop": "RMSprop", "levels.optimizers.rnnprop": "RNNProp",
    "levels.optimizers.safeguarded": "Safeguarded", "levels.optimizers.scheduled": "Scheduled", "levels.optimizers.search": "Search",
    "levels.optimizers.sgd": "SGD", "levels.optimizers.learned_init": "LearnedInit", "levels.optimizers.torch_optim": "TorchOptim",
    "levels.optimizers.wrap": "Wrapper", "levels.tasks.task": "LossTask Task", "levels.tasks.augmented": "Augmented",
    "levels.tasks.convnet": "ConvNet DigitsConvNet FashionConvNet MnistConvNet", "levels.tasks.few": "Few", "levels.tasks.held_out": "HeldOut",
    "levels.tasks.loader": "LoaderTask", "levels.tasks.logistic": "Logistic", "levels.tasks.mixture": "Mixture",
    "levels.tasks.mlp": "MLP DigitsMLP FashionMLP Mnist1dMLP MnistMLP", "levels.tasks.module": "ModuleTask",
    "levels.tasks.noisy_quadratic": "NoisyQuadratic", "levels.tasks.photo": "Photo", "levels.tasks.predicting": "Predicting",
    "levels.tasks.quadratic": "Quadratic", "levels.tasks.rosenbrock": "Rosenbrock", "levels.tasks.text": "Characters CharGRU CharTransformer",
}
_missing = {}
for _module, _words in _NAMES.items():
    try:
        _loaded = _importlib.import_module(_module)
        globals().update({_word: getattr(_loaded, _word) for _word in _words.split()})
    except Exception as _error:
        _missing[_module] = repr(_error)
