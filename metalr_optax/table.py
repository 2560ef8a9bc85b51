"""How a large tensor is read and judged at a cost that does not grow with M.

The rate is a smooth function of a single number, so it is tabulated: exactly (value
and slope) on coarse nodes, by cubic interpolation on fine nodes, and linearly from
there for every coordinate. Evidence takes the same way back: every coordinate is
counted at one of its two nearest fine nodes, those are spread onto coarse nodes, and
only these meet the kernels.

The nodes are even in a coordinate that is linear near an origin and logarithmic far
from it, so that kernels of one width and kernels spaced over many decades are both
resolved. Kernels that are not (very narrow or very wide for their distance) are said
to be, and have to be read one by one.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from metalr_optax.kernels import REACH, Array, Kernels

# Fine nodes for evidence: 64 KiB, which is what sharded devices exchange. Only above
# 512 kernels are there more.
_LARGEST_HISTOGRAM = 2**14
_READ_CELLS = 16  # fine cells for reading in a coarse one
_BLOCK = 16  # coarse nodes that look at the same kernels
_NEAR = 48  # kernels that a block of nodes looks at, the nearest by index
_MANTISSA = 23  # bits of a float32 within its octave
_EXPONENT = 0x7F800000  # bits that say which octave
_RECIPROCAL = 254 << _MANTISSA  # minus the bits of 2^k are the bits of 2^-k
# 2^32 divided by the golden ratio: multiples of it, modulo 2^32, are evenly spread.
_GOLDEN = 2654435769


class Grid(NamedTuple):
    """Coarse nodes over the reach of some kernels; all fields are arrays.

    Attributes:
      origin: where the nodes are densest.
      offset: distance from the origin up to which they are even, a power of two.
      per_octave: coarse cells per doubling of (distance + offset), a whole number.
      start: coordinate of the origin in coarse cells, a whole number.
      reach: [2], coordinates between which addresses are told apart.
    """

    origin: jax.Array
    offset: jax.Array
    per_octave: jax.Array
    start: jax.Array
    reach: jax.Array


class Table(NamedTuple):
    """What the kernels of a memory say at C coarse nodes.

    Nodes come in blocks of N neighbours, each with the B kernels that are near it.

    Attributes:
      grid: where the nodes are.
      widths: [C], distance of a node to the next.
      first: [C / N], index of the first kernel near a block.
      weights: [C / N, N, B], activations divided by their sum.
      pulls: [C / N, N, B], weights times derivatives of log-activations, for addresses
        in units of the distance to the next node.
      mass: [C], sum of the activations.
    """

    grid: Grid
    widths: jax.Array
    first: jax.Array
    weights: jax.Array
    pulls: jax.Array
    mass: jax.Array


def make_table(kernels: Kernels) -> Table:
    """Evaluate kernels at coarse nodes."""
    centers, widths = (jnp.asarray(array, jnp.float32) for array in kernels)
    grid, _ = _make_grid(centers, widths)
    blocks, first = _blocks(grid, centers)
    near_centers, near_widths = (_near(array, first) for array in (centers, widths))
    cells = jnp.diff(blocks.ravel())
    cells = jnp.append(cells, cells[-1])
    distance = (blocks[..., None] - near_centers) / near_widths
    logs = -0.5 * jnp.square(distance)
    strongest = jnp.max(logs, axis=-1, keepdims=True)
    weights = jnp.exp(logs - strongest)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    weights = weights / total
    return Table(
        grid=grid,
        widths=cells,
        first=first,
        weights=weights,
        # Not distance / width: the square of a very small width is nothing.
        pulls=-weights
        * distance
        * (cells.reshape(blocks.shape)[..., None] / near_widths),
        mass=(total * jnp.exp(strongest)).ravel(),
    )


@jax.jit
def resolves(kernels: Kernels) -> jax.Array:
    """Return whether a table of the kernels keeps the stated accuracy."""
    centers, widths = (jnp.asarray(array, jnp.float32) for array in kernels)
    grid, coarseness = _make_grid(centers, widths)
    # Kernels that are not near a block must be at most 1e-8 strong there.
    blocks, first = _blocks(grid, centers)
    index = jnp.arange(centers.size)[None]
    outside = (index < first[:, None]) | (index >= first[:, None] + _near_size(centers))
    gap = jnp.maximum(blocks[:, :1] - centers[None], centers[None] - blocks[:, -1:])
    return (coarseness <= 1.0) & jnp.all(~outside | (gap > 6.0 * widths[None]))


def tabulate(table: Table, rates: Array) -> jax.Array:
    """Return the rate at every fine node; the dtype is that of the rates."""
    rates = jnp.asarray(rates)
    near = _near(rates.astype(jnp.float32), table.first)
    sums = [
        _einsum("kij,klj->ki", array, near) for array in (table.weights, table.pulls)
    ]
    value = sums[0].ravel()
    slope = sums[1].ravel() - value * jnp.sum(table.pulls, axis=-1).ravel()
    corners = (value, slope, _next(value), _next(slope) * _growth(table))
    fine = _einsum("qc,qf->cf", jnp.stack(corners), _hermite(_READ_CELLS)).ravel()
    return fine.astype(rates.dtype)


def look_up(grid: Grid, fine: jax.Array, rates: Array, address: jax.Array) -> jax.Array:
    """Return the rate for each address [...] from the fine nodes.

    An address that is NaN reads any one of the rates.
    """
    rates = jnp.asarray(rates)
    place = _place(grid, address, rates.size, fine.size)
    cell = place.astype(jnp.int32)
    fraction = (place - cell.astype(place.dtype)).astype(fine.dtype)
    cell = cell.astype(jnp.uint32)  # so that nobody asks whether it is negative
    low = fine.at[cell].get(mode="promise_in_bounds")
    high = fine.at[cell + 1].get(mode="promise_in_bounds")
    # A cubic may leave the range of the rates, and so their sign, by a trifle.
    return jnp.clip(low + fraction * (high - low), jnp.min(rates), jnp.max(rates))


def spread(
    grid: Grid,
    address: jax.Array,
    agreement: jax.Array,
    num: int,
    start: int | jax.Array = 0,
) -> jax.Array:
    """Add agreement up at the fine nodes for evidence of M = num kernels.

    A coordinate between two nodes is counted at one of them, the nearer the likelier:
    which one is set by a fixed, evenly spread pattern over the coordinates. So the
    mean over coordinates is that of linear weights, for half their price.

    Args:
      grid: of the kernels.
      address: [...], finite.
      agreement: [...].
      num: M.
      start: index in the pattern of the first coordinate.
    """
    cells = _histogram_cells(num)
    place = _place(grid, address, num, cells) + _dither(address.shape, start)
    cell = place.astype(jnp.int32).astype(jnp.uint16 if cells <= 2**16 else jnp.uint32)
    histogram = jnp.zeros(cells, agreement.dtype)
    return histogram.at[cell].add(agreement, mode="promise_in_bounds")


def collect(table: Table, histogram: jax.Array, num: int) -> jax.Array:
    """Return [M] from the fine nodes: the sum of agreement x activation."""
    fine = histogram.reshape(table.widths.size, -1).astype(jnp.float32)
    corners = _einsum("cf,qf->qc", fine, _hermite(fine.shape[1]))
    by_value = corners[0] + _previous(corners[2])
    by_slope = corners[1] + _previous(corners[3] * _growth(table))
    blocks = table.pulls.shape[:2]
    by_value, by_slope = (
        (table.mass * by_node).reshape(blocks) for by_node in (by_value, by_slope)
    )
    near = _einsum("kij,ki->kj", table.weights, by_value)
    near += _einsum("kij,ki->kj", table.pulls, by_slope)
    index = table.first[:, None] + jnp.arange(near.shape[1])[None]
    total = jnp.zeros(num, jnp.float32).at[index].add(near, mode="promise_in_bounds")
    return total.astype(histogram.dtype)


def _coarse_cells(num: int) -> int:
    # Twice as many as even kernels need, for those that are log-spaced.
    return 2 ** max(10, min(11, _octave(16 * num)), _octave(8 * num))


def _histogram_cells(num: int) -> int:
    coarse = _coarse_cells(num)
    return min(8 * coarse, max(4 * coarse, _LARGEST_HISTOGRAM))


def _octave(number: int) -> int:
    return math.ceil(math.log2(number))


def _near_size(centers: jax.Array) -> int:
    return min(_NEAR, centers.size)


def _blocks(grid: Grid, centers: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the nodes in blocks, and the first kernel near each block."""
    nodes = _address(grid, jnp.arange(_coarse_cells(centers.size)))
    size = _near_size(centers)
    blocks = nodes.reshape(-1, nodes.size if size == centers.size else _BLOCK)
    middle = jnp.searchsorted(centers, blocks[:, blocks.shape[1] // 2])
    return blocks, jnp.clip(middle - size // 2, 0, centers.size - size)


def _near(array: jax.Array, first: jax.Array) -> jax.Array:
    """Return [blocks, 1, B], the entries of an array of M that are near a block."""
    size = _near_size(array)
    if size == array.size:
        return array[None, None]
    take = jax.vmap(jax.lax.dynamic_slice_in_dim, (None, 0, None))
    return take(array, first, size)[:, None]


def _einsum(subscripts: str, *arrays: jax.Array | np.ndarray) -> jax.Array:
    return jnp.einsum(subscripts, *arrays, precision=jax.lax.Precision.HIGHEST)


def _growth(table: Table) -> jax.Array:
    """Return [C], the width of a cell over that of the next."""
    return table.widths / _next(table.widths)


def _next(array: jax.Array) -> jax.Array:
    return jnp.append(array[1:], array[-1])


def _previous(array: jax.Array) -> jax.Array:
    return jnp.pad(array[:-1], (1, 0))


def _hermite(fine: int) -> np.ndarray:
    """Return [4, fine], the weights of (value, slope) here, (value, slope) there.

    For a cubic through the two ends of a cell of width 1: in a coarse cell, fine
    nodes are even.
    """
    s = np.arange(fine) / fine
    rest = 1 - s
    weights = (1 + 2 * s) * rest**2, s * rest**2, s**2 * (3 - 2 * s), -(s**2) * rest
    return np.stack(weights).astype(np.float32)


def _make_grid(centers: jax.Array, widths: jax.Array) -> tuple[Grid, jax.Array]:
    """Place coarse nodes; say how coarse they are, 1 being just fine enough."""
    cells = _coarse_cells(centers.size)
    # Of the narrowest kernels the one in the middle: the shorter the better.
    middle = jnp.abs(centers - jnp.mean(centers[jnp.array([0, -1])]))
    narrowest = widths <= 1.0001 * jnp.min(widths)
    origin = centers[jnp.argmin(jnp.where(narrowest, middle, jnp.inf))]
    below = origin - (centers[0] - REACH * widths[0])
    above = centers[-1] + REACH * widths[-1] - origin
    largest = jnp.ceil(jnp.log2(jnp.maximum(below, above)))
    exponents = largest.astype(jnp.int32) - jnp.arange(48)
    offsets = _power_of_two(jnp.maximum(exponents, -126))
    span = _octaves(below, offsets) + _octaves(above, offsets)
    per_octave = jnp.floor((cells - 2) / span)  # the last cell is not used
    coarseness = jax.vmap(_coarseness, (None, None, None, 0, 0))(
        centers, widths, origin, offsets, per_octave
    )
    best = jnp.argmin(coarseness)
    offset, per_octave = offsets[best], per_octave[best]
    ends = jnp.array([-1.0, 1.0], jnp.float32) * _octaves(
        jnp.array([below, above]), offset
    )
    start = jnp.ceil(-ends[0] * per_octave)
    grid = Grid(origin, offset, per_octave, start, start + ends * per_octave)
    return grid, coarseness[best]


def _bits(x: jax.Array) -> jax.Array:
    return jax.lax.bitcast_convert_type(x, jnp.int32)


def _from_bits(bits: jax.Array) -> jax.Array:
    return jax.lax.bitcast_convert_type(bits, jnp.float32)


def _power_of_two(exponent: jax.Array) -> jax.Array:
    """Return 2^exponent for whole exponents, exactly: XLA's exp2 is not."""
    return _from_bits((exponent.astype(jnp.int32) + 127) << _MANTISSA)


def _octaves(distance: jax.Array, offset: jax.Array) -> jax.Array:
    """Return log2((distance + offset) / offset), linear between powers of two."""
    # What a float32 stores of a number is its octave, and where in it. The latter is
    # taken from the distance itself, which adding the offset would round.
    bits = _bits(distance + offset)
    octave = (bits >> _MANTISSA) - (_bits(offset) >> _MANTISSA)
    bits = bits & _EXPONENT
    inside = (distance - (_from_bits(bits) - offset)) * _from_bits(_RECIPROCAL - bits)
    return octave.astype(jnp.float32) + inside


def _place(grid: Grid, address: jax.Array, num: int, fine_cells: int) -> jax.Array:
    """Return the coordinate of each address [...] in fine cells."""
    signed = address.astype(jnp.float32) - grid.origin
    # Infinity is as far as need be.
    octaves = _octaves(jnp.minimum(jnp.abs(signed), 1e38), grid.offset)
    per_coarse = fine_cells // _coarse_cells(num)
    octaves = jnp.where(signed < 0, -octaves, octaves)
    place = octaves * (grid.per_octave * per_coarse) + grid.start * per_coarse
    low, high = grid.reach[0] * per_coarse, grid.reach[1] * per_coarse
    # Not a clip, which a NaN passes that is no index.
    return jnp.minimum(jnp.where(place > low, place, low), high)


def _dither(shape: tuple[int, ...], start: int | jax.Array) -> jax.Array:
    """Return numbers in [0, 1) that are even over any run of coordinates."""
    index = jnp.asarray(start).astype(jnp.uint32)
    stride = 1
    for axis in reversed(range(len(shape))):
        steps = jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
        index = index + steps * jnp.uint32(stride % 2**32)
        stride *= shape[axis]
    bits = (index * jnp.uint32(_GOLDEN)) >> 8
    return bits.astype(jnp.int32).astype(jnp.float32) * jnp.float32(2.0**-24)


def _address(grid: Grid, place: jax.Array) -> jax.Array:
    """Return the address at a coordinate in coarse cells: the inverse."""
    octaves = jnp.abs(place.astype(jnp.float32) - grid.start) / grid.per_octave
    octave = jnp.floor(octaves)
    begin = grid.offset * _power_of_two(octave)
    distance = (begin - grid.offset) + (octaves - octave) * begin
    return grid.origin + jnp.sign(place - grid.start) * distance


def _coarseness(
    centers: jax.Array,
    widths: jax.Array,
    origin: jax.Array,
    offset: jax.Array,
    per_octave: jax.Array,
) -> jax.Array:
    """Return the worst cell in units of what the kernels allow; 1 is just enough."""
    coarse = _coarse_cells(centers.size)

    def cell(address: jax.Array) -> jax.Array:
        magnitude = jnp.abs(address - origin) + offset
        return _from_bits(_bits(magnitude) & _EXPONENT) / per_octave

    # An activation bends within its width: with cells of h widths, linear interpolation
    # (evidence, from fine nodes) is off by h^2 / 8 and cubic by h^4 / 130.
    histogram = coarse / _histogram_cells(centers.size)
    worst = jnp.max(cell(centers) / widths) * max(histogram / 0.085, 1.0 / 0.35)
    # A rate turns from one neighbour to the next like a logistic function.
    gaps = jnp.diff(centers)
    crossing = centers[:-1] + gaps * (widths[:-1] / (widths[:-1] + widths[1:]))
    steepness = gaps / widths[:-1] * (cell(crossing) / widths[1:])
    return jnp.maximum(
        worst, jnp.max(steepness) * max(1.0 / _READ_CELLS / 0.085, 1.0 / 0.65)
    )
