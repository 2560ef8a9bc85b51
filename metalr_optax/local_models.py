"""How a memory maps kernel inputs to rates, and agreement back to evidence.

A family of local models is a record of functions. The families of this module are a
single rate for all inputs, and fixed Gaussian kernels; :mod:`metalr_optax.growing` has
the family whose local models move.
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

# Quantities for logs are computed from at most this many coordinates of a tensor.
_LOGGED = 2**12


class LocalModels(NamedTuple):
    """A family of local models.

    Attributes:
      init: (memories, dtype, progress) -> :class:`StackedMemory`.
      scale: (stack, row, direction [...], history [...] or None) -> the direction times
        the rates that are read there, in the dtype of the rates.
      gather: (signal, (stack, orientation or None), row, gradient [...], last direction
        [...], history [...] or None) -> :class:`Evidence` of a tensor. It is the
        adjoint of reading: each local model gets the agreement of what read it.
      histories: state of the base -> history of each tensor; None each if kernel
        inputs are directions.
      depends_on_platform: whether ``scale`` and ``gather`` differ by platform.
    """

    init: Callable[..., StackedMemory]
    scale: Callable[..., jax.Array]
    gather: Callable[..., Evidence]
    histories: Callable[[Any], Iterable[Any]] = no_histories
    depends_on_platform: bool = False


def scalar(inputs: Any) -> LocalModels:
    """Return the family of a single rate for all kernel inputs."""
    init = functools.partial(stack_memories, inputs)
    return LocalModels(init, _scale_all, _gather_all)


def _scale_all(stack: Any, row: Any, direction: jax.Array, _: Any) -> jax.Array:
    return at(stack.rates, row)[0] * direction.astype(stack.rates.dtype)


def _gather_all(
    signal: Signal, shared: Any, _: Any, gradient: Any, last: Any, history: Any
) -> Evidence:
    stack, orientation = shared
    values = agreement(signal, gradient.astype(stack.rates.dtype), last, orientation)
    sums = _sums(values, jax.lax.abs(values), (values != 0).astype(values.dtype))
    u, activity, touched = (total / max(values.size, 1) for total in sums)
    return Evidence(u[None], activity[None], u, activity, jnp.zeros_like(u), touched)


def gaussian(kernels: Sequence[Kernels], inputs: Any) -> LocalModels:
    """Return the family of fixed Gaussian kernels.

    Args:
      kernels: of all memories. If they are one object, large tensors are interpolated;
        if the list is empty, kernels may change.
      inputs: the kind of kernel input, such as ``ByDirection()``.
    """
    is_shared = bool(kernels) and all(kernel is kernels[0] for kernel in kernels)
    by_history = isinstance(inputs, ByHistory)
    grid = make_grid(kernels[0]) if is_shared and not by_history else None

    def kernels_at(stack: StackedMemory, row: Any) -> Kernels:
        # Kernels that all memories share are one operand, so XLA evaluates them once.
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
        stack, orientation = shared
        own, dtype = kernels_at(stack, row), stack.rates.dtype
        by_signal = functools.partial(compare, signal, dtype)
        unit = input_unit(inputs, last.astype(dtype))
        tensors = gradient, last, unit, orientation, history
        if grid is not None and last.size >= LARGE:
            by_coordinate, scalars = is_coordinatewise(signal), [unit, orientation]
            pair = gradient, last
            sums = accumulate_large(own, grid, by_signal, by_coordinate, pair, scalars)
        else:
            sums = accumulate(own, *by_signal(*tensors))
        u, activity = (total / max(last.size, 1) for total in sums)
        logs = _logged(own, by_signal, *tensors)
        # Never true, but XLA cannot infer that: it has to read the last direction
        # before u is complete, and need not copy it before it is overwritten.
        u = jnp.where(logs[1] + logs[2] < 0, 0, u)
        return Evidence(u, activity, *logs)

    init = functools.partial(stack_memories, inputs)
    return LocalModels(init, scale, gather, depends_on_platform=grid is not None)


def agreement(
    signal: Signal, gradient: jax.Array, last_direction: Any, orientation: Any = None
) -> jax.Array:
    """Return the signal where there is evidence, and 0 elsewhere.

    A coordinate gives no evidence if its gradient, last direction or signal is not
    finite, or if one of the former two is 0: before the first step, directions are.

    Args:
      signal: of the gradient and the last direction.
      gradient: [...].
      last_direction: [...], of any dtype.
      orientation: [], 1 or -1, the factor that makes the last direction point along its
        gradient, 0 until that is determined; None for 1.
    """
    last_direction = last_direction.astype(gradient.dtype)
    if orientation is not None:
        last_direction = last_direction * orientation.astype(gradient.dtype)
    if signal is raw_product:
        # The product itself is 0 or not finite then: less to compile and to compute.
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
def _sums(*arrays: jax.Array) -> tuple[jax.Array, ...]:
    """Return all sums in a single loop, which compiles in a third of the time."""
    zero = np.zeros((), arrays[0].dtype)

    def add(sums: Any, others: Any) -> Any:
        return tuple(map(jax.lax.add, sums, others))

    axes = tuple(range(arrays[0].ndim))
    return tuple(jax.lax.reduce(arrays, (zero,) * len(arrays), add, axes))


@_sums.defjvp
def _(primals: Any, tangents: Any) -> Any:
    # JAX cannot differentiate a reduction of several arrays.
    return _sums(*primals), tuple(map(jnp.sum, tangents))


def at(array: jax.Array, index: Any) -> jax.Array:
    """Return a row of an array [L, ...].

    The index is an operand: as a constant it would make a different program for every
    tensor, each to be compiled. uint32 avoids the select for negative indices.
    """
    return jax.lax.dynamic_index_in_dim(array, index.astype(jnp.uint32), keepdims=False)


def kernel_inputs(kind: Any, direction: jax.Array, history: Any) -> jax.Array:
    """Return the kernel inputs [...] of a kind."""
    if history is not None:
        return history.astype(direction.dtype)
    return direction / input_unit(kind, direction)


def input_unit(kind: Any, direction: jax.Array) -> jax.Array:
    """Return [], the divisor of a direction that makes it a kernel input."""
    if isinstance(kind, ByRelativeDirection):
        return root_mean_square(direction)
    return jnp.ones([], direction.dtype)


def compare(
    signal: Signal,
    dtype: Any,
    gradient: jax.Array,
    last_direction: jax.Array,
    unit: jax.Array,
    orientation: Any,
    history: Any = None,
) -> tuple[jax.Array, list[jax.Array]]:
    """Return kernel inputs, and agreement with and without its sign, [...] each."""
    gradient, last = gradient.astype(dtype), last_direction.astype(dtype)
    values = agreement(signal, gradient, last, orientation)
    if history is None:
        z = jnp.where(jnp.isfinite(last), last, 0) / unit
    else:
        z = history.astype(dtype)
    return z, [values, jax.lax.abs(values)]


def _logged(
    kernels: Kernels, by_signal: Callable[..., Any], *tensors: Any
) -> list[jax.Array]:
    """Return means of what logs and limits need, [] each, in the order of `Evidence`.

    They are of agreement, absolute agreement, being out of range and having evidence.

    Args:
      kernels: M kernels.
      by_signal: :func:`compare` with a signal.
      *tensors: its other arguments; all but scalars are sampled.
    """
    samples: list[Any] = [
        x if x is None or x.ndim == 0 else sample(x, _LOGGED) for x in tensors
    ]
    z, values = by_signal(*samples)
    low, high = outermost(kernels)
    # Non-finite inputs are out of range too.
    inside = (z > low.centers) & (z < high.centers)
    inside &= jnp.isfinite(samples[1]) if samples[-1] is None else True
    shares = (~inside).astype(z.dtype), (values[0] != 0).astype(z.dtype)
    return [jnp.sum(x) / max(x.size, 1) for x in (*values, *shares)]
