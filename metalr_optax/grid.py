"""Large tensors: a cost that does not grow with M.

The rate is a smooth function of a single number, so it is evaluated at the nodes of a
grid and interpolated linearly for every coordinate. Evidence is scattered to the grid:
every coordinate is added to one of its two nearest nodes, and kernels are evaluated at
nodes only.

Nodes are evenly spaced in the bits of the float32 number ``1 + |z - middle| / unit``,
which are linear within an octave and logarithmic across octaves. One octave suits
evenly spaced kernels, twenty suit log-spaced ones. Traced kernels, and those that need
too many nodes, are evaluated exactly.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from metalr_optax.checks import is_concrete
from metalr_optax.evidence import automatically, explicit_mesh, replicated
from metalr_optax.memory import REACH, Kernels, accumulate, read

# A grid pays from this size of a tensor and this number of local models on.
LARGE = 2**14
_MANY = 4
# The most nodes, whose indices have 16 bits; the nodes of a block, which share their
# kernels, and the fewest of an octave; and the most octaves.
_NODES = 2**16
_BLOCK = 2**7
_OCTAVES = 60
# Distances of nodes in widths: of an activation, and of the logistic function by which
# a rate changes from one neighbour to the next. With a distance h, the error of linear
# interpolation is h^2 / 8 for an activation and a tenth of that for a rate.
_BEND, _TURN = 0.06, 0.065
# Two neighbours that cross further than this many widths away vanish there in float32.
_FURTHEST = 12.0
# Kernels with less than exp(-16) of the largest activation are left out.
_FAINT = 16.0
# The outermost node is this much further from the middle than the outermost input.
_MARGIN = 1.02
# Coordinates that are scattered at a time where nothing is sharded: intermediates of
# 3 MB stay in the cache, and counts stay exact in float32. XLA takes twice as long for
# sizes that are no multiple of 8, which here only the remainder has.
_PIECE = 2**18
# Bits of the mantissa of float32, and those of 1.0.
_MANTISSA = 23
_ONE = 127 << _MANTISSA
# 2^32 divided by the golden ratio: multiples of it, modulo 2^32, are evenly spread.
_GOLDEN = 2654435769

# (gradient, last direction, *scalars) -> (kernel inputs, values to accumulate)
Compare = Callable[..., tuple[jax.Array, Sequence[jax.Array]]]


class Grid(NamedTuple):
    """Nodes over the range of M kernels, as Python numbers.

    Attributes:
      octaves: on either side of the middle.
      bits: log2 of the nodes in an octave.
      near: J, kernels that are evaluated for a block of nodes.
      first: the first of these kernels for each block.
    """

    octaves: int
    bits: int
    near: int = 0
    first: tuple[int, ...] = ()

    @property
    def half(self) -> int:
        """Nodes on either side of the middle."""
        return self.octaves << self.bits

    @property
    def shift(self) -> int:
        """log2 of the float32 numbers between neighbouring nodes."""
        return _MANTISSA - self.bits


def make_grid(kernels: Kernels) -> Grid | None:
    """Return the grid of kernels, or None where they have to be evaluated exactly."""
    if len(kernels.centers) < _MANY or not all(map(is_concrete, kernels)):
        return None
    # Rounded, because a state may hold the same kernels in another precision.
    single = (np.asarray(array, np.float32) for array in kernels)
    kernels = Kernels(*(array.astype(np.float64) for array in single))
    centers, widths = map(np.asarray, kernels)
    if not (np.isfinite(centers).all() and (widths > 0).all()):
        return None
    left, right, gaps = widths[:-1], widths[1:], np.diff(centers)
    # Where two neighbours weigh the same, and how steeply the log of their ratio falls.
    crossings = centers[:-1] + gaps * left / (left + right)
    steepness = np.hypot(gaps / (left * right), np.sqrt(2 * abs(np.diff(widths**-2))))
    places = np.concatenate([centers, crossings])
    reaches = np.concatenate([widths, 1 / steepness])
    finest = np.concatenate([_BEND * widths, _TURN / steepness])

    def resolving(octaves: int) -> Grid:
        *_, middle, unit = _frame(kernels, octaves)
        away = np.abs(places - middle) + reaches
        lengths = unit * np.exp2(np.floor(np.log2(1 + away / unit)))
        nodes = max(_BLOCK, *(lengths / finest))
        return Grid(octaves, math.ceil(math.log2(nodes)))

    grid = min(map(resolving, range(1, _OCTAVES + 1)), key=lambda grid: grid.half)
    if 2 * grid.half > _NODES or np.max(gaps / (left + right)) > _FURTHEST:
        return None
    place = np.arange(-grid.half, grid.half + 1, _BLOCK, dtype=np.int32)
    edges = _inputs_at(kernels, grid, place)
    log = -0.5 * np.square((edges[:, None] - centers) / widths)
    is_near = log > np.max(log, axis=1, keepdims=True) - _FAINT
    first = np.argmax(is_near, axis=1)
    last = len(centers) - np.argmax(is_near[:, ::-1], axis=1)
    # Kernels that count inside a block are between those that count at its edges.
    first, last = np.minimum(first[:-1], first[1:]), np.maximum(last[:-1], last[1:])
    near = int(np.max(last - first))
    first = np.minimum(first, len(centers) - near).tolist()
    return grid._replace(near=near, first=tuple(first))


def read_large(
    kernels: Kernels, grid: Grid, rates: jax.Array, inputs: jax.Array
) -> jax.Array:
    """Return the rate for each kernel input [...] of a large tensor.

    It differs from that of `read` by at most 1e-4 of the largest rate. An input that is
    NaN reads an arbitrary rate.
    """

    def interpolated(kernels: Kernels, rates: Any, inputs: Any) -> jax.Array:
        kernels = _single(kernels)
        activations, index = _activations(kernels, grid)
        single = rates.astype(jnp.float32)
        near = jnp.stack([single, jnp.ones_like(single)], axis=1)[index]
        sums = _product("bnj,bjk->bnk", activations, near)
        nodes = (sums[..., 0] / sums[..., 1]).ravel()
        place = _place(kernels, grid, inputs)
        cell = (place >> grid.shift).astype(jnp.uint32)
        rest = place & ((1 << grid.shift) - 1)
        fraction = rest.astype(jnp.float32) * 2.0**-grid.shift
        low = nodes.at[cell].get(mode="promise_in_bounds")
        high = nodes.at[cell + 1].get(mode="promise_in_bounds")
        rate = (low + fraction * (high - low)).astype(rates.dtype)
        return jnp.clip(rate, jnp.min(rates), jnp.max(rates))

    mesh = explicit_mesh(inputs)
    sharding = jax.typeof(inputs).sharding if mesh else None
    function = _derived_as(read, automatically(interpolated, sharding))
    return function(kernels, rates, inputs)


def accumulate_large(
    kernels: Kernels,
    grid: Grid,
    compare: Compare,
    by_coordinate: bool,
    pair: tuple[jax.Array, jax.Array],
    scalars: Sequence[jax.Array],
) -> list[jax.Array]:
    """Return V arrays [M], the evidence of a large tensor.

    Each differs from that of `accumulate` by at most 1e-3 of the mean magnitude of its
    values.

    Args:
      kernels: M kernels.
      grid: of the kernels.
      compare: (gradient, last direction, *scalars) -> kernel inputs, V arrays.
      by_coordinate: whether compare treats coordinates independently.
      pair: gradient and last direction, [...].
      scalars: [] each, further arguments of compare.
    """

    def exactly(kernels: Kernels, pair: Any, scalars: Any) -> list[jax.Array]:
        return accumulate(kernels, *compare(*pair, *scalars))

    def on_grid(kernels: Kernels, pair: Any, scalars: Any) -> list[jax.Array]:
        single = _single(kernels)
        activations, index = _activations(single, grid)
        totals = []
        for counts in _count(single, grid, compare, by_coordinate, pair, scalars):
            counts = counts.astype(jnp.float32).reshape(-1, _BLOCK)
            near = _product("bn,bnj->bj", counts, activations)
            total = jnp.zeros_like(single.centers).at[index].add(near)
            totals.append(total.astype(kernels.centers.dtype))
        return totals

    def both(*arguments: Any) -> list[jax.Array]:
        # CPUs scatter fast; elsewhere, additions to the same node are serialised.
        return jax.lax.platform_dependent(*arguments, cpu=on_grid, default=exactly)

    function = _derived_as(exactly, replicated(both, pair[0]))
    return function(kernels, pair, scalars)


def _derived_as(exact: Callable[..., Any], function: Callable[..., Any]) -> Any:
    """Return a function with the derivative of an exact one: indices have none."""
    derived = jax.custom_jvp(function)
    derived.defjvp(lambda x, dx: (function(*x), jax.jvp(exact, x, dx)[1]))
    return derived


def _single(kernels: Kernels) -> Kernels:
    return Kernels(*(jnp.asarray(array, jnp.float32) for array in kernels))


def _frame(kernels: Kernels, octaves: int) -> tuple[Any, Any, Any, Any]:
    """Return the lowest and highest input, the middle, and the first octave's width."""
    centers, widths = kernels
    low, high = centers[0] - REACH * widths[0], centers[-1] + REACH * widths[-1]
    middle = (low + high) / 2
    return low, high, middle, (high - middle) * (_MARGIN / (2.0**octaves - 1))


