"""What a memory could see beside the value of a direction: tried, and left out.

With the rule of the ready optimizers, a memory per tensor and 11 local models:

- *value*: the direction over the root mean square of its tensor, on [-3, 3].
- *size*: the logarithm of its absolute value, from .001 to 100 root mean squares.
- *history*: how the gradients of the coordinate agreed with its last directions, -1 to
  1, a running mean over ten updates or so: one more number for every weight.
- *smoothed*: one rate, of which a coordinate uses a running mean over ten updates.

Beside them *one rate*, which sees nothing. Depth and role of a layer are not among
them: every layer has a memory of its own, and what moves between networks goes by
depth and role already (`match_labels`).
"""

import argparse
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from benchmarks.harness.arguments import add_seeds
from benchmarks.harness.progress import counted
from benchmarks.harness.store import Store
from benchmarks.harness.sweep import run_methods, seeds_of
from benchmarks.methods import USUAL, Method
from benchmarks.problems.tasks import SUITE
from benchmarks.reporting import kernel_inputs
from metalr_optax import Kernels, agreement_steps, linspace_kernels
from metalr_optax.memory import accumulate, read

TIME = "half an hour; with --seeds 10 as published, 1 hour"
BASES = {
    "momentum": optax.chain(optax.clip_by_global_norm(1.0), optax.trace(0.9)),
    "Adam": optax.scale_by_adam(b2=0.99),
}
_NUM, _DECAY, _BOUNDS = 11, 0.9, (1e-9, 10.0)
_SMALLEST, _LARGEST = 1e-3, 1e2


class State(NamedTuple):
    """State of `seeing`, lists in the order of the tensors."""

    rates: jax.Array  # [tensors, M]
    rule: Any
    base: Any
    inputs: list[jax.Array]  # that the last rates were read at
    directions: list[jax.Array]
    history: list[jax.Array]
    used: list[jax.Array]  # rates of coordinates


def kernels_for(seen: str) -> Kernels:
    """Return where the local models are."""
    if seen in ("one rate", "smoothed"):
        return linspace_kernels(1.0, 1)
    return linspace_kernels({"value": 3.0}.get(seen, 1.0), _NUM)


def look(seen: str, direction: jax.Array, history: jax.Array) -> jax.Array:
    """Return what the kernels see of every coordinate of a tensor."""
    size = jnp.sqrt(jnp.mean(direction**2) + 1e-30)
    if seen == "history":
        return history
    if seen != "size":
        return direction / size
    decades = jnp.log10(jnp.clip(jnp.abs(direction) / size, _SMALLEST, _LARGEST))
    low, high = jnp.log10(_SMALLEST), jnp.log10(_LARGEST)
    return 2 * (decades - low) / (high - low) - 1


def seeing(
    seen: str, base: optax.GradientTransformation, initial: Any
) -> optax.GradientTransformation:
    """Return a descent whose memories see one of the above."""
    kernels = Kernels(*(jnp.asarray(one, jnp.float32) for one in kernels_for(seen)))
    rule = agreement_steps()
    smoothing = _DECAY if seen == "smoothed" else 0.0

    def init(params: Any) -> State:
        leaves = jax.tree.leaves(params)
        zeros = [jnp.zeros_like(leaf) for leaf in leaves]
        rates = jnp.full((len(leaves), len(kernels.centers)), initial)
        used = [jnp.full_like(leaf, initial) for leaf in leaves]
        return State(
            rates, rule.init(rates), base.init(params), zeros, zeros, zeros, used
        )

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        gradients = jax.tree.leaves(updates)
        direction, base_state = base.update(updates, state.base, params)
        directions = jax.tree.leaves(direction)
        agreed = [g * d for g, d in zip(gradients, state.directions, strict=True)]
        rates, rule_state = _correct(rule, kernels, state, agreed)
        history = [
            _DECAY * old + (1 - _DECAY) * jnp.sign(one)
            for old, one in zip(state.history, agreed, strict=True)
        ]
        inputs = [look(seen, *pair) for pair in zip(directions, history, strict=True)]
        used = [
            smoothing * old + (1 - smoothing) * read(kernels, some, one)
            for old, some, one in zip(state.used, rates, inputs, strict=True)
        ]
        moves = [-rate * d for rate, d in zip(used, directions, strict=True)]
        tree = jax.tree.unflatten(jax.tree.structure(updates), moves)
        return tree, State(
            rates, rule_state, base_state, inputs, directions, history, used
        )

    return optax.GradientTransformation(init, update)


def _correct(
    rule: optax.GradientTransformationExtraArgs,
    kernels: Kernels,
    state: State,
    agreed: list[jax.Array],
) -> tuple[jax.Array, Any]:
    """Return the rates of all memories after the evidence of an update."""
    pairs = [
        accumulate(kernels, inputs, [one / one.size, jnp.abs(one) / one.size])
        for inputs, one in zip(state.inputs, agreed, strict=True)
    ]
    u, activity = (jnp.stack(one) for one in zip(*pairs, strict=True))
    steps, rule_state = rule.update(-u, state.rule, state.rates, activity=activity)
    rates: Any = optax.apply_updates(state.rates, steps)
    return jnp.clip(rates, *_BOUNDS), rule_state


def method_of(base: str, seen: str) -> Method:
    """Return a memory on a base that sees one of the above."""

    def make(rate: Any) -> optax.GradientTransformation:
        return seeing(seen, BASES[base], rate)

    return Method(f"{base}, {seen}", make, {}, USUAL)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what may be asked."""
    add_seeds(parser)


def run(arguments: argparse.Namespace, say: Callable[[str], None]) -> None:
    """Run what is missing in `kernel_inputs.csv.gz`."""
    store = Store(arguments.out / "kernel_inputs.csv.gz")
    tell, jobs = (
        counted(say, len(kernel_inputs.TASKS)),
        seeds_of(USUAL, arguments.seeds),
    )
    for name in kernel_inputs.TASKS:
        pairs = [
            (method_of(base, seen), jobs)
            for base in BASES
            for seen in kernel_inputs.SEEN
        ]
        run_methods(SUITE[name](), store, pairs)
        tell(f"{name}: all runs are done")


report = kernel_inputs.report
