"""Where a memory has its local models: Gaussian kernels over an address.

The kernels of a memory never change. They say which local models answer for an
address ``z`` (for plain SGD: the value of one coordinate of the gradient).
"""

import numbers
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# Addresses further than this many widths outside the outermost kernels are moved
# to that distance. There a kernel is 1e-14 strong and, at half a spacing of width,
# all but alone: the function inside is untouched, nothing divides 0 by 0, and a
# gradient from far outside hardly moves the memory.
REACH = 8.0

# With wider gaps than this (in widths) the square of a distance overflows float32
# and no kernel would answer at all.
_LARGEST_GAP = 1e15


Array = jax.Array | np.ndarray


class Kernels(NamedTuple):
    r"""Centres and widths of M Gaussian kernels, smallest centre first.

    .. math:: \psi_m(z) = \exp(-(z - c_m)^2 / (2 s_m^2))

    Attributes:
      centers: [M], :math:`c_m`, strictly increasing, in units of the address.
      widths: [M], :math:`s_m`, positive, in units of the address.

    A single kernel is the scalar memory that ``linspace_kernels(bound, 1)`` makes: one
    rate, whatever the address, judged by all coordinates alike. :func:`paper_sgd` and
    :func:`paper_adam` clip gradients at a thousandth of its width.
    """

    centers: Array
    widths: Array


def linspace_kernels(bound: float, num: int = 20, width: float = 0.5) -> Kernels:
    """Place kernels evenly on ``[-bound, bound]``.

    Args:
      bound: the outermost centre, positive; also the value at which the ready
        optimizers clip a gradient.
      num: M, the number of kernels. ``num=1`` gives a single kernel at 0 that is
        1000 bounds wide: one scalar rate for all gradients, the control for every
        claim about the shape of a memory.
      width: width of a kernel, in units of the distance between neighbours.

    Returns:
      :class:`Kernels` of NumPy float64 arrays; they become as precise as the
      parameters when an optimizer is initialised.

    Raises:
      ValueError: a bound or width that is not positive and finite, ``num < 1``.

    Examples:
      >>> from metalr_optax import linspace_kernels
      >>> kernels = linspace_kernels(2.0, num=5)
      >>> [float(center) for center in kernels.centers]
      [-2.0, -1.0, 0.0, 1.0, 2.0]
      >>> float(kernels.widths[0])
      0.5
    """
    _check_positive("bound", bound)
    _check_positive("width", width)
    _check_count(num, smallest=1)
    if num == 1:
        return Kernels(np.zeros(1), np.full(1, 1000.0 * bound))
    spacing = 2.0 * bound / (num - 1)
    centers = np.linspace(-bound, bound, num)
    return Kernels(centers, np.full(num, width * spacing))


