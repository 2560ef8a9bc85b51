"""Evidence from a sample ends where all coordinates end.

The short suite with 1,024 coordinates of every tensor that is more than eight times as
large, and with all of them, from .001: on the tasks whose tensors are smaller the two
are one. Then the default sample on two networks with a tensor above a million numbers:
dense layers on ten digits, and an embedding of 16,384 tokens whose frequencies follow
Zipf's law, so that most rows see no gradient in most steps. Runs are paired seed by
seed; the interval is that of Student's t for the mean of the log ratio of ends.
"""

import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from benchmarks.harness.store import final, find, read_runs, write_setting
from benchmarks.harness.sweep import Store, Trainer, in_threads
from benchmarks.methods import Method
from benchmarks.problems.problem import Problem
from benchmarks.problems.tasks import (
    SUITE,
    Examples,
    Mlp,
    digit_classes,
    squares,
    supervised,
)
from metalr_optax import memory_adam, memory_sgd

STEM = "sampling"
_EVERY = 2**31 - 1  # more coordinates than any tensor has
_FEW = 1024
_TOKENS, _WIDTH, _LENGTH = 2**14, 64, 16


class Pair(NamedTuple):
    """One optimizer, and what its evidence comes from."""

    sampled: Method
    whole: Method


class Bag(nn.Module):
    """The mean of the embeddings of some tokens, then a dense layer."""

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Return [B, 4] for tokens [B, T]."""
        x = nn.Embed(_TOKENS, _WIDTH)(tokens)
        return nn.Dense(4)(nn.tanh(nn.Dense(_WIDTH)(jnp.mean(x, axis=-2))))


def zipf() -> Problem:
    """Return the regression on a teacher's embedding of tokens, k-th as often as 1/k.

    Which row of the embedding a token has says nothing about its frequency.
    """
    rng = np.random.default_rng(0)
    odds = 1.0 / np.arange(1, _TOKENS + 1)
    ranks = rng.choice(_TOKENS, size=(9000, _LENGTH), p=odds / odds.sum())
    tokens = rng.permutation(_TOKENS)[ranks]
    targets = rng.normal(size=(_TOKENS, 4))[tokens].mean(axis=1)
    targets = (targets - targets.mean(0)) / targets.std(0)
    x, y = jnp.asarray(tokens, jnp.int32), jnp.asarray(targets, jnp.float32)
    examples = Examples(x[:8000], y[:8000], x[8000:], y[8000:])
    return supervised("zipf embedding", Bag(), examples, squares, 64, 300, 10)


def wide() -> Problem:
    """Return ten digits for dense layers of 1.1 and 1.4 million weights."""
    return digit_classes("wide classes", Mlp((1408, 1024, 10), nn.relu))


def _pair(name: str, make: Callable[..., Any], label: str, **sample: int) -> Pair:
    def method(label: str, **more: int) -> Method:
        return Method(
            f"{name}, {label}",
            lambda rate: make(initial=rate, **more),
            {},
            {"rate": 1e-3},
        )

    return Pair(method(label, **sample), method("all", evidence_sample=_EVERY))


def pairs_of(name: str) -> list[Pair]:
    """Return what is compared on a problem."""
    ours = {"memory_adam": memory_adam, "memory_sgd": memory_sgd}
    if name in LARGE:
        return [_pair(one, make, "default") for one, make in ours.items()]
    return [
        _pair(one, make, str(_FEW), evidence_sample=_FEW) for one, make in ours.items()
    ]


LARGE: dict[str, Callable[[], Problem]] = {"wide classes": wide, "zipf embedding": zipf}
PROBLEMS = {**SUITE, **LARGE}


def run_sampling(out: pathlib.Path, seeds: int, report: Callable[[str], None]) -> None:
    """Run what is missing in `sampling.csv`."""
    out.mkdir(parents=True, exist_ok=True)
    store = Store(out / f"{STEM}.csv")
    for name, load in PROBLEMS.items():
        problem = load()

        def run(method: Method, problem: Problem = problem) -> None:
            jobs = [(method.default, seed) for seed in range(seeds)]
            Trainer(problem, method, store, min(seeds, 5)).run(jobs)

        in_threads(run, [method for pair in pairs_of(name) for method in pair], store)
        report(f"{name}: all runs are done")


def ratio_of_ends(one: np.ndarray, other: np.ndarray) -> tuple[float, float, float]:
    """Return (low, mean, high) of the ratio of paired ends, an interval of 95 %."""
    logs = np.log(one) - np.log(other)
    half = stats.t.ppf(0.975, len(logs) - 1) * logs.std(ddof=1) / np.sqrt(len(logs))
    low, mean, high = np.exp([logs.mean() - half, logs.mean(), logs.mean() + half])
    return float(low), float(mean), float(high)


def format_sampling(folder: pathlib.Path) -> str:
    """Return the table of all pairs whose runs are in `sampling.csv`."""
    runs = read_runs(folder / f"{STEM}.csv")
    lines = [
        "| problem | method | end over that of all | interval of 95 % | seeds |",
        "|---|---|---|---|---|",
    ]
    for name in PROBLEMS:
        for pair in pairs_of(name):
            found = [
                find(runs, name, one.name, "fresh", write_setting(one.default))
                for one in pair
            ]
            ends = [np.array([final(one) for one in some.values()]) for some in found]
            if len(ends[0]) != len(ends[1]) or len(ends[0]) < 2:
                continue
            low, mean, high = ratio_of_ends(*ends)
            lines.append(
                f"| {name} | {pair.sampled.name} | {mean:.3f} | {low:.3f} to "
                f"{high:.3f} | {len(ends[0])} |"
            )
    return "\n".join(lines)
