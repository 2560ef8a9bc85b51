"""What an argument must be, named where it is not."""

import functools
import numbers
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from metalr_optax.memory import Kernels, Memory
from metalr_optax.progress import MARKS
from metalr_optax.stack import ByDirection, ByHistory, ByRelativeDirection

P, R = ParamSpec("P"), TypeVar("R")

# Rates that any optimizer may hold; its own bounds are narrower.
POSITIVE = (1e-37, 1e37)
# With wider gaps than this (in widths) the square of a distance overflows float32
# and no kernel would answer at all.
_LARGEST_GAP = 1e15
# Of the ratio of two positive rates.
_LARGEST_LOG = 171.0
# The largest slope of a local model, and what rounding adds to it.
_LARGEST_SLOPE = 0.4500001
# A smaller multiplier than this was probably meant as a rate, as with other optimizers.
_RATE_NOT_FACTOR = 0.05
# Where a schedule is looked at: from the start on, and as late as runs are long.
_COUNTS = np.concatenate([[0], np.geomspace(1, 1e5, 26)]).astype(np.int32)
# An error shows at most so many characters of a value.
_SHOWN = 120
MOVE = (
    "a state of metalr-optax 0.1 or 0.2 does not fit: there save_memory(path, "
    "get_memory(state)), here start with initial=load_memory(path)"
)
# States of optimizers that choose their own rate, or weights.
_NO_BASES = (
    optax.contrib.ScheduleFreeState,
    optax.ScaleByBacktrackingLinesearchState,
    optax.ScaleByZoomLinesearchState,
)
_SLICES = (
    "group_by=lambda path, leaf: [f'layer/{i}' for i in range(len(leaf))], a label for "
    "each slice of the first axis"
)
_KEEP = (
    "optax.partition, with memory_optimizer=optax.set_to_zero() in the part whose "
    "memories stay as they are"
)
_REPLACEMENTS = {
    "stacked": _SLICES,
    "frozen": _KEEP,
    "inner": "base_optimizer",
    "address": "normalize",
}