def _inputs_at(kernels: Kernels, grid: Grid, place: Any) -> Any:
    """Return the kernel inputs of nodes, which are counted from the middle."""
    *_, middle, unit = _frame(kernels, grid.octaves)
    away = ((abs(place) << grid.shift) + _ONE).view(np.float32) - 1
    is_right = (place > 0).astype(np.float32)
    return middle + unit * away * (2 * is_right - 1)


def _place(kernels: Kernels, grid: Grid, inputs: jax.Array) -> jax.Array:
    """Return positions of inputs [...]: 2^shift times the index of a node."""
    low, high, middle, unit = _frame(kernels, grid.octaves)
    inputs = inputs.astype(jnp.float32)
    # Not jnp.clip, which returns NaN for NaN: that is no index.
    away = jnp.minimum(jnp.where(inputs > low, inputs, low), high) - middle
    bits = (1 + jnp.abs(away) / unit).view(np.int32) - _ONE
    return jnp.where(away < 0, -bits, bits) + (grid.half << grid.shift)


def _activations(kernels: Kernels, grid: Grid) -> tuple[jax.Array, np.ndarray]:
    """Return activations [B, n, J] at nodes, of the kernels [B, J] near each block."""
    place = jnp.arange(-grid.half, grid.half, dtype=np.int32)
    inputs = _inputs_at(kernels, grid, place).reshape(-1, _BLOCK, 1)
    index = np.asarray(grid.first)[:, None] + np.arange(grid.near)
    centers, widths = (array[index][:, None] for array in kernels)
    return jnp.exp(-0.5 * jnp.square((inputs - centers) / widths)), index


