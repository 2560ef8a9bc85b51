"""How a large tensor is read and judged at a cost that does not grow with M.

The rate is a smooth function of a single number, so it is tabulated: exactly (value
and slope) on coarse nodes, by cubic interpolation on fine nodes, and linearly from
there for every coordinate. Evidence is the same linear map transposed: coordinates are
spread onto fine nodes, those onto coarse nodes, and only these meet the kernels.

The nodes are even in a coordinate that is linear near an origin and logarithmic far
from it, so that kernels of one width and kernels spaced over many decades are both
resolved. Kernels that are not (very narrow or very wide for their distance) are said
to be, and have to be read one by one.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from metalr_optax.kernels import REACH, Array, Kernels

# Fine nodes: 64 KiB of evidence per memory, which is what sharded devices exchange.
_EVIDENCE_CELLS = 2**14
_READ_CELLS = 2**16
_BAND = 64  # kernels that a coarse node looks at, the nearest by index
_MANTISSA = 23  # bits of a float32 within its octave
_EXPONENT = 0x7F800000  # bits that say which octave


class Grid(NamedTuple):
    """Coarse nodes over the reach of some kernels; all fields are arrays.

    Attributes:
      origin: where the nodes are densest.
      offset: distance from the origin up to which they are even, a power of two.
      per_octave: coarse cells per doubling of (distance + offset), a whole number.
      start: coordinate of the origin in coarse cells, a whole number.
      nodes: [cells + 1], addresses.
    """

    origin: jax.Array
    offset: jax.Array
    per_octave: jax.Array
    start: jax.Array
    nodes: jax.Array


def make_grid(kernels: Kernels) -> tuple[Grid, jax.Array]:
    """Place coarse nodes for the kernels; say whether they resolve them."""
    centers, widths = (jnp.asarray(array, jnp.float32) for array in kernels)
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

    def resolution(offset: jax.Array) -> tuple[jax.Array, jax.Array]:
        span = _octaves(below, offset) + _octaves(above, offset)
        per_octave = jnp.floor((cells - 1) / span)
        return _coarseness(centers, widths, origin, offset, per_octave), per_octave

    coarseness, per_octave = jax.vmap(resolution)(offsets)
    best = jnp.argmin(coarseness)
    offset, per_octave = offsets[best], per_octave[best]
    start = jnp.ceil(_octaves(below, offset) * per_octave)
    grid = Grid(origin, offset, per_octave, start, jnp.zeros(cells + 1, jnp.float32))
    places = jnp.arange(cells + 1, dtype=jnp.float32)
    grid = grid._replace(nodes=_address(grid, places))
    resolved = coarseness[best] <= 1.0
    if centers.size > _BAND:
        resolved &= _band_suffices(centers, widths)
    return grid, resolved


def read_by_table(
    grid: Grid, kernels: Kernels, rates: Array, address: jax.Array
) -> jax.Array:
    """Return the rate for each address [...]."""
    index, distance = _band(grid, kernels)
    widths = jnp.asarray(kernels.widths)[index]
    weights = jax.nn.softmax(-0.5 * jnp.square(distance / widths), axis=-1)
    pull = -(distance / widths) / widths  # derivative of the log-activations
    near = jnp.asarray(rates)[index]
    value = jnp.sum(weights * near, axis=-1)
    mean_pull = jnp.sum(weights * pull, axis=-1)
    slope = jnp.sum(weights * near * pull, axis=-1) - value * mean_pull

    basis = _cubic_basis(grid, _READ_CELLS)
    fine = (
        basis[0] * value[:-1, None]
        + basis[1] * slope[:-1, None]
        + basis[2] * value[1:, None]
        + basis[3] * slope[1:, None]
    )
    table = jnp.append(fine.ravel(), value[-1])
    table = jnp.clip(table, jnp.min(rates), jnp.max(rates))
    cell, fraction = _coordinate(grid, address, _READ_CELLS)
    low = table.at[cell].get(mode="promise_in_bounds")
    high = table.at[cell + 1].get(mode="promise_in_bounds")
    return low + fraction.astype(low.dtype) * (high - low)


def evidence_by_table(
    grid: Grid, kernels: Kernels, address: jax.Array, agreement: jax.Array
) -> jax.Array:
    """Return [M], the sum over coordinates of agreement x activation."""
    cell, fraction = _coordinate(grid, address, _EVIDENCE_CELLS)
    fraction = fraction.astype(agreement.dtype)
    zeros = jnp.zeros(_EVIDENCE_CELLS, agreement.dtype)
    # Two scatters that do not wait for each other.
    low = zeros.at[cell].add(agreement * (1 - fraction), mode="promise_in_bounds")
    high = zeros.at[cell].add(agreement * fraction, mode="promise_in_bounds")
    spread = jnp.pad(low, (0, 1)) + jnp.pad(high, (1, 0))

    fine = spread[:-1].reshape(grid.nodes.size - 1, -1)
    parts = [
        jnp.sum(part * fine, axis=-1) for part in _cubic_basis(grid, _EVIDENCE_CELLS)
    ]
    by_value = jnp.append(parts[0], spread[-1]) + jnp.pad(parts[2], (1, 0))
    by_slope = jnp.pad(parts[1], (0, 1)) + jnp.pad(parts[3], (1, 0))

    index, distance = _band(grid, kernels)
    widths = jnp.asarray(kernels.widths)[index]
    activations = jnp.exp(-0.5 * jnp.square(distance / widths))
    slopes = -(distance / widths) / widths * activations
    parts = by_value[:, None] * activations + by_slope[:, None] * slopes
    total = jnp.zeros(np.shape(kernels.centers), agreement.dtype)
    return total.at[index].add(parts.astype(agreement.dtype))


def _coarse_cells(num: int) -> int:
    return 2**11 if num <= 32 else 2**13


def _bits(x: jax.Array) -> jax.Array:
    return jax.lax.bitcast_convert_type(x, jnp.int32)


def _power_of_two(exponent: jax.Array) -> jax.Array:
    """Return 2^exponent for whole exponents, exactly: XLA's exp2 is not."""
    bits = (exponent.astype(jnp.int32) + 127) << _MANTISSA
    return jax.lax.bitcast_convert_type(bits, jnp.float32)


