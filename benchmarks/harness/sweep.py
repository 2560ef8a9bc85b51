"""Tune every method with one sampler, compare on paired seeds, then transfer.

Three classes, never mixed: one fixed setting, tuned by trials, with a memory that was
learned on another task. A trial is one run with a seed that no comparison uses. A sweep
that was stopped goes on where it was: what is on the disk is not run again.
"""

import concurrent.futures
import functools
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.harness import choose
from benchmarks.harness.runner import make_runner
from benchmarks.harness.store import (
    TUNING_SEED,
    Key,
    Store,
    read_setting,
    write_setting,
)
from benchmarks.methods import BASELINES, METHODS, Method, sample_settings
from benchmarks.problems.problem import Problem
from metalr_optax import Memory

SOURCE_SEED = 2000  # a memory comes from networks that no comparison trains
Jobs = Sequence[tuple[dict[str, float], int]]  # settings and seeds
Memories = Sequence[dict[str, Memory]]  # one a seed


def seeds_of(setting: dict[str, float], seeds: int) -> Jobs:
    """Return the jobs of one setting."""
    return [(setting, seed) for seed in range(seeds)]


def from_rates(rates: Iterable[float], seeds: int) -> Jobs:
    """Return the jobs of settings that are a rate."""
    return [job for rate in rates for job in seeds_of({"rate": rate}, seeds)]


def averaged(memories: Memories) -> Memories:
    """Return every local model of a layer at the mean rate of the layer."""
    return [
        {
            label: one._replace(rates=np.full_like(one.rates, np.mean(one.rates)))
            for label, one in memory.items()
        }
        for memory in memories
    ]


def shuffled(memories: Memories) -> Memories:
    """Return the same rates in a random order within each layer."""
    rng, changed = np.random.default_rng(0), [dict(memory) for memory in memories]
    for label in memories[0]:
        for memory in changed:
            rates = rng.permuted(memory[label].rates)
            memory[label] = memory[label]._replace(rates=rates)
    return changed


class Trainer:
    """One method on one problem: runs what is not yet in the store."""

    def __init__(self, problem: Problem, method: Method, store: Store) -> None:
        self.problem, self.method, self.store = problem, method, store
        self.runner = make_runner(problem, method)

    def train(self, data: Any, setting: dict, seed: int, memory: Any = None) -> Any:
        """Train once; returns what the runner does, as arrays of NumPy."""
        numbers = jnp.array(list(setting.values()), jnp.float32)
        return jax.tree.map(np.asarray, self.runner(data, numbers, seed, memory))

    def run(self, jobs: Jobs, start: str = "fresh", learn: Any = None) -> None:
        """Run settings and seeds that are not in the store, and keep them there.

        They start from what `learn` returns, a memory a job, asked only if it is used.
        """
        names = self.problem.name, self.method.name, start
        keys = [Key(*names, write_setting(setting), seed) for setting, seed in jobs]
        missing = [n for n, key in enumerate(keys) if key not in self.store.runs]
        memories = learn() if learn and missing else None
        for number in missing:
            memory = memories and memories[number]
            curve, _, _ = self.train(self.problem.data, *jobs[number], memory)
            self.store.add({keys[number]: curve}, self.problem.every)

    def learn(self, data: Any, seeds: int, memories: Memories = ()) -> Memories:
        """Return what a task leaves of memories, new or given, for every seed."""
        given, setting = memories or [None] * seeds, self.method.default
        return [
            self.train(data, setting, SOURCE_SEED + seed, given[seed])[2]
            for seed in range(seeds)
        ]

    def run_reloaded(self, seeds: int) -> None:
        """Run reloaded memories and their controls at the fixed setting."""
        problem = self.problem
        learned = functools.cache(lambda: self.learn(problem.related, seeds))
        unrelated = functools.cache(lambda: self.learn(problem.unrelated, seeds))
        usual = seeds_of(self.method.default, seeds)
        still = seeds_of({**self.method.default, "meta": 0.0}, seeds)
        self.run(usual, "reloaded", learned)
        self.run(still, "frozen", learned)
        self.run(usual, "unrelated", unrelated)
        if not self.method.name.endswith("_m1"):  # one model: nothing to mix up
            self.run(still, "constant", lambda: averaged(learned()))
            self.run(usual, "shuffled", lambda: shuffled(learned()))


