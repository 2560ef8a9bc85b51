"""Whether a base optimizer points along the gradient or against it."""

from typing import Any

import jax
import jax.numpy as jnp
import optax


class AlongGradient(optax.GradientTransformationExtraArgs):
    """A base that always points along the gradient."""


def find_orientation(old: jax.Array, gradient: Any, direction: Any) -> jax.Array:
    """Return the sign of <gradient, direction> over a whole tree, once it is not 0.

    Args:
      old: [], the orientation so far, 0 until it is determined.
      gradient: a tree.
      direction: a tree like it; the gradient itself points along itself.
    """
    if direction is gradient:
        return jnp.ones_like(old)
    # Inside `shard_map` both branches must vary over the same devices.
    leaves = jax.tree.leaves((gradient, direction))
    varying = sum((jnp.zeros_like(leaf, old.dtype, ()) for leaf in leaves), old)
    return jax.lax.cond(
        old == 0, lambda: _sign(gradient, direction).astype(old.dtype), lambda: varying
    )


def _sign(gradient: optax.Updates, direction: optax.Updates) -> jax.Array:
    pairs = zip(_scaled(gradient), _scaled(direction), strict=True)
    return jnp.sign(sum((jnp.sum(g * d) for g, d in pairs), jnp.float32(0)))


def _scaled(tree: optax.Updates) -> list[jax.Array]:
    """Scale by a power of 2, which is exact, to a largest magnitude in [0.5, 1)."""
    leaves = [
        jnp.where(jnp.isfinite(leaf), leaf, 0).astype(jnp.float32)
        for leaf in map(jnp.asarray, jax.tree.leaves(tree))
    ]
    largest = [jnp.max(jnp.abs(leaf), initial=0.0) for leaf in leaves]
    exponent = jnp.frexp(jnp.max(jnp.stack(largest)))[1] if leaves else 0
    return [jnp.ldexp(leaf, -exponent) for leaf in leaves]
