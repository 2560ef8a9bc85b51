"""A memory of a small network starts a larger one that learns the same digits."""

import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax

from benchmarks.harness.progress import counted
from benchmarks.harness.store import Store
from benchmarks.harness.sweep import (
    Trainer,
    averaged,
    change_each,
    in_threads,
    run_sweep,
)
from benchmarks.methods import BASELINES, METHODS, OURS, VARIANTS, Variant
from benchmarks.problems.networks import Cnn, Mlp
from benchmarks.problems.problem import Problem
from benchmarks.problems.tasks import digit_classes
from metalr_optax import adapt_memory, match_labels

STEM = "transfer"
FRESH = (1e-5, 1e-3)
EARLY = 20  # updates
MOMENTS = ("early", "end")
STARTS = tuple(f"{when}{how}" for when in MOMENTS for how in ("", ", pooled", ", mean"))
_SCALARS, _LANDSCAPES = (
    tuple(one._replace(method=one.method._replace(has_memory=True)) for one in some)
    for some in (OURS, [one for one in VARIANTS if one.method.name == "memory_sgd_m21"])
)
LEARNERS = (*_SCALARS, *_LANDSCAPES)


class Growth(NamedTuple):
    """A network where a memory is learned, and a larger one that it is given to."""

    small: Problem
    large: Problem
    learners: tuple[Variant, ...]


def load_growths() -> list[Growth]:
    """Return the networks that grow; a landscape is too slow for the convolutional."""
    dense = Mlp((32, 10), nn.relu), Mlp((128, 128, 128, 10), nn.relu), LEARNERS
    convolutional = Cnn((8,), 32), Cnn((16, 32), 64), _SCALARS
    networks = {"larger mlp": dense, "larger cnn": convolutional}
    return [
        Growth(
            digit_classes(f"{name}, source", small),
            digit_classes(name, large),
            learners,
        )
        for name, (small, large, learners) in networks.items()
    ]


def run(out: pathlib.Path, seeds: int, trials: int, say: Callable[[str], None]) -> None:
    """Run what is missing in `transfer.csv`."""
    out.mkdir(parents=True, exist_ok=True)
    store = Store(out / f"{STEM}.csv")
    tuned = [METHODS[name] for name in BASELINES]
    growths = load_growths()
    tell = counted(say, len(growths))
    for growth in growths:
        run_sweep(growth.large, store, tuned, seeds, trials, say)

        def run_one(one: Variant, growth: Growth = growth) -> None:
            _run_starts(growth, one, store, seeds)

        in_threads(run_one, growth.learners, store)
        tell(f"{growth.large.name}: all starts are done")


def _run_starts(growth: Growth, one: Variant, store: Store, seeds: int) -> None:
    chunk = min(seeds, 5)
    trainer = Trainer(growth.large, one.method, store, chunk)
    trainer.run([({"rate": rate}, seed) for rate in FRESH for seed in range(seeds)])
    params, _ = growth.large.start(growth.large.data, jax.random.key(0))
    state = one.method.make(*one.method.default.values()).init(params)
    jobs = [(one.method.default, seed) for seed in range(seeds)]
    for when, horizon in zip(MOMENTS, (EARLY, growth.small.horizon), strict=True):
        source = growth.small._replace(horizon=horizon)
        learned = Trainer(source, one.method, store, chunk).learn(source.data, seeds)
        for start in STARTS:
            # A single rate is its own mean.
            if start.startswith(when) and not (one in _SCALARS and "mean" in start):
                fitted = change_each(
                    learned, lambda memory, start=start: _fit(start, memory, state)
                )
                trainer.run(jobs, start, fitted)


def _fit(start: str, memory: Any, state: Any) -> Any:
    if "mean" in start:
        memory = averaged(memory)
    mapping = match_labels(memory, state)
    if "pooled" in start:
        mapping = dict.fromkeys(mapping)
    return adapt_memory(memory, state, mapping)
