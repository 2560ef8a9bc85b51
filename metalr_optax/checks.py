"""What an argument must be, said by name where it is not."""

import numbers
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from metalr_optax.memory import Kernels, Memory
from metalr_optax.progress import MARKS

# Rates that any optimizer may hold; its own bounds are narrower.
POSITIVE = (1e-37, 1e37)
# With wider gaps than this (in widths) the square of a distance overflows float32
# and no kernel would answer at all.
_LARGEST_GAP = 1e15
# Of the ratio of two positive rates.
_LARGEST_LOG = 171.0
# The largest slope of a local model, and what rounding adds to it.
_LARGEST_SLOPE = 0.4500001
# Who writes a smaller factor than this means a rate, as with other optimizers.
_RATE_NOT_FACTOR = 0.05
# Where a schedule is looked at: from the start on, and as late as runs are long.
_COUNTS = np.concatenate([[0], np.geomspace(1, 1e5, 26)]).astype(np.int32)
MOVE = (
    "a state of metalr-optax 0.1 is another: with 0.1 save_memory(path, "
    "get_memory(state)), here start with initial=load_memory(path)"
)


def is_concrete(value: Any) -> bool:
    """Return whether an array has a value, which traced and abstract ones have not."""
    return not isinstance(value, jax.core.Tracer | jax.ShapeDtypeStruct)


def is_number(value: Any) -> bool:
    """Return whether a value is one real number, of Python, NumPy or JAX."""
    if isinstance(value, np.ndarray | jax.Array):
        return value.shape == () and jnp.issubdtype(value.dtype, np.number)
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def require(fits: Any, name: str, allowed: str, value: Any, hint: str = "") -> None:
    """Raise ValueError with name, what is allowed and the value, unless it fits."""
    if not fits:
        raise ValueError(f"{name} must {allowed}, got {value!r}{hint and '; '}{hint}")


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


def check_factor(
    factor: Any, optimizer: optax.GradientTransformationExtraArgs
) -> optax.GradientTransformationExtraArgs:
    """Return an optimizer whose `init` warns if its factor is more like a rate.

    A number of Python or NumPy is looked at now; an array of JAX and a schedule later,
    because an optimizer is built without a device. What is traced is not known.

    Raises:
      ValueError: a factor that can be none on rates.
    """
    allowed = "be a number of at least 0, or a schedule from a count to one"
    fits = callable(factor) or is_number(factor) or not is_concrete(factor)
    require(fits, "learning_rate", allowed, factor)
    if is_concrete(factor) and not (callable(factor) or isinstance(factor, jax.Array)):
        require(0 <= factor < np.inf, "learning_rate", allowed, factor)
        _warn_of_rate(factor, stacklevel=5)
        return optimizer

    def init(params: optax.Params) -> optax.OptState:
        _warn_of_rate(factor, stacklevel=3)
        return optimizer.init(params)

    return optimizer._replace(init=init)


def _warn_of_rate(factor: Any, stacklevel: int) -> None:
    """Warn if the largest value of a factor, a number or a schedule, is like a rate."""
    counts = list(_COUNTS) if callable(factor) else []
    first = factor(counts[0]) if counts else factor
    if not is_concrete(first):
        return
    largest = max([float(first), *(float(factor(count)) for count in counts)])
    if 0 < largest < _RATE_NOT_FACTOR:
        text = f"a schedule up to {largest:g}" if counts else f"{largest:g}"
        warnings.warn(
            f"learning_rate={text} is a factor on the learned rates, which climb "
            "against it, and 1 leaves them as they are; a rate to start from is "
            f"initial={largest:g}, a schedule is one of factors up to 1",
            stacklevel=stacklevel,
        )


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


def check_known(labels: Iterable[str], rows: Mapping[str, Any]) -> None:
    """Raise ValueError if updates have a label that the state has no memory for."""
    unknown = sorted(set(labels) - set(rows))
    if unknown:
        raise ValueError(
            f"updates have the labels {unknown}, but the state has memories for "
            f"{sorted(rows)}: it must come from init with parameters of this structure"
        )


def check_seen(name: str, memory: Memory, kind: Any) -> None:
    """Raise ValueError if the memory is known to be for other kernel inputs."""
    if np.size(memory.rates) == 1:
        return
    learned = memory.rms_normalized
    here, there = ("rms", None) if kind.rms else (None, "rms")
    if learned is not None and is_concrete(learned) and np.all(learned) != kind.rms:
        raise ValueError(
            f"{name} was learned with normalize={there!r} and must not be read with "
            f"normalize={here!r}; adapt_memory flattens it"
        )
    inputs = "direction", "history"
    here, there = inputs[kind.history], inputs[memory.history is not None]
    # One that was made by hand may be for either.
    if here != there and (kind.history is False or learned is not None):
        raise ValueError(
            f"{name} was learned with kernel_input={there!r} and must not be read with "
            f"kernel_input={here!r}; adapt_memory flattens it"
        )


