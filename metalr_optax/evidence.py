"""Which coordinates give evidence, for which memory, and how it is averaged."""

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from metalr_optax.checks import check_like_init, refuse_samples
from metalr_optax.groups import Label

# Weights with a root mean square of at most this were initialised near zero on purpose
# (a LayerScale of 1e-6), which says nothing about their later size. Usual layers have
# more, up to a fan-in of a million.
NEXT_TO_ZERO = 1e-3


class Evidence(NamedTuple):
    """The evidence of a gradient about the last step: means over coordinates.

    For a single tensor arrays have no axis of L memories, and what has a default is
    None.

    Attributes:
      u: [L, M], of agreement times activation.
      activity: [L, M], of absolute agreement times activation.
      agreeing: [L], of agreement.
      counting: [L], of absolute agreement.
      outside: [L], of whether the last direction was out of range.
      touched: [L], of whether there is evidence: a step touches few rows of a table.
      sums: further means that a family needs, [L, M] each, or None.
      multiplier: [], on all rates.
      was_limited: [], bool, whether the step was scaled down as an outlier.
      direction_squares: () -> [L], mean squares of the last direction, without zeros.
      contradicted: [L], bool, whether gradients have disagreed with the steps of this
        run beyond chance.
      carried: [L], bool, whether the memory comes from another run.
    """

    u: Any
    activity: Any
    agreeing: Any
    counting: Any
    outside: Any
    touched: Any
    sums: Any = None
    multiplier: Any = None
    was_limited: Any = None
    direction_squares: Any = None
    contradicted: Any = None
    carried: Any = None


class Piece(NamedTuple):
    """Slices of tensors, each with a separate memory.

    Attributes:
      rows: of the memories, [c] for c slices along the first axis of the array, or []
        where the whole array has a memory.
      places: [c], the same as NumPy integers, which are concrete under ``jit``.
      sizes: [c], coordinates of each slice, sampled or not.
      array: of a gradient or direction.
    """

    rows: Any
    places: np.ndarray
    sizes: np.ndarray
    array: jax.Array


