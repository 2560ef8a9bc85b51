"""How a memory maps kernel inputs to rates, and agreement back to evidence.

A family of local models is a record of functions. The families of this module are one
rate for all inputs, and Gaussian kernels that stay where they are;
:mod:`metalr_optax.growing` has the family whose local models move.
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from metalr_optax.evidence import Evidence, no_histories, sample
from metalr_optax.grid import LARGE, accumulate_large, make_grid, read_large
from metalr_optax.memory import Kernels, accumulate, outermost, read, root_mean_square
from metalr_optax.signals import Signal, is_coordinatewise, raw_product
from metalr_optax.stack import (
    ByHistory,
    ByRelativeDirection,
    StackedMemory,
    stack_memories,
)

# What only logs need is taken from at most so many coordinates of a tensor.
_LOGGED = 2**12


class LocalModels(NamedTuple):
    """A family of local models.

    Attributes:
      init: (memories, dtype, progress) -> :class:`StackedMemory`.
      scale: (stack, row, direction [...], history [...] or None) -> the direction times
        the rates that are read there, in the dtype of the rates.
      gather: (signal, (stack, orientation or None), row, gradient [...], last direction
        [...], history [...] or None) -> :class:`Evidence` of a tensor. It is the
        adjoint of reading: each local model gets the agreement at which it was read.
      histories: state of the base -> history of each tensor, None each where kernels
        see directions.
      depends_on_platform: whether ``scale`` and ``gather`` have a program for each.
    """

    init: Callable[..., StackedMemory]
    scale: Callable[..., jax.Array]
    gather: Callable[..., Evidence]
    histories: Callable[[Any], Iterable[Any]] = no_histories
    depends_on_platform: bool = False


def scalar(inputs: Any) -> LocalModels:
    """Return the family of a single rate, whatever the direction."""
    init = functools.partial(stack_memories, inputs)
    return LocalModels(init, _scale_all, _gather_all)


def _scale_all(stack: Any, row: Any, direction: jax.Array, _: Any) -> jax.Array:
    return at(stack.rates, row)[0] * direction.astype(stack.rates.dtype)


def _gather_all(
    signal: Signal, shared: Any, _: Any, gradient: Any, last: Any, history: Any
) -> Evidence:
    stack, turn = shared
    values = agreement(signal, gradient.astype(stack.rates.dtype), last, turn)
    sums = _sums(values, jax.lax.abs(values))
    u, activity = (total / max(values.size, 1) for total in sums)
    return Evidence(u[None], activity[None], u, activity, jnp.zeros_like(u))


def gaussian(kernels: Sequence[Kernels], inputs: Any) -> LocalModels:
    """Return the family of Gaussian kernels that stay where they are.

    Args:
      kernels: of all memories. If they are the same, large tensors are interpolated;
        if there are none, they may change.
      inputs: what kernels are given, such as ``ByDirection()``.
    """
    is_shared = bool(kernels) and all(kernel is kernels[0] for kernel in kernels)
    by_history = isinstance(inputs, ByHistory)
    grid = make_grid(kernels[0]) if is_shared and not by_history else None

    def kernels_at(stack: StackedMemory, row: Any) -> Kernels:
        # What all share is the same operand for all, and evaluated once.
        return Kernels(*(stack.kernels[0] if is_shared else at(stack.kernels, row)))

    def scale(stack: Any, row: Any, direction: jax.Array, history: Any) -> jax.Array:
        direction, rates = direction.astype(stack.rates.dtype), at(stack.rates, row)
        own, z = kernels_at(stack, row), kernel_inputs(inputs, direction, history)
        if grid is not None and z.size >= LARGE:
            return read_large(own, grid, rates, z) * direction
        slopes = None if stack.slopes is None else at(stack.slopes, row)
        return read(own, rates, z, slopes) * direction

    def gather(
        signal: Signal, shared: Any, row: Any, gradient: Any, last: Any, history: Any
    ) -> Evidence:
        stack, turn = shared
        own, dtype = kernels_at(stack, row), stack.rates.dtype
        by_signal = functools.partial(compare, signal, dtype)
        unit = input_unit(inputs, last.astype(dtype))
        if grid is not None and last.size >= LARGE:
            pair, alone = (gradient, last), is_coordinatewise(signal)
            sums = accumulate_large(own, grid, by_signal, alone, pair, [unit, turn])
        else:
            sums = accumulate(own, *by_signal(gradient, last, unit, turn, history))
        u, activity = (total / max(last.size, 1) for total in sums)
        logs = _logged(own, by_signal, gradient, last, unit, turn, history)
        # Never true, which XLA does not know: so it has read the last direction before
        # it has u, and need not copy it before it is overwritten.
        u = jnp.where(logs[1] + logs[2] < 0, 0, u)
        return Evidence(u, activity, *logs)

    init = functools.partial(stack_memories, inputs)
    return LocalModels(init, scale, gather, depends_on_platform=grid is not None)


def agreement(
    signal: Signal, gradient: jax.Array, last_direction: jax.Array, turn: Any = None
) -> jax.Array:
    """Apply a signal where there is something to compare, and return 0 elsewhere.

    A coordinate whose gradient or previous direction is zero or not finite, or for
    which the signal is not finite, says nothing about its rate. At the first step
    all previous directions are zero, so a memory never moves there.

    Args:
      signal: of the gradient and the last direction.
      gradient: [...].
      last_direction: [...], of any dtype.
      turn: [], 1 or -1, what makes the last direction point along its gradient, 0 as
        long as that is unknown; None for 1.
    """
    last_direction = last_direction.astype(gradient.dtype)
    if turn is not None:
        last_direction = last_direction * turn.astype(gradient.dtype)
    if signal is raw_product:
        # What is zero or not finite shows in the product: less to compile and to do.
        values = gradient * last_direction
        return jnp.where(jnp.isfinite(values), values, 0)
    usable = jnp.isfinite(gradient) & jnp.isfinite(last_direction)
    # Zeros first, so that a signal that looks at the whole tensor stays finite.
    gradient = jnp.where(usable, gradient, 0)
    last_direction = jnp.where(usable, last_direction, 0)
    values = signal(gradient, last_direction)
    has_evidence = (gradient != 0) & (last_direction != 0) & jnp.isfinite(values)
    return jnp.where(has_evidence, values, 0).astype(gradient.dtype)


@jax.custom_jvp
def _sums(values: jax.Array, sizes: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return both sums in a single loop, which compiles in a third of the time."""
    zero = np.zeros((), values.dtype)

    def add(sums: Any, others: Any) -> Any:
        return tuple(map(jax.lax.add, sums, others))

    axes = tuple(range(values.ndim))
    return tuple(jax.lax.reduce((values, sizes), (zero, zero), add, axes))


