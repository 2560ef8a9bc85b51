"""What a memory must be, named where it is not."""

import numbers
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from metalr_optax.checks import check_integer, is_concrete, require
from metalr_optax.memory import MARKS, Kernels, Memory
from metalr_optax.stack import ByDirection, ByHistory, ByRelativeDirection

# Rates that any optimizer may hold; its own bounds are narrower.
POSITIVE = (1e-37, 1e37)
# With wider gaps than this (in widths) the square of a distance overflows float32
# and no kernel would answer at all.
_LARGEST_GAP = 1e15
# Of the ratio of two positive rates.
_LARGEST_LOG = 171.0
# The largest slope of a local model, and what rounding adds to it.
_LARGEST_SLOPE = 0.4500001


def check_kernels(kernels: Kernels, dtype: Any = np.float64) -> None:
    """Raise ValueError unless the kernels are usable in a dtype; traced ones pass."""
    allowed = "be metalr_optax.Kernels, for example linspace_kernels(2.0)"
    require(isinstance(kernels, Kernels), "kernels", allowed, kernels)
    first, second = np.shape(kernels.centers), np.shape(kernels.widths)
    fits = len(first) == 1 and first == second and first[0] >= 1
    allowed = "hold centers and widths of one shape [M] with M >= 1"
    require(fits, "kernels", allowed, (first, second))
    if not all(map(is_concrete, kernels)):
        return
    centers, widths = np.asarray(kernels.centers), np.asarray(kernels.widths)
    gaps, name = np.diff(centers.astype(dtype)), np.dtype(dtype)
    fits = np.isfinite(widths) & (widths.astype(dtype) >= np.finfo(dtype).tiny)
    require(fits.all(), "widths", f"be positive and finite as {name}", widths)
    fits = np.isfinite(centers).all() and (gaps > 0).all()
    require(fits, "centers", f"be finite and increasing as {name}", centers)
    fits = gaps <= _LARGEST_GAP * np.maximum(widths[1:], widths[:-1])
    allowed = f"be within {_LARGEST_GAP:g} widths of each other"
    require(fits.all(), "neighbours", allowed, kernels)


def in_use(kernels: Kernels) -> Kernels:
    """Return kernels without those at the end that are not in use; traced ones all."""
    is_known = all(map(is_concrete, kernels))
    if not is_known or {np.ndim(one) for one in kernels} != {1}:
        return kernels
    (used,) = np.nonzero(np.asarray(kernels.widths))
    num = used[-1] + 1 if len(used) else len(kernels.widths)
    return Kernels(np.asarray(kernels.centers)[:num], np.asarray(kernels.widths)[:num])


def check_rates(name: str, rates: Any, rate_bounds: tuple[Any, Any]) -> None:
    """Raise ValueError unless all rates are within the bounds; traced ones pass."""
    if not all(map(is_concrete, (rates, *rate_bounds))):
        return
    values = np.asarray(rates)
    require(_is_real(values), name, "have real numbers for rates", rates)
    # A rate at a bound may have been rounded on its way here.
    inexact = jnp.issubdtype(values.dtype, np.inexact)
    slack = max(1e-6, float(jnp.finfo(values.dtype).eps)) if inexact else 0.0
    low, high = float(rate_bounds[0]), float(rate_bounds[1])
    values = values.astype(np.float64)
    fits = (values >= low * (1 - slack)) & (values <= high * (1 + slack))
    require(fits.all(), name, f"have rates within the bounds {rate_bounds}", rates)


def check_memory(
    name: str, memory: Memory, rate_bounds: tuple[Any, Any] = POSITIVE
) -> None:
    """Raise ValueError unless the memory is usable; traced values are trusted."""
    require(isinstance(memory, Memory), name, "be a metalr_optax.Memory", memory)
    try:
        check_kernels(in_use(memory.kernels))
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    centers, shape = memory.kernels.centers, np.shape(memory.kernels.centers)
    fits = not is_concrete(centers) or np.isfinite(np.asarray(centers)).all()
    require(fits, name, "have finite centers", centers)
    allowed = f"have one rate per kernel, rates of shape {shape}"
    require(np.shape(memory.rates) == shape, name, allowed, np.shape(memory.rates))
    check_rates(name, memory.rates, rate_bounds)
    for field, low, high, like in (
        ("evidence_weight", 0.0, np.finfo(np.float64).max, shape),
        ("schedule", -_LARGEST_LOG, _LARGEST_LOG, MARKS.shape),
        ("slopes", -_LARGEST_SLOPE, _LARGEST_SLOPE, shape),
    ):
        value = getattr(memory, field)
        if value is not None and is_concrete(value):
            array = np.asarray(value)
            fits = array.shape == like and _is_real(array)
            fits = fits and ((array >= low) & (array <= high)).all()
            allowed = (
                f"have a {field} of shape {like}, finite, in [{low:.3g}, {high:.3g}]"
            )
            require(fits, name, allowed, value)


