"""Large tensors: a cost that does not grow with M.

The rate is a smooth function of a single number, so it is evaluated at the nodes of a
grid and interpolated linearly for every coordinate. Evidence takes the same way back:
every coordinate is counted at one of its two nearest nodes, and only nodes meet the
kernels. Nodes are even for evenly spaced kernels, and even in the logarithm for
log-spaced ones; other kernels, those that a grid would blur and those whose values are
not known when an optimizer is built are evaluated one by one.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from metalr_optax.checks import is_concrete
from metalr_optax.evidence import automatically, explicit_mesh, replicated
from metalr_optax.memory import REACH, Kernels, accumulate

# From this size and number of local models on a grid pays.
LARGE = 2**14
_MANY = 4
# Nodes at least, 32 KiB; at most, indices of 16 bits; and products of log-spaced
# kernels and nodes.
_FEWEST = 2**13
_NODES = 2**16
_PRODUCTS = 2**21
# An activation bends within its width, and a rate turns from one neighbour to the next
# like a logistic function: with nodes h widths apart, linear interpolation is off by
# h^2 / 8 for an activation, and by a tenth of that for a rate, in its slopes.
_BEND, _TURN = 0.06, 0.065
# Coordinates that are counted at a time where nothing is sharded: what is computed on
# the way stays in the cache, and counts stay exact in float32.
_PIECE = 2**20
# XLA vectorises and shares out a loop over a multiple of this, an odd one it may not.
_ALIGNED = 8
# 2^32 divided by the golden ratio: multiples of it, modulo 2^32, are evenly spread.
_GOLDEN = 2654435769

# (gradient, last direction, *more) -> (kernel inputs, values to accumulate)
Compare = Callable[..., tuple[jax.Array, Sequence[jax.Array]]]


class Grid(NamedTuple):
    """Nodes over the reach of M kernels of one spacing: numbers, no arrays.

    Attributes:
      is_log: whether nodes are even in log(1 + |z| / smallest centre), not in z.
      cells: C, between neighbouring kernels; 1 for log-spaced ones.
      nodes: Q, in a cell.
      near: kernels that answer beyond a cell, on either side; 0 for all of them.
      density: nodes per unit of the logarithm.
    """

    is_log: bool
    cells: int
    nodes: int
    near: int
    density: int


def make_grid(kernels: Kernels) -> Grid | None:
    """Return the grid of kernels, or None where they have to be evaluated exactly."""
    if len(kernels.centers) < _MANY or not all(map(is_concrete, kernels)):
        return None
    # Of the same values whatever their precision: a state has them in its own.
    centers, widths = (
        np.asarray(np.asarray(one, np.float32), np.float64) for one in kernels
    )
    if not (np.isfinite(centers).all() and (widths > 0).all()):
        return None
    gaps, half = np.diff(centers), len(centers) // 2
    crossing = centers[:-1] + gaps * widths[:-1] / (widths[:-1] + widths[1:])

    def needed(unit: Callable[[np.ndarray], Any]) -> float:
        """Return the nodes per unit of a coordinate, from its length in inputs."""
        bend = np.max(unit(centers) / widths)
        turn = np.max(gaps / widths[:-1] * unit(crossing) / widths[1:])
        return max(bend / _BEND, turn / _TURN)

    even = np.linspace(centers[0], centers[-1], len(centers))
    if _same(centers, even, widths[0]) and _same(widths, widths[0], widths[0]):
        # Also from far outside, all kernels that are a millionth as strong as another.
        near = math.ceil((REACH + 2) * widths[0] / gaps[0]) + 1
        cells = len(centers) + 2 * near
        nodes = math.ceil(max(needed(lambda _: gaps[0]), _FEWEST / cells))
        fits = cells * nodes <= _NODES
        return Grid(False, cells, nodes, near, 0) if fits else None
    smallest, largest = centers[half + 1], centers[-1]
    if len(centers) % 2 == 0 or len(centers) < 5 or smallest <= 0:
        return None
    positive = np.geomspace(smallest, largest, half)
    mirrored = np.concatenate([-positive[::-1], [0.0], positive])
    if not (_same(centers, mirrored, widths) and _same(widths, widths[::-1], widths)):
        return None
    reach = np.log1p((largest + REACH * widths[-1]) / smallest)
    density = needed(lambda z: np.abs(z) + smallest)
    density = math.ceil(max(density, _FEWEST / 2 / reach))
    nodes = 2 * math.ceil(density * reach) + 4
    fits = nodes <= _NODES and nodes * len(centers) <= _PRODUCTS
    return Grid(True, 1, nodes, 0, density) if fits else None


def read_large(
    kernels: Kernels, grid: Grid, rates: jax.Array, inputs: jax.Array
) -> jax.Array:
    """Return the rate for each kernel input [...] of a large tensor.

    It is within 1e-4 of the largest rate of what `read` returns. An input that is NaN
    reads any one of the rates.
    """

    def interpolated(kernels: Kernels, rates: Any, inputs: Any) -> jax.Array:
        weights, index = _stencil(kernels, grid)
        width = index[-1, -1] + 1

        def on_nodes(values: jax.Array) -> jax.Array:
            left = 2 * grid.near
            padded = jnp.pad(values, (left, width - left - values.size))
            return _product(padded[index], weights.T).ravel()

        norm = on_nodes(jnp.ones_like(rates, jnp.float32))
        nodes = on_nodes(rates.astype(jnp.float32)) / jnp.where(norm > 0, norm, 1)
        place = _place(kernels, grid, inputs)
        cell = place.astype(jnp.int32)
        fraction = place - cell.astype(place.dtype)
        cell = cell.astype(jnp.uint32)  # avoids the select for negative indices
        low = nodes.at[cell].get(mode="promise_in_bounds")
        high = nodes.at[cell + 1].get(mode="promise_in_bounds")
        rate = (low + fraction * (high - low)).astype(rates.dtype)
        return jnp.clip(rate, jnp.min(rates), jnp.max(rates))

    mesh = explicit_mesh(inputs)
    sharding = jax.typeof(inputs).sharding if mesh else None
    return automatically(interpolated, sharding)(kernels, rates, inputs)


def accumulate_large(
    kernels: Kernels,
    grid: Grid,
    compare: Compare,
    by_coordinate: bool,
    pair: tuple[jax.Array, jax.Array],
    more: Sequence[jax.Array],
) -> list[jax.Array]:
    """Return V arrays [M], the evidence of a large tensor.

    Each is within 1e-3 of the mean magnitude of its values of what `accumulate`
    returns.

    Args:
      kernels: M kernels.
      grid: of the kernels.
      compare: (gradient, last direction, *more) -> kernel inputs, V arrays of values.
      by_coordinate: whether compare looks at one coordinate at a time.
      pair: gradient and last direction, [...].
      more: [] each, what else compare needs.
    """

    def exactly(kernels: Kernels, pair: Any, more: Any) -> list[jax.Array]:
        return accumulate(kernels, *compare(*pair, *more))

    def on_grid(kernels: Kernels, pair: Any, more: Any) -> list[jax.Array]:
        weights, index = _stencil(kernels, grid)
        totals = []
        for counts in _count(kernels, grid, compare, by_coordinate, pair, more):
            counts = counts.reshape(grid.cells, -1).astype(jnp.float32)
            near = _product(counts, weights)
            total = jnp.zeros(index[-1, -1] + 1, jnp.float32).at[index].add(near)
            start = 2 * grid.near
            total = total[start : start + len(kernels.centers)]
            totals.append(total.astype(kernels.centers.dtype))
        return totals

    def both(*arguments: Any) -> list[jax.Array]:
        # A CPU is good at counting; elsewhere coordinates would queue for a node.
        return jax.lax.platform_dependent(*arguments, cpu=on_grid, default=exactly)

    return replicated(both, pair[0])(kernels, pair, more)


def _same(one: np.ndarray, other: Any, widths: Any) -> bool:
    """Return whether numbers are the same, to the rounding of float32 and less."""
    return bool(np.all(np.abs(one - other) <= 1e-4 * widths))


def _stencil(kernels: Kernels, grid: Grid) -> tuple[jax.Array, np.ndarray]:
    """Return activations [Q, J] at the nodes of a cell, of the kernels [C, J] near it.

    Those are indices into the kernels with ``2 * near`` zeros in front of them. Evenly
    spaced kernels look the same from every cell.
    """
    centers, widths = (jnp.asarray(array, jnp.float32) for array in kernels)
    node = jnp.arange(grid.nodes, dtype=jnp.float32)
    if grid.is_log:
        octaves = (node - grid.nodes // 2) / grid.density
        inputs = jnp.sign(octaves) * jnp.expm1(jnp.abs(octaves)) * _smallest(centers)
        distance = (inputs[:, None] - centers[None]) / widths[None]
    else:
        offset = jnp.arange(2 * grid.near + 2, dtype=jnp.float32) - grid.near
        spacing = (centers[-1] - centers[0]) / (len(centers) - 1)
        distance = (node[:, None] / grid.nodes - offset[None]) * (spacing / widths[0])
    index = np.arange(grid.cells)[:, None] + np.arange(distance.shape[1])[None]
    return jnp.exp(-0.5 * jnp.square(distance)), index


def _place(kernels: Kernels, grid: Grid, inputs: jax.Array) -> jax.Array:
    """Return where inputs [...] lie between nodes, which are at whole numbers."""
    centers, widths = (jnp.asarray(array, jnp.float32) for array in kernels)
    inputs = inputs.astype(jnp.float32)
    low, high = centers[0] - REACH * widths[0], centers[-1] + REACH * widths[-1]
    # Not a clip, which a NaN passes that is no index.
    inputs = jnp.minimum(jnp.where(inputs > low, inputs, low), high)
    if grid.is_log:
        octaves = jnp.log1p(jnp.abs(inputs) / _smallest(centers))
        octaves = jnp.where(inputs < 0, -octaves, octaves)
        return octaves * grid.density + grid.nodes // 2
    spacing = (centers[-1] - centers[0]) / (len(centers) - 1)
    return ((inputs - centers[0]) / spacing + grid.near) * grid.nodes


def _smallest(centers: jax.Array) -> jax.Array:
    return centers[len(centers) // 2 + 1]


def _count(
    kernels: Kernels,
    grid: Grid,
    compare: Compare,
    by_coordinate: bool,
    pair: tuple[jax.Array, jax.Array],
    more: Sequence[jax.Array],
) -> list[jax.Array]:
    """Return V arrays [C Q]: values of a large tensor, added up at the nodes.

    A coordinate between two nodes is counted at one of them, the nearer the likelier:
    which one is set by a fixed, evenly spread pattern over the coordinates. So the
    mean over coordinates is that of linear weights, for half their price.
    """

    def count(g: jax.Array, d: jax.Array, start: int | jax.Array) -> list[jax.Array]:
        inputs, values = compare(g, d, *more)
        place = _place(kernels, grid, inputs) + _spread(inputs.shape, start)
        node = place.astype(jnp.int32).astype(jnp.uint16)
        return [
            jnp.zeros(grid.cells * grid.nodes, one.dtype)
            .at[node]
            .add(one, mode="promise_in_bounds")
            for one in values
        ]

    size = pair[0].size
    # Any other shape, or a piece, of a sharded tensor would have to be gathered.
    whole = size % _ALIGNED == 0 and size <= _PIECE
    if whole or not by_coordinate or _on_mesh(pair[0]):
        return count(pair[0], pair[1], 0)
    flat = [one.ravel() for one in pair]

    def count_piece(start: int | jax.Array, length: int) -> list[jax.Array]:
        g, d = (jax.lax.dynamic_slice_in_dim(one, start, length) for one in flat)
        return count(g, d, start)

    def add(sums: list[jax.Array], start: Any, length: int) -> list[jax.Array]:
        return jax.tree.map(jnp.add, sums, count_piece(start, length))

    pieces, rest = divmod(size, _PIECE)
    odd = rest % _ALIGNED
    total = add(count_piece(size - rest, rest - odd), size - odd, odd)
    if not pieces:
        return total
    return jax.lax.fori_loop(
        0, pieces, lambda i, sums: add(sums, i * _PIECE, _PIECE), total
    )


def _spread(shape: Sequence[int], start: int | jax.Array = 0) -> jax.Array:
    """Return numbers in [0, 1) that are even over any run of coordinates."""
    index = jnp.asarray(start).astype(jnp.uint32)
    stride = 1
    for axis in reversed(range(len(shape))):
        steps = jax.lax.broadcasted_iota(jnp.uint32, tuple(shape), axis)
        index = index + steps * jnp.uint32(stride % 2**32)
        stride *= shape[axis]
    bits = (index * jnp.uint32(_GOLDEN)) >> 8
    return bits.astype(jnp.int32).astype(jnp.float32) * jnp.float32(2.0**-24)


def _product(one: jax.Array, other: jax.Array) -> jax.Array:
    return jnp.matmul(one, other, precision=jax.lax.Precision.HIGHEST)


def _on_mesh(tensor: jax.Array) -> bool:
    """Return whether a tensor may be sharded: only what is traced can be known."""
    mesh = jax.typeof(tensor).sharding.mesh
    return not (mesh.empty and jax.sharding.get_abstract_mesh().empty)
