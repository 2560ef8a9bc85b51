"""Optimizers to compare with that Optax lacks."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

_SHRINK, _GROW, _BOUNDS = 0.5, 1.2, (1e-6, 50.0)


def rprop(rate: jax.typing.ArrayLike) -> optax.GradientTransformation:
    """RPROP: every coordinate steps by its own size, against the sign of its gradient.

    A size grows while the sign stays and shrinks when it flips; after a flip the
    coordinate rests for one update. `optax.rprop` (0.2.8) emits the update of the step
    before: its first update is zero and all later ones are one gradient late.

    Source: Riedmiller, Braun, "A direct adaptive method for faster backpropagation
    learning: the RPROP algorithm", 1993, in the form without a step back of Igel,
    Huesken, "Improving the Rprop learning algorithm", 2000 (iRPROP-).
    """

    def resize(sign: jax.Array, size: jax.Array) -> jax.Array:
        factor = jnp.where(sign > 0, _GROW, jnp.where(sign < 0, _SHRINK, 1.0))
        return jnp.clip(size * factor, *_BOUNDS)

    def init(params: optax.Params) -> Any:
        """Return the last gradient and a step size for every coordinate."""
        sizes = jax.tree.map(lambda leaf: jnp.full_like(leaf, rate), params)
        return jax.tree.map(jnp.zeros_like, params), sizes

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        previous, sizes = state
        agreement = jax.tree.map(
            lambda now, before: jnp.sign(now) * jnp.sign(before), updates, previous
        )
        sizes = jax.tree.map(resize, agreement, sizes)
        kept = jax.tree.map(
            lambda sign, now: jnp.where(sign < 0, 0.0, now), agreement, updates
        )
        updates = jax.tree.map(lambda now, size: -size * jnp.sign(now), kept, sizes)
        return updates, (kept, sizes)

    return optax.GradientTransformation(init, update)


def hypergradient_adam(
    rate: jax.typing.ArrayLike, hyper_rate: jax.typing.ArrayLike
) -> optax.GradientTransformation:
    r"""Adam whose one rate goes down its own gradient.

    .. math:: \eta \leftarrow \eta + \beta \langle g_t, d_{t-1} \rangle,
      \quad x \leftarrow x - \eta d_t

    Source: Baydin and others, "Online Learning Rate Adaptation with Hypergradient
    Descent", 2018 (arXiv 1703.04782), Adam-HD.
    """
    adam = optax.scale_by_adam()

    def init(params: optax.Params) -> Any:
        """Return Adam's own state, its last direction and the rate."""
        zeros = jax.tree.map(jnp.zeros_like, params)
        return adam.init(params), zeros, jnp.asarray(rate, jnp.float32)

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        inner, direction, learned = state
        learned = learned + hyper_rate * optax.tree.vdot(updates, direction)
        direction, inner = adam.update(updates, inner, params)
        return optax.tree.scale(-learned, direction), (inner, direction, learned)

    return optax.GradientTransformation(init, update)