def logspace_kernels(
    bound: float, num: int = 20, smallest: float = 1e-6, width: float = 0.5
) -> Kernels:
    """Place kernels geometrically on both sides of zero, and one at zero.

    ``num / 2`` magnitudes run geometrically from ``smallest`` to ``bound``; each
    stands on both sides of a kernel at 0. The width of a kernel is ``width`` times
    the distance to its neighbour towards zero, and the kernel at 0 is as narrow as
    the two next to it. These are the tables of the authors' own code.

    Args:
      bound: the outermost centre, positive.
      num: an even number, at least 4; the kernels are M = ``num + 1``.
      smallest: the innermost positive centre, below ``bound``.
      width: width of a kernel, in units of the distance to its inner neighbour.

    Returns:
      :class:`Kernels` of NumPy float64 arrays.

    Raises:
      ValueError: a bound, smallest or width that is not positive and finite, a
        ``smallest`` that is not below ``bound``, an odd ``num`` or one below 4.

    Examples:
      >>> from metalr_optax import logspace_kernels
      >>> kernels = logspace_kernels(1.0, num=4, smallest=0.01)
      >>> [float(center) for center in kernels.centers]
      [-1.0, -0.01, 0.0, 0.01, 1.0]
      >>> [float(width) for width in kernels.widths]
      [0.495, 0.005, 0.005, 0.005, 0.495]
    """
    for name, value in (("bound", bound), ("smallest", smallest), ("width", width)):
        _check_positive(name, value)
    _check_count(num, smallest=4)
    if num % 2:
        raise ValueError(f"num must be even for log-spaced kernels, got {num}")
    if smallest >= bound:
        raise ValueError(f"smallest must be below bound={bound}, got {smallest}")
    magnitudes = np.geomspace(smallest, bound, num // 2)
    widths = width * np.diff(magnitudes, prepend=0.0)
    return Kernels(
        np.concatenate([-magnitudes[::-1], [0.0], magnitudes]),
        np.concatenate([widths[::-1], [widths[0]], widths]),
    )


def log_activation(kernel: Kernels, kernels: Kernels, address: jax.Array) -> jax.Array:
    r"""Return the logarithm of one of the kernels at every address.

    Args:
      kernel: one centre and one width, of shape [].
      kernels: all M kernels it belongs to; addresses are clamped to their reach.
      address: [...].

    Returns:
      [...], :math:`\log \psi_m(z)`, finite for every address but NaN.
    """
    centers, widths = jnp.asarray(kernels.centers), jnp.asarray(kernels.widths)
    inside = jnp.clip(
        address, centers[0] - REACH * widths[0], centers[-1] + REACH * widths[-1]
    )
    return -0.5 * jnp.square((inside - kernel.centers) / kernel.widths)


def grid_bound(kernels: Kernels) -> Any:
    """Return the magnitude up to which the kernels cover an address.

    It is the outermost centre; a single kernel (``linspace_kernels`` makes it 1000
    bounds wide) covers a thousandth of its width on either side.
    """
    # A number as soon as can be: whoever keeps it then depends on no buffer.
    xp = jnp if is_traced(kernels) else np
    centers, widths = xp.asarray(kernels.centers), xp.asarray(kernels.widths)
    if centers.shape == (1,):
        return xp.abs(centers[0]) + widths[0] / 1000.0
    return xp.max(xp.abs(centers))


def check_kernels(kernels: Kernels, dtype: Any = np.float64) -> None:
    """Raise ValueError unless the kernels are usable in a dtype; traced ones pass."""
    if not isinstance(kernels, Kernels):
        raise ValueError(
            "kernels must be metalr_optax.Kernels, for example "
            f"linspace_kernels(2.0), got {kernels!r}"
        )
    shapes = np.shape(kernels.centers), np.shape(kernels.widths)
    if len(shapes[0]) != 1 or shapes[0] != shapes[1] or shapes[0][0] < 1:
        raise ValueError(
            "kernels must hold centers and widths of one shape [M] with M >= 1, "
            f"got {shapes[0]} and {shapes[1]}"
        )
    if is_traced(kernels):
        return
    centers, widths = np.asarray(kernels.centers), np.asarray(kernels.widths)
    if not (np.isfinite(widths) & (widths.astype(dtype) >= np.finfo(dtype).tiny)).all():
        raise ValueError(
            f"widths must be positive and finite as {np.dtype(dtype)}, got {widths}"
        )
    gaps = np.diff(centers.astype(dtype))
    if not (np.isfinite(centers).all() and (gaps > 0).all()):
        raise ValueError(
            f"centers must be finite and increasing as {np.dtype(dtype)}, got {centers}"
        )
    if (gaps > _LARGEST_GAP * np.maximum(widths[1:], widths[:-1])).any():
        raise ValueError(
            f"neighbours must be within {_LARGEST_GAP:g} widths of each other, got "
            f"centers {centers} and widths {widths}"
        )


def is_traced(kernels: Kernels) -> bool:
    """Return whether nobody can tell yet what the values of the kernels are."""
    return any(isinstance(array, jax.core.Tracer) for array in kernels)


def _check_positive(name: str, value: float) -> None:
    is_number = isinstance(value, numbers.Real) or (
        isinstance(value, jax.Array)
        and not isinstance(value, jax.core.Tracer)
        and value.ndim == 0
    )
    if not (is_number and np.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be a positive, finite number, got {value!r}")


def _check_count(num: int, smallest: int) -> None:
    if isinstance(num, bool) or not isinstance(num, (int, np.integer)):
        raise ValueError(f"num must be a whole number, got {num!r}")
    if num < smallest:
        raise ValueError(f"num must be at least {smallest}, got {num}")
