"""What a gradient says about the last direction of its coordinate."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Signal = Callable[[jax.Array, jax.Array], jax.Array]


def sign_agreement(gradient: jax.Array, last_direction: jax.Array) -> jax.Array:
    r"""Return 1 where the gradient kept its sign, -1 where it flipped.

    .. math:: a_i = \mathrm{sign}(g_i) \, \mathrm{sign}(d^-_i)

    Source: equation 4 of Kappler, Schaal, Meier (2017).

    Args:
      gradient: [...], the gradient of this step.
      last_direction: [...], the direction of the last step, pointing along its
        gradient.

    Returns:
      [...], -1, 0 or 1.

    Examples:
      >>> import jax.numpy as jnp
      >>> from metalr_optax import sign_agreement
      >>> sign_agreement(jnp.array([1e-30, 2.0]), jnp.array([1e-30, -1.0])).tolist()
      [1.0, -1.0]
    """
    # Not sign(g * d): the product of two small gradients underflows to zero.
    return jnp.sign(gradient) * jnp.sign(last_direction)


def clipped_product(gradient: jax.Array, last_direction: jax.Array) -> jax.Array:
    r"""Return the product of a gradient and the last direction, clipped to [-1, 1].

    .. math:: a_i = \mathrm{clip}(g_i d^-_i, -1, 1)

    For plain SGD this is the clipped negative derivative of the loss with respect to
    the last learning rate of the coordinate (the hypergradient). Source: the
    authors' own code.

    Args:
      gradient: [...], the gradient of this step.
      last_direction: [...], the direction of the last step, pointing along its
        gradient.

    Returns:
      [...], values in [-1, 1].

    Examples:
      >>> import jax.numpy as jnp
      >>> from metalr_optax import clipped_product
      >>> clipped_product(jnp.array([0.5, 2.0]), jnp.array([0.5, -1.0])).tolist()
      [0.25, -1.0]
    """
    return jnp.clip(gradient * last_direction, -1.0, 1.0)


def raw_product(gradient: jax.Array, last_direction: jax.Array) -> jax.Array:
    r"""Return the product of a gradient and the last direction.

    .. math:: a_i = g_i d^-_i

    The negative derivative of the loss with respect to the last learning rate of the
    coordinate (the hypergradient), so that large gradients have their say. Its sum has
    no bound: use it with :func:`metalr_optax.agreement_steps`, which makes it relative.

    Args:
      gradient: [...], the gradient of this step.
      last_direction: [...], the direction of the last step, pointing along its
        gradient.

    Returns:
      [...].

    Examples:
      >>> import jax.numpy as jnp
      >>> from metalr_optax import raw_product
      >>> raw_product(jnp.array([0.5, 2.0]), jnp.array([0.5, -1.0])).tolist()
      [0.25, -2.0]
    """
    return gradient * last_direction


def agreement(
    signal: Signal, gradient: jax.Array, last_direction: jax.Array, turn: Any = None
) -> jax.Array:
    """Apply a signal where there is something to compare, and return 0 elsewhere.

    A coordinate whose gradient or previous direction is zero or not finite, or for
    which the signal is not finite, says nothing about its rate. At the first step
    all previous directions are zero, so a memory never moves there.

    Args:
      signal: of the gradient and the last direction.
      gradient: [...].
      last_direction: [...], of any dtype.
      turn: [], 1 or -1, what makes the last direction point along its gradient, 0 as
        long as that is unknown; None for 1.
    """
    last_direction = last_direction.astype(gradient.dtype)
    if turn is not None:
        last_direction = last_direction * turn.astype(gradient.dtype)
    if signal is raw_product:
        # What is zero or not finite shows in the product: less to compile and to do.
        values = gradient * last_direction
        return jax.lax.select(
            jax.lax.is_finite(values), values, jax.lax.full_like(values, 0)
        )
    usable = jnp.isfinite(gradient) & jnp.isfinite(last_direction)
    # Zeros first, so that a signal that looks at the whole tensor stays finite.
    gradient = jnp.where(usable, gradient, 0)
    last_direction = jnp.where(usable, last_direction, 0)
    values = signal(gradient, last_direction)
    has_evidence = (gradient != 0) & (last_direction != 0) & jnp.isfinite(values)
    return jnp.where(has_evidence, values, 0).astype(gradient.dtype)


def is_coordinatewise(signal: Signal) -> bool:
    """Return whether a signal is known to look at each coordinate on its own."""
    return signal in (sign_agreement, clipped_product, raw_product)
