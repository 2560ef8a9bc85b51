"""Variants of the rule of `memory_adam`, each alone, on six tasks named beforehand."""

import pathlib
from collections.abc import Callable
from typing import NamedTuple

import optax

from benchmarks.harness.progress import counted
from benchmarks.harness.store import Store
from benchmarks.harness.sweep import run_methods
from benchmarks.methods import Method
from benchmarks.problems.long_tasks import LONG
from benchmarks.problems.problem import Problem
from benchmarks.problems.tasks import SUITE
from metalr_optax import agreement_steps, memory_adam

STEM = "search"
RATES = (1e-5, 1e-3)
TASKS: dict[str, Callable[[], Problem]] = {
    name: (SUITE | LONG)[name]
    for name in (
        "teacher",
        "noisy teacher",
        "classes",
        "unequal inputs, long",
        "physics",
        "agent",
    )
}


class Variant(NamedTuple):
    """What the rule is made of; as it is here, it is that of `memory_adam`."""

    step: float = 0.5
    gain: float | None = 2.0
    largest_step: float | None = 0.1
    b2: float = 0.99
    clip_norm: float | None = None


VARIANTS = {
    "the default": Variant(),
    "version 0.1": Variant(gain=None, largest_step=None, b2=0.999, clip_norm=1.0),
    "steps that do not fall": Variant(gain=None),
    "gain 1": Variant(gain=1.0),
    "gain 4": Variant(gain=4.0),
    "step 0.2": Variant(step=0.2),
    "no ceiling": Variant(largest_step=None),
    "ceiling 0.05": Variant(largest_step=0.05),
    "ceiling 0.2": Variant(largest_step=0.2),
    "b2 0.95": Variant(b2=0.95),
    "b2 0.999": Variant(b2=0.999),
    "norm clipped to 1": Variant(clip_norm=1.0),
}


def make(variant: Variant, rate: float) -> optax.GradientTransformationExtraArgs:
    """Return `memory_adam` with another rule."""
    return memory_adam(
        b2=variant.b2,
        initial=rate,
        memory_optimizer=agreement_steps(variant.step, variant.gain),
        clip_norm=variant.clip_norm,
        largest_step=variant.largest_step,
    )


def method_of(name: str) -> Method:
    """Return a variant as what runs."""
    return Method(name, lambda rate: make(VARIANTS[name], rate), {}, {"rate": 1e-3})


def run(out: pathlib.Path, seeds: int, say: Callable[[str], None]) -> None:
    """Run what is missing in `search.csv`."""
    out.mkdir(parents=True, exist_ok=True)
    store = Store(out / f"{STEM}.csv")
    tell = counted(say, len(TASKS))
    for task, load in TASKS.items():
        jobs = [({"rate": rate}, seed) for rate in RATES for seed in range(seeds)]
        pairs = [(method_of(name), jobs) for name in VARIANTS]
        run_methods(load(), store, pairs, 1)
        tell(f"{task}: all runs are done")
