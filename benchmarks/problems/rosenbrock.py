"""The Rosenbrock function, as in the notebook of the authors' code.

f(x1, x2) = (1 - x1)^2 + 100 (x2 - x1^2)^2 from (1.5, -0.5) in 100 updates, a memory for
each coordinate. The picture of the path is the notebook's setting: 100 local models on
[-10, 10], clipped products as the signal, Adam at 0.001 for the memory. The comparison
has the same memories as on all problems (20 local models, clip 2), and seeds move the
start by normal noise of 0.1.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.problems.problem import Problem
from metalr_optax import clipped_product, get_memory, linspace_kernels, paper_sgd

NAME = "rosenbrock"
START = (1.5, -0.5)
HORIZON = 100
BOUND = 10.0
MODELS = 100


class Descent(NamedTuple):
    """One run: where it was before every update and after the last, and its rates."""

    points: np.ndarray  # [HORIZON + 1, 2]
    losses: np.ndarray  # [HORIZON + 1]
    rates: np.ndarray  # [HORIZON + 1, 2, MODELS]


def rosenbrock(x1: jax.typing.ArrayLike, x2: jax.typing.ArrayLike) -> jax.Array:
    """Return the height of the surface; its lowest point is (1, 1)."""
    return (1.0 - jnp.asarray(x1)) ** 2 + 100.0 * (x2 - jnp.asarray(x1) ** 2) ** 2


def _loss(params: dict[str, jax.Array]) -> jax.Array:
    return rosenbrock(params["x1"], params["x2"])


def load_problem() -> Problem:
    """Return the problem that the methods are compared on."""

    def start(data: None, key: jax.Array) -> tuple[Any, tuple]:
        del data
        x1, x2 = jnp.array(START) + 0.1 * jax.random.normal(key, (2,))
        return {"x1": x1, "x2": x2}, ()

    def gradients(data: None, params: Any, extra: Any, count: jax.Array) -> Any:
        del data, count
        return jax.grad(_loss)(params), extra

    def measure(data: None, params: Any, extra: Any) -> jax.Array:
        del data, extra
        return _loss(params)

    return Problem(NAME, None, start, gradients, measure, HORIZON, every=2)


def descend() -> Descent:
    """Run the notebook's setting: base rate 0.001, stepped by Adam(0.001)."""
    optimizer = paper_sgd(
        initial=1e-3,
        kernels=linspace_kernels(BOUND, MODELS),
        memory_optimizer=optax.adam(1e-3),
        signal=clipped_product,
    )

    def update(carry: Any, _: None) -> Any:
        params, state = carry
        memory = get_memory(state)
        seen = (
            jnp.stack([params["x1"], params["x2"]]),
            _loss(params),
            jnp.stack([memory["x1"].rates, memory["x2"].rates]),
        )
        updates, state = optimizer.update(jax.grad(_loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), seen

    params = {name: jnp.float32(x) for name, x in zip(("x1", "x2"), START, strict=True)}
    carry = params, optimizer.init(params)
    _, seen = jax.lax.scan(update, carry, length=HORIZON + 1)
    return Descent(*(np.asarray(one) for one in seen))
