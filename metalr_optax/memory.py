"""What a memory of learning rates holds, and how a rate is read from it.

Pure functions of arrays; :mod:`metalr_optax.local_models` builds on them.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from metalr_optax.checks import describe

# Inputs further than this many widths outside the outermost kernels are moved to that
# distance. There an activation is 1e-14 and, with widths of half a spacing, far above
# that of its neighbours: rates inside do not change, nothing divides 0 by 0, and a
# gradient from far outside hardly moves the memory.
REACH = 8.0

# A local model is linear up to this many widths from its centre, and constant beyond.
LINEAR = 2.0

# An unused local model (width 0) counts as this many widths away from every input.
_FAR = 1e9

# The step of each rate in a learned schedule, counted from 1. The last one, at half a
# million steps, holds for all later steps.
MARKS = np.exp2(np.arange(20))

Array = jax.Array | np.ndarray


class Kernels(NamedTuple):
    r"""Centres and widths of M Gaussian kernels, smallest centre first.

    .. math:: \psi_m(z) = \exp(-(z - c_m)^2 / (2 s_m^2))

    Attributes:
      centers: [M], :math:`c_m`, strictly increasing, in units of the kernel input.
      widths: [M], :math:`s_m`, positive, in units of the kernel input; in a memory with
        ``capacity`` for more, 0 for unused local models, which come last.

    A single kernel is the scalar memory that ``linspace_kernels(bound, 1)`` makes: one
    rate, whatever the input, with evidence from all coordinates alike.
    :func:`paper_sgd` and :func:`paper_adam` clip gradients at a thousandth of its
    width.
    """

    centers: Array
    widths: Array


class Memory(NamedTuple):
    r"""A memory of learning rates: M local models, each a kernel and a rate.

    Attributes:
      kernels: where the local models are, [M] centres and [M] widths.
      rates: [M], the learning rate :math:`v_m` of each local model.
      evidence_weight: [M], in steps, the evidence each local model has had: the sum of
        its shares :math:`|u_m| / \sum_k |u_k|`; None for zeros.
      rms_normalized: [], bool, whether kernel inputs are divided by the root mean
        square of their tensor; None if unknown. For a single rate it does not matter.
      schedule: [20], the learned schedule: log of the mean rate at step 1, 2, 4, ... of
        the last run over the mean of ``rates``, its rate when the memory was taken. A
        run with ``progress`` starts with the first and follows the others. None for
        zeros, a constant rate: ``memory._replace(schedule=None)`` leaves it out.
      slopes: [M], :math:`b_m`, the fraction of its rate by which a local model rises in
        a width; None for zeros. ``memory._replace(slopes=None)`` leaves them out.
      history: [], True where kernels see the history of a coordinate; None where they
        see its direction.
      fan_in: [], inputs of each unit of the layer, by which ``adapt_memory`` scales the
        rates of Adam: the size of the weights over that of the bias. 0 where a memory
        is not of such a pair, None if unknown; ``memory._replace(fan_in=None)`` leaves
        it out.

    Examples:
      >>> import numpy as np
      >>> from metalr_optax import Memory, get_memory, linspace_kernels, scale_by_memory
      >>> memory = Memory(linspace_kernels(1.0, num=3), np.array([0.1, 0.3, 0.1]))
      >>> state = scale_by_memory(memory).init(np.zeros(2))
      >>> [round(float(rate), 3) for rate in get_memory(state)["params"].rates]
      [0.1, 0.3, 0.1]
    """

    kernels: Kernels
    rates: Array
    evidence_weight: Any = None
    rms_normalized: Any = None
    schedule: Any = None
    slopes: Any = None
    history: Any = None
    fan_in: Any = None

    def __repr__(self) -> str:
        """Return the rates, and the learned schedule as rates by step."""
        try:
            return f"Memory({_rates_as_text(self)})"
        except (TypeError, ValueError):  # traced, or of a vmap
            return f"Memory(rates={describe(self.rates)})"


def rates_by_step(memory: Memory) -> np.ndarray:
    """Return the learned schedule as rates: the mean rate [20] at step 1, 2, 4, ..."""
    rates, weight = np.asarray(memory.rates), np.asarray(memory.evidence_weight)
    used = np.asarray(memory.kernels.widths) > 0
    weight = weight[used] if weight.any() else np.ones(used.sum())
    logs = np.zeros(MARKS.shape) if memory.schedule is None else memory.schedule
    mean = np.average(rates[used].astype(np.float64), weights=weight)
    return mean * np.exp(np.asarray(logs))


def _rates_as_text(memory: Memory) -> str:
    rates = np.asarray(memory.rates)[np.asarray(memory.kernels.widths) > 0]
    low, high, curve = min(rates), max(rates), rates_by_step(memory)
    text = f"rates={low:.3g}" + (f" to {high:.3g}" if high > low else "")
    (changes,) = np.nonzero(np.diff(curve))
    if not len(changes):
        return text
    steps = zip(MARKS.astype(int), curve[: changes[-1] + 2], strict=False)
    return f"{text}, schedule={{{', '.join(f'{t}: {rate:.3g}' for t, rate in steps)}}}"


def read(
    kernels: Kernels, rates: Array, inputs: jax.Array, slopes: Array | None = None
) -> jax.Array:
    r"""Return the learning rate that a memory has for each kernel input.

    .. math:: \eta(z) = \sum_m \psi_m(z) v_m / \sum_m \psi_m(z)

    With slopes, :math:`v_m (1 + b_m \mathrm{clip}((z - c_m) / s_m, -2, 2))` replaces
    :math:`v_m`.

    Args:
      kernels: M kernels, in any order.
      rates: [M].
      inputs: [...], a kernel input for each coordinate. Outside the kernels the rate of
        the outermost local model holds.
      slopes: [M], or None for zeros.

    Returns:
      [...], learning rates between the smallest and the largest of local models, for
      every input but NaN, which reads NaN.
    """
    _, weighted, weights = weigh(kernels, rates, inputs, slopes)
    return weighted / weights


@functools.partial(jax.jit, inline=True)
def weigh(
    kernels: Kernels, rates: Array, inputs: jax.Array, slopes: Array | None = None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return sums over local models at each kernel input, without under- or overflow.

    Returns:
      [...] each: the log of the largest activation, and the sums of rates times
      activation and of activations, both over that largest activation.
    """
    ends = outermost(kernels)
    first = jax.tree.map(lambda array: jnp.asarray(array)[0], kernels)

    # A scan over local models: as one array operation, XLA stores [D, M] numbers as
    # soon as a whole step is compiled.
    def nearer(nearest: jax.Array, kernel: Kernels) -> tuple[jax.Array, None]:
        return jnp.maximum(nearest, log_activation(kernel, ends, inputs)), None

    start = log_activation(first, ends, inputs)
    nearest, _ = jax.lax.scan(nearer, start, kernels)

    def add(sums: tuple[jax.Array, jax.Array], model: Any) -> Any:
        kernel, rate, slope = model
        weight = jnp.exp(log_activation(kernel, ends, inputs) - nearest)
        if slope is not None:
            tilt = jnp.clip(distance(kernel, ends, inputs), -LINEAR, LINEAR)
            rate = rate * (1 + slope * tilt)
        return (sums[0] + weight * rate, sums[1] + weight), None

    zero = jnp.zeros_like(nearest)
    (weighted, weights), _ = jax.lax.scan(add, (zero, zero), (kernels, rates, slopes))
    return nearest, weighted, weights


