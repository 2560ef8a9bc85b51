r"""The family of local models that move: slopes, widths and new local models.

What is learned from the evidence :math:`a_i` about the rate :math:`\eta_i` that a
coordinate read at :math:`z_i`, besides the rates :math:`v_m`. With
:math:`t = (z_i - c_m) / s_m`, local models
:math:`f_m = v_m (1 + b_m \mathrm{clip}(t, -2, 2))` and shares
:math:`p_m = \psi_m(z_i) / \sum_k \psi_k(z_i)`, all for coordinate :math:`i`:

.. math::
  b_m &\leftarrow b_m + .02\, r\big(\textstyle\sum_i a_i \psi_m
    \mathrm{clip}(t, -2, 2)\big) \\
  \log s_m &\leftarrow \log s_m
    + .02\, r\big(\textstyle\sum_i a_i\, \partial \eta_i / \partial \log s_m\big),
    \quad \partial \eta_i / \partial \log s_m
    = p_m \big((f_m - \eta_i)\, t^2 - v_m b_m t\, [|t| < 2]\big)

where :math:`r` divides a sum by that of its absolute values, so that only the sign of
evidence and how far it agrees count. A local model is split where evidence on the two
sides of its centre has had opposite signs for long, and a new local model is added where inputs
fall that none answers for.

Examples:
  Inputs above 0.5 bear ten times the rate of those below. Directions are new in every
  step, and the gradient after one has its sign where the rate was too small:

  >>> import jax, jax.numpy as jnp
  >>> from metalr_optax import agreement_steps, get_memory, linspace_kernels
  >>> from metalr_optax import scale_by_memory
  >>> from metalr_optax.memory import read
  >>> wanted = lambda z: jnp.where(z > 0.5, 0.5, 0.05)
  >>> def error(**options):
  ...   optimizer = scale_by_memory(
  ...       0.1, kernels=linspace_kernels(2.0, 4), memory_optimizer=agreement_steps(),
  ...       **options)
  ...   def step(carry, key):
  ...     z, rates, state = carry
  ...     new = jax.random.uniform(key, (32,), minval=-2.0, maxval=2.0)
  ...     gradient = (1 - rates / wanted(z)) * z
  ...     updates, state = optimizer.update(new, state, grad=gradient)
  ...     return (new, updates / new, state), None
  ...   z = jnp.linspace(-2.0, 2.0, 32)
  ...   updates, state = optimizer.update(z, optimizer.init(z), grad=z)
  ...   keys = jax.random.split(jax.random.key(0), 600)
  ...   (_, _, state), _ = jax.lax.scan(step, (z, updates / z, state), keys)
  ...   memory = get_memory(state)["params"]
  ...   rates = read(memory.kernels, memory.rates, z, memory.slopes)
  ...   return float(jnp.mean(jnp.abs(jnp.log(rates / wanted(z)))))
  >>> fixed = error()
  >>> error(capacity=8) < 0.5 * fixed
  True
  >>> error(learned_widths=True) < 0.8 * fixed
  True
  >>> error(linear=True) < 0.8 * fixed
  True

References:
  Schaal, Atkeson, `Constructive Incremental Learning from Only Local Information
  <https://doi.org/10.1162/089976698300016963>`_, Neural Computation, 1998.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from metalr_optax.local_models import (
    Evidence,
    LocalModels,
    at,
    compare_by,
    input_unit,
    kernel_inputs,
    logged,
)
from metalr_optax.memory import (
    LINEAR,
    REACH,
    Kernels,
    Memory,
    accumulate,
    distance,
    log_activation,
    outermost,
    read,
    weigh,
)
from metalr_optax.rules import Rule
from metalr_optax.signals import Signal
from metalr_optax.stack import StackedMemory, stack_memories

# Slopes and logs of widths move by at most so much in a step.
_STEP = 0.02
# With it a local model is positive wherever it is linear.
LARGEST_SLOPE = 0.45
# Widths are learned between so many distances to the nearest neighbour.
_NARROWEST, _WIDEST = 0.25, 1.0
# The evidence of few coordinates counts little: this much of that of all local models
# is added to that of each.
_SHARED = 1e-3
# No local model answers for an input at which no activation is as large as this.
_UNANSWERED = math.log(0.1)
# Further than so many widths from all local models an input is an outlier.
_OUTLIER = 100.0
# A local model is added where one input in twenty is not answered for, and split where
# the sign of evidence goes with the side by so much, in means over fifty steps.
_WANTED, _SPLIT = 0.05, 0.2
_DECAY = 0.98


class Learned(NamedTuple):
    """What is learned besides rates.

    Attributes:
      capacity: local models of a memory at most, None for those at the start.
      widths: whether widths are.
      slopes: whether slopes are.
    """

    capacity: int | None
    widths: bool
    slopes: bool


def growing(learned: Learned, inputs: Any) -> LocalModels:
    """Return the family of local models that :func:`grow` changes.

    Every local model is evaluated for every coordinate.
    """

    def init(memories: Sequence[Memory], dtype: Any, progress: bool) -> StackedMemory:
        if learned.capacity is not None:
            memories = [padded(memory, learned.capacity) for memory in memories]
        stack = stack_memories(memories, dtype, inputs, progress)
        like = stack._replace(
            slopes=stack.rates if learned.slopes else None,
            disagreement=None if learned.capacity is None else stack.rates,
        )
        return with_slopes(stack, memories, like)

    def row(memory: StackedMemory, index: Any) -> tuple[Kernels, jax.Array, Any]:
        slopes = None if memory.slopes is None else at(memory.slopes, index)
        kernels = Kernels(*at(memory.kernels, index))
        return kernels, at(memory.rates, index), slopes

    def read_rates(row: Any, direction: jax.Array, history: Any) -> jax.Array:
        kernels, rates, slopes = row
        return read(kernels, rates, kernel_inputs(inputs, direction, history), slopes)

    def gather(
        row: Any, signal: Signal, gradient: Any, last: Any, turn: Any, history: Any
    ) -> Evidence:
        kernels, rates, slopes = row
        compare = compare_by(signal, rates.dtype)
        unit = input_unit(inputs, last.astype(rates.dtype))
        tensors = gradient, last, unit, turn, history
        z, values = compare(*tensors)
        zeros = jnp.zeros_like(rates)
        sums = sums_of(
            kernels, rates, zeros if slopes is None else slopes, z, values[0]
        )
        totals = *accumulate(kernels, z, values), sums
        u, activity, sums = jax.tree.map(lambda x: x / max(last.size, 1), totals)
        return Evidence(u, activity, *logged(kernels, compare, *tensors), sums)

    return LocalModels(init, row, read_rates, gather)


def grow(rule: Rule, learned: Learned) -> Rule:
    """Return a rule that also moves slopes and widths, and adds local models."""

    def update(evidence: Evidence, state: Any, memory: StackedMemory) -> Any:
        memory, state = rule.update(evidence, state, memory)
        sums = evidence.sums
        if learned.slopes:
            slopes = memory.slopes + _STEP * _relative(sums.slope, sums.spread)
            bounds = rule.bounds(state, slopes.dtype)
            memory = memory._replace(slopes=_bounded(slopes, memory.rates, bounds))
        if learned.widths:
            memory = memory._replace(kernels=_widened(memory.kernels, sums))
        if learned.capacity is not None:
            memory = _grown(memory, evidence)
        return memory, state

    return rule._replace(update=update)


def with_slopes(
    stack: StackedMemory, memories: Sequence[Memory], like: StackedMemory
) -> StackedMemory:
    """Return a stack with the slopes of memories and no disagreement, if like has."""
    zeros = jnp.zeros_like(stack.rates)
    slopes = [
        zeros[..., 0, :] if m.slopes is None else jnp.asarray(m.slopes, zeros.dtype)
        for m in memories
    ]
    return stack._replace(
        slopes=None if like.slopes is None else jnp.stack(slopes, axis=-2),
        disagreement=None if like.disagreement is None else zeros,
    )


def padded(memory: Memory, num: int) -> Memory:
    """Return a memory of num local models; those not in use have the mean rate."""
    kernels, rates = memory.kernels, jnp.asarray(memory.rates)
    widths = jnp.asarray(kernels.widths)

    def longer(array: Any) -> Any:
        more = num - jnp.shape(array)[-1]
        pads = [(0, 0)] * (jnp.ndim(array) - 1) + [(0, more)]
        return jnp.pad(jnp.asarray(array), pads)

    used = longer(widths) > 0
    mean = jnp.mean(rates, axis=-1, where=widths > 0, keepdims=True)
    lowest = jnp.finfo(rates.dtype).min
    last = jnp.max(
        kernels.centers, axis=-1, where=widths > 0, initial=lowest, keepdims=True
    )
    weight, slopes = (
        None if array is None else jnp.where(used, longer(array), 0)
        for array in (memory.evidence_weight, memory.slopes)
    )
    centers = jnp.where(used, longer(kernels.centers), last)
    return memory._replace(
        kernels=Kernels(centers, longer(widths)),
        rates=jnp.where(used, longer(rates), mean),
        evidence_weight=weight,
        slopes=slopes,
    )


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


def sums_of(
    kernels: Kernels,
    rates: jax.Array,
    slopes: jax.Array,
    inputs: jax.Array,
    values: jax.Array,
) -> Sums:
    """Return what the evidence of a tensor says about its local models.

    Args:
      kernels: M kernels.
      rates: [M].
      slopes: [M].
      inputs: [...], the kernel input each coordinate read its last rate from, finite.
      values: [...], the evidence :math:`a_i` about that rate, finite.
    """
    nearest, weighted, weights = weigh(kernels, rates, inputs, slopes)
    eta, size, has_evidence = weighted / weights, jnp.abs(values), values != 0
    ends = outermost(kernels)

    def of_model(_: None, model: Any) -> tuple[None, Sums]:
        kernel, rate, slope = model
        t, log = distance(kernel, ends, inputs), log_activation(kernel, ends, inputs)
        psi, tilt = jnp.exp(log), jnp.clip(t, -LINEAR, LINEAR)
        change = (rate * (1 + slope * tilt) - eta) * t * t
        change -= jnp.where(jnp.abs(t) < LINEAR, rate * slope * t, 0)
        width = values * (jnp.exp(log - nearest) / weights * change)
        own = has_evidence & (log == nearest)
        # Of the input itself: clamped ones are all near.
        away = jnp.abs(inputs - kernel.centers)
        away = away / jnp.where(kernel.widths > 0, kernel.widths, 1)
        far = own & (log < _UNANSWERED) & (away < _OUTLIER)
        away = jnp.minimum(away, REACH)
        sums = Sums(
            side=values * psi * jnp.sign(t),
            lean=size * psi * jnp.sign(t),
            slope=values * psi * tilt,
            spread=size * psi * jnp.abs(tilt),
            width=width,
            width_size=jnp.abs(width),
            owned=own,
            far_left=far & (t < 0),
            far_right=far & (t > 0),
            left=jnp.where(far & (t < 0), away, 0),
            right=jnp.where(far & (t > 0), away, 0),
        )
        return None, jax.tree.map(lambda x: jnp.sum(x, dtype=values.dtype), sums)

    return jax.lax.scan(of_model, None, (kernels, rates, slopes))[1]


class _LocalModels(NamedTuple):
    """What a memory holds of its local models, [M], or of a single local model, []."""

    rates: Any
    evidence_weight: Any
    centers: Any
    widths: Any
    slopes: Any
    disagreement: Any


def _relative(part: jax.Array, whole: jax.Array) -> jax.Array:
    """Return sums [..., M] over those of absolute values, in [-1, 1]; 0 for nothing."""
    total = jnp.sum(whole, axis=-1, keepdims=True)
    usable = (total > 0) & jnp.isfinite(total)
    return jnp.where(usable, part / jnp.where(usable, whole + _SHARED * total, 1), 0)


def _bounded(slopes: jax.Array, rates: jax.Array, bounds: Any) -> jax.Array:
    """Return slopes with which no local model is above or below the bounds."""
    low, high = bounds
    room = jnp.minimum(high / rates - 1, 1 - low / rates) / LINEAR
    most = jnp.clip(room, 0, LARGEST_SLOPE)
    return jnp.clip(slopes, -most, most)


def _widened(kernels: jax.Array, sums: Sums) -> jax.Array:
    """Return kernels a step on; those out of range come no further out of it."""
    centers, widths = kernels[:, 0], kernels[:, 1]
    used = widths > 0
    gaps = jnp.abs(centers[:, :, None] - centers[:, None, :])
    others = used[:, None, :] & ~jnp.eye(centers.shape[1], dtype=bool)[None]
    largest = jnp.finfo(gaps.dtype).max
    nearest = jnp.min(jnp.where(others, gaps, largest), axis=-1)
    new = widths * jnp.exp(_STEP * _relative(sums.width, sums.width_size))
    low = jnp.minimum(widths, _NARROWEST * nearest)
    high = jnp.maximum(widths, _WIDEST * nearest)
    return kernels.at[:, 1].set(jnp.where(used, jnp.clip(new, low, high), 0))


def _grown(memory: StackedMemory, evidence: Evidence) -> StackedMemory:
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
    mean = _relative(u, activity)
    covariance = _relative(sums.side, activity) - mean * _relative(sums.lean, activity)
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
