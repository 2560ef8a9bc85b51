"""Which coordinates of a large tensor give evidence, also of a sharded tensor."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def sample(tensor: jax.Array, size: int | None) -> jax.Array:
    """Return a fixed lattice of at most ``size`` coordinates of a tensor [...].

    From every row (the last axis) one coordinate of each of a number of blocks, at a
    place in the block that moves on from row to row: so all rows are represented, and
    all columns but a rest that is shorter than a block. With more rows than ``size``,
    rows are taken evenly. More than an eighth of ``size`` is left. ``None`` takes all,
    and so does any size of a tensor that has no more.
    """
    if size is None or tensor.size <= size:
        return tensor
    return replicated(functools.partial(_lattice, size), tensor)(tensor)


def replicated(function: Callable[..., Any], tensor: jax.Array) -> Callable[..., Any]:
    """Return a function whose result all devices have, on whatever mesh a tensor is."""
    mesh = explicit_mesh(tensor)
    whole = mesh and jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    return automatically(function, whole)


def explicit_mesh(tensor: jax.Array) -> Any:
    """Return the mesh of a tensor that has its sharding in its type, or None."""
    mesh = jax.typeof(tensor).sharding.mesh
    return mesh if jax.sharding.AxisType.Explicit in mesh.axis_types else None


def automatically(function: Callable[..., Any], out_sharding: Any) -> Any:
    """Leave it to XLA how to share the work, as on a mesh of automatic axes."""
    if out_sharding is None:
        return function
    return jax.sharding.auto_axes(function, out_sharding=out_sharding)


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
    # In a block the place moves on by one from row to row and from block to block.
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
