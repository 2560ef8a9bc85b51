"""Checks of arguments, whose errors name what is allowed."""

import functools
import numbers
import os
import reprlib
import sys
import textwrap
import warnings
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

P = ParamSpec("P")
R = TypeVar("R")

# A smaller multiplier than this was probably meant as a rate, as with other optimizers.
_RATE_NOT_FACTOR = 0.2
# The steps at which a schedule is evaluated, up to the number of steps of a long run.
_COUNTS = np.concatenate([[0], np.geomspace(1, 1e5, 26)]).astype(np.int32)

MOVE = (
    "pass what optimizer.init(params) or update returned; of an older version only the "
    "memory fits, by save_memory and initial=load_memory(path)"
)
_LEAVE_OUT = (
    "leave what has no gradient out at init too (None, optax.masked), or freeze it "
    "with optax.partition and optax.set_to_zero"
)
_REPLACEMENTS = {
    "stacked": "group_by=lambda path, leaf: [f'layer/{i}' for i in range(len(leaf))], "
    "a label for each slice of the first axis",
    "frozen": "optax.partition, with memory_optimizer=optax.set_to_zero() in a part",
    "inner": "base_optimizer",
    "address": "normalize",
}


def without(*names: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Return a decorator that refuses removed arguments and names a replacement."""

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
    """Return whether an array is concrete, neither traced nor abstract."""
    return not isinstance(value, jax.core.Tracer | jax.ShapeDtypeStruct)


def is_real(dtype: Any) -> bool:
    """Return whether a dtype is one of real numbers, which bool is not."""
    return jnp.issubdtype(dtype, np.integer) or jnp.issubdtype(dtype, np.floating)


def is_text(value: Any) -> bool:
    """Return whether a value is a string of UTF-8, without half a surrogate pair."""
    return isinstance(value, str) and value == value.encode(errors="ignore").decode()


def is_number(value: Any) -> bool:
    """Return whether a value is a single real number, of Python, NumPy or JAX."""
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return value.shape == () and is_real(value.dtype)
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


class _Repr(reprlib.Repr):
    """Shows a few entries of a collection, numbers, and only the type of the rest."""

    def repr_instance(self, x: Any, level: int) -> str:
        if hasattr(x, "shape") and hasattr(x, "dtype"):
            if is_concrete(x) and np.size(x) == 1:
                return repr(np.asarray(x).item())
            return f"an array ({type(x).__name__}) of {x.dtype} and shape {x.shape}"
        if x is None or isinstance(x, numbers.Number):
            return super().repr_instance(x, level)
        return f"{type(x).__name__} {getattr(x, '__name__', '')}".rstrip()


_REPR = _Repr()
_REPR.maxlevel = _REPR.maxlist = _REPR.maxdict = _REPR.maxtuple = 2
_REPR.maxstring = _REPR.maxother = 60


def describe(value: Any) -> str:
    """Return a value for an error: its type, or the dtype and shape of an array."""
    return textwrap.shorten(_REPR.repr(value), 200, placeholder="...")


def require(fits: Any, name: str, allowed: str, value: Any, hint: str = "") -> None:
    """Raise ValueError with name, what is allowed and the value, unless it fits."""
    if not fits:
        text = f"{name} must {allowed}, got {describe(value)}"
        raise ValueError(text + (f"; {hint}" if hint else ""))


def check_number(
    name: str, value: Any, low: float = 0.0, high: float = np.inf, closed: bool = False
) -> None:
    """Raise ValueError unless low < value < high; closed, low is allowed too."""
    if is_concrete(value):
        number = float(value) if is_number(value) else np.nan
        fits = low < number < high or (closed and number == low)
        allowed = f"be a number in {'[' if closed else '('}{low:g}, {high:g})"
        require(fits, name, allowed, value)


def is_among(value: Any, *choices: Any) -> bool:
    """Return whether a value is one of the choices; no array is."""
    return any(value is choice for choice in choices) or (
        isinstance(value, str) and value in choices
    )


def check_flag(name: str, value: Any) -> None:
    """Raise ValueError unless value is True or False."""
    require(isinstance(value, bool), name, "be True or False", value)


def check_mask(mask: Any) -> None:
    """Raise ValueError unless mask is None, a function or a tree of booleans."""
    flags = [
        isinstance(leaf, bool)
        or jnp.issubdtype(getattr(leaf, "dtype", float), np.bool_)
        for leaf in jax.tree.leaves(mask)
    ]
    fits = callable(mask) or all(flags)
    allowed = "be a tree of booleans, or a function from parameters to such a tree"
    require(fits, "mask", allowed, mask)


def check_moments(b1: Any, b2: Any, eps: Any, eps_root: Any = 0.0) -> None:
    """Raise ValueError unless these are valid hyperparameters of Adam."""
    for name, value in (("b1", b1), ("b2", b2)):
        check_number(name, value, 0.0, 1.0, closed=True)
    for name, value in (("eps", eps), ("eps_root", eps_root)):
        check_number(name, value, closed=True)


def check_integer(name: str, value: Any, smallest: int, hint: str = "") -> None:
    """Raise ValueError unless value is an integer that is large enough."""
    is_integer = isinstance(value, int | np.integer) and not isinstance(value, bool)
    fits = is_integer and value >= smallest
    require(fits, name, f"be an integer of at least {smallest}{hint}", value)


def check_multiplier(multiplier: Any) -> None:
    """Raise ValueError for an invalid multiplier, warn of one that looks like a rate.

    An optimizer can be built without a device, so JAX arrays and schedules are left to
    :func:`warn_of_rate`, which `init` calls.
    """
    is_late = callable(multiplier) or isinstance(multiplier, jax.Array)
    fits = callable(multiplier) or is_number(multiplier)
    fits = fits and (is_late or 0 <= multiplier < np.inf)
    allowed = "be a number of at least 0, or a schedule from a count to one"
    require(fits, "learning_rate", allowed, multiplier)
    if not is_late:
        _warn_of_rates([multiplier])


def warn_of_rate(multiplier: Any) -> None:
    """Warn if the largest value of an array or schedule looks like a rate."""
    if isinstance(multiplier, jax.Array):
        check_number("learning_rate", multiplier, closed=True)
        _warn_of_rates([multiplier])
    elif callable(multiplier):
        # A schedule has values even while `init` is traced.
        with jax.ensure_compile_time_eval():
            _warn_of_rates([multiplier(count) for count in _COUNTS])


def _warn_of_rates(values: Sequence[Any]) -> None:
    largest = max(map(float, values)) if all(map(is_concrete, values)) else 0
    if 0 < largest < _RATE_NOT_FACTOR:
        warn(
            f"learning_rate up to {largest:g} multiplies learned rates, so steps are "
            "too small; leave it out, or give a schedule a peak of 1: a rate to start "
            f"from is initial={largest:g}"
        )


def warn(text: str) -> None:
    """Warn at the line outside of this package that called it."""
    folder, frame, level = os.path.dirname(__file__), sys._getframe(), 1
    while frame.f_back and frame.f_code.co_filename.startswith(folder):
        frame, level = frame.f_back, level + 1
    warnings.warn(text, stacklevel=level)


def check_start(name: str, initial: Any, largest: float) -> None:
    """Raise ValueError if an optimizer would start above its largest rate."""
    is_rate = is_concrete(initial) and is_number(initial)
    fits = not is_rate or float(initial) <= largest * (1 + 1e-6)
    allowed = f"be at most {largest} for {name}, whose rates climb by themselves"
    require(fits, "initial", allowed, initial)


def check_transformation(name: str, value: Any, *, optional: bool = True) -> None:
    """Raise ValueError unless value is a transformation of Optax, or may be None."""
    fits = isinstance(value, optax.GradientTransformation)
    fits = fits or (optional and value is None)
    allowed = "be an optax.GradientTransformation, such as optax.adam(1.0)"
    require(fits, name, allowed, value)


def check_bounds(rate_bounds: Any) -> None:
    """Raise ValueError unless rate_bounds are two rates in order; traced ones pass."""
    try:
        low, high = rate_bounds
        is_traced = not (is_concrete(low) and is_concrete(high))
        fits = is_traced or 0 < float(low) < float(high) < np.inf
    except (TypeError, ValueError):
        fits = False
    allowed = "be two finite numbers with 0 < smallest < largest"
    require(fits, "rate_bounds", allowed, rate_bounds)


def check_kernel_inputs(normalize: Any, kernel_input: Any, size: Any) -> None:
    """Raise ValueError unless these are a valid choice of kernel inputs."""
    fits = is_among(normalize, "rms", None)
    require(fits, "normalize", "be 'rms' or None", normalize)
    fits = is_among(kernel_input, "direction", "history")
    require(fits, "kernel_input", "be 'direction' or 'history'", kernel_input)
    for name, value in (("normalize", normalize), ("evidence_sample", size)):
        fits = kernel_input == "direction" or value is None
        require(fits, name, "be None with kernel_input='history'", value)


def check_evidence(signal: Any, group_by: Any, size: Any) -> None:
    """Raise ValueError unless these are a valid choice of evidence."""
    allowed = "be a function of (gradient, last_direction)"
    require(signal is None or callable(signal), "signal", allowed, signal)
    fits = callable(group_by) or is_among(group_by, "layer", "tensor", "all")
    allowed = "be 'layer', 'tensor', 'all' or a function (path, leaf) -> label"
    require(fits, "group_by", allowed, group_by)
    if size is not None:
        hint = " or None (under optax.inject_hyperparams name it in static_args)"
        check_integer("evidence_sample", size, 1, hint)


def check_step(updates: Any, labels: Any, state: Any, kind: Any, gradient: Any) -> None:
    """Raise ValueError unless updates are real and fit a state of a kind."""
    check_state(state, kind)
    check_real(updates)
    found = set(jax.tree.leaves(labels))
    unknown = sorted(found - set(state.rows))
    allowed = f"have labels that init saw, such as {describe(sorted(state.rows))}"
    require(not unknown, "updates", allowed, unknown)
    missing = sorted(set(state.rows) - found)
    if missing:
        raise ValueError(
            "updates must have a leaf for each label that init saw, none for "
            f"{describe(missing)}; {_LEAVE_OUT}"
        )
    if gradient is not None:
        check_gradient(gradient, updates)


def check_real(updates: optax.Updates) -> None:
    """Raise ValueError, naming the leaf, if updates are complex."""
    hint = "optax.contrib.split_real_and_imaginary splits them"
    for name, leaf in _named_leaves(updates):
        fits = not jnp.iscomplexobj(leaf)
        require(fits, "updates", f"be real at {name}", leaf, hint)


def check_like_init(updates: Any, shapes: Sequence[tuple[int, ...]]) -> None:
    """Raise ValueError, naming the leaf, unless updates have the shapes of init."""
    found = _shapes(updates)
    if len(found) != len(shapes):
        refuse_samples(updates, len(found), len(shapes))
    for (name, shape), expected in zip(found, shapes, strict=True):
        allowed = f"have at {name} the shape that init saw, {expected}"
        require(shape == expected, "updates", allowed, shape)


def refuse_samples(updates: Any, found: int, expected: int) -> None:
    """Raise ValueError: the number of leaves, or of samples, is not that of init."""
    leaves = _named_leaves(updates, is_leaf=lambda leaf: leaf is None)
    absent = describe([name for name, leaf in leaves if leaf is None])
    raise ValueError(
        f"updates must have the {expected} leaves or samples that init saw, got {found}"
        f" and None at {absent}; {_LEAVE_OUT}"
    )


def check_params(params: Any, updates: optax.Updates) -> None:
    """Raise ValueError, naming the leaves, unless there are parameters for updates."""
    missing = dict(_shapes(updates)).keys() - dict(_shapes(params)).keys()
    allowed = f"have leaves for those of the updates at {describe(sorted(missing))}"
    require(params is None or not missing, "params", allowed, None)


def check_gradient(gradient: Any, updates: optax.Updates) -> None:
    """Raise ValueError unless the argument grad= is like the updates."""
    found, expected = set(_shapes(gradient)), set(_shapes(updates))
    fits = jax.tree.structure(gradient) == jax.tree.structure(updates)
    there = describe(dict(expected - found))
    allowed = f"have the structure and shapes of the updates, there {there}"
    hint = "optax.masked, optax.partition: mask_compatible_extra_args=True masks it"
    require(fits and found == expected, "grad", allowed, dict(found - expected), hint)


def check_state(state: Any, kind: Any) -> None:
    """Raise ValueError unless a state is of a kind."""
    require(isinstance(state, kind), "state", f"be a {kind.__name__}", state, MOVE)


def nodes_of(tree: Any, kind: Any) -> list[tuple[Any, Any]]:
    """Return path and node of all outermost nodes of a kind in a tree."""
    leaves = jax.tree_util.tree_leaves_with_path(
        tree, is_leaf=lambda node: isinstance(node, kind)
    )
    return [(path, node) for path, node in leaves if isinstance(node, kind)]


def _named_leaves(tree: Any, **options: Any) -> list[tuple[str, Any]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree, **options)
    return [(name_of(path) or "the top", leaf) for path, leaf in leaves]


def _shapes(tree: Any) -> list[tuple[str, tuple[int, ...]]]:
    return [(name, np.shape(leaf)) for name, leaf in _named_leaves(tree)]


def name_of(path: Any) -> str:
    """Return the name of a leaf, the keys of its path; empty for one at the top."""
    return jax.tree_util.keystr(path, simple=True, separator="/")
