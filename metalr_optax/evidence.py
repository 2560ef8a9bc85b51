"""What one tensor does: its gradient is evidence, its direction is scaled.

Small tensors are evaluated exactly; of more than one local model, large ones are
interpolated on a grid.
"""

import collections
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from metalr_optax.bases import Base, turned
from metalr_optax.interpolation import (
    LARGE,
    Compare,
    Grid,
    accumulate_large,
    read_large,
    sample,
)
from metalr_optax.memory import (
    Kernels,
    accumulate,
    outermost,
    read,
    root_mean_square,
)
from metalr_optax.regression import sums_of
from metalr_optax.signals import BY_COORDINATE, Signal, agreement

# So many coordinates of a tensor at most are looked at for what only logs need.
_LOGGED = 2**12


class Evaluation(NamedTuple):
    """How all tensors are evaluated.

    Attributes:
      base: the base optimizer.
      signal: what a gradient says about the last direction.
      rms: whether kernel inputs are divided by the root mean square of their tensor.
      grid: of the kernels, or None where they have to be evaluated exactly.
    """

    base: Base
    signal: Signal
    rms: bool
    grid: Grid | None


def tensor_evidence(
    how: Evaluation,
    kernels: Kernels,
    models: tuple[jax.Array, jax.Array] | None,
    scale: jax.Array | None,
    gradient: jax.Array,
    update: jax.Array,
    known: tuple[jax.Array, ...],
    seen: jax.Array | None,
) -> tuple[list[jax.Array], jax.Array]:
    """Return what a gradient says about the last direction, as means over a tensor.

    And the gradient, scaled. Where the last direction is derived, that is not known
    before the means are: XLA writes new moments over those of a donated state, and must
    not do so before they have been compared, or it makes a copy of all of them first.

    Args:
      how: tensors are evaluated.
      kernels: M kernels.
      models: their rates and slopes, [M] each, where more than rates is learned.
      scale: [], weight of this gradient, None for 1.
      gradient: [...].
      update: [...], what the base optimizer gets.
      known: of the base, the last direction follows from it.
      seen: [...], what kernels see instead of that direction, or None.

    Returns:
      u, [M], the mean of agreement times activation, and activity, [M], the same
      without signs. For M > 1 also, from a sample, both without activations, [], and
      the fraction [] of the last direction that was out of range. With models also
      :class:`metalr_optax.regression.Sums`, one by one.
    """
    dtype = kernels.centers.dtype
    single = len(kernels.centers) == 1
    g, (d, *turns) = sample(gradient, how.base.size), how.base.direction(*known)
    more = [*turns, *([] if scale is None else [scale])]
    if not single:
        more.insert(0, _unit(how, d.astype(dtype)))

    compare = _comparison(how, single, dtype)
    if single or how.grid is None or d.size < LARGE:
        inputs, values = compare(g, d, *more)
        inputs = inputs if seen is None else seen.astype(dtype)
        sums = accumulate(kernels, inputs, values)
        if models is not None:
            sums += sums_of(kernels, *models, inputs, values[0])
    else:
        alone = how.signal in BY_COORDINATE
        sums = accumulate_large(kernels, how.grid, compare, alone, (g, d), more)
    means = [one / max(d.size, 1) for one in sums]
    if not single:
        logged = _with_logged(kernels, means[:2], compare, g, d, more, seen)
        means = logged + means[2:]
    if scale is not None:
        # In the wide dtype: float16 has no such small scales.
        update = (update.astype(dtype) * scale.astype(dtype)).astype(update.dtype)
    if not how.base.is_derived:
        return means, update
    # It is never below 0, which XLA does not know.
    compared = jnp.sum(means[-1]) + 0.0 * means[0][0]
    return means, jnp.where(compared < 0, jnp.zeros_like(update), update)


def _comparison(how: Evaluation, single: bool, dtype: Any) -> Compare:
    """Return what compares a gradient with a last direction.

    It gives kernel inputs, and the agreement of coordinates with and without its sign.
    """

    def compare(g: jax.Array, d: jax.Array, *more: Any) -> Any:
        g, d = g.astype(dtype), d.astype(dtype)
        # A single rate has no input.
        unit, *turns = (1.0, *more) if single else more
        values = agreement(how.signal, g, turned(d, *turns))
        inputs = d if single else jnp.where(jnp.isfinite(d), d, 0) / unit
        return inputs, [values, jax.lax.abs(values)]

    return compare


def _with_logged(
    kernels: Kernels,
    means: Any,
    compare: Any,
    g: jax.Array,
    d: jax.Array,
    more: Any,
    seen: jax.Array | None,
) -> list[jax.Array]:
    """Return means, and from a sample what only logs need."""
    few = sample(d, _LOGGED).astype(kernels.centers.dtype)
    inputs = few / more[0] if seen is None else sample(seen, _LOGGED).astype(few.dtype)
    low, high = outermost(kernels)
    inside = (inputs > low.centers) & (inputs < high.centers)
    logged = compare(sample(g, _LOGGED), few, *more)[1]
    logged.append((~inside).astype(few.dtype))
    few_means = [jnp.sum(one) / max(one.size, 1) for one in logged]
    # Before anything is overwritten: these are never below 0, which XLA does not know,
    # and so it has to have them before it has u.
    first = few_means[1] + few_means[2] < 0
    return [jnp.where(first, 0, one) for one in means] + few_means


def scaled(
    how: Evaluation,
    kernels: Kernels,
    models: tuple[jax.Array, jax.Array | None],
    direction: jax.Array,
    seen: jax.Array | None,
) -> jax.Array:
    """Return a direction [...] times its rates, of the dtype of the rates.

    They are read where it is, or at what kernels see instead of it.
    """
    rates, slopes = models
    direction = direction.astype(rates.dtype)
    if rates.size == 1:
        return rates[0] * direction
    if seen is None:
        inputs = direction / _unit(how, direction)
    else:
        inputs = seen.astype(rates.dtype)
    if how.grid is None or direction.size < LARGE:
        return read(kernels, rates, inputs, slopes) * direction
    return read_large(kernels, how.grid, rates, inputs) * direction


def mean_by_label(
    labels: Sequence[str], sizes: Sequence[int], means: Any, like: jax.Array
) -> jax.Array:
    """Return [L, ...] like an array, the means over all tensors of a label.

    Args:
      labels: of the tensors; rows are in their order.
      sizes: of the tensors.
      means: [...] of each tensor, [K, ...] of K layers that are stacked in it.
      like: [L, ...], of all memories.
    """
    if not means:
        return jnp.zeros_like(like)
    totals: dict[str, int] = collections.Counter()
    for label, size in zip(labels, sizes, strict=True):
        totals[label] += size
    sums: dict[str, jax.Array] = {}
    for label, size, mean in zip(labels, sizes, means, strict=True):
        # As little as possible to trace: it is done for every tensor of a model.
        share = np.full(mean.shape, size / max(totals[label], 1), mean.dtype)
        one = jax.lax.mul(mean, share)
        sums[label] = jax.lax.add(sums[label], one) if label in sums else one
    rows = [sums[label] for label in sorted(sums)]
    if all(row.ndim < like.ndim for row in rows):
        return jnp.stack(rows)
    return jnp.concatenate([row.reshape(-1, *like.shape[1:]) for row in rows])


def _unit(how: Evaluation, direction: jax.Array) -> jax.Array:
    """Return [], what a direction is divided by to be a kernel input."""
    if how.rms:
        return root_mean_square(direction)
    return jnp.ones([], direction.dtype)
