"""Checks of memories, whose errors name what is allowed."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from metalr_optax import checks
from metalr_optax.checks import describe, is_concrete, require
from metalr_optax.memory import MARKS, Kernels, Memory
from metalr_optax.stack import ByDirection, ByHistory, ByRelativeDirection

# Rates that any optimizer may hold; its own bounds are narrower.
POSITIVE = (1e-37, 1e37)
# With wider gaps than this (in widths) the square of a distance overflows float32, and
# no kernel is active.
_LARGEST_GAP = 1e15
# With so many times the inputs, the rates of Adam have to be lowered.
_WIDER = 2.0
_ARGUMENTS = {
    ByDirection: "kernel_input='direction', normalize=None",
    ByRelativeDirection: "kernel_input='direction', normalize='rms'",
    ByHistory: "kernel_input='history'",
}


def check_kernels(kernels: Kernels, dtype: Any = float, name: str = "kernels") -> None:
    """Raise ValueError unless the kernels are usable in a dtype; traced ones pass."""
    allowed = "be metalr_optax.Kernels, for example linspace_kernels(2.0)"
    require(isinstance(kernels, Kernels), name, allowed, kernels)
    shape, tiny = np.shape(kernels.centers), np.finfo(dtype).tiny
    member = "jax.tree.map(lambda x: x[0], state) is one run of a vmapped state"
    largest = np.finfo(dtype).max / 2  # finite after rounding
    allowed = "have centers and widths of shape [M] with M >= 1"
    hint = member if len(shape) > 1 else ""
    require(len(shape) == 1 and shape[0] > 0, name, allowed, shape, hint)
    _check_values(name, "centers", kernels.centers, shape, -largest, largest)
    _check_values(name, "widths", kernels.widths, shape, tiny, largest)
    if all(map(is_concrete, kernels)):
        rounded = [np.asarray(array, dtype).astype(np.float64) for array in kernels]
        gaps, widest = np.diff(rounded[0]), np.maximum(rounded[1][1:], rounded[1][:-1])
        fits = (gaps > 0) & (gaps <= _LARGEST_GAP * widest)
        allowed = f"have centers that increase, by at most {_LARGEST_GAP:g} widths, as "
        require(fits.all(), name, allowed + np.dtype(dtype).name, kernels.centers)


def in_use(kernels: Kernels) -> Kernels:
    """Return kernels without unused ones at the end; all of them if traced."""
    if not all(is_concrete(array) and np.ndim(array) == 1 for array in kernels):
        return kernels
    centers, widths = map(np.asarray, kernels)
    (used,) = np.nonzero(widths)
    num = used[-1] + 1 if len(used) else len(widths)
    return Kernels(centers[:num], widths[:num])


def check_memory(name: str, memory: Memory, rate_bounds: Any = POSITIVE) -> None:
    """Raise ValueError unless the memory is usable; traced values are trusted."""
    check_type(name, memory)
    check_kernels(in_use(memory.kernels), name=name)
    centers, shape = memory.kernels.centers, np.shape(memory.kernels.centers)
    # Centres of unused local models must be finite too.
    _check_values(name, "centers", centers, shape, -1e308, 1e308)
    _check_values(name, "rates", memory.rates, shape, *rate_bounds)
    for field, field_shape, low, high in (
        ("evidence_weight", shape, 0.0, 1e308),
        ("schedule", MARKS.shape, -171.0, 171.0),  # log of a ratio of POSITIVE rates
        ("slopes", shape, -0.45, 0.45),
        ("fan_in", (), 0.0, 1e308),
    ):
        values = getattr(memory, field)
        if values is not None:
            _check_values(name, field, values, field_shape, low, high)


def check_type(name: str, memory: Any) -> None:
    """Raise ValueError unless this is a memory, whatever is in it."""
    hint = "get_memory(opt_state)[label] returns one"
    if checks.is_number(memory):
        rate = describe(memory)
        hint = f"Memory(linspace_kernels(1.0, num=1), [{rate}]) is a single rate"
    fits = isinstance(memory, Memory)
    require(fits, name, "be a metalr_optax.Memory", memory, hint)


def _check_values(
    name: str, field: str, values: Any, shape: tuple[int, ...], low: Any, high: Any
) -> None:
    """Raise ValueError unless values are real and within bounds, up to rounding."""
    fits = np.shape(values) == shape
    allowed = f"have {field} within [{low}, {high}], real and of shape {shape}"
    if fits and all(map(is_concrete, (values, low, high))):
        array, low, high = np.asarray(values), float(low), float(high)
        # A bound may have been rounded, to as little as the 8 bits of bfloat16.
        slack = 1e-6 if array.dtype.itemsize > 2 else 8e-3
        low, high = low - slack * abs(low), high + slack * abs(high)
        fits = checks.is_real(array.dtype)
        if fits:
            array = array.astype(np.float64)
            fits = ((low <= array) & (array <= high)).all()
    require(fits, name, allowed, values)


def check_memories(memory: Any, name: str = "memory") -> None:
    """Raise ValueError unless a value maps labels, at least one, to something."""
    fits = isinstance(memory, Mapping) and memory and all(map(checks.is_text, memory))
    allowed = "be a mapping from labels (strings) to metalr_optax.Memory, at least one"
    hint = "get_memory(opt_state) returns that of a state"
    require(fits, name, allowed, memory, hint)


def check_labels(name: str, memory: Any, labels: Iterable[str]) -> None:
    """Raise ValueError unless a mapping has these labels and no others."""
    missing = sorted(set(labels) - set(memory))
    unknown = sorted(map(str, set(memory) - set(labels)))
    if missing or unknown:
        raise ValueError(
            f"{name} must have a memory for every label and no other, missing "
            f"{describe(missing)}, unknown {describe(unknown)}; to start from another "
            "model, build the optimizer without initial= and call "
            "set_memory(state, adapt_memory(memory, state))"
        )


def check_inputs(name: str, memory: Memory, inputs: Any) -> None:
    """Raise ValueError if the memory was learned with other kernel inputs."""
    learned: Any = ByHistory
    if memory.history is None:
        rms = memory.rms_normalized
        if rms is None or not is_concrete(rms):
            return  # A memory made by hand may be for any.
        learned = ByRelativeDirection if np.all(rms) else ByDirection
    if np.size(memory.rates) > 1 and learned is not type(inputs):
        raise ValueError(
            f"{name} was learned with {_ARGUMENTS[learned]} and must not be read with "
            f"{_ARGUMENTS[type(inputs)]}; adapt_memory flattens it"
        )


def check_initial(initial: Any, kernels: Any, inputs: Any, rate_bounds: Any) -> None:
    """Raise ValueError unless initial is a rate, a memory or a mapping of memories."""
    if not isinstance(initial, Memory | Mapping):
        allowed = "be a rate, a metalr_optax.Memory or a mapping from label to Memory"
        hint = "initial=load_memory(path) takes a file, get_memory(opt_state) a state"
        require(checks.is_number(initial), "initial", allowed, initial, hint)
        _check_values("initial", "rates", initial, (), *rate_bounds)
        return
    allowed = "be None when initial is a memory, which brings its own"
    require(kernels is None, "kernels", allowed, kernels)
    memories: dict[str, Any] = {"initial": initial}
    if isinstance(initial, Mapping):
        memories = {f"initial[{label!r}]": m for label, m in initial.items()}
    for name, memory in memories.items():
        check_memory(name, memory, rate_bounds)
        check_inputs(name, memory, inputs)
    sizes = sorted({len(memory.rates) for memory in memories.values()})
    allowed, hint = "have memories of one size M", "adapt_memory resamples them"
    require(len(sizes) <= 1, "initial", allowed, sizes, hint)


def warn_of_width(
    labels: Iterable[str], memories: Iterable[Memory], fan_ins: Iterable[float]
) -> None:
    """Warn of rates that Adam learned for much narrower layers: they are too large."""
    # Under jit an operation on a concrete array would be traced.
    before = [
        float(memory.fan_in) if is_concrete(memory.fan_in) and memory.fan_in else 0.0
        for memory in memories
    ]
    wider = [
        f"{label} ({old:g} inputs, now {new:g})"
        for label, old, new in zip(labels, before, fan_ins, strict=False)
        if 0 < old <= new / _WIDER
    ]
    if wider:
        checks.warn(
            f"initial has rates of narrower layers: {describe(wider)}; to lower them, "
            "build the optimizer without initial= and call "
            "set_memory(state, adapt_memory(memory, state)), with all that get_memory "
            "or load_memory returned"
        )


def check_local_models(initial: Any, num: int, learned: Any) -> None:
    """Raise ValueError unless what is learned besides rates fits num local models."""
    if learned.capacity is not None:
        hint = f" ({num} local models at the start) or None"
        checks.check_integer("capacity", learned.capacity, max(num, 2), hint)
    for name, value in (("learned_widths", learned.widths), ("linear", learned.slopes)):
        checks.check_flag(name, value)
        fits = not value or num > 1 or learned.capacity is not None
        allowed = "be False with a single local model, which has no input"
        require(fits, name, allowed, value)
    for memory in initial.values() if isinstance(initial, Mapping) else [initial]:
        check_slopes("initial", memory, learned.slopes)


def check_slopes(name: str, memory: Any, linear: bool) -> None:
    """Raise ValueError if a memory has slopes that would not be read."""
    slopes = getattr(memory, "slopes", None)
    hint = "adapt_memory, or memory._replace(slopes=None), leaves them out"
    allowed = "have no slopes without linear=True"
    require(linear or slopes is None, name, allowed, slopes, hint)
