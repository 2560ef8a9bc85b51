"""Evidence from a sample ends where all coordinates end."""

import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

from benchmarks.harness.progress import counted
from benchmarks.harness.store import Store
from benchmarks.harness.sweep import run_methods
from benchmarks.methods import Method
from benchmarks.problems.tasks import LARGE, SUITE
from metalr_optax import memory_adam, memory_sgd

STEM = "sampling"
_EVERY = 2**31 - 1  # more coordinates than any tensor has
_FEW = 1024


class Contrast(NamedTuple):
    """One optimizer, and what its evidence comes from."""

    sampled: Method
    whole: Method


def _contrast(
    name: str, make: Callable[..., Any], label: str, **sample: int
) -> Contrast:
    def method(label: str, **more: int) -> Method:
        return Method(
            f"{name}, {label}",
            lambda rate: make(initial=rate, **more),
            {},
            {"rate": 1e-3},
        )

    return Contrast(method(label, **sample), method("all", evidence_sample=_EVERY))


def contrasts_of(name: str) -> list[Contrast]:
    """Return what is compared on a problem."""
    ours = {"memory_adam": memory_adam, "memory_sgd": memory_sgd}
    if name in LARGE:
        return [_contrast(one, make, "default") for one, make in ours.items()]
    return [
        _contrast(one, make, str(_FEW), evidence_sample=_FEW)
        for one, make in ours.items()
    ]


PROBLEMS = {**SUITE, **LARGE}


def run(out: pathlib.Path, seeds: int, say: Callable[[str], None]) -> None:
    """Run what is missing in `sampling.csv`."""
    out.mkdir(parents=True, exist_ok=True)
    store = Store(out / f"{STEM}.csv")
    tell = counted(say, len(PROBLEMS))
    for name, load in PROBLEMS.items():
        problem = load()
        pairs = [
            (method, [(method.default, seed) for seed in range(seeds)])
            for contrast in contrasts_of(name)
            for method in contrast
        ]
        run_methods(problem, store, pairs, min(seeds, 5))
        tell(f"{name}: all runs are done")