def _octaves(distance: jax.Array, offset: jax.Array) -> jax.Array:
    """Return log2((distance + offset) / offset), linear between powers of two."""
    # What a float32 stores of a number is its octave, and where in it. The latter is
    # taken from the distance itself, which adding the offset would round.
    bits = _bits(distance + offset)
    octave = (bits >> _MANTISSA) - (_bits(offset) >> _MANTISSA)
    begin = jax.lax.bitcast_convert_type(bits & _EXPONENT, jnp.float32)
    return octave.astype(jnp.float32) + (distance - (begin - offset)) / begin


def _coordinate(
    grid: Grid, address: jax.Array, fine_cells: int
) -> tuple[jax.Array, jax.Array]:
    """Return the fine cell [...] of each address, and how far through it [0, 1]."""
    # Infinity is as far as need be, and half of it as well.
    signed = jnp.clip(address.astype(jnp.float32), -1e38, 1e38) - grid.origin
    per_coarse = fine_cells // (grid.nodes.size - 1)
    scale = grid.per_octave * per_coarse
    octaves = _octaves(jnp.abs(signed), grid.offset)
    place = grid.start * per_coarse + jnp.sign(signed) * octaves * scale
    # A NaN passes this clip, but not the next, and is no index.
    place = jnp.clip(place, 0.0, fine_cells)
    cell = jnp.clip(place.astype(jnp.int32), 0, fine_cells - 1)
    return cell, place - cell.astype(jnp.float32)


def _address(grid: Grid, place: jax.Array) -> jax.Array:
    """Return the address at a coordinate in coarse cells: the inverse."""
    octaves = jnp.abs(place - grid.start) / grid.per_octave
    octave = jnp.floor(octaves)
    begin = grid.offset * _power_of_two(octave)
    distance = (begin - grid.offset) + (octaves - octave) * begin
    return grid.origin + jnp.sign(place - grid.start) * distance


def _cubic_basis(grid: Grid, fine_cells: int) -> tuple[jax.Array, ...]:
    """Return Hermite's weights [cells, fine per coarse] of both values and slopes."""
    cells = grid.nodes.size - 1
    fine = jnp.arange(fine_cells, dtype=jnp.float32) * (cells / fine_cells)
    address = _address(grid, fine).reshape(cells, -1)
    width = jnp.diff(grid.nodes)[:, None]
    s = (address - grid.nodes[:-1, None]) / width
    rest = 1 - s
    return (
        (1 + 2 * s) * rest**2,
        s * rest**2 * width,
        s**2 * (3 - 2 * s),
        -(s**2) * rest * width,
    )


def _band(grid: Grid, kernels: Kernels) -> tuple[jax.Array, jax.Array]:
    """Return the kernels near every coarse node: index and signed distance."""
    centers = jnp.asarray(kernels.centers)
    size = min(_BAND, centers.size)
    first = jnp.searchsorted(centers, grid.nodes.astype(centers.dtype)) - size // 2
    first = jnp.clip(first, 0, centers.size - size)
    index = first[:, None] + jnp.arange(size)[None]
    return index, grid.nodes[:, None] - centers[index]


def _coarseness(
    centers: jax.Array,
    widths: jax.Array,
    origin: jax.Array,
    offset: jax.Array,
    per_octave: jax.Array,
) -> jax.Array:
    """Return the worst cell in units of what the kernels allow; 1 is just enough."""
    fine = _coarse_cells(centers.size) / _EVIDENCE_CELLS

    def cell(address: jax.Array) -> jax.Array:
        magnitude = jnp.abs(address - origin) + offset
        begin = jax.lax.bitcast_convert_type(_bits(magnitude) & _EXPONENT, jnp.float32)
        return begin / per_octave

    # An activation bends within its width: with cells of h widths, linear interpolation
    # (evidence, from fine nodes) is off by h^2 / 8 and cubic by h^4 / 130.
    worst = jnp.max(cell(centers) / widths) * max(fine / 0.085, 1.0 / 0.35)
    # A rate turns from one neighbour to the next like a logistic function.
    gaps = jnp.diff(centers)
    crossing = centers[:-1] + gaps * (widths[:-1] / (widths[:-1] + widths[1:]))
    steepness = gaps / widths[:-1] * (cell(crossing) / widths[1:])
    half = _EVIDENCE_CELLS / _READ_CELLS
    return jnp.maximum(worst, jnp.max(steepness) * max(fine * half / 0.085, 1.0 / 0.65))


def _band_suffices(centers: jax.Array, widths: jax.Array) -> jax.Array:
    """Return whether kernels outside a band are at most 1e-8 strong in its middle."""
    half = _BAND // 2
    gap = centers[half:] - centers[:-half]
    return jnp.all(gap > 6.0 * jnp.maximum(widths[half:], widths[:-half]))
