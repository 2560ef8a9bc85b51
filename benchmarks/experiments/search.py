"""Variants of the rule of `memory_adam`, each alone, on six tasks named beforehand."""

import functools
from typing import Any

import optax

from benchmarks.harness.command import Arguments, Say, add_seeds
from benchmarks.harness.progress import counted
from benchmarks.harness.store import Store
from benchmarks.harness.sweep import from_rates, run_methods
from benchmarks.methods import USUAL, Method
from benchmarks.problems.long_tasks import LONG
from benchmarks.problems.tasks import SUITE
from benchmarks.reporting import search
from metalr_optax import agreement_steps, memory_adam

TIME = "3 hours"
add_arguments = add_seeds


# What is another than in `memory_adam`.
VARIANTS: dict[str, dict[str, Any]] = {
    "the default": {},
    "version 0.1": {"gain": None, "largest_step": None, "b2": 0.999, "clip_norm": 1.0},
    "steps that do not fall": {"gain": None},
    "gain 1": {"gain": 1.0},
    "gain 4": {"gain": 4.0},
    "step 0.2": {"step": 0.2},
    "no ceiling": {"largest_step": None},
    "ceiling 0.05": {"largest_step": 0.05},
    "ceiling 0.2": {"largest_step": 0.2},
    "b2 0.95": {"b2": 0.95},
    "b2 0.999": {"b2": 0.999},
    "norm clipped to 1": {"clip_norm": 1.0},
}


def make(variant: dict[str, Any], rate: float) -> optax.GradientTransformationExtraArgs:
    """Return `memory_adam` with another rule."""
    rule = {name: variant[name] for name in ("step", "gain") if name in variant}
    options = {name: one for name, one in variant.items() if name not in rule}
    if rule:
        options["memory_optimizer"] = agreement_steps(**rule)
    return memory_adam(initial=rate, **options)


def run(arguments: Arguments, say: Say) -> None:
    """Run what is missing in `search.csv.gz`."""
    store = Store(arguments.out / "search.csv.gz")
    tell = counted(say, len(search.TASKS))
    jobs = from_rates(search.RATES, arguments.seeds)
    pairs = [
        (Method(name, functools.partial(make, one), {}, USUAL), jobs)
        for name, one in VARIANTS.items()
    ]
    for task in search.TASKS:
        run_methods((SUITE | LONG)[task](), store, pairs)
        tell(f"{task}: all runs are done")


report = functools.partial(search.report, variants=list(VARIANTS))
