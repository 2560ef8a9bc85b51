"""The optimizers that are compared, what may be tuned in each, and one sampler."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import optax
from optax import contrib
from scipy.stats import qmc

from benchmarks import peers
from metalr_optax import (
    linspace_kernels,
    logspace_kernels,
    memory_adam,
    memory_sgd,
    paper_adam,
    paper_sgd,
)

BOUND = 2.0
MODELS = 20
BASE_RATES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
USUAL = {"rate": 1e-3}
_STARTS = {"memory_adam": {"rate": 1e-4}}  # of the library; those of others are usual


def own_parameters(state: Any, params: Any) -> Any:
    """Return the parameters that are trained: those that most methods judge."""
    return params


class Method(NamedTuple):
    """An optimizer of one or two numbers."""

    name: str
    make: Callable[..., optax.GradientTransformation]
    space: dict[str, tuple[float, float]]  # log-uniform, one range for every number
    default: dict[str, float]  # the fixed setting
    judged: Callable[[Any, Any], Any] = own_parameters
    has_memory: bool = False
    label: str = ""  # in tables


def _tuned(name: str, label: str, make: Any, *rates: float) -> Method:
    """Return a method of one rate: the lowest, the highest and the fixed."""
    low, high, rate = rates
    return Method(name, make, {"rate": (low, high)}, {"rate": rate}, label=label)


def paper_rule(optimizer: Any, num: int, step: Callable[[Any], Any]) -> Any:
    """Return how the paper's rule is made: `num` local models a layer."""
    kernels = linspace_kernels(BOUND, num)
    return lambda rate, meta: optimizer(
        initial=rate, kernels=kernels, memory_optimizer=step(meta)
    )


def _paper(name: str, label: str, num: int, highest_meta: float) -> Method:
    """Return the paper's rule, rates stepped by Adam."""
    optimizer = paper_sgd if name.startswith("paper_sgd") else paper_adam
    space = {"rate": (1e-5, 1e-1), "meta": (1e-4 * highest_meta, highest_meta)}
    default, make = {"rate": 1e-3, "meta": 1e-2}, paper_rule(optimizer, num, optax.adam)
    return Method(name, make, space, default, has_memory=True, label=label)


def _momentum(rate: Any) -> optax.GradientTransformation:
    return optax.sgd(rate, momentum=0.9)


def _mechanic(rate: Any) -> optax.GradientTransformation:
    return contrib.mechanize(optax.adam(rate))


_ALL = (
    _tuned("sgd", "SGD", optax.sgd, 1e-4, 10.0, 1e-3),
    _tuned("momentum", "SGD, momentum .9", _momentum, 1e-5, 1.0, 1e-2),
    _tuned("adam", "Adam", optax.adam, 1e-5, 1e-1, 1e-3),
    _paper("paper_sgd", "**paper_sgd**, M=20", MODELS, 1.0),
    _paper("paper_sgd_m1", "paper_sgd, M=1", 1, 1.0),
    _paper("paper_adam", "**paper_adam**, M=20", MODELS, 0.1),
    _paper("paper_adam_m1", "paper_adam, M=1", 1, 0.1),
    _tuned("prodigy", "Prodigy", contrib.prodigy, 1e-2, 1e2, 1.0),
    _tuned("dowg", "DoWG", contrib.dowg, 1e-2, 1e2, 1.0),
    _tuned("mechanize", "Mechanic on Adam", _mechanic, 1e-2, 1e2, 1.0),
    _tuned(
        *("schedule_free", "Schedule-free AdamW", contrib.schedule_free_adamw),
        *(2.5e-5, 2.5e-1, 2.5e-3),
    )._replace(judged=contrib.schedule_free_eval_params),
    _tuned("rprop", "RPROP (corrected)", peers.rprop, 1e-5, 1e-1, 1e-3),
    Method(
        "hypergradient",
        peers.hypergradient_adam,
        {"rate": (1e-5, 1e-1), "meta": (1e-8, 1e-2)},
        {"rate": 1e-3, "meta": 1e-7},
        label="Adam, hypergradient",
    ),
)
METHODS = {method.name: method for method in _ALL}
BASELINES = ("sgd", "momentum", "adam")
WITH_MEMORY = tuple(name for name, method in METHODS.items() if method.has_memory)
# What runs in the suite as it comes.
PEERS = ("prodigy", "dowg", "mechanize", "schedule_free", "paper_sgd", "paper_adam")


def _ours(name: str, label: str, **arguments: Any) -> Method:
    optimizer: Any = memory_adam if name.startswith("memory_adam") else memory_sgd

    def make(rate: Any) -> optax.GradientTransformation:
        return optimizer(initial=rate, **arguments)

    return Method(name, make, {}, _STARTS.get(name, USUAL), label=label)


_MANY = {"kernels": logspace_kernels(8.0, 20, smallest=0.02)}
_FEW = {"evidence_sample": 256}  # coordinates of a tensor that give evidence
LIBRARY = {
    method.name: method
    for method in (
        _ours("memory_adam", "**memory_adam**"),
        _ours("memory_sgd", "**memory_sgd**"),
        _ours("memory_sgd_m21", "memory_sgd, M=21", **_MANY),
        _ours("memory_adam_m21", "memory_adam, M=21", **_MANY),
        _ours(
            *("memory_sgd_m21_sampled", "memory_sgd, M=21, 256 in the sample"),
            **(_MANY | _FEW),
        ),
        _ours("memory_adam_sampled", "memory_adam, 256 in the sample", **_FEW),
    )
}
# Defaults, run from every base rate that they take, then variants of them.
OURS = {"memory_adam": BASE_RATES[:-1], "memory_sgd": BASE_RATES}
VARIANTS = tuple(name for name in LIBRARY if name not in OURS)
LABELS = {name: method.label for name, method in (METHODS | LIBRARY).items()}
# Okabe and Ito's palette, brown for its yellow: told apart by colour-blind readers too.
COLORS = {
    "adam": "#0072B2",
    "momentum": "#000000",
    "sgd": "#999999",
    "memory_adam": "#E69F00",
    "memory_sgd": "#009E73",
    "paper_adam": "#D55E00",
    "paper_sgd": "#117733",
    "prodigy": "#CC79A7",
    "mechanize": "#56B4E9",
    "dowg": "#AA4499",
    "schedule_free_adamw": "#8C6D31",
}


def plain(label: str) -> str:
    """Return a label without the stars that make it bold in Markdown."""
    return label.replace("**", "")


def sample_settings(method: Method, trials: int) -> list[dict[str, float]]:
    """Return the first settings of Halton's sequence, log-uniform over the space.

    The first trial is the middle of the first range. All methods share the sequence.
    """
    sequence = qmc.Halton(len(method.space), scramble=False)
    sequence.fast_forward(1)  # the point 0
    low, high = np.log(list(method.space.values())).T
    points = np.exp(low + sequence.random(trials) * (high - low))
    # Four digits, so that the raw rows say exactly what was run.
    return [
        {name: float(f"{x:.4g}") for name, x in zip(method.space, point, strict=True)}
        for point in points
    ]
