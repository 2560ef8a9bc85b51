"""A memory of a small network starts a larger one that learns the same digits.

From a dense network 784-32-10 to 784-128-128-128-10, and from a convolutional one with
one layer of 8 channels to one with layers of 16 and 32. Memories come from runs with
other seeds: *early*, after 20 updates, when rates have climbed to what the network
bears, or at the *end*, when they have come down again; `adapt_memory` fits them. Beside
them are a fresh memory from .001 and from 1e-5, and two controls: *pooled* gives every
layer the mean of the whole memory, *mean* gives every layer of a landscape its own.
That early is better than the end was found with five seeds of memory_adam and
memory_sgd on the dense networks; the convolutional ones confirm it.
"""

import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

from benchmarks.experiments.suite import OURS, VARIANTS, Variant
from benchmarks.harness.controls import averaged
from benchmarks.harness.store import read_runs, write_setting
from benchmarks.harness.sweep import Store, Trainer, in_threads, load_targets, sweep
from benchmarks.methods import BASELINES, LABELS, METHODS
from benchmarks.problems.problem import Problem
from benchmarks.problems.tasks import Mlp, digit_classes
from benchmarks.reporting.library_tables import ratio
from benchmarks.reporting.paper_tables import format_updates
from benchmarks.reporting.statistics import (
    Comparison,
    Outcome,
    median,
    most_tuned,
    sign_test,
)
from benchmarks.reporting.statistics import outcome as find_outcome
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


class Cnn(nn.Module):
    """Convolutions of 3 x 3, each halving the image, and two dense layers."""

    channels: tuple[int, ...]
    width: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Return logits [B, 10] for images x [B, 28, 28]."""
        x = x[..., None]
        for channels in self.channels:
            x = nn.relu(nn.Conv(channels, (3, 3), strides=(2, 2))(x))
        x = x.reshape(len(x), -1)
        return nn.Dense(10)(nn.relu(nn.Dense(self.width)(x)))


class Pair(NamedTuple):
    """Where a memory is learned, and where it is given to."""

    source: Problem
    target: Problem


def load_pairs() -> list[Pair]:
    """Return the pairs of networks."""
    networks = {
        "larger mlp": (Mlp((32, 10), nn.relu), Mlp((128, 128, 128, 10), nn.relu)),
        "larger cnn": (Cnn((8,), 32), Cnn((16, 32), 64)),
    }
    return [
        Pair(digit_classes(f"{name}, source", small), digit_classes(name, large))
        for name, (small, large) in networks.items()
    ]


def run_transfer(
    out: pathlib.Path, seeds: int, trials: int, report: Callable[[str], None]
) -> None:
    """Run what is missing in `transfer.csv`."""
    out.mkdir(parents=True, exist_ok=True)
    store = Store(out / f"{STEM}.csv")
    tuned = [method for method in METHODS if method.name in BASELINES]
    for pair in load_pairs():
        sweep(pair.target, store, tuned, seeds, trials, report)

        def run(one: Variant, pair: Pair = pair) -> None:
            _run_starts(pair, one, store, seeds)

        in_threads(run, LEARNERS, store)
        report(f"{pair.target.name}: all starts are done")


def _run_starts(pair: Pair, one: Variant, store: Store, seeds: int) -> None:
    chunk = min(seeds, 5)
    trainer = Trainer(pair.target, one.method, store, chunk)
    trainer.run([({"rate": rate}, seed) for rate in FRESH for seed in range(seeds)])
    params, _ = pair.target.start(pair.target.data, jax.random.key(0))
    state = one.method.make(*one.method.default.values()).init(params)
    jobs = [(one.method.default, seed) for seed in range(seeds)]
    for when, horizon in zip(MOMENTS, (EARLY, pair.source.horizon), strict=True):
        source = pair.source._replace(horizon=horizon)
        learned = Trainer(source, one.method, store, chunk).learn(source.data, seeds)
        for start in STARTS:
            # A single rate is its own mean.
            if start.startswith(when) and not (one in _SCALARS and "mean" in start):
                fitted = [
                    _fit(start, jax.tree.map(lambda leaf, i=i: leaf[i], learned), state)
                    for i in range(seeds)
                ]
                stacked = jax.tree.map(lambda *one: np.stack(one), *fitted)
                trainer.run(jobs, start, stacked)


def _fit(start: str, memory: Any, state: Any) -> Any:
    if "mean" in start:
        memory = averaged(memory)
    mapping = match_labels(memory, state)
    if "pooled" in start:
        mapping = dict.fromkeys(mapping)
    return adapt_memory(memory, state, mapping)


def load_transfer(folder: pathlib.Path) -> list[Comparison]:
    """Return what `transfer.csv` in a folder knows of every pair."""
    runs, targets = read_runs(folder / f"{STEM}.csv"), load_targets()
    return [
        Comparison(pair.target, targets[pair.target.name], runs)
        for pair in load_pairs()
    ]


def format_transfer(comparisons: Sequence[Comparison]) -> str:
    """Return the updates to the target of every start, beside a fresh memory."""
    names = [comparison.problem.name for comparison in comparisons]
    rows: dict[str, list[tuple[Outcome | None, Outcome | None]]] = {}
    for name in BASELINES:
        tuned = [most_tuned(comparison, name) for comparison in comparisons]
        rows[f"{LABELS[name]}, best of 20"] = [(found, None) for found in tuned]
    for learner in LEARNERS:
        label = learner.label.replace("**", "")
        for start in (*FRESH, *STARTS):
            rows[f"{label}, {_say(start)}"] = [
                (
                    _found(one, learner, start),
                    None if start == FRESH[-1] else _found(one, learner, FRESH[-1]),
                )
                for one in comparisons
            ]
    heads = " | ".join(f"{name} | beside fresh" for name in names)
    lines = [f"| start | {heads} |", "|---|" + "---|---|" * len(names)]
    for label, found in rows.items():
        if any(one is not None for one, _ in found):
            cells = " | ".join(_cell(*one) for one in found)
            lines.append(f"| {label} | {cells} |")
    return "\n".join(lines)


def _say(start: float | str) -> str:
    return start if isinstance(start, str) else f"fresh from {start:g}"


def _found(comparison: Comparison, one: Variant, start: float | str) -> Outcome | None:
    rate = start if isinstance(start, float) else FRESH[-1]
    name = "fresh" if isinstance(start, float) else start
    return find_outcome(comparison, one.method, name, write_setting({"rate": rate}))


def _cell(found: Outcome | None, fresh: Outcome | None) -> str:
    """Return updates, and over those of a fresh memory with seeds better : worse."""
    if found is None:
        return " | "
    if fresh is None:
        return f"{format_updates(found)} | "
    return f"{format_updates(found)} | {_over(found, fresh)}"


def _over(found: Outcome, fresh: Outcome) -> str:
    test = sign_test(found, fresh)
    over = ratio(median(found.updates), median(fresh.updates))
    text = f"{over} ({test.wins} : {test.losses})"
    return f"**{text}**" if test.p < 0.05 else text


def over_fresh(comparison: Comparison, name: str, start: str) -> str:
    """Return updates from a start over those of a fresh memory; '' if not known."""
    (learner,) = (one for one in LEARNERS if one.method.name == name)
    found, fresh = (_found(comparison, learner, at) for at in (start, FRESH[-1]))
    return "" if found is None or fresh is None else _over(found, fresh)