def tune(
    trainer: Trainer, seeds: int, trials: int = choose.TRIALS, budgets: Sequence = ()
) -> list[str]:
    """Run the trials, and what is chosen from them on the seeds; return the settings.

    Chosen is the best of each budget, or without any what ends lowest of all.
    """
    problem, method = trainer.problem, trainer.method
    trainer.run([(one, TUNING_SEED) for one in sample_settings(method, trials)])
    target = choose.load_targets().get(problem.name, np.nan)
    rows = choose.judge(trainer.store.rows(problem.name), target, problem.every)
    chosen = [choose.best_trial(rows, method, budget) for budget in budgets]
    chosen = chosen or [choose.lowest_trial(rows, method, trials)]
    for setting in dict.fromkeys(chosen):
        trainer.run(seeds_of(read_setting(setting), seeds))
    return chosen


def run_sweep(
    problem: Problem,
    store: Store,
    methods: Sequence[Method],
    seeds: int,
    trials: int,
    say: Callable[[str], None],
) -> None:
    """Run methods: one fixed setting, trials, the best ones, transfers.

    Raises:
      ValueError: the store holds runs of another length.
    """
    expected = problem.horizon // problem.every
    for curve in store.rows(problem.name)["curve"]:
        if len(curve) != expected:
            raise ValueError(
                f"{store.path} holds runs of {problem.name} with {len(curve)} "
                f"measures, not {expected}: give another --out, or remove the file"
            )
    budgets = [budget for budget in choose.BUDGETS if budget <= trials]

    def run(method: Method) -> None:
        trainer = Trainer(problem, method, store)
        trainer.run(seeds_of(method.default, seeds))
        text = tune(trainer, seeds, trials, budgets)[-1]
        if method.has_memory and problem.related is not None:
            trainer.run_reloaded(seeds)
        say(f"{problem.name}: {method.name}, best of {trials} trials: {text}")

    in_threads(run, methods, store)


def run_methods(
    problem: Problem, store: Store, pairs: Iterable[tuple[Method, Jobs]]
) -> None:
    """Run methods, each with its settings and seeds, side by side."""
    in_threads(lambda pair: Trainer(problem, pair[0], store).run(pair[1]), pairs, store)


def in_threads(
    run: Callable[[Any], Any], items: Iterable[Any], store: Store | None = None
) -> list[Any]:
    """Run things side by side, one a core: neither JAX nor XLA holds the lock."""
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        try:
            return list(pool.map(run, items))
        except BaseException:
            # Interrupted, or one failed: the others end after the runs at hand.
            if store is not None:
                store.close()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def baseline_target(problem: Problem, store: Store) -> tuple[float, str]:
    """Return a target and where it comes from; runs what is missing for it.

    SGD, momentum and Adam are tuned for the final measure. The target is what the best
    of them has at three quarters of the horizon, the median over ten seeds.
    """

    def run(name: str) -> tuple[float, np.ndarray, str]:
        (text,) = tune(Trainer(problem, METHODS[name], store), seeds=10)
        keys = [Key(problem.name, name, "fresh", text, seed) for seed in range(10)]
        curves = np.array([store.runs[key] for key in keys])
        end = np.median([choose.final(curve) for curve in curves])
        return float(end), curves, f"{name} {text}"

    ends = in_threads(run, BASELINES, store)
    _, curves, source = min(ends, key=lambda item: item[0])
    return float(np.median(curves[:, curves.shape[1] * 3 // 4 - 1])), source
