"""Which coordinates stand for a large tensor where evidence is sampled."""

import math

import jax


def sample(tensor: jax.Array, size: int | None) -> jax.Array:
    """Return a fixed lattice of at most ``size`` coordinates of a tensor [...].

    Every axis is stepped through evenly, the longest with the longest stride, so a
    sharded tensor is sampled shard by shard. Strides are powers of two: more than a
    quarter of ``size`` is left. ``None`` takes all.
    """
    if size is None or tensor.size <= size:
        return tensor
    strides = [1] * tensor.ndim
    lengths = list(tensor.shape)
    while math.prod(lengths) > size:
        axis = lengths.index(max(lengths))
        strides[axis] *= 2
        lengths[axis] = -(-tensor.shape[axis] // strides[axis])
    return tensor[tuple(slice(None, None, stride) for stride in strides)]
