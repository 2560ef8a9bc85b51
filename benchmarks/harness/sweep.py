"""Tune every method with one sampler, compare on paired seeds, then transfer.

Three classes, never mixed: one fixed setting, tuned by trials, with a memory that was
learned on another task. A trial is one run with a seed that no comparison uses; the
best trial does not diverge, has the fewest updates to the target, then the lowest final
measure. A sweep that was stopped goes on where it was: what is on the disk is not run
again.
"""

import concurrent.futures
import csv
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.harness.runner import make_runner
from benchmarks.harness.store import (
    TUNING_SEED,
    Key,
    Runs,
    Store,
    final,
    updates_to,
    write_setting,
)
from benchmarks.methods import BASELINES, METHODS, Method, sample_settings
from benchmarks.problems.problem import Problem
from metalr_optax import Memory

TARGETS = pathlib.Path(__file__).parents[1] / "targets.csv"
BUDGETS = (1, 5, 20)
SOURCE_SEED = 2000  # a memory comes from networks that no comparison trains
_CHUNK = 5  # most runs in one call: rows are on the disk after each


def load_targets() -> dict[str, float]:
    """Return what every problem's measure must come down to, fixed beforehand."""
    with open(TARGETS, newline="") as file:
        return {row["problem"]: float(row["target"]) for row in csv.DictReader(file)}


def best_trial(
    runs: Runs, problem: Problem, method: Method, budget: int, target: float
) -> dict[str, float]:
    """Return the best of the first `budget` settings of the sampler.

    What diverges comes last, even if it was at the target before.
    """

    def rank(setting: dict[str, float]) -> tuple[bool, float, float]:
        text = write_setting(setting)
        curve = runs[Key(problem.name, method.name, "fresh", text, TUNING_SEED)]
        end = final(curve)
        return not np.isfinite(end), updates_to(curve, target, problem.every), end

    return min(sample_settings(method, budget), key=rank)


def lowest_trial(
    runs: Runs, problem: Problem, method: Method, trials: int
) -> dict[str, float]:
    """Return the setting that ends lowest of the first ones of the sampler."""

    def end(setting: dict[str, float]) -> float:
        text = write_setting(setting)
        return final(runs[Key(problem.name, method.name, "fresh", text, TUNING_SEED)])

    return min(sample_settings(method, trials), key=end)


def median_end(curves: np.ndarray) -> float:
    """Return the median over seeds of where curves [seeds, measures] end."""
    return float(np.median([final(curve) for curve in curves]))


def target_of(curves: np.ndarray, problem: Problem) -> float:
    """Return what curves [seeds, measures] have at three quarters of the horizon.

    The median over seeds.
    """
    at = problem.horizon * 3 // 4 // problem.every - 1
    return float(np.median(curves[:, at]))


def _select(memory: Any, index: np.ndarray) -> Any:
    return jax.tree.map(lambda leaf: np.asarray(leaf)[index], memory)


def trials_done(runs: Runs, problem: Problem, method: Method) -> int:
    """Return how many of the sampler's first settings were tried."""
    most = max(BUDGETS)
    for number, setting in enumerate(sample_settings(method, most)):
        text = write_setting(setting)
        if Key(problem.name, method.name, "fresh", text, TUNING_SEED) not in runs:
            return number
    return most


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

    def keys(self, jobs: Sequence[tuple[dict, int]], start: str) -> list[Key]:
        """Return what settings and seeds are called in the store."""
        return [
            Key(self.problem.name, self.method.name, start, write_setting(one), seed)
            for one, seed in jobs
        ]

    def is_done(self, jobs: Sequence[tuple[dict, int]], start: str) -> bool:
        """Return whether settings and seeds are in the store."""
        return all(key in self.store.runs for key in self.keys(jobs, start))

    def run(
        self, jobs: Sequence[tuple[dict, int]], start: str = "fresh", memory: Any = None
    ) -> None:
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
            self.store.add(
                {keys[i]: curve for i, curve in zip(chunk, curves, strict=True)}
            )

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
        jobs = {
            start: [(one, seed) for seed in range(seeds)]
            for start, one in starts.items()
        }
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
    target = load_targets()[problem.name]
    _check_lengths(problem, store)

    def run(method: Method) -> None:
        trainer = Trainer(problem, method, store, min(seeds, _CHUNK))
        trainer.run([(method.default, seed) for seed in range(seeds)])
        trainer.run([(one, TUNING_SEED) for one in sample_settings(method, trials)])
        chosen = {}
        for budget in (budget for budget in BUDGETS if budget <= trials):
            one = best_trial(store.runs, problem, method, budget, target)
            chosen[write_setting(one)] = one
        for one in chosen.values():
            trainer.run([(one, seed) for seed in range(seeds)])
        if method.has_memory and problem.related is not None:
            trainer.run_reloaded(seeds)
        text = list(chosen)[-1]
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
    problem: Problem,
    store: Store,
    pairs: Iterable[tuple[Method, Sequence[tuple[dict, int]]]],
    chunk: int,
) -> None:
    """Run methods, each with its settings and seeds, side by side."""

    def run_one(pair: tuple[Method, Sequence[tuple[dict, int]]]) -> None:
        method, jobs = pair
        Trainer(problem, method, store, chunk).run(jobs)

    in_threads(run_one, pairs, store)


def _check_lengths(problem: Problem, store: Store) -> None:
    expected = problem.horizon // problem.every
    for key, curve in store.runs.items():
        if key.problem == problem.name and len(curve) != expected:
            raise ValueError(
                f"{store.path} holds runs of {problem.name} with {len(curve)} "
                f"measures, not {expected}: give another --out, or remove the file"
            )


def baseline_target(
    problem: Problem, store: Store, seeds: int = 10, trials: int = max(BUDGETS)
) -> tuple[float, str]:
    """Return a target and where it comes from; runs what is missing for it.

    SGD, momentum and Adam are tuned for the final measure. The target is what the best
    of them has at three quarters of the horizon, the median over seeds.
    """
    finals = {}

    def run(method: Method) -> None:
        trainer = Trainer(problem, method, store, min(seeds, _CHUNK))
        trainer.run([(one, TUNING_SEED) for one in sample_settings(method, trials)])
        best = lowest_trial(store.runs, problem, method, trials)
        trainer.run([(best, seed) for seed in range(seeds)])
        text = write_setting(best)
        keys = [
            Key(problem.name, method.name, "fresh", text, seed) for seed in range(seeds)
        ]
        finals[method.name, text] = np.array([store.runs[key] for key in keys])

    in_threads(run, [METHODS[name] for name in BASELINES], store)
    (name, text), curves = min(finals.items(), key=lambda item: median_end(item[1]))
    return target_of(curves, problem), f"{name} {text}"
