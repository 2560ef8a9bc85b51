"""Signals: how far a gradient agrees with the last direction of its coordinate."""

from collections.abc import Callable

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

    It is the negative derivative of the loss with respect to the last learning rate of
    the coordinate (the hypergradient), so large gradients count for more. Its sum has
    no bound: use it with :func:`metalr_optax.agreement_steps`, which normalises it.

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


def is_coordinatewise(signal: Signal) -> bool:
    """Return whether a signal treats coordinates independently; False if unknown."""
    return signal in (sign_agreement, clipped_product, raw_product)
