"""Where local models are added: beside the others, or by splitting one.

Pure functions of arrays; :mod:`metalr_optax.growing` says when.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from metalr_optax.evidence import Evidence
from metalr_optax.memory import Kernels, read
from metalr_optax.stack import StackedMemory

# The evidence of few coordinates counts little: this much of that of all local models
# is added to that of each.
_SHARED = 1e-3
# A local model is added where one input in twenty is not answered for, and split where
# the sign of evidence goes with the side by so much, in means over fifty steps.
_WANTED, _SPLIT = 0.05, 0.2
_DECAY = 0.98


class Sums(NamedTuple):
    """What a tensor says, sums or means over its coordinates, [M] each.

    Attributes:
      side: of evidence, that on the left with its sign turned.
      lean: the same of its absolute values.
      slope: of evidence times distance from the centre in widths, at most 2.
      spread: the same without signs.
      width: of evidence times how the reading changes with the log of a width.
      width_size: the same without signs.
      owned: of coordinates with evidence that a local model is the nearest to.
      far_left: of those that it does not answer for, on its left.
      far_right: on its right.
      left: of their distances in widths, on its left.
      right: on its right.
    """

    side: jax.Array
    lean: jax.Array
    slope: jax.Array
    spread: jax.Array
    width: jax.Array
    width_size: jax.Array
    owned: jax.Array
    far_left: jax.Array
    far_right: jax.Array
    left: jax.Array
    right: jax.Array


def relative(part: jax.Array, whole: jax.Array) -> jax.Array:
    """Return sums [..., M] over those of absolute values, in [-1, 1]; 0 for nothing."""
    total = jnp.sum(whole, axis=-1, keepdims=True)
    usable = (total > 0) & jnp.isfinite(total)
    return jnp.where(usable, part / jnp.where(usable, whole + _SHARED * total, 1), 0)


class _LocalModels(NamedTuple):
    """What a memory holds of its local models, [M], or of a single local model, []."""

    rates: Any
    evidence_weight: Any
    centers: Any
    widths: Any
    slopes: Any
    disagreement: Any


def grown(memory: StackedMemory, evidence: Evidence) -> StackedMemory:
    """Return memories each of which has at most one local model more in use."""
    slopes = memory.slopes
    models = _LocalModels(
        rates=memory.rates,
        evidence_weight=memory.evidence_weight,
        centers=memory.kernels[:, 0],
        widths=memory.kernels[:, 1],
        slopes=jnp.zeros_like(memory.rates) if slopes is None else slopes,
        disagreement=memory.disagreement,
    )
    models = jax.vmap(_grow)(models, evidence.sums, evidence.u, evidence.activity)
    return memory._replace(
        rates=models.rates,
        evidence_weight=models.evidence_weight,
        kernels=jnp.stack([models.centers, models.widths], axis=1),
        slopes=None if slopes is None else models.slopes,
        disagreement=models.disagreement,
    )


def _grow(
    models: _LocalModels, sums: Sums, u: jax.Array, activity: jax.Array
) -> _LocalModels:
    """Return M local models of which at most one more is in use."""
    models = models._replace(disagreement=_disagreement(models, sums, u, activity))
    used = models.widths > 0
    free = jnp.argmin(used)
    is_wanted, other = _beside(models, sums, models.disagreement[free])
    is_split, parent, left, right = _halves(models, sums, activity)
    is_added = ~jnp.all(used) & is_wanted
    is_split &= ~jnp.all(used) & ~is_wanted
    places = jnp.arange(len(used))
    to_fill = (places == free) & (is_added | is_split)
    to_halve = (places == parent) & is_split

    def change(old: Any, other: Any, left: Any, right: Any) -> jax.Array:
        new = jnp.where(is_added, other, right)
        return jnp.where(to_fill, new, jnp.where(to_halve, left, old))

    return jax.tree.map(change, models, other, left, right)


def _disagreement(
    models: _LocalModels, sums: Sums, u: jax.Array, activity: jax.Array
) -> jax.Array:
    """Return the running means [M]; of the first not in use, how much it is wanted."""
    used = models.widths > 0
    # The covariance of sign and side: 0 where all evidence agrees, or is on one side,
    # and not lost where a rate goes to and fro between what its sides ask for.
    mean = relative(u, activity)
    covariance = relative(sums.side, activity) - mean * relative(sums.lean, activity)
    total = jnp.sum(activity)
    usable = (total > 0) & jnp.isfinite(total)
    own = activity / jnp.where(usable, activity + _SHARED * (total - activity), 1)
    owned = jnp.sum(sums.owned)
    far = jnp.sum(sums.far_left + sums.far_right) / jnp.where(owned > 0, owned, 1)
    is_first = jnp.arange(len(used)) == jnp.argmin(used)
    target = jnp.where(used, covariance, jnp.where(is_first, far, 0))
    weight = jnp.where(usable, jnp.where(used, own, 1), 0)
    old = models.disagreement
    return old + (1 - _DECAY) * weight * (target - old)


def _beside(
    models: _LocalModels, sums: Sums, wanted: jax.Array
) -> tuple[jax.Array, _LocalModels]:
    """Return whether to add a local model where inputs are not answered for, and it.

    It stands in the middle of those beside the local model that has most of them.
    """
    far = jnp.stack([sums.far_left, sums.far_right])
    side, near = jnp.unravel_index(jnp.argmax(far), far.shape)
    most = far[side, near]
    away = jnp.stack([sums.left, sums.right])[side, near] / jnp.where(most > 0, most, 1)
    width = models.widths[near]
    center = models.centers[near] + jnp.where(side == 0, -1, 1) * away * width
    kernels = Kernels(models.centers, models.widths)
    (rate,) = read(kernels, models.rates, center[None], models.slopes)
    zero = jnp.zeros_like(rate)
    new = _LocalModels(rate, zero, center, width, zero, zero)
    is_clear = _is_clear(models, center, width, models.widths > 0)
    return (most > 0) & (wanted > _WANTED) & is_clear, new


def _halves(
    models: _LocalModels, sums: Sums, activity: jax.Array
) -> tuple[jax.Array, jax.Array, _LocalModels, _LocalModels]:
    """Return whether to split a local model, which, and its halves.

    They read what it read, and stand as far from its centre as its evidence, at most
    half a width.
    """
    against = jnp.where(models.widths > 0, jnp.abs(models.disagreement), 0)
    # Where most evidence contradicts itself, not where a narrow one has little.
    parent = jnp.argmax(jnp.where(against > _SPLIT, against * activity, 0))
    split: Any = jax.tree.map(lambda x: x[parent], models)
    total = activity[parent]
    part = sums.spread[parent] / jnp.where(total > 0, total, 1)
    part = jnp.where(total > 0, jnp.minimum(part, 0.5), 0)
    width = part * split.widths
    is_other = (models.widths > 0) & (jnp.arange(len(activity)) != parent)
    is_split, halves = against[parent] > _SPLIT, []
    for sign in (-1, 1):
        center, rise = split.centers + sign * width, 1 + sign * part * split.slopes
        halves.append(
            _LocalModels(
                rates=split.rates * rise,
                evidence_weight=split.evidence_weight / 2,
                centers=center,
                widths=width,
                slopes=split.slopes * part / rise,
                disagreement=jnp.zeros_like(width),
            )
        )
        is_split &= _is_clear(models, center, width, is_other)
        # Not so narrow that it cannot be told from its centre.
        is_split &= jnp.abs(center - split.centers) > 0.5 * width
    return is_split, parent, *halves


def _is_clear(
    models: _LocalModels, center: jax.Array, width: jax.Array, others: jax.Array
) -> jax.Array:
    """Return whether a place is half a width away from others."""
    largest = jnp.finfo(models.centers.dtype).max
    gaps = jnp.where(others, jnp.abs(models.centers - center), largest)
    return jnp.min(gaps) > 0.5 * width
