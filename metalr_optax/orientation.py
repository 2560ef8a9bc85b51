"""Whether a base optimizer points along the gradient or against it."""

from typing import Any

import jax
import jax.numpy as jnp
import optax


class AlongGradient(optax.GradientTransformationExtraArgs):
    """A base that is known to point along the gradient: nothing is to be found."""


def find_orientation(turn: jax.Array, gradient: Any, direction: Any) -> jax.Array:
    """Return the sign of <gradient, direction> over a whole tree, once it is not 0.

    Args:
      turn: [], the orientation so far, 0 as long as that is unknown.
      gradient: a tree.
      direction: a tree like it; the gradient itself points along itself.
    """
    if direction is gradient:
        return jnp.ones_like(turn)
    # Inside of `shard_map` both branches vary over the same devices.
    leaves = jax.tree.leaves((gradient, direction))
    known = sum((jnp.zeros_like(leaf, turn.dtype, ()) for leaf in leaves), turn)
    return jax.lax.cond(
        turn == 0, lambda: _sign(gradient, direction).astype(turn.dtype), lambda: known
    )


def _sign(gradient: optax.Updates, direction: optax.Updates) -> jax.Array:
    pairs = zip(_scaled(gradient), _scaled(direction), strict=True)
    return jnp.sign(sum((jnp.sum(g * d) for g, d in pairs), jnp.float32(0)))


def _scaled(tree: optax.Updates) -> list[jax.Array]:
    """Bring the largest magnitude to 1, by a power of 2: exactly, what cancels."""
    leaves = [
        jnp.where(jnp.isfinite(leaf), leaf, 0).astype(jnp.float32)
        for leaf in map(jnp.asarray, jax.tree.leaves(tree))
    ]
    largest = [jnp.max(jnp.abs(leaf), initial=0.0) for leaf in leaves]
    exponent = jnp.frexp(jnp.max(jnp.stack(largest)))[1] if leaves else 0
    return [jnp.ldexp(leaf, -exponent) for leaf in leaves]
