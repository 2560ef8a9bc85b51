"""One compiled program that trains a problem many times: the only training loop."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from benchmarks.methods import Method
from benchmarks.problems.problem import Problem
from metalr_optax import get_memory, set_memory


def make_update(
    problem: Problem, optimizer: optax.GradientTransformation, data: Any
) -> Callable[[Any, jax.Array], Any]:
    """Return one update for a scan; it carries parameters, extra and the state."""

    def update(carry: Any, count: jax.Array) -> Any:
        params, extra, state = carry
        gradients, extra = problem.gradients(data, params, extra, count)
        updates, state = optimizer.update(gradients, state, params)
        return (optax.apply_updates(params, updates), extra, state), None

    return update


def make_runner(problem: Problem, method: Method) -> Callable[..., Any]:
    """Return a compiled function that trains once for every setting and seed.

    It takes the problem's data, settings [R, H], seeds [R] and memories (a tree with a
    leading R, or None) and returns measures [R, horizon / every], the parameters and
    the memories at the end. One run after the other: products batched over networks
    are slow on a CPU. It compiles once, whatever the settings.
    """

    def train(data: Any, setting: jax.Array, seed: jax.Array, memory: Any) -> Any:
        params, extra = problem.start(data, jax.random.key(seed))
        optimizer = method.make(*setting)
        state = optimizer.init(params)
        if memory is not None:
            state = set_memory(state, memory)
        update = make_update(problem, optimizer, data)

        def stretch(carry: Any, counts: jax.Array) -> Any:
            carry, _ = jax.lax.scan(update, carry, counts)
            params, extra, state = carry
            return carry, problem.measure(data, method.judged(state, params), extra)

        counts = jnp.arange(problem.horizon).reshape(-1, problem.every)
        (params, _, state), curve = jax.lax.scan(
            stretch, (params, extra, state), counts
        )
        learned = get_memory(state) if method.has_memory else {}
        return curve, method.judged(state, params), learned

    def run(data: Any, settings: Any, seeds: Any, memories: Any) -> Any:
        return jax.lax.map(lambda one: train(data, *one), (settings, seeds, memories))

    return jax.jit(run)
