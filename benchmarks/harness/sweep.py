"""Tune every method with one sampler, compare on paired seeds, then transfer.

Three classes, never mixed: one fixed setting, tuned by trials, with a memory that was
learned on another task. A trial is one run with a seed that no comparison uses. A sweep
that was stopped goes on where it was: what is on the disk is not run again.
"""

import concurrent.futures
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
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
CHUNK = 5  # most runs in one call: rows are on the disk after each
Jobs = Sequence[tuple[dict[str, float], int]]  # settings and seeds


def _select(memory: Any, index: np.ndarray) -> Any:
    return jax.tree.map(lambda leaf: np.asarray(leaf)[index], memory)


def averaged(memory: Mapping[str, Memory]) -> dict[str, Memory]:
    """Return every local model of a layer at the mean rate of the layer."""
    return {
        label: one._replace(
            rates=np.broadcast_to(
                np.mean(one.rates, axis=-1, keepdims=True), one.rates.shape
            )
        )
        for label, one in memory.items()
    }


def shuffled(memory: Mapping[str, Memory]) -> dict[str, Memory]:
    """Return the same rates in a random order within each layer."""
    rng = np.random.default_rng(0)
    return {
        label: one._replace(rates=rng.permuted(one.rates, axis=-1))
        for label, one in memory.items()
    }


def change_each(
    learned: Any, change: Callable[[dict[str, Memory]], dict[str, Memory]]
) -> Any:
    """Return memories [seeds, ...], each changed alone."""
    seeds = len(jax.tree.leaves(learned)[0])
    changed = [
        change(jax.tree.map(lambda leaf, i=i: leaf[i], learned)) for i in range(seeds)
    ]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *changed)


class Trainer:
    """One method on one problem: runs what is not yet in the store."""

    def __init__(
        self, problem: Problem, method: Method, store: Store, chunk: int
    ) -> None:
        self.problem, self.method, self.store = problem, method, store
        self.chunk = chunk
        self.runner = make_runner(problem, method)

    def call(
        self, data: Any, setting: Sequence[dict], seeds: Sequence[int], memory: Any
    ) -> Any:
        """Train; returns what the runner does. Always `chunk` runs: one program."""
        pad = np.minimum(np.arange(self.chunk), len(seeds) - 1)
        settings = jnp.array([list(one.values()) for one in setting], jnp.float32)
        memory = _select(memory, pad)
        results = self.runner(data, settings[pad], jnp.array(seeds)[pad], memory)
        return jax.tree.map(lambda leaf: np.asarray(leaf)[: len(seeds)], results)

    def keys(self, jobs: Jobs, start: str) -> list[Key]:
        """Return what settings and seeds are called in the store."""
        return [
            Key(self.problem.name, self.method.name, start, write_setting(one), seed)
            for one, seed in jobs
        ]

    def is_done(self, jobs: Jobs, start: str) -> bool:
        """Return whether settings and seeds are in the store."""
        return all(key in self.store.runs for key in self.keys(jobs, start))

    def run(self, jobs: Jobs, start: str = "fresh", memory: Any = None) -> None:
        """Run settings and seeds that are not in the store, and keep them there."""
        keys = self.keys(jobs, start)
        missing = [i for i, key in enumerate(keys) if key not in self.store.runs]
        for begin in range(0, len(missing), self.chunk):
            chunk = missing[begin : begin + self.chunk]
            part = _select(memory, np.array(chunk))
            curves, _, _ = self.call(
                self.problem.data,
                [jobs[i][0] for i in chunk],
                [jobs[i][1] for i in chunk],
                part,
            )
            done = {keys[i]: curve for i, curve in zip(chunk, curves, strict=True)}
            self.store.add(done, self.problem.every)

    def learn(self, data: Any, seeds: int, memory: Any = None) -> Any:
        """Return what a task leaves of memories, new or given: [seeds, ...]."""
        parts = []
        for begin in range(0, seeds, self.chunk):
            chunk = range(begin, min(begin + self.chunk, seeds))
            sources = [SOURCE_SEED + seed for seed in chunk]
            setting = [self.method.default] * len(sources)
            part = _select(memory, np.array(chunk))
            parts.append(self.call(data, setting, sources, part)[2])
        return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)

    def run_reloaded(self, seeds: int) -> None:
        """Run reloaded memories and their controls at the fixed setting."""
        setting = self.method.default
        still = {**setting, "meta": 0.0}
        starts = {"reloaded": setting, "frozen": still, "unrelated": setting}
        if not self.method.name.endswith("_m1"):  # one model: nothing to mix up
            starts |= {"constant": still, "shuffled": setting}
        jobs = {start: seeds_of(one, seeds) for start, one in starts.items()}
        if all(self.is_done(pairs, start) for start, pairs in jobs.items()):
            return
        learned = self.learn(self.problem.related, seeds)
        memories = {
            "reloaded": learned,
            "frozen": learned,
            "constant": averaged(learned),
            "shuffled": shuffled(learned),
            "unrelated": self.learn(self.problem.unrelated, seeds),
        }
        for start, pairs in jobs.items():
            self.run(pairs, start, memories[start])


