"""Large tensors: a cost that does not grow with M.

The rate is a smooth function of a single number, so it is evaluated at the nodes of a
grid and interpolated linearly for every coordinate. Evidence takes the same way back:
every coordinate is counted at one of its two nearest nodes, and only nodes meet the
kernels.

Nodes are even in the bits of the float32 number ``1 + |z - middle| / unit``, which are
linear within an octave and logarithmic from octave to octave. One octave suits evenly
spaced kernels, twenty suit log-spaced ones. Kernels that need too many nodes, and those
whose values are not known when an optimizer is built, are evaluated one by one.
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

# From this size and number of local models on a grid pays.
LARGE = 2**14
_MANY = 4
# Nodes at most, whose numbers have 16 bits; in an octave at least, a block, which
# meets the same kernels; and octaves.
_NODES = 2**16
_BLOCK = 2**7
_OCTAVES = 60
# An activation bends within its width, and a rate turns from one neighbour to the next
# like a logistic function: with nodes h widths apart, linear interpolation is off by
# h^2 / 8 for an activation, and by a tenth of that for a rate, in its slopes.
_BEND, _TURN = 0.06, 0.065
# With neighbours so many widths from where they meet, both vanish in float32.
_FURTHEST = 12.0
# Kernels that are weaker than the strongest by more than exp(-16) do not count.
_FAINT = 16.0
# The outermost input is so far inside the outermost node, relative to the middle.
_MARGIN = 1.02
# Coordinates that are counted at a time where nothing is sharded: what is computed on
# the way is 3 MB and stays in the cache, and counts stay exact in float32. XLA takes
# twice as long for sizes that are no multiple of 8, which so are rests alone.
_PIECE = 2**18
# Bits of the mantissa of float32, and those of 1.0.
_MANTISSA = 23
_ONE = 127 << _MANTISSA
# 2^32 divided by the golden ratio: multiples of it, modulo 2^32, are evenly spread.
_GOLDEN = 2654435769

# (gradient, last direction, *more) -> (kernel inputs, values to accumulate)
Compare = Callable[..., tuple[jax.Array, Sequence[jax.Array]]]


class Grid(NamedTuple):
    """Nodes over the reach of M kernels: numbers, no arrays.

    Attributes:
      octaves: on either side of the middle.
      bits: log2 of the nodes in an octave.
      near: J, kernels that a block of nodes meets.
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
    # Of the same values whatever their precision: a state has them in its own.
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
    # What lies between the edges of a block is nearest to what lies between these.
    first, last = np.minimum(first[:-1], first[1:]), np.maximum(last[:-1], last[1:])
    near = int(np.max(last - first))
    first = np.minimum(first, len(centers) - near).tolist()
    return grid._replace(near=near, first=tuple(first))


def read_large(
    kernels: Kernels, grid: Grid, rates: jax.Array, inputs: jax.Array
) -> jax.Array:
    """Return the rate for each kernel input [...] of a large tensor.

    It is within 1e-4 of the largest rate of what `read` returns. An input that is NaN
    reads any one of the rates.
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
        single = _single(kernels)
        activations, index = _activations(single, grid)
        totals = []
        for counts in _count(single, grid, compare, by_coordinate, pair, more):
            counts = counts.astype(jnp.float32).reshape(-1, _BLOCK)
            near = _product("bn,bnj->bj", counts, activations)
            total = jnp.zeros_like(single.centers).at[index].add(near)
            totals.append(total.astype(kernels.centers.dtype))
        return totals

    def both(*arguments: Any) -> list[jax.Array]:
        # A CPU is good at counting; elsewhere coordinates would queue for a node.
        return jax.lax.platform_dependent(*arguments, cpu=on_grid, default=exactly)

    function = _derived_as(exactly, replicated(both, pair[0]))
    return function(kernels, pair, more)


def _derived_as(exact: Callable[..., Any], function: Callable[..., Any]) -> Any:
    """Return a function with the derivative of an exact one: places have none."""
    derived = jax.custom_jvp(function)
    derived.defjvp(lambda x, dx: (function(*x), jax.jvp(exact, x, dx)[1]))
    return derived


def _single(kernels: Kernels) -> Kernels:
    return Kernels(*(jnp.asarray(array, jnp.float32) for array in kernels))


def _frame(kernels: Kernels, octaves: int) -> tuple[Any, Any, Any, Any]:
    """Return the lowest and highest input, the middle, and what the first octave is."""
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
    """Return where inputs [...] lie: 2^shift times the number of a node."""
    low, high, middle, unit = _frame(kernels, grid.octaves)
    inputs = inputs.astype(jnp.float32)
    # Not a clip, which a NaN passes that is no index.
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
    more: Sequence[jax.Array],
) -> list[jax.Array]:
    """Return V arrays [B n]: values of a large tensor, added up at the nodes.

    A coordinate between two nodes is counted at one of them, the nearer the likelier:
    which one is set by a fixed, evenly spread pattern over the coordinates. So the
    mean over coordinates is that of linear weights, for half their price.
    """

    def count(pair: Any, start: Any) -> list[jax.Array]:
        inputs, values = compare(*pair, *more)
        index = jax.lax.iota(jnp.uint32, inputs.size).reshape(inputs.shape)
        index += jnp.asarray(start, jnp.uint32)
        turn = index * jnp.uint32(_GOLDEN) >> (32 - grid.shift)
        place = _place(kernels, grid, inputs) + turn.astype(jnp.int32)
        node = (place >> grid.shift).astype(jnp.uint16)
        return [
            jnp.zeros(2 * grid.half, v.dtype).at[node].add(v, mode="promise_in_bounds")
            for v in values
        ]

    size = pair[0].size
    # A piece of a sharded tensor, or another shape of it, would have to be gathered.
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
    """Return whether a tensor may be sharded: only what is traced can be known."""
    mesh = jax.typeof(tensor).sharding.mesh
    return not (mesh.empty and jax.sharding.get_abstract_mesh().empty)
