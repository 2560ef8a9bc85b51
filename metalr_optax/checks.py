"""What an argument must be, said by name where it is not."""

import numbers
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from metalr_optax.memory import Kernels, Memory

# Rates that any optimizer may hold; its own bounds are narrower.
POSITIVE = (1e-37, 1e37)
# With wider gaps than this (in widths) the square of a distance overflows float32
# and no kernel would answer at all.
_LARGEST_GAP = 1e15
MOVE = (
    "a state of metalr-optax 0.1 is another: with 0.1 save_memory(path, "
    "get_memory(state)), here start with initial=load_memory(path)"
)


def is_concrete(value: Any) -> bool:
    """Return whether an array has a value, which traced and abstract ones have not."""
    return not isinstance(value, jax.core.Tracer | jax.ShapeDtypeStruct)


def check_number(
    name: str, value: Any, low: float = 0.0, high: float = np.inf, closed: bool = False
) -> None:
    """Raise ValueError unless low < value < high; closed, low is allowed too."""
    if not is_concrete(value):
        return
    is_scalar = isinstance(value, numbers.Real) or (
        isinstance(value, jax.Array) and value.shape == ()
    )
    is_number = is_scalar and not isinstance(value, bool)
    if not (is_number and (low < value < high or (closed and value == low))):
        allowed = "positive, finite number"
        if closed or (low, high) != (0.0, np.inf):
            allowed = f"number in {'[' if closed else '('}{low:g}, {high:g})"
        raise ValueError(f"{name} must be a {allowed}, got {value!r}")


def check_sample(size: Any) -> None:
    """Raise ValueError unless size is a number of coordinates, or None."""
    if size is not None:
        hint = " or None (under optax.inject_hyperparams name it in static_args)"
        check_integer("evidence_sample", size, 1, hint)


def check_integer(name: str, value: Any, smallest: int, hint: str = "") -> None:
    """Raise ValueError unless value is an integer that is large enough."""
    is_integer = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not (is_integer and value >= smallest):
        raise ValueError(
            f"{name} must be an integer of at least {smallest}{hint}, got {value!r}"
        )


def check_transformation(name: str, value: Any) -> None:
    """Raise ValueError unless value is a transformation of Optax, or None."""
    if value is not None and not isinstance(value, optax.GradientTransformation):
        raise ValueError(
            f"{name} must be an optax.GradientTransformation or None, got {value!r}"
        )


def check_group_by(group_by: Any) -> None:
    """Raise ValueError unless group_by is a known name or a function."""
    if not callable(group_by) and group_by not in ("layer", "tensor", "all"):
        raise ValueError(
            "group_by must be 'layer', 'tensor', 'all' or a function "
            f"(path, leaf) -> label, got {group_by!r}"
        )


def check_bounds(rate_bounds: Any) -> None:
    """Raise ValueError unless rate_bounds are two rates in order; traced ones pass."""
    try:
        low, high = rate_bounds
        if not (is_concrete(low) and is_concrete(high)):
            return
        ordered = 0 < float(low) < float(high) < np.inf
    except (TypeError, ValueError):
        ordered = False
    if not ordered:
        raise ValueError(
            "rate_bounds must be two finite numbers with 0 < smallest < largest, got "
            f"{rate_bounds!r}"
        )


def check_kernels(kernels: Kernels, dtype: Any = np.float64) -> None:
    """Raise ValueError unless the kernels are usable in a dtype; traced ones pass."""
    if not isinstance(kernels, Kernels):
        raise ValueError(
            "kernels must be metalr_optax.Kernels, for example "
            f"linspace_kernels(2.0), got {kernels!r}"
        )
    shapes = np.shape(kernels.centers), np.shape(kernels.widths)
    if len(shapes[0]) != 1 or shapes[0] != shapes[1] or shapes[0][0] < 1:
        raise ValueError(
            "kernels must hold centers and widths of one shape [M] with M >= 1, "
            f"got {shapes[0]} and {shapes[1]}"
        )
    if not all(map(is_concrete, kernels)):
        return
    centers, widths = np.asarray(kernels.centers), np.asarray(kernels.widths)
    gaps, name = np.diff(centers.astype(dtype)), np.dtype(dtype)
    if not (np.isfinite(widths) & (widths.astype(dtype) >= np.finfo(dtype).tiny)).all():
        raise ValueError(f"widths must be positive and finite as {name}, got {widths}")
    if not (np.isfinite(centers).all() and (gaps > 0).all()):
        raise ValueError(
            f"centers must be finite and increasing as {name}, got {centers}"
        )
    if (gaps > _LARGEST_GAP * np.maximum(widths[1:], widths[:-1])).any():
        raise ValueError(
            f"neighbours must be within {_LARGEST_GAP:g} widths of each other, got "
            f"centers {centers} and widths {widths}"
        )