def without(*names: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Return what makes a function refuse removed arguments, with a replacement."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            for name in set(names) & set(kwargs):
                hint = f"{function.__name__}() has no {name!r}: use "
                raise TypeError(hint + _REPLACEMENTS[name])
            return function(*args, **kwargs)

        return call

    return decorate


def is_concrete(value: Any) -> bool:
    """Return whether an array has a value, which traced and abstract ones have not."""
    return not isinstance(value, jax.core.Tracer | jax.ShapeDtypeStruct)


def is_number(value: Any) -> bool:
    """Return whether a value is one real number, of Python, NumPy or JAX."""
    if isinstance(value, np.ndarray | jax.Array):
        return value.shape == () and jnp.issubdtype(value.dtype, np.number)
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def describe(value: Any) -> str:
    """Return what an error says of a value: type, dtype and shape of an array."""
    if isinstance(value, Memory):
        return f"a Memory of {np.shape(value.rates)} rates"
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        if is_concrete(value) and np.size(value) == 1:
            return repr(np.asarray(value).item())
        kind = type(value).__name__
        return f"an array ({kind}) of {value.dtype} and shape {tuple(value.shape)}"
    text = repr(value)
    if len(text) <= _SHOWN:
        return text
    size = f" of {len(value)}" if hasattr(value, "__len__") else ""
    return f"a {type(value).__name__}{size}"


def require(fits: Any, name: str, allowed: str, value: Any, hint: str = "") -> None:
    """Raise ValueError with name, what is allowed and the value, unless it fits."""
    if not fits:
        text = f"{name} must {allowed}, got {describe(value)}"
        raise ValueError(text + (f"; {hint}" if hint else ""))


def check_number(
    name: str, value: Any, low: float = 0.0, high: float = np.inf, closed: bool = False
) -> None:
    """Raise ValueError unless low < value < high; closed, low is allowed too."""
    if not is_concrete(value):
        return
    fits = is_number(value) and (low < value < high or (closed and value == low))
    allowed = "be a positive, finite number"
    if closed or (low, high) != (0.0, np.inf):
        allowed = f"be a number in {'[' if closed else '('}{low:g}, {high:g})"
    require(fits, name, allowed, value)


def check_integer(name: str, value: Any, smallest: int, hint: str = "") -> None:
    """Raise ValueError unless value is an integer that is large enough."""
    is_integer = isinstance(value, int | np.integer) and not isinstance(value, bool)
    fits = is_integer and value >= smallest
    require(fits, name, f"be an integer of at least {smallest}{hint}", value)


def check_multiplier(multiplier: Any) -> None:
    """Raise ValueError for what can be no multiplier, warn of what is like a rate.

    An array of JAX and a schedule are looked at later, by :func:`warn_of_rate`, because
    an optimizer is built without a device. What is traced is not known.
    """
    allowed = "be a number of at least 0, or a schedule from a count to one"
    concrete = is_concrete(multiplier)
    fits = callable(multiplier) or is_number(multiplier) or not concrete
    require(fits, "learning_rate", allowed, multiplier)
    later = callable(multiplier) or isinstance(multiplier, jax.Array)
    if concrete and not later:
        require(0 <= multiplier < np.inf, "learning_rate", allowed, multiplier)
        _warn_of_rates([float(multiplier)], "")


def warn_of_rate(multiplier: Any) -> None:
    """Warn if the largest value of an array or schedule is like a rate."""
    if not (callable(multiplier) or isinstance(multiplier, jax.Array)):
        return
    # Also while `init` is traced, unless the multiplier itself is.
    with jax.ensure_compile_time_eval():
        counts = _COUNTS if callable(multiplier) else []
        values = [multiplier(count) for count in counts] or [multiplier]
        if all(map(is_concrete, values)):
            rates = [float(value) for value in values]
            _warn_of_rates(rates, "a schedule up to " if len(counts) else "")


def _warn_of_rates(values: Sequence[float], what: str) -> None:
    largest = max(values)
    if 0 < largest < _RATE_NOT_FACTOR:
        warn(
            f"learning_rate={what}{largest:g} multiplies the learned rates, which climb "
            "against it, and 1 leaves them as they are; a rate to start from is "
            f"initial={largest:g}, a schedule has multipliers up to 1",
        )


def warn(text: str) -> None:
    """Warn at the line outside of this package that called it."""
    folder, frame, level = os.path.dirname(__file__), sys._getframe(), 1
    while frame.f_back and frame.f_code.co_filename.startswith(folder):
        frame, level = frame.f_back, level + 1
    warnings.warn(text, stacklevel=level)


def check_base(base: optax.GradientTransformation, params: Any) -> None:
    """Raise ValueError for a base that cannot be wrapped, warn of a rate inside of it.

    A step for a gradient of ones tells, on a tree like the parameters with a single
    number for each tensor.
    """
    with jax.ensure_compile_time_eval():
        ones = jax.tree.map(
            lambda x: jnp.ones((1,) * jnp.ndim(x), jnp.result_type(x)), params
        )
        state = base.init(ones)
        nodes = jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, _NO_BASES))
        found = [type(node).__name__ for node in nodes if isinstance(node, _NO_BASES)]
        hint = "schedule_free goes around: schedule_free(learn_rates(...), 1.0)"
        allowed = "leave rates and weights to learn_rates"
        require(not found, "base_optimizer", allowed, found, hint)
        try:
            updates, _ = optax.with_extra_args_support(base).update(ones, state, ones)
        except TypeError:
            return  # Without the extra arguments of a step nothing can be told.
        steps = [jnp.mean(leaf) for leaf in jax.tree.leaves(updates)]
    if not all(map(is_concrete, steps)):
        return
    least, most = min(map(float, steps), default=0.0), max(map(float, steps), default=0)
    hint = "for example optax.chain(optax.scale_by_adam(), optax.scale(-1.0))"
    ascends = most > 0 and most > -least
    require(not ascends, "base_optimizer", "descend", f"a first step of {most:g}", hint)
    if -_RATE_NOT_FACTOR < least < 0:
        warn(
            f"base_optimizer makes a first step of {least:g} where the gradient is 1: "
            "with a rate of 1 inside, such as optax.adamw(1.0), rates need not climb "
            "as far; a rate to start from is initial="
        )


