"""Optimizers to compare with that Optax lacks."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


class RpropState(NamedTuple):
    """State of `rprop`: the last gradient and a step size for every coordinate."""

    previous: Any
    sizes: Any


def rprop(
    rate: jax.typing.ArrayLike,
    shrink: float = 0.5,
    grow: float = 1.2,
    bounds: tuple[float, float] = (1e-6, 50.0),
) -> optax.GradientTransformation:
    """RPROP: every coordinate steps by its own size, against the sign of its gradient.

    A size grows while the sign stays and shrinks when it flips; after a flip the
    coordinate rests for one update. `optax.rprop` (0.2.8) emits the update of the step
    before: its first update is zero and all later ones are one gradient late.

    Source: Riedmiller, Braun, "A direct adaptive method for faster backpropagation
    learning: the RPROP algorithm", 1993, in the form without a step back of Igel,
    Huesken, "Improving the Rprop learning algorithm", 2000 (iRPROP-).
    """

    def resize(sign: jax.Array, size: jax.Array) -> jax.Array:
        factor = jnp.where(sign > 0, grow, jnp.where(sign < 0, shrink, 1.0))
        return jnp.clip(size * factor, *bounds)

    def init(params: optax.Params) -> RpropState:
        return RpropState(
            jax.tree.map(jnp.zeros_like, params),
            jax.tree.map(lambda leaf: jnp.full_like(leaf, rate), params),
        )

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        del params
        gradients = updates
        agreement = jax.tree.map(
            lambda now, before: jnp.sign(now) * jnp.sign(before),
            gradients,
            state.previous,
        )
        sizes = jax.tree.map(resize, agreement, state.sizes)
        kept = jax.tree.map(
            lambda sign, now: jnp.where(sign < 0, 0.0, now), agreement, gradients
        )
        updates = jax.tree.map(lambda now, size: -size * jnp.sign(now), kept, sizes)
        return updates, RpropState(kept, sizes)

    return optax.GradientTransformation(init, update)


class HypergradientState(NamedTuple):
    """State of `hypergradient_adam`: Adam's own, its last direction, the rate."""

    adam: optax.OptState
    direction: Any
    rate: jax.Array


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

    def init(params: optax.Params) -> HypergradientState:
        return HypergradientState(
            adam.init(params),
            jax.tree.map(jnp.zeros_like, params),
            jnp.asarray(rate, jnp.float32),
        )

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        gradients = updates
        slope = optax.tree.vdot(gradients, state.direction)
        learned = state.rate + hyper_rate * slope
        direction, inner = adam.update(gradients, state.adam, params)
        updates = optax.tree.scale(-learned, direction)
        return updates, HypergradientState(inner, direction, learned)

    return optax.GradientTransformation(init, update)
