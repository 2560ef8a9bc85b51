"""Variants of the rule of `memory_adam`, each alone, on six tasks named beforehand."""

import argparse
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import optax

from benchmarks.harness.arguments import add_seeds
from benchmarks.harness.progress import counted
from benchmarks.harness.store import Store
from benchmarks.harness.sweep import run_methods, seeds_of
from benchmarks.methods import USUAL, Method
from benchmarks.problems.long_tasks import LONG
from benchmarks.problems.tasks import SUITE
from benchmarks.reporting import search
from metalr_optax import agreement_steps, memory_adam

TIME = "3 hours"


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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what may be asked."""
    add_seeds(parser)


def run(arguments: argparse.Namespace, say: Callable[[str], None]) -> None:
    """Run what is missing in `search.csv.gz`."""
    store = Store(arguments.out / "search.csv.gz")
    tell = counted(say, len(search.TASKS))
    for task in search.TASKS:
        jobs = [
            job
            for rate in search.RATES
            for job in seeds_of({"rate": rate}, arguments.seeds)
        ]
        pairs = [
            (Method(name, lambda rate, one=one: make(one, rate), {}, USUAL), jobs)
            for name, one in VARIANTS.items()
        ]
        run_methods((SUITE | LONG)[task](), store, pairs)
        tell(f"{task}: all runs are done")


def report(folder: pathlib.Path) -> dict[str, str]:
    """Return the table."""
    return search.report(folder, list(VARIANTS))