def check_start(name: str, initial: Any, largest: float) -> None:
    """Raise ValueError if an optimizer would start with larger rates than it may."""
    is_rate = is_concrete(initial) and is_number(initial)
    fits = not is_rate or float(initial) <= largest * (1 + 1e-6)
    require(fits, "initial", f"be at most {largest} for {name}, which climbs", initial)


def check_transformation(name: str, value: Any) -> None:
    """Raise ValueError unless value is a transformation of Optax, or None."""
    fits = value is None or isinstance(value, optax.GradientTransformation)
    require(fits, name, "be an optax.GradientTransformation or None", value)


def check_bounds(rate_bounds: Any) -> None:
    """Raise ValueError unless rate_bounds are two rates in order; traced ones pass."""
    try:
        low, high = rate_bounds
        known = is_concrete(low) and is_concrete(high)
        ordered = not known or 0 < float(low) < float(high) < np.inf
    except (TypeError, ValueError):
        ordered = False
    allowed = "be two finite numbers with 0 < smallest < largest"
    require(ordered, "rate_bounds", allowed, rate_bounds)


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
    known = is_concrete(memory.kernels.centers)
    fits = not known or np.isfinite(np.asarray(memory.kernels.centers)).all()
    require(fits, name, "have finite centers", memory.kernels.centers)
    shape, found = np.shape(memory.kernels.centers), np.shape(memory.rates)
    allowed = f"have one rate per kernel, rates of shape {shape}"
    require(found == shape, name, allowed, found)
    check_rates(name, memory.rates, rate_bounds)
    if memory.evidence_weight is not None and is_concrete(memory.evidence_weight):
        weight = np.asarray(memory.evidence_weight)
        fits = _is_real(weight) and (jnp.isfinite(weight) & (weight >= 0)).all()
        allowed = f"have a finite evidence_weight of at least 0, of shape {shape}"
        require(fits and weight.shape == shape, name, allowed, memory.evidence_weight)
    if memory.schedule is not None and is_concrete(memory.schedule):
        logs = np.asarray(memory.schedule)
        fits = _is_real(logs) and (np.abs(logs) <= _LARGEST_LOG).all()
        allowed = f"have a schedule of shape {MARKS.shape}, of logs of rates"
        require(fits and logs.shape == MARKS.shape, name, allowed, memory.schedule)
    if memory.slopes is not None and is_concrete(memory.slopes):
        slopes = np.asarray(memory.slopes)
        fits = _is_real(slopes) and (np.abs(slopes) <= _LARGEST_SLOPE).all()
        allowed = f"have slopes of at most {_LARGEST_SLOPE:.2f}, of shape {shape}"
        require(fits and slopes.shape == shape, name, allowed, memory.slopes)


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
    words = {ByHistory: "kernel_input='history'", ByDirection: "normalize=None"}
    words[ByRelativeDirection] = "normalize='rms'"
    if ByHistory in (learned, type(inputs)):
        words |= dict.fromkeys(
            (ByDirection, ByRelativeDirection), "kernel_input='direction'"
        )
    raise ValueError(
        f"{name} was learned with {words[learned]} and must not be read with "
        f"{words[type(inputs)]}; adapt_memory flattens it"
    )


def check_kernel_inputs(normalize: Any, kernel_input: Any, size: Any) -> None:
    """Raise ValueError unless kernels can be given this."""
    require(normalize in ("rms", None), "normalize", "be 'rms' or None", normalize)
    fits = kernel_input in ("direction", "history")
    require(fits, "kernel_input", "be 'direction' or 'history'", kernel_input)
    for name, value in (("normalize", normalize), ("evidence_sample", size)):
        fits = kernel_input == "direction" or value is None
        require(fits, name, "be None with kernel_input='history'", value)


def check_evidence(signal: Any, group_by: Any, size: Any) -> None:
    """Raise ValueError unless evidence can be had in this way."""
    allowed = "be a function of (gradient, last_direction)"
    require(signal is None or callable(signal), "signal", allowed, signal)
    fits = callable(group_by) or group_by in ("layer", "tensor", "all")
    allowed = "be 'layer', 'tensor', 'all' or a function (path, leaf) -> label"
    require(fits, "group_by", allowed, group_by)
    if size is not None:
        hint = " or None (under optax.inject_hyperparams name it in static_args)"
        check_integer("evidence_sample", size, 1, hint)