def _count(
    kernels: Kernels,
    grid: Grid,
    compare: Compare,
    by_coordinate: bool,
    pair: tuple[jax.Array, jax.Array],
    scalars: Sequence[jax.Array],
) -> list[jax.Array]:
    """Return V arrays [B n]: values of a large tensor, scattered to the nodes.

    A coordinate between two nodes is added to one of them, which a fixed, evenly spread
    dither selects, the nearer one more often. So the mean over coordinates is that of
    linear weights, at half the cost.
    """

    def count(pair: Any, start: Any) -> list[jax.Array]:
        inputs, values = compare(*pair, *scalars)
        index = jax.lax.iota(jnp.uint32, inputs.size).reshape(inputs.shape)
        index += jnp.asarray(start, jnp.uint32)
        dither = index * jnp.uint32(_GOLDEN) >> (32 - grid.shift)
        place = _place(kernels, grid, inputs) + dither.astype(jnp.int32)
        node = (place >> grid.shift).astype(jnp.uint16)
        return [
            jnp.zeros(2 * grid.half, v.dtype).at[node].add(v, mode="promise_in_bounds")
            for v in values
        ]

    size = pair[0].size
    # A sharded tensor would have to be gathered to be sliced or reshaped.
    if size <= _PIECE or not by_coordinate or _on_mesh(pair[0]):
        return count(pair, 0)
    pieces, rest = divmod(size, _PIECE)
    flat = [x.ravel() for x in pair]

    def add(i: jax.Array, sums: list[jax.Array]) -> list[jax.Array]:
        start = i * _PIECE
        piece = [jax.lax.dynamic_slice_in_dim(x, start, _PIECE) for x in flat]
        return jax.tree.map(jnp.add, sums, count(piece, start))

    total = count([x[size - rest :] for x in flat], size - rest)
    return jax.lax.fori_loop(0, pieces, add, total)


def _product(terms: str, *arrays: jax.Array) -> jax.Array:
    return jnp.einsum(terms, *arrays, precision=jax.lax.Precision.HIGHEST)


def _on_mesh(tensor: jax.Array) -> bool:
    """Return whether a tensor may be sharded, as far as tracing shows."""
    mesh = jax.typeof(tensor).sharding.mesh
    return not (mesh.empty and jax.sharding.get_abstract_mesh().empty)
