"""What a memory of learning rates holds, how it is read and how it is corrected.

Pure functions of arrays. When they are called is the business of
:mod:`metalr_optax.transform`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from metalr_optax.kernels import Array, Kernels, check_kernels, log_activation

# So many local models, or fewer, are evaluated in one go instead of one by one.
_FEW = 3

# Rates that any optimizer may hold; its own bounds are narrower.
POSITIVE = (1e-37, 1e37)

Signal = Callable[[jax.Array, jax.Array], jax.Array]


class Memory(NamedTuple):
    r"""A memory of learning rates: M local models, each a kernel and a rate.

    Attributes:
      kernels: where the local models are, [M] centres and [M] widths.
      rates: [M], the learning rate :math:`v_m` of each local model.
      counts: [M], in steps, how much evidence each local model has had: the sum of its
        shares :math:`|u_m| / \sum_k |u_k|`; None for zeros.
      relative: [], bool, whether addresses are relative to the root mean square of a
        tensor; None if not known. A single rate has no address: there it is free.

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
    counts: Any = None
    relative: Any = None


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
    kernels = memory.kernels
    if len(kernels.centers) == 1:
        return jnp.where(jnp.isnan(address), address, memory.rates[0])

    def log_weight(kernel: Kernels) -> jax.Array:
        return log_activation(kernel, kernels, address)

    # One local model at a time: written as one array operation, XLA stores [D, M]
    # numbers as soon as a whole update is compiled.
    def take_nearest(nearest: jax.Array, kernel: Kernels) -> tuple[jax.Array, None]:
        return jnp.maximum(nearest, log_weight(kernel)), None

    first = jax.tree.map(lambda array: jnp.asarray(array)[0], kernels)
    models = Memory(kernels, memory.rates)
    few = len(kernels.centers) <= _FEW
    nearest, _ = jax.lax.scan(take_nearest, log_weight(first), kernels, unroll=few)

    def add(sums: tuple[jax.Array, jax.Array], model: Memory) -> Any:
        weight = jnp.exp(log_weight(model.kernels) - nearest)
        return (sums[0] + weight * model.rates, sums[1] + weight), None

    zero = jnp.zeros_like(nearest)
    (weighted_rates, weights), _ = jax.lax.scan(add, (zero, zero), models, unroll=few)
    return weighted_rates / weights


def evidence(kernels: Kernels, address: jax.Array, agreement: jax.Array) -> jax.Array:
    r"""Sum the agreement of all coordinates into the local models they had used.

    .. math:: \sum_i a_i \psi_m(z_i)

    Args:
      kernels: M kernels.
      address: [...], the address each coordinate read its last rate from, finite.
      agreement: [...], the value :math:`a_i` of a signal per coordinate, finite.

    Returns:
      [M]; positive where rates should have been larger. A single kernel answers for
      every address alike, and so is the sum of all agreement.
    """
    if len(kernels.centers) == 1:
        return jnp.sum(agreement)[None]

    def of_model(_: None, kernel: Kernels) -> tuple[None, jax.Array]:
        activation = jnp.exp(log_activation(kernel, kernels, address))
        return None, jnp.sum(activation * agreement)

    few = len(kernels.centers) <= _FEW
    return jax.lax.scan(of_model, None, kernels, unroll=few)[1]


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


def raw_product(gradient: jax.Array, previous_direction: jax.Array) -> jax.Array:
    r"""Return the product of a gradient and the last direction.

    .. math:: a_i = g_i d^-_i

    The negative derivative of the loss with respect to the last learning rate of the
    coordinate (the hypergradient), so that large gradients have their say. Its sum has
    no bound: use it with :func:`metalr_optax.agreement_steps`, which makes it relative.

    Args:
      gradient: [...], the gradient of this step.
      previous_direction: [...], the direction of the last step, pointing along its
        gradient.

    Returns:
      [...].

    Examples:
      >>> import jax.numpy as jnp
      >>> from metalr_optax import raw_product
      >>> raw_product(jnp.array([0.5, 2.0]), jnp.array([0.5, -1.0])).tolist()
      [0.25, -2.0]
    """
    return gradient * previous_direction


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
    return jnp.where(told, values, 0).astype(gradient.dtype)


def check_memory(name: str, memory: Memory, rate_bounds: tuple[float, float]) -> None:
    """Raise ValueError unless the memory is usable; traced values are trusted."""
    if not isinstance(memory, Memory):
        raise ValueError(f"{name} must be a metalr_optax.Memory, got {memory!r}")
    try:
        check_kernels(memory.kernels)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    shape = np.shape(memory.kernels.centers)
    if np.shape(memory.rates) != shape:
        raise ValueError(
            f"{name} must have one rate per kernel, shape {shape}, got rates of shape "
            f"{np.shape(memory.rates)}"
        )
    check_rates(name, memory.rates, rate_bounds)
    if memory.counts is None or isinstance(memory.counts, jax.core.Tracer):
        return
    counts = np.asarray(memory.counts)
    is_real = np.issubdtype(counts.dtype, np.integer) or jnp.issubdtype(
        counts.dtype, jnp.floating
    )
    if not (
        is_real
        and counts.shape == shape
        and (np.isfinite(counts) & (counts >= 0)).all()
    ):
        raise ValueError(
            f"{name} must have finite counts of at least 0, shape {shape}, got "
            f"{memory.counts!r}"
        )


def is_known(value: Any) -> bool:
    """Return whether an array has a value, which traced and abstract ones have not."""
    return not isinstance(value, jax.core.Tracer | jax.ShapeDtypeStruct)


def check_address(name: str, memory: Memory, relative: bool) -> None:
    """Raise ValueError if the memory is known to be for another kind of address."""
    learned = memory.relative
    if learned is None or isinstance(learned, jax.core.Tracer):
        return
    if np.size(memory.rates) > 1 and bool(np.all(learned)) != relative:
        kinds = "'value'", "'relative'"
        raise ValueError(
            f"{name} was learned with address={kinds[not relative]} and must not be "
            f"read with address={kinds[relative]}; adapt_memory flattens it"
        )


def check_rates(
    name: str, rates: jax.typing.ArrayLike, rate_bounds: tuple[float, float]
) -> None:
    """Raise ValueError unless all rates are within the bounds; traced ones pass."""
    if any(isinstance(value, jax.core.Tracer) for value in (rates, *rate_bounds)):
        return
    values = np.asarray(rates)
    if not jnp.issubdtype(values.dtype, np.number) or np.iscomplexobj(values):
        raise ValueError(f"{name} must have real numbers for rates, got {rates!r}")
    # A rate at a bound may have been rounded on its way here.
    inexact = jnp.issubdtype(values.dtype, np.inexact)
    slack = max(1e-6, float(jnp.finfo(values.dtype).eps)) if inexact else 0.0
    low, high = float(rate_bounds[0]), float(rate_bounds[1])
    values = values.astype(np.float64)
    if not ((values >= low * (1 - slack)) & (values <= high * (1 + slack))).all():
        raise ValueError(
            f"{name} must have rates within the bounds {rate_bounds}, got {rates}"
        )
