r"""The family of local models that move: slopes, widths and new local models.

Besides the rates :math:`v_m`, this family learns from the evidence :math:`a_i` about
the rate :math:`\eta_i` that a coordinate read at :math:`z_i`. With
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

where :math:`r` divides a sum by that of its absolute values, so that only signs and
agreement count. A local model is split where evidence on the two sides of its centre
has had opposite signs for about fifty steps, and a new local model is added where no
activation of inputs is above 0.1.

Examples:
  The right rate above 0.5 is ten times that below. Every step has new directions, and
  the next gradient keeps their signs where rates were too small. The first gradient
  shows that directions point along gradients:

  >>> import functools, jax, jax.numpy as jnp
  >>> from metalr_optax import agreement_steps, get_memory, linspace_kernels
  >>> from metalr_optax import scale_by_memory
  >>> from metalr_optax.memory import read
  >>> wanted = lambda z: jnp.where(z > 0.5, 0.5, 0.05)
  >>> options = ("capacity", "learned_widths", "linear")
  >>> @functools.partial(jax.jit, static_argnames=options)
  ... def error(**options):
  ...   optimizer = scale_by_memory(
  ...       0.1, kernels=linspace_kernels(2.0, 4), memory_optimizer=agreement_steps(),
  ...       **options)
  ...   def step(carry, key):
  ...     z, rates, state = carry
  ...     new = jax.random.uniform(key, (32,), minval=-2.0, maxval=2.0)
  ...     gradient = jnp.where(rates == 0, new, (1 - rates / wanted(z)) * z)
  ...     updates, state = optimizer.update(new, state, grad=gradient)
  ...     return (new, updates / new, state), None
  ...   z = jnp.linspace(-2.0, 2.0, 32)
  ...   keys = jax.random.split(jax.random.key(0), 600)
  ...   start = z, jnp.zeros(32), optimizer.init(z)
  ...   (_, _, state), _ = jax.lax.scan(step, start, keys)
  ...   memory = get_memory(state)["params"]
  ...   rates = read(memory.kernels, memory.rates, z, memory.slopes)
  ...   return jnp.mean(jnp.abs(jnp.log(rates / wanted(z))))
  >>> fixed = error()
  >>> bool(error(capacity=8) < 0.5 * fixed)
  True
  >>> bool(error(learned_widths=True) < 0.8 * fixed)
  True
  >>> bool(error(linear=True) < 0.8 * fixed)
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

from metalr_optax.evidence import Evidence
from metalr_optax.local_models import LocalModels, at, compare, gaussian, input_unit
from metalr_optax.memory import (
    LINEAR,
    REACH,
    Kernels,
    Memory,
    distance,
    log_activation,
    outermost,
    weigh,
)
from metalr_optax.rules import Rule
from metalr_optax.signals import Signal
from metalr_optax.splitting import Sums, grown, relative
from metalr_optax.stack import StackedMemory, stack_memories

# Slopes and logs of widths move by at most this much in a step.
_STEP = 0.02
# With this slope a local model is positive wherever it is linear.
LARGEST_SLOPE = 0.45
# Bounds of learned widths, in distances to the nearest neighbour.
_NARROWEST, _WIDEST = 0.25, 1.0
# An input at which the log of no activation is as large as this is uncovered.
_UNCOVERED = math.log(0.1)
# An input further than this many widths from all local models is an outlier.
_OUTLIER = 100.0


class Learned(NamedTuple):
    """What is learned besides rates.

    Attributes:
      capacity: largest number of local models; None for the number at the start.
      widths: whether widths are learned.
      slopes: whether slopes are learned.
    """

    capacity: int | None
    widths: bool
    slopes: bool


def growing(learned: Learned, inputs: Any) -> LocalModels:
    """Return the family of local models that :func:`grow` changes.

    Every local model is evaluated for every coordinate.
    """
    fixed = gaussian([], inputs)

    def init(memories: Sequence[Memory], dtype: Any, progress: bool) -> StackedMemory:
        capacity = learned.capacity
        if capacity is not None:
            memories = [padded(memory, capacity) for memory in memories]
        return stack_memories(
            inputs,
            memories,
            dtype,
            progress,
            slopes=learned.slopes,
            disagreement=capacity is not None,
        )

    def gather(signal: Signal, shared: Any, row: Any, *tensors: Any) -> Evidence:
        evidence = fixed.gather(signal, shared, row, *tensors)
        (stack, orientation), (gradient, last, history) = shared, tensors
        kernels, rates = Kernels(*at(stack.kernels, row)), at(stack.rates, row)
        zeros = jnp.zeros_like(stack.rates)
        slopes = at(zeros if stack.slopes is None else stack.slopes, row)
        dtype = rates.dtype
        unit = input_unit(inputs, last.astype(dtype))
        arrays = gradient, last, unit, orientation, history
        z, (values, _) = compare(signal, dtype, *arrays)
        sums = sums_of((kernels, rates, slopes), z, values)
        sums = jax.tree.map(lambda total: total / max(last.size, 1), sums)
        return evidence._replace(sums=sums)

    return LocalModels(init, fixed.scale, gather)


def grow(rule: Rule, learned: Learned) -> Rule:
    """Return a rule that also moves slopes and widths, and adds local models."""

    def update(evidence: Evidence, state: Any, memory: StackedMemory) -> Any:
        memory, state = rule.update(evidence, state, memory)
        sums = evidence.sums
        if learned.slopes:
            slopes = memory.slopes + _STEP * relative(*sums.slope)
            bounds = rule.bounds(state, slopes.dtype)
            memory = memory._replace(slopes=_bounded(slopes, memory.rates, bounds))
        if learned.widths:
            memory = memory._replace(kernels=_widened(memory.kernels, sums))
        if learned.capacity is not None:
            memory = grown(memory, evidence)
        return memory, state

    return rule._replace(update=update)


def padded(memory: Memory, num: int) -> Memory:
    """Return a memory of at least num local models, with unused ones after its own."""
    (centers, widths), rates = memory.kernels, jnp.asarray(memory.rates)
    if rates.shape[-1] >= num:
        return memory
    in_use = jnp.asarray(widths) > 0
    pads = [(0, 0)] * (rates.ndim - 1) + [(0, num - rates.shape[-1])]

    def longer(array: Any, fill: Any) -> Any:
        if array is None:
            return None
        return jnp.where(jnp.pad(in_use, pads), jnp.pad(jnp.asarray(array), pads), fill)

    mean = jnp.mean(rates, axis=-1, where=in_use, keepdims=True)
    lowest = jnp.finfo(rates.dtype).min
    last = jnp.max(centers, axis=-1, where=in_use, initial=lowest, keepdims=True)
    return memory._replace(
        kernels=Kernels(longer(centers, last), longer(widths, 0)),
        rates=longer(rates, mean),
        evidence_weight=longer(memory.evidence_weight, 0),
        slopes=longer(memory.slopes, 0),
    )


def sums_of(models: Any, inputs: jax.Array, values: jax.Array) -> Sums:
    """Return sums of the evidence of a tensor about its local models.

    Args:
      models: M kernels, rates [M] and slopes [M].
      inputs: [...], the kernel input each coordinate read its last rate from, finite.
      values: [...], the evidence :math:`a_i` about that rate, finite.
    """
    kernels, rates, slopes = models
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
        # The distance of the input itself, because clamped inputs are all near.
        away = jnp.abs(inputs - kernel.centers)
        away = away / jnp.where(kernel.widths > 0, kernel.widths, 1)
        far = own & (log < _UNCOVERED) & (away < _OUTLIER)
        far = far & (t < 0), far & (t > 0)
        away = jnp.minimum(away, REACH)
        signed, unsigned = values * psi, size * psi
        sums = Sums(
            side=(signed * jnp.sign(t), unsigned * jnp.sign(t)),
            slope=(signed * tilt, unsigned * jnp.abs(tilt)),
            width=(width, jnp.abs(width)),
            owned=own,
            far=far,
            away=(jnp.where(far[0], away, 0), jnp.where(far[1], away, 0)),
        )
        return None, jax.tree.map(lambda x: jnp.sum(x, dtype=values.dtype), sums)

    return jax.lax.scan(of_model, None, models)[1]


def _bounded(slopes: jax.Array, rates: jax.Array, bounds: Any) -> jax.Array:
    """Return slopes clipped so that no local model exceeds the bounds."""
    low, high = bounds
    room = jnp.minimum(high / rates - 1, 1 - low / rates) / LINEAR
    most = jnp.clip(room, 0, LARGEST_SLOPE)
    return jnp.clip(slopes, -most, most)


def _widened(kernels: jax.Array, sums: Sums) -> jax.Array:
    """Return kernels after a step; widths out of bounds move no further out."""
    centers, widths = kernels[:, 0], kernels[:, 1]
    used = widths > 0
    gaps = jnp.abs(centers[:, :, None] - centers[:, None, :])
    others = used[:, None, :] & ~jnp.eye(centers.shape[1], dtype=bool)[None]
    largest = jnp.finfo(gaps.dtype).max
    nearest = jnp.min(jnp.where(others, gaps, largest), axis=-1)
    new = widths * jnp.exp(_STEP * relative(*sums.width))
    low = jnp.minimum(widths, _NARROWEST * nearest)
    high = jnp.maximum(widths, _WIDEST * nearest)
    return kernels.at[:, 1].set(jnp.where(used, jnp.clip(new, low, high), 0))
