"""What a state holds: all memories of an optimizer, stacked, a row for each."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from metalr_optax.memory import MARKS, Kernels, Memory, mean_rate


class ByDirection(NamedTuple):
    """An empty field of a state whose type is the kernel input: directions."""


class ByRelativeDirection(NamedTuple):
    """An empty field: directions over the root mean square of their tensor."""


class ByHistory(NamedTuple):
    """An empty field: how the gradients of a coordinate agreed with its directions."""


class StackedMemory(NamedTuple):
    """L memories of M local models. A batch axis of ``vmap`` may come first.

    Attributes:
      rates: [L, M].
      evidence_weight: [L, M], in steps.
      kernels: [L, 2, M], centres and widths; width 0 for unused local models.
      inputs: an empty tuple whose type is the kind of kernel input.
      schedule: [L, 20], log of the mean rate at step 1, 2, 4, ... over that in use;
        None without ``progress``.
      slopes: [L, M], None where local models are constant.
      disagreement: [L, M], None where local models are not added.
    """

    rates: Any
    evidence_weight: Any
    kernels: Any
    inputs: Any
    schedule: Any = None
    slopes: Any = None
    disagreement: Any = None


class Info(NamedTuple):
    """What logs need of L memories; a state packs it into one array [7, L].

    Attributes:
      agreement_fraction: [L], of the evidence of the last step that had any.
      evidence_sign: [L], running mean of the sign of the evidence.
      at_bound_fraction: [L], of the local models.
      out_of_range_fraction: [L], of the coordinates that the evidence is about.
      start: [L], mean rate at the start.
      highest: [L], highest mean rate so far.
      fan_in: [L], inputs of each unit of a layer, 0 where unknown; here it costs a step
        no array more.
    """

    agreement_fraction: Any
    evidence_sign: Any
    at_bound_fraction: Any
    out_of_range_fraction: Any
    start: Any
    highest: Any
    fan_in: Any


def stack_memories(
    inputs: Any,
    memories: Sequence[Memory],
    dtype: Any,
    progress: bool,
    *,
    slopes: bool = False,
    disagreement: bool = False,
) -> StackedMemory:
    """Return the stack of memories [M], or of vmapped ones [..., M]."""

    def column(arrays: Iterable[Any], like: Any) -> jax.Array:
        filled = [like if array is None else array for array in arrays]
        return jnp.stack([jnp.asarray(array, dtype) for array in filled], axis=-2)

    zeros = jnp.zeros(np.shape(memories[0].rates), dtype)
    flat = jnp.zeros((*zeros.shape[:-1], len(MARKS)), dtype)
    rates = column((memory.rates for memory in memories), zeros)
    kernels = zip(*(memory.kernels for memory in memories), strict=True)
    schedules, tilts = zip(*((m.schedule, m.slopes) for m in memories), strict=True)
    return StackedMemory(
        rates=rates,
        evidence_weight=column((memory.evidence_weight for memory in memories), zeros),
        kernels=jnp.stack([column(arrays, zeros) for arrays in kernels], axis=-2),
        inputs=inputs,
        schedule=column(schedules, flat) if progress else None,
        slopes=column(tilts, zeros) if slopes else None,
        disagreement=jnp.zeros_like(rates) if disagreement else None,
    )


def first_info(memory: StackedMemory, fan_in: Any) -> jax.Array:
    """Return what logs say before the first step."""
    start = mean_rate(memory.rates, memory.evidence_weight)
    zero = jnp.zeros_like(start)
    fan_in = jnp.asarray(fan_in, zero.dtype)
    return jnp.stack([zero + 0.5, zero, zero, zero, start, start, fan_in], axis=-2)


def unpack_info(array: jax.Array) -> Info:
    """Return what a state packs for logs, by name."""
    return Info(*jnp.unstack(array, axis=-2))


def memory_at(stack: StackedMemory, info: jax.Array, row: int) -> Memory:
    """Return a copy of the memory in a row; unused local models come last."""
    array: Any = stack.kernels[..., row, :, :]
    rates, weight = stack.rates[..., row, :], stack.evidence_weight[..., row, :]
    slopes = None if stack.slopes is None else stack.slopes[..., row, :]
    centers, widths = array[..., 0, :], array[..., 1, :]
    if stack.disagreement is not None:
        last = jnp.finfo(centers.dtype).max
        order = jnp.argsort(jnp.where(widths > 0, centers, last), axis=-1)
        centers, widths, rates, weight, slopes = jax.tree.map(
            lambda column: jnp.take_along_axis(column, order, axis=-1),
            (centers, widths, rates, weight, slopes),
        )
    batch = rates.shape[:-1]
    if stack.schedule is None:
        schedule = jnp.zeros((*batch, len(MARKS)), rates.dtype)
    else:
        schedule = stack.schedule[..., row, :]
    is_history = isinstance(stack.inputs, ByHistory)
    copies = jax.tree.map(jnp.array, (centers, widths, rates, weight, schedule, slopes))
    return Memory(
        Kernels(*copies[:2]),
        *copies[2:4],
        rms_normalized=jnp.full(batch, isinstance(stack.inputs, ByRelativeDirection)),
        schedule=copies[4],
        slopes=copies[5],
        history=jnp.ones(batch, bool) if is_history else None,
        fan_in=info[..., Info._fields.index("fan_in"), row],
    )