def check_rates(name: str, rates: Any, rate_bounds: tuple[Any, Any]) -> None:
    """Raise ValueError unless all rates are within the bounds; traced ones pass."""
    if not all(map(is_concrete, (rates, *rate_bounds))):
        return
    values = np.asarray(rates)
    if not jnp.issubdtype(values.dtype, np.number) or np.iscomplexobj(values):
        raise ValueError(f"{name} must have real numbers for rates, got {rates!r}")
    # A rate at a bound may have been rounded on its way here.
    inexact = jnp.issubdtype(values.dtype, np.inexact)
    slack = max(1e-6, float(jnp.finfo(values.dtype).eps)) if inexact else 0.0
    low, high = float(rate_bounds[0]), float(rate_bounds[1])
    values = values.astype(np.float64)
    if not ((values >= low * (1 - slack)) & (values <= high * (1 + slack))).all():
        raise ValueError(
            f"{name} must have rates within the bounds {rate_bounds}, got {rates}"
        )


def check_memory(
    name: str, memory: Memory, rate_bounds: tuple[Any, Any] = POSITIVE
) -> None:
    """Raise ValueError unless the memory is usable; traced values are trusted."""
    if not isinstance(memory, Memory):
        raise ValueError(f"{name} must be a metalr_optax.Memory, got {memory!r}")
    try:
        check_kernels(memory.kernels)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    shape = np.shape(memory.kernels.centers)
    if np.shape(memory.rates) != shape:
        raise ValueError(
            f"{name} must have one rate per kernel, shape {shape}, got rates of shape "
            f"{np.shape(memory.rates)}"
        )
    check_rates(name, memory.rates, rate_bounds)
    if memory.evidence_weight is None or not is_concrete(memory.evidence_weight):
        return
    weight = np.asarray(memory.evidence_weight)
    is_real = jnp.issubdtype(weight.dtype, np.number) and not np.iscomplexobj(weight)
    finite = is_real and (jnp.isfinite(weight) & (weight >= 0)).all()
    if not finite or weight.shape != shape:
        raise ValueError(
            f"{name} must have a finite evidence_weight of at least 0, shape {shape}, "
            f"got {memory.evidence_weight!r}"
        )


def check_memories(memory: Any) -> None:
    """Raise ValueError unless memory maps labels, which are strings, to something."""
    if not isinstance(memory, Mapping) or not memory:
        raise ValueError(
            "memory must be a mapping from label to metalr_optax.Memory with at least "
            f"one entry, got {memory!r}"
        )
    for label in memory:
        if not isinstance(label, str):
            raise ValueError(f"labels of memory must be strings, got {label!r}")


def check_normalized(name: str, memory: Memory, rms: bool) -> None:
    """Raise ValueError if the memory is known to be for other kernel inputs."""
    learned = memory.rms_normalized
    if learned is None or not is_concrete(learned) or np.size(memory.rates) == 1:
        return
    if bool(np.all(learned)) != rms:
        ways = "None", "'rms'"
        raise ValueError(
            f"{name} was learned with normalize={ways[not rms]} and must not be read "
            f"with normalize={ways[rms]}; adapt_memory flattens it"
        )


def check_gradient(gradient: Any, updates: optax.Updates) -> None:
    """Raise ValueError unless the argument grad= is like the updates."""
    structures = jax.tree.structure(gradient), jax.tree.structure(updates)
    shapes = [[leaf.shape for leaf in jax.tree.leaves(t)] for t in (gradient, updates)]
    if structures[0] != structures[1] or shapes[0] != shapes[1]:
        raise ValueError(
            "grad must have the structure and shapes of the updates, "
            f"{structures[1]} with {shapes[1]}, got {structures[0]} with {shapes[0]}; "
            "optax.masked and optax.partition mask it with "
            "mask_compatible_extra_args=True"
        )


def check_initial(
    initial: Any, kernels: Any, normalize: Any, rate_bounds: tuple[Any, Any]
) -> None:
    """Raise ValueError unless initial is a rate, a memory or a mapping of memories."""
    if not isinstance(initial, Memory | Mapping):
        is_one = isinstance(initial, numbers.Number | np.generic | jax.Array)
        value: Any = initial
        if isinstance(initial, bool) or not is_one or np.shape(value) != ():
            raise ValueError(
                "initial must be a rate, a metalr_optax.Memory or a mapping from label "
                f"to Memory, got {initial!r}"
            )
        check_rates("initial", initial, rate_bounds)
        return
    if kernels is not None:
        raise ValueError(
            "kernels must be None when initial is a memory, which brings its own, got "
            f"{kernels!r}"
        )
    named: dict[str, Any] = {"initial": initial}
    if isinstance(initial, Mapping):
        named = {f"initial[{label!r}]": one for label, one in initial.items()}
    for name, memory in named.items():
        check_memory(name, memory, rate_bounds)
        check_normalized(name, memory, normalize == "rms")
    sizes = sorted({len(memory.rates) for memory in named.values()})
    if len(sizes) > 1:
        raise ValueError(
            f"initial must have memories of one size M, got {sizes}; adapt_memory "
            "resamples them"
        )


def check_state(state: Any, kind: Any) -> None:
    """Raise ValueError unless a state is of a kind."""
    if not isinstance(state, kind):
        raise ValueError(f"state must be a {kind.__name__}, got {state!r}; {MOVE}")