@_sums.defjvp
def _(primals: Any, tangents: Any) -> Any:
    # A loop over several arrays has no derivative of its own.
    return _sums(*primals), tuple(map(jnp.sum, tangents))


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


def compare(
    signal: Signal,
    dtype: Any,
    gradient: jax.Array,
    last_direction: jax.Array,
    unit: jax.Array,
    turn: Any,
    history: Any = None,
) -> tuple[jax.Array, list[jax.Array]]:
    """Return kernel inputs, and agreement with and without its sign, [...] each."""
    gradient, last = gradient.astype(dtype), last_direction.astype(dtype)
    values = agreement(signal, gradient, last, turn)
    if history is None:
        z = jnp.where(jnp.isfinite(last), last, 0) / unit
    else:
        z = history.astype(dtype)
    return z, [values, jax.lax.abs(values)]


def _logged(
    kernels: Kernels, by_signal: Callable[..., Any], *tensors: Any
) -> list[jax.Array]:
    """Return agreement, the same without signs, and what was out of range, [] each.

    Args:
      kernels: M kernels.
      by_signal: :func:`compare` with a signal.
      *tensors: its other arguments; what is no number is sampled.
    """
    few: list[Any] = [
        x if x is None or x.ndim == 0 else sample(x, _LOGGED) for x in tensors
    ]
    z, values = by_signal(*few)
    low, high = outermost(kernels)
    # What is not finite is out of range, too.
    inside = (z > low.centers) & (z < high.centers)
    inside &= jnp.isfinite(few[1]) if few[-1] is None else True
    outside = jnp.asarray(~inside, z.dtype)
    return [jnp.sum(x) / max(x.size, 1) for x in (*values, outside)]
