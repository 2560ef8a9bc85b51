"""Ways to place the Gaussian kernels of a memory.

Kernels determine which local models are active at a kernel input ``z`` (for plain SGD:
one coordinate of the gradient). They only change with ``capacity`` or
``learned_widths`` of :func:`metalr_optax.scale_by_memory`.
"""

import numpy as np

from metalr_optax.checks import check_integer, check_number, is_concrete, require
from metalr_optax.memory import Array, Kernels


def linspace_kernels(bound: float, num: int = 20, width: float = 0.5) -> Kernels:
    """Place kernels evenly on ``[-bound, bound]``.

    Args:
      bound: the outermost centre, positive; also the value at which the ``paper_``
        optimizers clip a gradient.
      num: M, the number of kernels. ``num=1`` gives a single kernel at 0 that is
        1000 bounds wide: one scalar rate for all gradients, the control for every
        claim about the shape of a memory.
      width: width of a kernel, in units of the distance between neighbours.

    Returns:
      :class:`Kernels` of NumPy float64 arrays; ``init`` casts them to the dtype of a
      memory.

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
    check_number("bound", bound)
    check_number("width", width)
    check_integer("num", num, smallest=1)
    if num == 1:
        return Kernels(np.zeros(1), np.full(1, 1000.0 * bound))
    centers = np.linspace(-bound, bound, num)
    return Kernels(centers, np.full(num, width * 2.0 * bound / (num - 1)))


def logspace_kernels(
    bound: float, num: int = 20, smallest: float = 1e-6, width: float = 0.5
) -> Kernels:
    """Place kernels geometrically on both sides of zero, and one at zero.

    ``num / 2`` magnitudes run geometrically from ``smallest`` to ``bound``, on both
    sides of a kernel at 0. The width of a kernel is ``width`` times the distance to its
    neighbour towards zero, and the kernel at 0 is as narrow as the two next to it.
    These are the tables of the authors' own code.

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
        check_number(name, value)
    check_integer("num", num, smallest=4)
    require(num % 2 == 0, "num", "be even for log-spaced kernels", num)
    require(smallest < bound, "smallest", f"be below bound={bound}", smallest)
    magnitudes = np.geomspace(smallest, bound, num // 2)
    widths = width * np.diff(magnitudes, prepend=0.0)
    return Kernels(
        np.concatenate([-magnitudes[::-1], [0.0], magnitudes]),
        np.concatenate([widths[::-1], [widths[0]], widths]),
    )


def covered(kernels: Kernels) -> Array:
    """Return the magnitude up to which the kernels cover an input.

    It is the outermost centre; a single kernel (``linspace_kernels`` makes it 1000
    bounds wide) covers a thousandth of its width on either side.
    """
    centers, widths = kernels
    # NumPy where possible, because a JAX array could be donated later.
    if all(map(is_concrete, kernels)):
        centers, widths = np.asarray(centers), np.asarray(widths)
    if centers.shape == (1,):
        return abs(centers[0]) + widths[0] / 1000.0
    return abs(centers).max()