@functools.partial(jax.jit, inline=True)
def accumulate(
    kernels: Kernels, inputs: jax.Array, values: Sequence[jax.Array]
) -> list[jax.Array]:
    r"""Sum the values of all coordinates for each local model, weighted by activation.

    .. math:: \sum_i a_i \psi_m(z_i)

    Args:
      kernels: M kernels.
      inputs: [...], the kernel input each coordinate read its last rate from, finite.
      values: V arrays [...] with :math:`a_i` per coordinate, finite.

    Returns:
      V arrays [M].
    """
    ends = outermost(kernels)

    def of_model(_: None, kernel: Kernels) -> tuple[None, list[jax.Array]]:
        activation = jnp.exp(log_activation(kernel, ends, inputs))
        return None, [jnp.sum(activation * value) for value in values]

    return jax.lax.scan(of_model, None, kernels)[1]


def mean_rate(rates: Array, evidence_weight: Array) -> jax.Array:
    """Return the mean of rates [..., M], weighted by evidence if there is any."""
    if rates.shape[-1] == 1:
        return jnp.asarray(rates[..., 0])
    most = jnp.max(evidence_weight, axis=-1, keepdims=True)
    weights = jnp.where(most > 0, evidence_weight / jnp.where(most > 0, most, 1), 1)
    return jnp.sum(rates * weights, axis=-1) / jnp.sum(weights, axis=-1)


def root_mean_square(tensor: jax.Array) -> jax.Array:
    """Return the root mean square of a tensor [...], or 1 where that is 0.

    Non-finite numbers count as 0; no square under- or overflows.
    """
    tensor = jnp.where(jnp.isfinite(tensor), tensor, 0)
    largest = jnp.max(jnp.abs(tensor), initial=0.0)
    # The reciprocal of a smaller number is not finite.
    usable = largest >= jnp.finfo(tensor.dtype).tiny
    largest = jnp.where(usable, largest, 1)
    total = jnp.sum(jnp.square(tensor / largest))
    # Chosen before the root, which has no derivative at 0.
    return largest * jnp.sqrt(jnp.where(usable, total / max(tensor.size, 1), 1))


def outermost(kernels: Kernels) -> tuple[Kernels, Kernels]:
    """Return the lowest and the highest kernel in use, in whatever order they are."""
    centers, widths = jnp.asarray(kernels.centers), jnp.asarray(kernels.widths)
    used = widths > 0

    def at(index: jax.Array) -> Kernels:
        return Kernels(centers[index], widths[index])

    largest = jnp.finfo(centers.dtype).max
    low = jnp.argmin(jnp.where(used, centers, largest))
    return at(low), at(jnp.argmax(jnp.where(used, centers, -largest)))


def distance(
    kernel: Kernels, ends: tuple[Kernels, Kernels], inputs: jax.Array
) -> jax.Array:
    """Return how many widths [...] clamped inputs are to the right of a centre."""
    low, high = ends
    low, high = low.centers - REACH * low.widths, high.centers + REACH * high.widths
    used = kernel.widths > 0
    away = jnp.clip(inputs, low, high) - kernel.centers
    return jnp.where(used, away / jnp.where(used, kernel.widths, 1), _FAR)


def log_activation(
    kernel: Kernels, ends: tuple[Kernels, Kernels], inputs: jax.Array
) -> jax.Array:
    """Return the log of a kernel's activation [...]."""
    return -0.5 * jnp.square(distance(kernel, ends, inputs))