def whole_tensors(tree: Any, labels: Sequence[Label], rows: Any) -> list[Piece]:
    """Return every tensor as a piece; rows are those of a state, by label."""
    index = {name: place for place, name in enumerate(sorted(rows))}
    pieces = []
    for leaf, label in zip(jax.tree.leaves(tree), labels, strict=True):
        names = [label] if isinstance(label, str) else label
        places = np.array([index[name] for name in names], np.int32)
        operand = rows[label] if isinstance(label, str) else places
        sizes = np.full(len(places), leaf.size // max(len(places), 1))
        pieces.append(Piece(operand, places, sizes, leaf))
    return pieces


def sampled(pieces: list[Piece], size: int | None) -> list[Piece]:
    """Return samples of tensors, those of equal length in one piece [c, n].

    Fewer pieces are fewer programs to compile. Without a size the pieces are returned.
    """
    if size is None:
        return pieces

    def flat_sample(tensor: jax.Array) -> jax.Array:
        lattice = sample(tensor, size)
        return replicated(jnp.ravel, lattice)(lattice)

    by_length: dict[int, list[Piece]] = {}
    for piece in pieces:
        take = flat_sample if piece.rows.ndim == 0 else jax.vmap(flat_sample)
        array = take(piece.array).reshape(len(piece.places), -1)
        by_length.setdefault(array.shape[1], []).append(piece._replace(array=array))
    merged = []
    for _, group in sorted(by_length.items()):
        _, places, sizes, arrays = zip(*group, strict=True)
        rows = np.concatenate(places)
        sizes, array = np.concatenate(sizes), jnp.concatenate(arrays)
        merged.append(Piece(rows, rows, sizes, array))
    return merged


class Samples(NamedTuple):
    """Samples of all tensors in one array: every array of a state costs time in a call.

    Attributes:
      array: [S].
    """

    array: jax.Array


def keep(pieces: list[Piece], size: int | None, last: Any, dtype: Any) -> Any:
    """Return what a state keeps of a direction, in the structure of the last one."""
    if size is not None:
        flat = [piece.array.astype(dtype).ravel() for piece in sampled(pieces, size)]
        return Samples(jnp.concatenate([jnp.zeros(0, dtype), *flat]))
    # A copy: without jit the direction may be the caller's gradient itself, which the
    # next donated step would delete.
    arrays = iter([piece.array for piece in pieces])
    return jax.tree.map(lambda old: jnp.array(next(arrays), old.dtype), last)


def keep_zeros(pieces: list[Piece], size: int | None, params: Any, dtype: Any) -> Any:
    """Return zeros like the result of :func:`keep`, without taking samples."""
    if size is None:
        return jax.tree.map(jnp.zeros_like, params)
    samples = jax.eval_shape(lambda: keep(pieces, size, params, dtype))
    return Samples(jnp.zeros(samples.array.shape, dtype))


def restored(last: Any, pieces: Sequence[Piece], gradient: Any) -> list[jax.Array]:
    """Return the result of :func:`keep` in the shapes of the pieces of a gradient."""
    if not isinstance(last, Samples):
        leaves = jax.tree.leaves(last)
        check_like_init(gradient, [leaf.shape for leaf in leaves])
        return leaves
    ends = np.cumsum([piece.array.size for piece in pieces])
    if ends[-1] != last.array.size:
        refuse_samples(gradient, ends[-1], last.array.size)
    parts = zip(jnp.split(last.array, ends[:-1]), pieces, strict=True)
    return [part.reshape(piece.array.shape) for part, piece in parts]


def collect(
    gather: Callable[..., Evidence],
    histories: Iterable[Any],
    gradient: Any,
    labels: Sequence[Label],
    state: Any,
    size: int | None,
) -> Evidence:
    """Return the evidence of a gradient about the last direction, [L, ...].

    Args:
      gather: (shared, row, gradient, last direction, history) -> evidence of a tensor.
      histories: kernel inputs of each tensor; None each if those are directions.
      gradient: a tree.
      labels: of its leaves.
      state: a ``ScaleByMemoryState``.
      size: of a sample; None for all coordinates.
    """
    pieces = sampled(whole_tensors(gradient, labels, state.rows), size)
    last = restored(state.last_direction, pieces, gradient)
    shared, parts = (state.memory, state.orientation), []
    for piece, direction, history in zip(pieces, last, histories, strict=False):
        arrays = piece.rows, piece.array, direction, history
        part = by_row(gather, piece.rows)(shared, *arrays)
        if piece.rows.ndim == 0:
            part = jax.tree.map(lambda array: array[None], part)
        parts.append(part)
    means: Evidence = jax.tree.map(functools.partial(_mean, pieces), *parts)
    return means._replace(
        direction_squares=lambda: _direction_squares(pieces, last, means.u.dtype)
    )


def no_histories(base_state: Any) -> Iterable[None]:
    """Return None for each tensor: kernel inputs are directions."""
    del base_state
    return itertools.repeat(None)


def by_row(function: Callable[..., Any], rows: Any) -> Callable[..., Any]:
    """Map a function (shared, row, *arrays) over slices where each has its own row."""
    if rows.ndim == 0:
        return function
    return lambda shared, *slices: jax.vmap(functools.partial(function, shared))(
        *slices
    )


def in_float32(base: optax.GradientTransformation) -> Any:
    """Return a base that computes in float32 for float16 arrays.

    In float16, squares of gradients and an eps of 1e-8 underflow to 0.
    """
    base = optax.with_extra_args_support(base)

    def wide(x: Any) -> Any:
        is_half = getattr(x, "dtype", None) == jnp.float16
        return jnp.asarray(x, jnp.float32) if is_half else x

    def init(params: optax.Params) -> optax.OptState:
        return base.init(jax.tree.map(wide, params))

    def update(updates, state, params=None, **extra_args):
        updates, params = jax.tree.map(wide, (updates, params))
        return base.update(updates, state, params, **extra_args)

    return optax.GradientTransformationExtraArgs(init, update)


def sizes_of(pieces: Sequence[Piece], dtype: Any) -> jax.Array:
    """Return the root mean squares [L] of the parameters of each memory.

    Groups that start near zero use the RMS of the whole tree. No result is below
    ``NEXT_TO_ZERO``.
    """
    if not pieces:
        return jnp.zeros(0, dtype)
    squares = [
        _mean_squares(piece.rows.ndim > 0, dtype, piece.array) for piece in pieces
    ]
    tree = [piece._replace(places=0 * piece.places) for piece in pieces]
    means, mean_of_tree = _mean(pieces, *squares), _mean(tree, *squares)
    least = NEXT_TO_ZERO**2
    means = jnp.where(means > least, means, mean_of_tree)
    return jnp.sqrt(jnp.maximum(means, least))


def _direction_squares(
    pieces: Sequence[Piece], last: Sequence[jax.Array], dtype: Any
) -> jax.Array:
    """Return mean squares [L] of what is not 0 in directions, or 0."""
    columns = []
    for piece, direction in zip(pieces, last, strict=True):
        axes = tuple(range(piece.rows.ndim, direction.ndim))
        values = jnp.where(jnp.isfinite(direction), direction, 0).astype(dtype)
        pair = values * values, (values != 0).astype(dtype)
        sums = jnp.stack([jnp.sum(x, axis=axes) for x in pair], -1)
        number = max(direction.size // max(len(piece.places), 1), 1)
        columns.append(sums.reshape(-1, 2) / number)
    squares, used = jnp.unstack(_mean(pieces, *columns), axis=-1)
    return squares / jnp.where(used > 0, used, 1)


def sample(tensor: jax.Array, size: int | None) -> jax.Array:
    """Return a fixed lattice of at most ``size`` coordinates of a tensor [...].

    Every row (the last axis) is divided into blocks. One coordinate is taken from each,
    at a position that shifts from row to row: so all rows are represented, and all
    columns but a remainder shorter than a block. With more rows than ``size``, rows are
    taken at a stride. More than ``size / 8`` coordinates remain. ``None`` takes all.
    """
    if size is None or tensor.size <= size:
        return tensor
    return replicated(functools.partial(_lattice, size), tensor)(tensor)


def replicated(function: Callable[..., Any], tensor: jax.Array) -> Callable[..., Any]:
    """Return a function whose result is replicated over the mesh of a tensor."""
    mesh = explicit_mesh(tensor)
    everywhere = jax.sharding.PartitionSpec()
    sharding = mesh and jax.sharding.NamedSharding(mesh, everywhere)
    return automatically(function, sharding)


def explicit_mesh(tensor: jax.Array) -> Any:
    """Return the mesh of a tensor if it has explicit axes, else None."""
    mesh = jax.typeof(tensor).sharding.mesh
    return mesh if jax.sharding.AxisType.Explicit in mesh.axis_types else None


def automatically(function: Callable[..., Any], out_sharding: Any) -> Any:
    """Let XLA partition the work of a function, as on a mesh of automatic axes."""
    if out_sharding is None:
        return function
    return jax.sharding.auto_axes(function, out_sharding=out_sharding)


def _mean(pieces: Sequence[Piece], *columns: jax.Array) -> jax.Array:
    """Return means [L, ...] by memory of columns [c, ...], one column per piece."""
    places = np.concatenate([piece.places for piece in pieces])
    sizes = np.concatenate([piece.sizes for piece in pieces])
    shares = sizes / np.maximum(np.bincount(places, sizes), 1)[places]
    array = jnp.concatenate(columns)
    weights = jnp.asarray(shares, array.dtype).reshape(-1, *[1] * (array.ndim - 1))
    zeros = jnp.zeros((max(places) + 1, *array.shape[1:]), array.dtype)
    return zeros.at[places].add(weights * array)


# Compiled once for all tensors of one shape.
@functools.partial(jax.jit, static_argnums=(0, 1))
def _mean_squares(by_slice: bool, dtype: Any, array: jax.Array) -> jax.Array:
    """Return the mean square of a tensor, or of each slice of its first axis, [c]."""
    axes = tuple(range(int(by_slice), array.ndim))
    total = jnp.sum(jnp.square(array.astype(dtype)), axis=axes)
    return jnp.reshape(total / max(array.size // max(total.size, 1), 1), -1)


# Traced once for all tensors of one shape.
@functools.partial(jax.jit, static_argnums=0)
def _lattice(size: int, tensor: jax.Array) -> jax.Array:
    *lengths, columns = tensor.shape
    strides = [1] * len(lengths)
    while math.prod(lengths) > size:
        axis = lengths.index(max(lengths))
        strides[axis] *= 2
        lengths[axis] = -(-tensor.shape[axis] // strides[axis])
    width = -(-columns // max(1, size // math.prod(lengths)))
    number = columns // width
    rows = tensor[tuple(slice(None, None, stride) for stride in strides)]
    # The position in a block shifts by one from row to row and from block to block.
    shape = (*lengths, number)
    steps = [jax.lax.broadcasted_iota(jnp.int32, shape, i) for i in range(len(shape))]
    moves = sum(
        step * (math.prod(lengths[i + 1 :]) % width) for i, step in enumerate(steps)
    )
    place = steps[-1] * width + moves % width
    axes = tuple(range(len(lengths)))
    return jax.lax.gather(
        rows,
        place[..., None],
        jax.lax.GatherDimensionNumbers(
            offset_dims=(),
            collapsed_slice_dims=(len(lengths),),
            start_index_map=(len(lengths),),
            operand_batching_dims=axes,
            start_indices_batching_dims=axes,
        ),
        slice_sizes=(1,) * tensor.ndim,
        mode="promise_in_bounds",
    )
