"""How a memory maps kernel inputs to rates, and agreement back to evidence.

A family of local models is a record of functions. The families of this module are one
rate for all inputs, and Gaussian kernels that stay where they are;
:mod:`metalr_optax.growing` has the family whose local models move.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from metalr_optax.grid import LARGE, accumulate_large, make_grid, read_large
from metalr_optax.memory import (
    Kernels,
    Memory,
    accumulate,
    outermost,
    read,
    root_mean_square,
)
from metalr_optax.sample import sample
from metalr_optax.signals import Signal, agreement, is_coordinatewise
from metalr_optax.stack import (
    ByHistory,
    ByRelativeDirection,
    StackedMemory,
    stack_memories,
)

# What only logs need is taken from at most so many coordinates of a tensor.
_LOGGED = 2**12


class Evidence(NamedTuple):
    """What a gradient says about the last step: means over coordinates.

    Of one tensor the arrays have no axis of L memories; ``multiplier`` is None there.

    Attributes:
      u: [L, M], of agreement times activation.
      activity: [L, M], the same without signs.
      agreeing: [L], of agreement.
      counting: [L], the same without signs.
      outside: [L], whether the last direction was out of range.
      sums: what else a family needs, [L, M] each, or None.
      multiplier: [], what rates are multiplied with further down.
    """

    u: Any
    activity: Any
    agreeing: Any
    counting: Any
    outside: Any
    sums: Any = None
    multiplier: Any = None


class LocalModels(NamedTuple):
    """A family of local models.

    Attributes:
      init: (memories, dtype, progress) -> :class:`StackedMemory`.
      row: (stack, index of a row) -> what ``read`` and ``gather`` need of it.
      read: (row, direction [...], history [...] or None) -> rates [...].
      gather: (row, signal, gradient [...], last direction [...], orientation [] or
        None, history [...] or None) -> :class:`Evidence` of a tensor. It is the adjoint
        of ``read``: each local model gets the agreement at which it was read.
      histories: state of the base -> history of each tensor, where kernels see that.
      depends_on_platform: whether ``read`` and ``gather`` have a program for each.
    """

    init: Callable[..., StackedMemory]
    row: Callable[[StackedMemory, Any], Any]
    read: Callable[..., jax.Array]
    gather: Callable[..., Evidence]
    histories: Callable[[Any], list[jax.Array] | None] = lambda base_state: None
    depends_on_platform: bool = False


def scalar(inputs: Any) -> LocalModels:
    """Return the family of a single rate, whatever the direction."""

    def init(memories: Sequence[Memory], dtype: Any, progress: bool) -> StackedMemory:
        return stack_memories(memories, dtype, inputs, progress)

    def gather(
        row: jax.Array, signal: Signal, gradient: Any, last: Any, turn: Any, _: Any
    ) -> Evidence:
        values = agreement(signal, gradient.astype(row.dtype), last, turn)
        size = max(values.size, 1)
        u, activity = jnp.sum(values) / size, jnp.sum(jax.lax.abs(values)) / size
        return Evidence(u[None], activity[None], u, activity, jnp.zeros_like(u))

    def row(memory: StackedMemory, index: Any) -> jax.Array:
        return at(memory.rates, index)[0]

    return LocalModels(init, row, lambda rate, direction, history: rate, gather)


def gaussian(kernels: Sequence[Kernels], inputs: Any) -> LocalModels:
    """Return the family of Gaussian kernels that stay where they are.

    Args:
      kernels: of all memories. If they are the same, large tensors are interpolated.
      inputs: what kernels are given, such as ``ByDirection()``.
    """
    is_shared = all(kernel is kernels[0] for kernel in kernels)
    by_history = isinstance(inputs, ByHistory)
    grid = make_grid(kernels[0]) if is_shared and not by_history else None

    def init(memories: Sequence[Memory], dtype: Any, progress: bool) -> StackedMemory:
        return stack_memories(memories, dtype, inputs, progress)

    def row(memory: StackedMemory, index: Any) -> tuple[Kernels, jax.Array]:
        # What all share is the same operand for all, and evaluated once.
        pair = memory.kernels[0] if is_shared else at(memory.kernels, index)
        return Kernels(*pair), at(memory.rates, index)

    def read_rates(row: Any, direction: jax.Array, history: Any) -> jax.Array:
        own, rates = row
        z = kernel_inputs(inputs, direction, history)
        if grid is None or z.size < LARGE:
            return read(own, rates, z)
        return read_large(own, grid, rates, z)

    def gather(
        row: Any, signal: Signal, gradient: Any, last: Any, turn: Any, history: Any
    ) -> Evidence:
        own, _ = row
        compare = compare_by(signal, own.centers.dtype)
        unit = input_unit(inputs, last.astype(own.centers.dtype))
        if grid is None or last.size < LARGE:
            z, values = compare(gradient, last, unit, turn, history)
            sums = accumulate(own, z, values)
        else:
            pair, alone = (gradient, last), is_coordinatewise(signal)
            sums = accumulate_large(own, grid, compare, alone, pair, [unit, turn])
        u, activity = (total / max(last.size, 1) for total in sums)
        return Evidence(
            u, activity, *logged(own, compare, gradient, last, unit, turn, history)
        )

    models = LocalModels(init, row, read_rates, gather)
    return models._replace(depends_on_platform=grid is not None)


def at(array: jax.Array, index: Any) -> jax.Array:
    """Return a row of an array [L, ...].

    The index is an operand: as a number it would be part of the program, and XLA would
    compile that anew for every tensor. uint32 avoids the select for negative indices.
    """
    return jax.lax.dynamic_index_in_dim(array, index.astype(jnp.uint32), keepdims=False)


def kernel_inputs(kind: Any, direction: jax.Array, history: Any) -> jax.Array:
    """Return what kernels of a kind are given [...]."""
    if history is not None:
        return history.astype(direction.dtype)
    return direction / input_unit(kind, direction)


def input_unit(kind: Any, direction: jax.Array) -> jax.Array:
    """Return [], what a direction is divided by to be a kernel input."""
    if isinstance(kind, ByRelativeDirection):
        return root_mean_square(direction)
    return jnp.ones([], direction.dtype)


def compare_by(signal: Signal, dtype: Any) -> Callable[..., Any]:
    """Return what compares a gradient with a last direction.

    It gives kernel inputs, and the agreement of coordinates with and without its sign.
    """

    def compare(
        gradient: Any, last: Any, unit: Any, turn: Any, history: Any = None
    ) -> Any:
        gradient, last = gradient.astype(dtype), last.astype(dtype)
        values = agreement(signal, gradient, last, turn)
        z = jnp.where(jnp.isfinite(last), last, 0) / unit
        z = z if history is None else history.astype(dtype)
        return z, [values, jax.lax.abs(values)]

    return compare


def logged(
    kernels: Kernels, compare: Callable[..., Any], *tensors: Any
) -> list[jax.Array]:
    """Return agreement, the same without signs, and what was out of range, [] each.

    Args:
      kernels: M kernels.
      compare: as :func:`compare_by` returns it.
      *tensors: its arguments; what is no number is sampled.
    """
    few = [x if x is None or x.ndim == 0 else sample(x, _LOGGED) for x in tensors]
    z, values = compare(*few)
    low, high = outermost(kernels)
    # What is not finite is out of range, too.
    inside = (z > low.centers) & (z < high.centers)
    inside &= jnp.isfinite(few[1]) if few[-1] is None else True
    outside = jnp.asarray(~inside, z.dtype)
    return [jnp.sum(x) / max(x.size, 1) for x in (*values, outside)]