def check_updates(updates: Any, labels: Iterable[Any], rows: Any) -> None:
    """Raise ValueError if updates are complex, or have labels without a memory."""
    check_real(updates)
    texts = [[label] if isinstance(label, str) else label for label in labels]
    unknown = sorted({name for names in texts for name in names} - set(rows))
    if unknown:
        raise ValueError(
            f"updates have the labels {unknown}, but the state has memories for "
            f"{sorted(rows)}: it must come from init with parameters of this structure"
        )


def check_like_init(updates: Any, shapes: Sequence[tuple[int, ...]]) -> None:
    """Raise ValueError, naming the leaf, unless updates have the shapes of init."""
    found = list(_shapes(updates))
    if len(found) != len(shapes):
        raise ValueError(
            f"updates must have a leaf for each of the {len(shapes)} parameters that "
            f"init saw, got {len(found)}, {found}, {_missing(updates)}"
        )
    for (name, shape), expected in zip(_shapes(updates).items(), shapes, strict=True):
        allowed = f"have at {name or 'the top'} the shape that init saw, {expected}"
        require(shape == expected, "updates", allowed, shape)


def check_samples(updates: Any, found: int, expected: int) -> None:
    """Raise ValueError unless updates give as many samples as the parameters did."""
    if found != expected:
        raise ValueError(
            "updates must have the leaves and shapes of the parameters that init saw, "
            f"{expected} samples, got {found} of {_shapes(updates)}, {_missing(updates)}"
        )


def _missing(updates: Any) -> str:
    leaves = jax.tree_util.tree_leaves_with_path(updates, is_leaf=lambda x: x is None)
    return (
        f"and None at {[name_of(path) for path, leaf in leaves if leaf is None]}; what "
        "has no gradient must be left out at init too (None, optax.masked), or be "
        "frozen with optax.partition and optax.set_to_zero"
    )


def check_real(updates: optax.Updates) -> None:
    """Raise ValueError, naming the leaf, if updates are complex."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(updates):
        if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
            place = name_of(path) or "the top"
            raise ValueError(
                f"updates must be real, got {leaf.dtype} at {place}; "
                "optax.contrib.split_real_and_imaginary splits them"
            )


def check_params(params: Any, updates: optax.Updates) -> None:
    """Raise ValueError, naming the leaves, unless there are parameters for updates."""
    missing = sorted(set(_shapes(updates)) - set(_shapes(params)))
    allowed = "have a leaf for each of the updates"
    require(params is None or not missing, "params", allowed, f"none at {missing}")


def check_gradient(gradient: Any, updates: optax.Updates) -> None:
    """Raise ValueError unless the argument grad= is like the updates."""
    found, expected = _shapes(gradient), _shapes(updates)
    same = jax.tree.structure(gradient) == jax.tree.structure(updates)
    differ = dict(found.items() ^ expected.items())
    got = {name or "the top": found.get(name, "nothing") for name in differ}
    like = {name or "the top": expected.get(name, "nothing") for name in differ}
    allowed = f"have the structure and shapes of the updates, there {like}"
    hint = "optax.masked, optax.partition: mask_compatible_extra_args=True masks it"
    fits = same and not differ
    require(fits, "grad", allowed, got or jax.tree.structure(gradient), hint)


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


def check_state(state: Any, kind: Any) -> None:
    """Raise ValueError unless a state is of a kind."""
    if not isinstance(state, kind):
        found = describe(state)
        raise ValueError(f"state must be a {kind.__name__}, got {found}; {MOVE}")


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Return the shape of every leaf, by its path."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {name_of(path): np.shape(leaf) for path, leaf in leaves}


def name_of(path: Any) -> str:
    """Return the name of a leaf, the keys of its path; nothing for one at the top."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _is_real(values: np.ndarray) -> bool:
    return jnp.issubdtype(values.dtype, np.number) and not np.iscomplexobj(values)