def seeds_of(setting: dict[str, float], seeds: int) -> Jobs:
    """Return the jobs of one setting."""
    return [(setting, seed) for seed in range(seeds)]


def tune(
    problem: Problem,
    method: Method,
    store: Store,
    seeds: int,
    trials: int = choose.TRIALS,
    budgets: Sequence[int] = (),
    target: float = np.nan,
    chunk: int = CHUNK,
) -> list[str]:
    """Run the trials, and what is chosen from them on the seeds; return the settings.

    Chosen is the best of each budget, or without any what ends lowest of all.
    """
    trainer = Trainer(problem, method, store, min(seeds, chunk))
    trainer.run([(one, TUNING_SEED) for one in sample_settings(method, trials)])
    rows = choose.judge(store.rows(problem.name), target, problem.every)
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
    target = choose.load_targets()[problem.name]
    budgets = [budget for budget in choose.BUDGETS if budget <= trials]
    _check_lengths(problem, store)

    def run(method: Method) -> None:
        trainer = Trainer(problem, method, store, min(seeds, CHUNK))
        trainer.run(seeds_of(method.default, seeds))
        text = tune(problem, method, store, seeds, trials, budgets, target)[-1]
        if method.has_memory and problem.related is not None:
            trainer.run_reloaded(seeds)
        say(f"{problem.name}: {method.name}, best of {trials} trials: {text}")

    in_threads(run, methods, store)


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


def run_methods(
    problem: Problem, store: Store, pairs: Iterable[tuple[Method, Jobs]], chunk: int
) -> None:
    """Run methods, each with its settings and seeds, side by side."""

    def run_one(pair: tuple[Method, Jobs]) -> None:
        method, jobs = pair
        Trainer(problem, method, store, chunk).run(jobs)

    in_threads(run_one, pairs, store)


def _check_lengths(problem: Problem, store: Store) -> None:
    expected = problem.horizon // problem.every
    for curve in store.rows(problem.name)["curve"]:
        if len(curve) != expected:
            raise ValueError(
                f"{store.path} holds runs of {problem.name} with {len(curve)} "
                f"measures, not {expected}: give another --out, or remove the file"
            )


def baseline_target(
    problem: Problem, store: Store, seeds: int = 10, trials: int = choose.TRIALS
) -> tuple[float, str]:
    """Return a target and where it comes from; runs what is missing for it.

    SGD, momentum and Adam are tuned for the final measure. The target is what the best
    of them has at three quarters of the horizon, the median over seeds.
    """

    def run(name: str) -> tuple[float, np.ndarray, str]:
        (text,) = tune(problem, METHODS[name], store, seeds, trials)
        keys = [Key(problem.name, name, "fresh", text, seed) for seed in range(seeds)]
        curves = np.array([store.runs[key] for key in keys])
        end = np.median([choose.final(curve) for curve in curves])
        return float(end), curves, f"{name} {text}"

    ends = in_threads(run, BASELINES, store)
    _, curves, source = min(ends, key=lambda item: item[0])
    return choose.target_of(curves), source
