"""What a gradient says about the last direction of all tensors, by memory."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from metalr_optax.groups import Label, by_row, names_in
from metalr_optax.local_models import Evidence
from metalr_optax.sample import replicated, sample


class Piece(NamedTuple):
    """Slices of tensors, each with a memory of its own.

    Attributes:
      rows: of the memories, [c] for c slices along the first axis of the array, or []
        where the whole array has a memory.
      places: [c], the same, known while a step is traced.
      sizes: [c], coordinates that each slice stands for.
      array: of a gradient or direction.
    """

    rows: Any
    places: np.ndarray
    sizes: np.ndarray
    array: jax.Array


def whole_tensors(
    leaves: Sequence[Any], labels: Sequence[Label], rows: Any
) -> list[Piece]:
    """Return every tensor as a piece; rows are those of a state, by label."""
    index = {name: place for place, name in enumerate(sorted(rows))}
    pieces = []
    for leaf, label in zip(leaves, labels, strict=True):
        places = np.array([index[name] for name in names_in(label)], np.int32)
        operand = rows[label] if isinstance(label, str) else places
        sizes = np.full(len(places), leaf.size // max(len(places), 1))
        pieces.append(Piece(operand, places, sizes, leaf))
    return pieces


def sampled(pieces: Sequence[Piece], size: int | None) -> list[Piece]:
    """Return samples of tensors, those of one length in one piece [c, n].

    Few pieces are few programs to compile, however many tensors there are. Without a
    size the pieces stay as they are.
    """
    if size is None:
        return list(pieces)

    def flat_sample(tensor: jax.Array) -> jax.Array:
        few = sample(tensor, size)
        return replicated(jnp.ravel, few)(few)

    by_length: dict[int, list[Piece]] = {}
    for piece in pieces:
        take = flat_sample if piece.rows.ndim == 0 else jax.vmap(flat_sample)
        array = take(piece.array).reshape(len(piece.places), -1)
        alike = by_length.setdefault(array.shape[1], [])
        alike.append(piece._replace(array=array))
    merged = []
    for _, group in sorted(by_length.items()):
        _, places, sizes, arrays = zip(*group, strict=True)
        places = np.concatenate(places)
        array = jnp.concatenate(arrays)
        merged.append(Piece(places, places, np.concatenate(sizes), array))
    return merged


class Samples(NamedTuple):
    """Samples of all tensors in one array: every array of a state costs time in a call.

    Attributes:
      array: [S].
    """

    array: jax.Array


def joined(pieces: Sequence[Piece], dtype: Any) -> Samples:
    """Return the arrays of pieces, one after the other."""
    flat = [piece.array.astype(dtype).ravel() for piece in pieces]
    return Samples(jnp.concatenate([jnp.zeros(0, dtype), *flat]))


def parted(samples: Samples, pieces: Sequence[Piece]) -> list[jax.Array]:
    """Return what :func:`joined` has put together, in the shapes of pieces."""
    (array,) = samples
    ends = np.cumsum([piece.array.size for piece in pieces])
    parts = jnp.split(array, ends[:-1])
    return [
        part.reshape(piece.array.shape)
        for part, piece in zip(parts, pieces, strict=True)
    ]


def collect(
    gather: Callable[..., Evidence],
    shared: Any,
    pieces: Sequence[Piece],
    last: Sequence[jax.Array],
    histories: Sequence[jax.Array | None],
    num: int,
) -> Evidence:
    """Return the evidence [num, ...] of all tensors: means over those of a memory.

    Args:
      gather: (shared, row, gradient, last direction, history) -> evidence of a tensor.
      shared: what all tensors share.
      pieces: of the gradient.
      last: the last directions, in the shapes of pieces.
      histories: what kernels are given, where that is no direction.
      num: of memories.
    """
    parts = []
    for piece, *arrays in zip(pieces, last, histories, strict=True):
        part = by_row(gather, piece.rows)(shared, piece.rows, piece.array, *arrays)
        parts.append(part if piece.rows.ndim else jax.tree.map(_as_slice, part))
    places = np.concatenate([piece.places for piece in pieces])
    sizes = np.concatenate([piece.sizes for piece in pieces])
    totals = np.maximum(np.bincount(places, sizes, num), 1)
    mean = functools.partial(_mean, places, sizes / totals[places], num)
    return jax.tree.map(lambda *columns: mean(columns), *parts)


def _as_slice(array: jax.Array) -> jax.Array:
    return array[None]


def _mean(
    places: np.ndarray, shares: np.ndarray, num: int, columns: Sequence[jax.Array]
) -> jax.Array:
    """Return the weighted sums [num, ...] of columns [c, ...] by place."""
    array = jnp.concatenate(columns)
    weights = jnp.asarray(shares, array.dtype).reshape(-1, *[1] * (array.ndim - 1))
    zeros = jnp.zeros((num, *array.shape[1:]), array.dtype)
    return zeros.at[places].add(weights * array)


def sizes_of(pieces: Sequence[Piece], dtype: Any) -> jax.Array:
    """Return the root mean squares [L] of the parameters of each memory.

    Zero-initialised groups have the RMS of the whole tree.
    """

    def square(shared: Any, row: Any, array: jax.Array) -> jax.Array:
        del shared, row
        return jnp.sum(jnp.square(array.astype(dtype)))

    if not pieces:
        return jnp.zeros(0, dtype)
    places = np.concatenate([piece.places for piece in pieces])
    sizes = np.concatenate([piece.sizes for piece in pieces])
    squares = jnp.concatenate(
        [
            by_row(square, piece.rows)(None, piece.rows, piece.array).reshape(-1)
            for piece in pieces
        ]
    )
    totals = jnp.zeros(max(places) + 1, dtype).at[places].add(squares)
    means = totals / jnp.asarray(np.maximum(np.bincount(places, sizes), 1), dtype)
    everything = jnp.sum(squares) / max(sizes.sum(), 1)
    return jnp.sqrt(jnp.where(means > 0, means, everything))
