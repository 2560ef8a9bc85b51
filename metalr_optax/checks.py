"""What an argument must be, named where it is not."""

import functools
import numbers
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from metalr_optax.memory import Memory

P = ParamSpec("P")
R = TypeVar("R")

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
        schedule: Any = multiplier
        counts = _COUNTS if callable(multiplier) else []
        values = [schedule(count) for count in counts] or [multiplier]
        if all(map(is_concrete, values)):
            rates = [float(value) for value in values]
            _warn_of_rates(rates, "a schedule up to " if len(counts) else "")


def _warn_of_rates(values: Sequence[float], what: str) -> None:
    largest = max(values)
    if 0 < largest < _RATE_NOT_FACTOR:
        warn(
            f"learning_rate={what}{largest:g} multiplies the learned rates, which "
            "climb against it, and 1 leaves them as they are; a rate to start from is "
            f"initial={largest:g}, a schedule has multipliers up to 1",
        )


def warn(text: str) -> None:
    """Warn at the line outside of this package that called it."""
    folder, frame, level = os.path.dirname(__file__), sys._getframe(), 1
    while frame.f_back and frame.f_code.co_filename.startswith(folder):
        frame, level = frame.f_back, level + 1
    warnings.warn(text, stacklevel=level)


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


def check_step(updates: Any, labels: Any, state: Any, kind: Any, gradient: Any) -> None:
    """Raise ValueError unless a state of a kind has memories for real updates."""
    check_state(state, kind)
    check_real(updates)
    texts = [[label] if isinstance(label, str) else label for label in labels]
    unknown = sorted({name for names in texts for name in names} - set(state.rows))
    if unknown:
        raise ValueError(
            f"updates have the labels {unknown}, but the state has memories for "
            f"{sorted(state.rows)}: it must come from init with parameters of this "
            "structure"
        )
    if gradient is not None:
        check_gradient(gradient, updates)


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


def refuse_samples(updates: Any, found: int, expected: int) -> None:
    """Raise ValueError for updates that give another number of samples than init."""
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
