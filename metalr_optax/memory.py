"""What a memory of learning rates holds, how it is read and how it is corrected.

Pure functions of arrays. When they are called is the business of
:mod:`metalr_optax.transform`.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from metalr_optax.kernels import Array, Kernels, check_kernels, log_activations

Signal = Callable[[jax.Array, jax.Array], jax.Array]


class Memory(NamedTuple):
    """A memory of learning rates: M local models, each a kernel and a rate.

    Attributes:
      kernels: where the local models are, [M] centres and [M] widths.
      rates: [M], the learning rate :math:`v_m` of each local model.

    Examples:
      >>> import numpy as np
      >>> from metalr_optax import Memory, linspace_kernels, scale_by_memory
      >>> memory = Memory(linspace_kernels(1.0, num=3), np.array([0.1, 0.3, 0.1]))
      >>> state = scale_by_memory(memory).init(np.zeros(2))
      >>> [round(float(rate), 3) for rate in state.memory["params"].rates]
      [0.1, 0.3, 0.1]
    """

    kernels: Kernels
    rates: Array


def read(memory: Memory, address: jax.Array) -> jax.Array:
    r"""Return the learning rate that the memory has for each address.

    .. math:: \eta(z) = \sum_m \psi_m(z) v_m / \sum_m \psi_m(z)

    Args:
      memory: M local models.
      address: [...], one address per coordinate. Outside the kernels the rate of
        the outermost local model holds.

    Returns:
      [...], learning rates between the smallest and the largest rate of the
      memory, for every address but NaN, which reads NaN.
    """
    logits = log_activations(memory.kernels, address)
    weights = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))
    rates = jnp.asarray(memory.rates).reshape((1,) * address.ndim + (-1,))
    # Two sums, not a matrix product: a product would store all D x M weights.
    return jnp.sum(weights * rates, axis=-1) / jnp.sum(weights, axis=-1)


def evidence(kernels: Kernels, address: jax.Array, agreement: jax.Array) -> jax.Array:
    r"""Sum the agreement of all coordinates into the local models they had used.

    .. math:: \sum_i a_i \psi_m(z_i)

    Args:
      kernels: M kernels.
      address: [...], the address each coordinate read its last rate from, finite.
      agreement: [...], the value :math:`a_i` of a signal per coordinate, finite.

    Returns:
      [M]; positive where rates should have been larger.
    """
    weights = jnp.exp(log_activations(kernels, address))
    over_coordinates = tuple(range(address.ndim))
    return jnp.sum(weights * agreement[..., None], axis=over_coordinates)


def sign_agreement(gradient: jax.Array, previous_direction: jax.Array) -> jax.Array:
    r"""Return 1 where the gradient kept its sign, -1 where it flipped.

    .. math:: a_i = \mathrm{sign}(g_i) \, \mathrm{sign}(d^-_i)

    Source: equation 4 of Kappler, Schaal, Meier (2017).

    Args:
      gradient: [...], the gradient of this step.
      previous_direction: [...], the direction of the last step, pointing along its
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
    return jnp.sign(gradient) * jnp.sign(previous_direction)


def clipped_product(gradient: jax.Array, previous_direction: jax.Array) -> jax.Array:
    r"""Return the product of a gradient and the last direction, clipped to [-1, 1].

    .. math:: a_i = \mathrm{clip}(g_i d^-_i, -1, 1)

    For plain SGD this is the clipped negative derivative of the loss with respect to
    the last learning rate of the coordinate (the hypergradient). Source: the
    authors' own code.

    Args:
      gradient: [...], the gradient of this step.
      previous_direction: [...], the direction of the last step, pointing along its
        gradient.

    Returns:
      [...], values in [-1, 1].

    Examples:
      >>> import jax.numpy as jnp
      >>> from metalr_optax import clipped_product
      >>> clipped_product(jnp.array([0.5, 2.0]), jnp.array([0.5, -1.0])).tolist()
      [0.25, -1.0]
    """
    return jnp.clip(gradient * previous_direction, -1.0, 1.0)


def weigh_agreement(
    signal: Signal, gradient: jax.Array, previous_direction: jax.Array
) -> jax.Array:
    """Apply a signal where there is something to compare, and return 0 elsewhere.

    A coordinate whose gradient or previous direction is zero or not finite, or for
    which the signal is not finite, says nothing about its rate. At the first step
    all previous directions are zero, so a memory never moves there.
    """
    usable = jnp.isfinite(gradient) & jnp.isfinite(previous_direction)
    # Zeros first, so that a signal that looks at the whole tensor stays finite.
    gradient = jnp.where(usable, gradient, 0)
    previous_direction = jnp.where(usable, previous_direction, 0)
    values = signal(gradient, previous_direction)
    told = (gradient != 0) & (previous_direction != 0) & jnp.isfinite(values)
    return jnp.where(told, values, 0)


def check_memory(name: str, memory: Memory, rate_bounds: tuple[float, float]) -> None:
    """Raise ValueError unless the memory is usable; traced values are trusted."""
    check_kernels(memory.kernels)
    shape = np.shape(memory.kernels.centers)
    if np.shape(memory.rates) != shape:
        raise ValueError(
            f"{name} must have one rate per kernel, shape {shape}, got rates of shape "
            f"{np.shape(memory.rates)}"
        )
    check_rates(name, memory.rates, rate_bounds)


def check_rates(
    name: str, rates: jax.typing.ArrayLike, rate_bounds: tuple[float, float]
) -> None:
    """Raise ValueError unless all rates are within the bounds; traced ones pass."""
    if isinstance(rates, jax.core.Tracer):
        return
    values = np.asarray(rates)
    # A rate at a bound may have been rounded by its dtype: round the bound too.
    inexact = jnp.issubdtype(values.dtype, np.inexact)
    low, high = np.asarray(rate_bounds, values.dtype if inexact else np.float64)
    if not ((values >= low) & (values <= high)).all():
        raise ValueError(
            f"{name} must have rates within rate_bounds={rate_bounds}, got {rates}"
        )
