"""The optimizers that are compared, what may be tuned in each, and one sampler."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import optax
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


def own_parameters(state: Any, params: Any) -> Any:
    """Return the parameters that are trained: those that most methods judge."""
    del state
    return params


class Method(NamedTuple):
    """An optimizer of one or two numbers."""

    name: str
    make: Callable[..., optax.GradientTransformation]
    space: dict[str, tuple[float, float]]  # log-uniform, one range for every number
    default: dict[str, float]  # the fixed setting
    judged: Callable[[Any, Any], Any] = own_parameters
    has_memory: bool = False


def with_memory(
    optimizer: Callable[..., optax.GradientTransformation], num: int
) -> Callable[..., optax.GradientTransformation]:
    """The paper's rule: `num` local models to a layer, rates stepped by Adam."""
    return lambda rate, meta: optimizer(
        initial=rate,
        kernels=linspace_kernels(BOUND, num),
        memory_optimizer=optax.adam(meta),
    )


_SGD_SPACE = {"rate": (1e-5, 1e-1), "meta": (1e-4, 1.0)}
_ADAM_SPACE = {"rate": (1e-5, 1e-1), "meta": (1e-5, 1e-1)}
_MEMORY_DEFAULT = {"rate": 1e-3, "meta": 1e-2}

_ALL = (
    Method("sgd", optax.sgd, {"rate": (1e-4, 10.0)}, {"rate": 1e-3}),
    Method(
        "momentum",
        lambda rate: optax.sgd(rate, momentum=0.9),
        {"rate": (1e-5, 1.0)},
        {"rate": 1e-2},
    ),
    Method("adam", optax.adam, {"rate": (1e-5, 1e-1)}, {"rate": 1e-3}),
    Method(
        "paper_sgd",
        with_memory(paper_sgd, MODELS),
        _SGD_SPACE,
        _MEMORY_DEFAULT,
        has_memory=True,
    ),
    Method(
        "paper_sgd_m1",
        with_memory(paper_sgd, 1),
        _SGD_SPACE,
        _MEMORY_DEFAULT,
        has_memory=True,
    ),
    Method(
        "paper_adam",
        with_memory(paper_adam, MODELS),
        _ADAM_SPACE,
        _MEMORY_DEFAULT,
        has_memory=True,
    ),
    Method(
        "paper_adam_m1",
        with_memory(paper_adam, 1),
        _ADAM_SPACE,
        _MEMORY_DEFAULT,
        has_memory=True,
    ),
    Method("prodigy", optax.contrib.prodigy, {"rate": (1e-2, 1e2)}, {"rate": 1.0}),
    Method("dowg", optax.contrib.dowg, {"rate": (1e-2, 1e2)}, {"rate": 1.0}),
    Method(
        "mechanize",
        lambda rate: optax.contrib.mechanize(optax.adam(rate)),
        {"rate": (1e-2, 1e2)},
        {"rate": 1.0},
    ),
    Method(
        "schedule_free",
        optax.contrib.schedule_free_adamw,
        {"rate": (2.5e-5, 2.5e-1)},
        {"rate": 2.5e-3},
        judged=optax.contrib.schedule_free_eval_params,
    ),
    Method("rprop", peers.rprop, {"rate": (1e-5, 1e-1)}, {"rate": 1e-3}),
    Method(
        "hypergradient",
        peers.hypergradient_adam,
        {"rate": (1e-5, 1e-1), "meta": (1e-8, 1e-2)},
        {"rate": 1e-3, "meta": 1e-7},
    ),
)
METHODS = {method.name: method for method in _ALL}
BASELINES = ("sgd", "momentum", "adam")
WITH_MEMORY = tuple(name for name, method in METHODS.items() if method.has_memory)
LABELS = {
    "sgd": "SGD",
    "momentum": "SGD, momentum .9",
    "adam": "Adam",
    "paper_sgd": "**paper_sgd**, M=20",
    "paper_sgd_m1": "paper_sgd, M=1",
    "paper_adam": "**paper_adam**, M=20",
    "paper_adam_m1": "paper_adam, M=1",
    "prodigy": "Prodigy",
    "dowg": "DoWG",
    "mechanize": "Mechanic on Adam",
    "schedule_free": "Schedule-free AdamW",
    "rprop": "RPROP (corrected)",
    "hypergradient": "Adam, hypergradient",
}
BASE_RATES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
_MANY = logspace_kernels(8.0, 20, smallest=0.02)
_SAMPLE = 256  # coordinates of a tensor that give evidence


class Variant(NamedTuple):
    """One of our optimizers, and the base rates that it is tried from."""

    method: Method
    label: str
    rates: tuple[float, ...]


def _variant(
    name: str,
    label: str,
    make: Callable[[float], optax.GradientTransformation],
    rates: tuple[float, ...] = (1e-3,),
) -> Variant:
    return Variant(Method(name, make, {}, {"rate": 1e-3}), label, rates)


OURS = (
    _variant(
        "memory_adam",
        "**memory_adam**",
        lambda rate: memory_adam(initial=rate),
        BASE_RATES[:-1],
    ),
    _variant(
        "memory_sgd",
        "**memory_sgd**",
        lambda rate: memory_sgd(initial=rate),
        BASE_RATES,
    ),
)
VARIANTS = (
    _variant(
        "memory_sgd_m21",
        "memory_sgd, M=21",
        lambda rate: memory_sgd(initial=rate, kernels=_MANY),
    ),
    _variant(
        "memory_adam_m21",
        "memory_adam, M=21",
        lambda rate: memory_adam(initial=rate, kernels=_MANY),
    ),
    _variant(
        "memory_sgd_m21_sampled",
        f"memory_sgd, M=21, {_SAMPLE} in the sample",
        lambda rate: memory_sgd(initial=rate, kernels=_MANY, evidence_sample=_SAMPLE),
    ),
    _variant(
        "memory_adam_sampled",
        f"memory_adam, {_SAMPLE} in the sample",
        lambda rate: memory_adam(initial=rate, evidence_sample=_SAMPLE),
    ),
)


OURS_BY_NAME = {one.method.name: one for one in (*OURS, *VARIANTS)}


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
    return [
        # Four digits, so that the raw rows say exactly what was run.
        {
            name: float(f"{value:.4g}")
            for name, value in zip(method.space, point, strict=True)
        }
        for point in points
    ]
