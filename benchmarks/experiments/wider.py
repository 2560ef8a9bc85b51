"""A memory of a network 64 wide starts one of 512 or 1,024, on the same digits.

The rates of layers whose units have more inputs are lowered as 1 / width
(`adapt_memory`), as 1 / sqrt(width), or not at all.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn

from benchmarks.experiments.transfer import fresh_state
from benchmarks.harness.command import Arguments, Say, add_seeds
from benchmarks.harness.store import Store
from benchmarks.harness.sweep import (
    Memories,
    Trainer,
    from_rates,
    run_methods,
    seeds_of,
)
from benchmarks.methods import LIBRARY, METHODS
from benchmarks.problems.digits import load_digits
from benchmarks.problems.networks import ImageTransformer, Mlp
from benchmarks.problems.problem import Examples, Problem, cross_entropy, supervised
from benchmarks.reporting import wider
from metalr_optax import Memory, adapt_memory, get_memory, memory_adam

TIME = "1 hour"
add_arguments = add_seeds
_SMALL, _EVERY = 64, 10
_NETWORKS: dict[str, tuple[Callable[[int], nn.Module], int]] = {  # and steps
    "dense": (lambda width: Mlp((width, width, width, 10), nn.relu), 400),
    "attention": (ImageTransformer, 200),
}


def load_problem(kind: str, width: int) -> Problem:
    """Return ten digits for a network, in batches of 16; judged on 400 images."""
    network, steps = _NETWORKS[kind]
    digits = load_digits()
    # A fifth of the test images: a measure would take longer than ten steps.
    examples = Examples(*digits[:2], *(array[::5] for array in digits[2:]))
    name = f"{kind} {width}"
    return supervised(name, network(width), examples, cross_entropy, 16, steps, _EVERY)


def fit(memory: dict[str, Memory], state: Any, power: float) -> dict[str, Memory]:
    """Return a memory for a wider network, with rates times (small / large) ^ power."""
    fresh = get_memory(state)
    # The power of `adapt_memory` is 1. With this fan-in between the two it lowers rates
    # as if its power were the one that is asked for.
    between = {
        label: narrow._replace(
            fan_in=narrow.fan_in**power * fresh[label].fan_in ** (1.0 - power)
        )
        for label, narrow in memory.items()
    }
    return adapt_memory(between, state)


def run(arguments: Arguments, say: Say) -> None:
    """Run what is missing in `wider.csv.gz`."""
    store, seeds = Store(arguments.out / "wider.csv.gz"), arguments.seeds
    free = LIBRARY["memory_adam"]._replace(
        name=wider.FREE, make=lambda rate: memory_adam(initial=rate, largest_step=None)
    )
    for name in wider.NETWORKS:
        kind, width = name.split()
        large = load_problem(kind, int(width))
        pairs = [
            (METHODS["adam"], from_rates(wider.ADAM_RATES, seeds)),
            (free, from_rates(wider.FRESH[:1], seeds)),
            *((LIBRARY[x], from_rates(wider.FRESH, seeds)) for x in wider.POWERS),
        ]
        run_methods(large, store, pairs)
        for method, powers in wider.POWERS.items():
            run_starts(load_problem(kind, _SMALL), large, store, seeds, method, powers)
        say(f"{name}: all starts are done")


def run_starts(
    small: Problem, large: Problem, store: Store, seeds: int, name: str, powers: Any
) -> None:
    """Run one optimizer on the wider network from the memory of a narrow one."""
    method = LIBRARY[name]._replace(has_memory=True)
    trainer = Trainer(large, method, store)
    state = fresh_state(large, method)
    narrow = Trainer(small, method, store)
    learned = functools.cache(lambda: narrow.learn(small.data, seeds))

    def begin(power: float) -> Memories:
        return [fit(memory, state, power) for memory in learned()]

    for start, power in powers.items():
        jobs = seeds_of(method.default, seeds)
        trainer.run(jobs, start, functools.partial(begin, power))


report = wider.report