def check_kernel_input(kernel_input: Any, normalize: Any, size: Any) -> None:
    """Raise ValueError unless the kernel input is known and the others go with it."""
    fits = kernel_input in ("direction", "history")
    require(fits, "kernel_input", "be 'direction' or 'history'", kernel_input)
    for name, value in (("normalize", normalize), ("evidence_sample", size)):
        fits = kernel_input == "direction" or value is None
        require(fits, name, "be None with kernel_input='history'", value)


def check_frozen(frozen: Iterable[str], labels: Iterable[str]) -> None:
    """Raise ValueError unless what is frozen are labels of the parameters."""
    unknown = sorted(set(frozen) - set(labels), key=str)
    allowed = f"have labels of the parameters, {sorted(set(labels))}"
    require(not unknown, "frozen", allowed, unknown)


def check_number_of_leaves(updates: optax.Updates, expected: int) -> None:
    """Raise ValueError, naming those that are None, unless updates have all leaves."""
    leaves = jax.tree_util.tree_leaves_with_path(updates, is_leaf=lambda x: x is None)
    without = [name_of(path) for path, leaf in leaves if leaf is None]
    found = [name_of(path) for path, leaf in leaves if leaf is not None]
    if len(found) != expected:
        raise ValueError(
            f"updates must have a leaf for each of the {expected} parameters that init "
            f"saw, got {len(found)}, {found}, and None at {without}; what has no "
            "gradient must be left out at init too (None, optax.masked), or be frozen "
            "with optax.partition and optax.set_to_zero"
        )


def check_shapes(updates: optax.Updates, shapes: Iterable[tuple[int, ...]]) -> None:
    """Raise ValueError, naming the leaf, unless updates have these shapes."""
    for (name, shape), expected in zip(_shapes(updates).items(), shapes, strict=True):
        allowed = f"have at {name or 'the top'} the shape that init saw, {expected}"
        require(shape == expected, "updates", allowed, shape)


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
    initial: Any, kernels: Any, kind: Any, rate_bounds: tuple[Any, Any]
) -> None:
    """Raise ValueError unless initial is a rate, a memory or a mapping of memories."""
    if not isinstance(initial, Memory | Mapping):
        value: Any = initial
        kinds = numbers.Number | np.generic | np.ndarray | jax.Array
        is_one = isinstance(initial, kinds) and not isinstance(initial, bool)
        is_one = is_one and np.shape(value) == ()
        allowed = "be a rate, a metalr_optax.Memory or a mapping from label to Memory"
        require(is_one, "initial", allowed, initial)
        check_rates("initial", initial, rate_bounds)
        return
    allowed = "be None when initial is a memory, which brings its own"
    require(kernels is None, "kernels", allowed, kernels)
    named: dict[str, Any] = {"initial": initial}
    if isinstance(initial, Mapping):
        named = {f"initial[{label!r}]": one for label, one in initial.items()}
    for name, memory in named.items():
        check_memory(name, memory, rate_bounds)
        check_seen(name, memory, kind)
    sizes = sorted({len(memory.rates) for memory in named.values()})
    allowed, hint = "have memories of one size M", "adapt_memory resamples them"
    require(len(sizes) <= 1, "initial", allowed, sizes, hint)


def check_local_models(initial: Any, num: int, options: tuple[Any, Any, Any]) -> None:
    """Raise ValueError unless what is learned besides rates fits num local models."""
    capacity, learned_widths, linear = options
    if capacity is not None:
        hint = f" (the local models at the start are {num}) or None"
        check_integer("capacity", capacity, max(num, 2), hint)
    for name, value in (("learned_widths", learned_widths), ("linear", linear)):
        require(isinstance(value, bool), name, "be True or False", value)
        allowed = "be False with a single local model, which has no input"
        fits = not value or num > 1 or capacity is not None
        require(fits, name, allowed, value)
    memories = initial.values() if isinstance(initial, Mapping) else [initial]
    for memory in memories:
        check_slopes("initial", memory, linear)


def check_slopes(name: str, memory: Any, linear: bool) -> None:
    """Raise ValueError if a memory has slopes that would not be read."""
    fits = linear or getattr(memory, "slopes", None) is None
    hint = "adapt_memory, or memory._replace(slopes=None), leaves them out"
    allowed = "have no slopes without linear=True"
    require(fits, name, allowed, getattr(memory, "slopes", None), hint)


def check_state(state: Any, kind: Any) -> None:
    """Raise ValueError unless a state is of a kind."""
    if not isinstance(state, kind):
        raise ValueError(f"state must be a {kind.__name__}, got {state!r}; {MOVE}")


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Return the shape of every leaf, by its path."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {name_of(path): np.shape(leaf) for path, leaf in leaves}


def name_of(path: Any) -> str:
    """Return the name of a leaf, the keys of its path; nothing for one at the top."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _is_real(values: np.ndarray) -> bool:
    return jnp.issubdtype(values.dtype, np.number) and not np.iscomplexobj(values)
