"""A memory of a small network starts a larger one that learns the same digits."""

import functools
from typing import Any

import jax

from benchmarks.harness import sweep
from benchmarks.harness.choose import TRIALS
from benchmarks.harness.command import Arguments, Say, add_seeds
from benchmarks.harness.progress import counted
from benchmarks.harness.store import Store
from benchmarks.methods import BASELINES, LIBRARY, METHODS, OURS, Method
from benchmarks.problems.growths import CONVOLUTIONAL, GROWTHS
from benchmarks.problems.problem import Problem
from benchmarks.reporting import transfer
from metalr_optax import adapt_memory, match_labels

TIME = "half an hour; with --seeds 10 as published, 1 hour"
add_arguments = add_seeds
_EARLY = 20  # updates


def run(arguments: Arguments, say: Say) -> None:
    """Run what is missing in `transfer.csv.gz`."""
    store = Store(arguments.out / "transfer.csv.gz")
    tuned = [METHODS[name] for name in BASELINES]
    tell = counted(say, len(GROWTHS))
    for name, make in GROWTHS.items():
        small, large = make()
        # A landscape is too slow for the convolutional.
        learners = tuple(OURS) if name == CONVOLUTIONAL else transfer.LEARNERS
        sweep.run_sweep(large, store, tuned, arguments.seeds, TRIALS, say)
        start = functools.partial(run_starts, small, large, store, arguments.seeds)
        sweep.in_threads(start, learners, store)
        tell(f"{large.name}: all starts are done")


def run_starts(
    small: Problem, large: Problem, store: Store, seeds: int, name: str
) -> None:
    """Run one optimizer on the larger network, fresh and from every memory."""
    method = LIBRARY[name]._replace(has_memory=True)
    trainer = sweep.Trainer(large, method, store)
    trainer.run(sweep.from_rates(transfer.FRESH, seeds))
    state, horizons = fresh_state(large, method), (_EARLY, small.horizon)
    for when, horizon in zip(transfer.MOMENTS, horizons, strict=True):
        source = sweep.Trainer(small._replace(horizon=horizon), method, store)
        learn = functools.cache(
            lambda source=source: source.learn(source.problem.data, seeds)
        )
        for start in transfer.STARTS:
            # A single rate is its own mean.
            if start.startswith(when) and not (name in OURS and "mean" in start):
                fit = functools.partial(_fit, start, learn, state)
                trainer.run(sweep.seeds_of(method.default, seeds), start, fit)


def fresh_state(problem: Problem, method: Method) -> Any:
    """Return the state of an optimizer that has not been used."""
    params, _ = problem.start(problem.data, jax.random.key(0))
    return method.make(*method.default.values()).init(params)


def _fit(start: str, learn: Any, state: Any) -> sweep.Memories:
    memories = sweep.averaged(learn()) if "mean" in start else learn()
    mappings = [match_labels(memory, state) for memory in memories]
    if "pooled" in start:
        mappings = [dict.fromkeys(mapping) for mapping in mappings]
    pairs = zip(memories, mappings, strict=True)
    return [adapt_memory(memory, state, mapping) for memory, mapping in pairs]


report = transfer.report
