"""A memory of a small network starts a larger one that learns the same digits."""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax

from benchmarks.harness.choose import TRIALS
from benchmarks.harness.command import Arguments, Say, add_seeds
from benchmarks.harness.progress import counted
from benchmarks.harness.store import Store
from benchmarks.harness.sweep import (
    Memories,
    Trainer,
    averaged,
    from_rates,
    in_threads,
    run_sweep,
    seeds_of,
)
from benchmarks.methods import BASELINES, LIBRARY, METHODS, USUAL, Method
from benchmarks.problems.networks import Cnn, Mlp
from benchmarks.problems.problem import Problem
from benchmarks.problems.tasks import digit_classes
from benchmarks.reporting import transfer
from metalr_optax import adapt_memory, match_labels

TIME = "half an hour; with --seeds 10 as published, 1 hour"
add_arguments = add_seeds
EARLY = 20  # updates
_SCALARS = ("memory_adam", "memory_sgd")


class Growth(NamedTuple):
    """A network where a memory is learned, and a larger one that it is given to."""

    small: Problem
    large: Problem
    learners: tuple[str, ...]


def load_growths() -> list[Growth]:
    """Return the networks that grow; a landscape is too slow for the convolutional."""
    dense = Mlp((32, 10), nn.relu), Mlp((128, 128, 128, 10), nn.relu), transfer.LEARNERS
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


def run(arguments: Arguments, say: Say) -> None:
    """Run what is missing in `transfer.csv.gz`."""
    store = Store(arguments.out / "transfer.csv.gz")
    tuned = [METHODS[name] for name in BASELINES]
    growths = load_growths()
    tell = counted(say, len(growths))
    for growth in growths:
        run_sweep(growth.large, store, tuned, arguments.seeds, TRIALS, say)

        def run_one(name: str, growth: Growth = growth) -> None:
            run_starts(growth, name, store, arguments.seeds)

        in_threads(run_one, growth.learners, store)
        tell(f"{growth.large.name}: all starts are done")


def run_starts(growth: Growth, name: str, store: Store, seeds: int) -> None:
    """Run one optimizer on the larger network, fresh and from every memory."""
    method = LIBRARY[name]._replace(has_memory=True)
    trainer = Trainer(growth.large, method, store)
    trainer.run(from_rates(transfer.FRESH, seeds))
    state = fresh_state(growth.large, method)
    horizons = EARLY, growth.small.horizon
    for when, horizon in zip(transfer.MOMENTS, horizons, strict=True):
        source = Trainer(growth.small._replace(horizon=horizon), method, store)
        learn = functools.cache(
            lambda source=source: source.learn(source.problem.data, seeds)
        )
        for start in transfer.STARTS:
            # A single rate is its own mean.
            if start.startswith(when) and not (name in _SCALARS and "mean" in start):
                fit = functools.partial(_fit, start, learn, state)
                trainer.run(seeds_of(USUAL, seeds), start, fit)


def fresh_state(problem: Problem, method: Method) -> Any:
    """Return the state of an optimizer that has not been used."""
    params, _ = problem.start(problem.data, jax.random.key(0))
    return method.make(*method.default.values()).init(params)


def _fit(start: str, learn: Any, state: Any) -> Memories:
    memories = averaged(learn()) if "mean" in start else learn()
    mappings = [match_labels(memory, state) for memory in memories]
    if "pooled" in start:
        mappings = [dict.fromkeys(mapping) for mapping in mappings]
    pairs = zip(memories, mappings, strict=True)
    return [adapt_memory(memory, state, mapping) for memory, mapping in pairs]


report = transfer.report