def check_memories(memory: Any) -> None:
    """Raise ValueError unless memory maps labels, which are strings, to something."""
    fits = isinstance(memory, Mapping) and memory
    allowed = "be a mapping from label to metalr_optax.Memory with at least one entry"
    require(fits, "memory", allowed, memory)
    for label in memory:
        require(isinstance(label, str), "labels of memory", "be strings", label)


def check_labels(name: str, memory: Any, labels: Iterable[str]) -> None:
    """Raise ValueError unless a mapping has these labels and no others."""
    missing, unknown = set(labels) - set(memory), set(memory) - set(labels)
    allowed = (
        f"have a memory for every label and no other; missing {sorted(missing)}, "
        f"unknown {sorted(map(str, unknown))} (set_memory with adapt_memory maps "
        "another model's)"
    )
    require(not missing and not unknown, name, allowed, list(memory))


def check_inputs(name: str, memory: Memory, inputs: Any) -> None:
    """Raise ValueError if the memory is known to be for other kernel inputs."""
    rms = memory.rms_normalized
    if memory.history is not None:
        learned: Any = ByHistory
    elif rms is None or not is_concrete(rms):
        return  # What was made by hand may be for any.
    else:
        learned = ByRelativeDirection if np.all(rms) else ByDirection
    if np.size(memory.rates) == 1 or learned is type(inputs):
        return
    words: dict[Any, str] = {ByHistory: "kernel_input='history'"}
    words |= {ByDirection: "normalize=None", ByRelativeDirection: "normalize='rms'"}
    if ByHistory in (learned, type(inputs)):
        words |= dict.fromkeys(
            (ByDirection, ByRelativeDirection), "kernel_input='direction'"
        )
    raise ValueError(
        f"{name} was learned with {words[learned]} and must not be read with "
        f"{words[type(inputs)]}; adapt_memory flattens it"
    )


def check_initial(
    initial: Any, kernels: Any, inputs: Any, rate_bounds: tuple[Any, Any]
) -> None:
    """Raise ValueError unless initial is a rate, a memory or a mapping of memories."""
    if not isinstance(initial, Memory | Mapping):
        value: Any = initial
        kinds = numbers.Number | np.generic | np.ndarray | jax.Array
        fits = isinstance(initial, kinds) and not isinstance(initial, bool)
        fits = fits and np.shape(value) == ()
        allowed = "be a rate, a metalr_optax.Memory or a mapping from label to Memory"
        require(fits, "initial", allowed, initial)
        check_rates("initial", initial, rate_bounds)
        return
    allowed = "be None when initial is a memory, which brings its own"
    require(kernels is None, "kernels", allowed, kernels)
    named: dict[str, Any] = {"initial": initial}
    if isinstance(initial, Mapping):
        named = {f"initial[{label!r}]": memory for label, memory in initial.items()}
    for name, memory in named.items():
        check_memory(name, memory, rate_bounds)
        check_inputs(name, memory, inputs)
    sizes = sorted({len(memory.rates) for memory in named.values()})
    allowed, hint = "have memories of one size M", "adapt_memory resamples them"
    require(len(sizes) <= 1, "initial", allowed, sizes, hint)


def check_local_models(initial: Any, num: int, learned: Any) -> None:
    """Raise ValueError unless what is learned besides rates fits num local models."""
    if learned.capacity is not None:
        hint = f" (the local models at the start are {num}) or None"
        check_integer("capacity", learned.capacity, max(num, 2), hint)
    for name, value in (("learned_widths", learned.widths), ("linear", learned.slopes)):
        require(isinstance(value, bool), name, "be True or False", value)
        allowed = "be False with a single local model, which has no input"
        fits = not value or num > 1 or learned.capacity is not None
        require(fits, name, allowed, value)
    memories = initial.values() if isinstance(initial, Mapping) else [initial]
    for memory in memories:
        check_slopes("initial", memory, learned.slopes)


def check_slopes(name: str, memory: Any, linear: bool) -> None:
    """Raise ValueError if a memory has slopes that would not be read."""
    fits = linear or getattr(memory, "slopes", None) is None
    hint = "adapt_memory, or memory._replace(slopes=None), leaves them out"
    allowed = "have no slopes without linear=True"
    require(fits, name, allowed, getattr(memory, "slopes", None), hint)


def _is_real(values: np.ndarray) -> bool:
    return jnp.issubdtype(values.dtype, np.number) and not np.iscomplexobj(values)
