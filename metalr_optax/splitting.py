"""Where local models are added: beside others, or by splitting one.

Pure functions of arrays, which :mod:`metalr_optax.growing` calls.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from metalr_optax.evidence import Evidence
from metalr_optax.memory import Kernels, read
from metalr_optax.stack import StackedMemory

# This fraction of the activity of all local models is added to that of each, so that
# few coordinates count little.
_SHARED = 1e-3
# A local model is added where more than 5 % of inputs are uncovered, and split where
# the covariance of sign and side exceeds 0.2; both are means over about fifty steps.
_WANTED, _SPLIT = 0.05, 0.2
_DECAY = 0.98


class Sums(NamedTuple):
    """Sums or means over the coordinates of a tensor, [M] each.

    Attributes:
      side: of evidence times the sign of the side; the same with absolute evidence.
      slope: of evidence times distance from the centre in widths, at most 2; the same
        without signs.
      width: of evidence times the derivative of the rate by the log of a width; the
        same without signs.
      owned: of coordinates with evidence whose nearest local model this is.
      far: of those of them that are uncovered, on the left and on the right.
      away: of their distances in widths, on the left and on the right.
    """

    side: tuple[jax.Array, jax.Array]
    slope: tuple[jax.Array, jax.Array]
    width: tuple[jax.Array, jax.Array]
    owned: jax.Array
    far: tuple[jax.Array, jax.Array]
    away: tuple[jax.Array, jax.Array]


def relative(part: jax.Array, whole: jax.Array) -> jax.Array:
    """Return sums [..., M] over those of absolute values, in [-1, 1]; 0 without any."""
    total = jnp.sum(whole, axis=-1, keepdims=True)
    usable = (total > 0) & jnp.isfinite(total)
    return jnp.where(usable, part / jnp.where(usable, whole + _SHARED * total, 1), 0)


def grown(memory: StackedMemory, evidence: Evidence) -> StackedMemory:
    """Return memories, each with at most one more local model in use."""
    slopes = jnp.zeros_like(memory.rates) if memory.slopes is None else memory.slopes
    models = memory._replace(schedule=None, slopes=slopes)
    models = jax.vmap(_grow)(models, evidence.sums, evidence.u, evidence.activity)
    slopes = None if memory.slopes is None else models.slopes
    return models._replace(schedule=memory.schedule, slopes=slopes)


def _grow(
    models: StackedMemory, sums: Sums, u: jax.Array, activity: jax.Array
) -> StackedMemory:
    """Return M local models of which at most one more is in use."""
    models = models._replace(disagreement=_disagreement(models, sums, u, activity))
    used = models.kernels[1] > 0
    free = jnp.argmin(used)
    is_wanted, beside = _beside(models, sums, models.disagreement[free])
    is_split, parent, left, right = _halves(models, sums, activity)
    is_added = ~jnp.all(used) & is_wanted
    is_split &= ~jnp.all(used) & ~is_wanted
    places = jnp.arange(len(used))
    to_fill = (places == free) & (is_added | is_split)
    to_halve = (places == parent) & is_split

    def change(old: jax.Array, *new: jax.Array) -> jax.Array:
        beside, left, right = (array[..., None] for array in new)
        filled = jnp.where(is_added, beside, right)
        return jnp.where(to_fill, filled, jnp.where(to_halve, left, old))

    return jax.tree.map(change, models, beside, left, right)


def _disagreement(
    models: StackedMemory, sums: Sums, u: jax.Array, activity: jax.Array
) -> jax.Array:
    """Return running means [M] of disagreement, or of uncovered inputs if unused."""
    used = models.kernels[1] > 0
    # The covariance of sign and side is 0 where all evidence agrees or is on one side.
    # It survives if the rate oscillates between what its two sides ask for.
    mean = relative(u, activity)
    side, lean = (relative(part, activity) for part in sums.side)
    covariance = side - mean * lean
    total = jnp.sum(activity)
    usable = (total > 0) & jnp.isfinite(total)
    own = activity / jnp.where(usable, activity + _SHARED * (total - activity), 1)
    owned = jnp.sum(sums.owned)
    far = jnp.sum(sum(sums.far)) / jnp.where(owned > 0, owned, 1)
    is_first = jnp.arange(len(used)) == jnp.argmin(used)
    target = jnp.where(used, covariance, jnp.where(is_first, far, 0))
    weight = jnp.where(usable, jnp.where(used, own, 1), 0)
    old = models.disagreement
    return old + (1 - _DECAY) * weight * (target - old)


def _beside(
    models: StackedMemory, sums: Sums, wanted: jax.Array
) -> tuple[jax.Array, StackedMemory]:
    """Return whether to add a local model for uncovered inputs, and that local model.

    Its centre is their mean, on that side of a local model that has most of them.
    """
    far = jnp.stack(sums.far)
    side, near = jnp.unravel_index(jnp.argmax(far), far.shape)
    most = far[side, near]
    away = jnp.stack(sums.away)[side, near] / jnp.where(most > 0, most, 1)
    kernels, (middle, width) = Kernels(*models.kernels), models.kernels[:, near]
    center = middle + jnp.where(side == 0, -1, 1) * away * width
    (rate,) = read(kernels, models.rates, center[None], models.slopes)
    zero = jnp.zeros_like(rate)
    new = models._replace(
        rates=rate,
        evidence_weight=zero,
        kernels=jnp.stack([center, width]),
        slopes=zero,
        disagreement=zero,
    )
    is_clear = _is_clear(models, center, width, models.kernels[1] > 0)
    return (most > 0) & (wanted > _WANTED) & is_clear, new


def _halves(
    models: StackedMemory, sums: Sums, activity: jax.Array
) -> tuple[jax.Array, jax.Array, StackedMemory, StackedMemory]:
    """Return whether to split a local model, which, and its halves.

    Halves read the rates that it read, at the mean distance of its evidence from its
    centre, at most half a width.
    """
    against = jnp.where(models.kernels[1] > 0, jnp.abs(models.disagreement), 0)
    # The one with most inconsistent evidence, not a narrow one with little of it.
    parent = jnp.argmax(jnp.where(against > _SPLIT, against * activity, 0))
    split = jax.tree.map(lambda array: array[..., parent], models)
    total = activity[parent]
    part = sums.slope[1][parent] / jnp.where(total > 0, total, 1)
    part = jnp.where(total > 0, jnp.minimum(part, 0.5), 0)
    middle, width = split.kernels[0], part * split.kernels[1]
    is_other = (models.kernels[1] > 0) & (jnp.arange(len(activity)) != parent)
    is_split, halves = against[parent] > _SPLIT, []
    for sign in (-1, 1):
        center, rise = middle + sign * width, 1 + sign * part * split.slopes
        half = split._replace(
            rates=split.rates * rise,
            evidence_weight=split.evidence_weight / 2,
            kernels=jnp.stack([center, width]),
            slopes=split.slopes * part / rise,
            disagreement=jnp.zeros_like(width),
        )
        halves.append(half)
        is_split &= _is_clear(models, center, width, is_other)
        # Rounding must not hide the distance of a half from the centre.
        is_split &= jnp.abs(center - middle) > 0.5 * width
    return is_split, parent, *halves


def _is_clear(
    models: StackedMemory, center: jax.Array, width: jax.Array, others: jax.Array
) -> jax.Array:
    """Return whether a centre is more than half a width away from others."""
    gaps = jnp.abs(models.kernels[0] - center)
    return jnp.all(~others | (gaps > 0.5 * width))
