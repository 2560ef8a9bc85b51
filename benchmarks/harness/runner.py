"""One compiled program that trains a problem once: the only training loop."""

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
    """Return a compiled function that trains once.

    It takes the problem's data, a setting [H], a seed and a memory or None, and
    returns measures [horizon / every], the parameters and the memory at the end. It
    compiles once, whatever the setting.
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

    return jax.jit(train)
