"""How a memory fits a model that it was not learned on."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from metalr_optax.kernels import Kernels, log_activation
from metalr_optax.memory import POSITIVE, Memory, check_memory, is_known, read
from metalr_optax.transfer import get_memory

# The last part of a label that names a tensor; the part before it names the layer.
_ROLE_OF_TENSOR = {
    "kernel": "kernel",
    "weight": "kernel",
    "w": "kernel",
    "bias": "bias",
    "b": "bias",
    "scale": "norm",
    "offset": "norm",
    "embedding": "embedding",
}
_LAYERS = {
    "norm": re.compile(r"norm(?!al)|(^|[^a-z])(ln|bn)([^a-z]|$)"),
    "embedding": re.compile(r"embed|(^|[^a-z])(wte|wpe|pos|position)([^a-z]|$)"),
}


def match_labels(memory: Mapping[str, Any], opt_state: Any) -> dict[str, str | None]:
    """Return which of the known memories each label of a state should start from.

    In this order: the same label; the layer that a tensor is in; a label that differs
    in numbers only, such as ``Dense_0`` and ``Dense_3``; one of the same role, which is
    kernel, bias, norm or embedding. Where there are several, the first layer goes to
    the first, the last to the last, and those between by their relative depth.

    Args:
      memory: label -> anything.
      opt_state: state with memories, as for :func:`get_memory`.

    Returns:
      label of the state -> label of the memory, or None where nothing has its role: all
      memories are pooled for it. Print it, change it, pass it to :func:`adapt_memory`.

    Raises:
      ValueError: a state that :func:`get_memory` refuses, labels that are not texts.

    Examples:
      >>> import jax.numpy as jnp
      >>> from metalr_optax import match_labels, memory_sgd
      >>> params = {f"Dense_{i}": jnp.zeros((2, 2)) for i in range(4)}
      >>> state = memory_sgd().init(params | {"LayerNorm_0": jnp.zeros(2)})
      >>> match_labels({"Dense_0": ..., "Dense_1": ...}, state)  # doctest: +ELLIPSIS
      {'Dense_0': 'Dense_0', 'Dense_1': 'Dense_1', 'Dense_2': ... 'LayerNorm_0': None}

    .. seealso:: :func:`adapt_memory`.
    """
    for label in memory:
        if not isinstance(label, str):
            raise ValueError(f"labels of memory must be texts, got {label!r}")
    new, old = list(get_memory(opt_state)), list(memory)
    return {label: _match(label, new, old) for label in new}


def adapt_memory(
    memory: Mapping[str, Memory],
    opt_state: Any,
    mapping: Mapping[str, str | None] | None = None,
) -> dict[str, Memory]:
    r"""Return memories with the labels and kernels of another optimizer's state.

    Other kernels are resampled: a rate is read at each new centre. With one local model
    on either side, or addresses of another kind, all new rates are the mean

    .. math:: \bar v = \exp(\textstyle\sum_m n_m \log v_m / \sum_m n_m)

    weighted with the evidence :math:`n_m` (``counts``) of each local model, alike if
    there was none. Where a label starts from nothing, the rates are the same mean over
    all memories, each as it was resampled, weighted with all its evidence. Counts go
    along to the nearest new centres, or evenly to all of them where the rates are one
    mean; they are zero for what is pooled.

    Args:
      memory: label -> :class:`Memory`, from :func:`get_memory` or :func:`load_memory`.
      opt_state: state whose labels and kernels are meant, such as a fresh one.
      mapping: label of the state -> label of the memory, or None for all of them;
        default ``match_labels(memory, opt_state)``.

    Returns:
      label -> :class:`Memory` of NumPy arrays, for ``initial=`` or :func:`set_memory`.

    Raises:
      ValueError: memories that are none or not [M], a mapping that does not fit, a
        state that :func:`get_memory` refuses.

    Examples:
      A deeper network starts with what a flatter one learned:

      >>> import jax.numpy as jnp
      >>> from metalr_optax import adapt_memory, get_memory, memory_sgd, set_memory
      >>> small = {f"Dense_{i}": jnp.zeros((2, 2)) for i in range(2)}
      >>> large = {f"Dense_{i}": jnp.zeros((9, 9)) for i in range(5)}
      >>> learned = get_memory(memory_sgd(initial=0.25).init(small))
      >>> state = memory_sgd().init(large)
      >>> state = set_memory(state, adapt_memory(learned, state))
      >>> [float(one.rates[0]) for one in get_memory(state).values()]
      [0.25, 0.25, 0.25, 0.25, 0.25]

    .. seealso:: :func:`match_labels`, :func:`set_memory`.
    """
    if not isinstance(memory, Mapping) or not memory:
        raise ValueError(
            "memory must be a mapping from label to metalr_optax.Memory with at least "
            f"one entry, got {memory!r}"
        )
    _check_known("memory", memory)
    for label, one in memory.items():
        check_memory(f"memory[{label!r}]", one, POSITIVE)
    likes = get_memory(opt_state)
    _check_known("opt_state", likes)
    for label, like in likes.items():
        if like.rates.ndim != 1:
            raise ValueError(
                f"opt_state must have one memory per label, got rates of shape "
                f"{like.rates.shape} for {label!r}: adapt to one member of a vmapped "
                "state and stack"
            )
    if mapping is None:
        mapping = match_labels(memory, opt_state)
    _check_mapping(mapping, set(likes), set(memory))
    adapted = {}
    for label, like in likes.items():
        source = mapping[label]
        if source is None:
            adapted[label] = _pool([_resample(one, like) for one in memory.values()])
        else:
            adapted[label] = _resample(memory[source], like)
    return adapted


def _match(label: str, new: Sequence[str], old: Sequence[str]) -> str | None:
    if label in old:
        return label
    around = [one for one in old if label.startswith(one + "/")]
    if around:
        return max(around, key=len)
    for trait in (_without_numbers, _role):
        found = sorted((one for one in old if trait(one) == trait(label)), key=_natural)
        alike = sorted((one for one in new if trait(one) == trait(label)), key=_natural)
        if found:
            depth = alike.index(label) / max(len(alike) - 1, 1)
            return found[round(depth * (len(found) - 1))]
    return None


def _without_numbers(label: str) -> str:
    return re.sub(r"\d+", "#", label)


def _natural(label: str) -> list[Any]:
    parts = re.split(r"(\d+)", label)
    return [int(part) if part.isdecimal() else part for part in parts]


def _role(label: str) -> str:
    # Numbers count layers in a list; the list has the name.
    parts = [part for part in label.lower().split("/") if not part.isdecimal()]
    *_, layer, tensor = ["", "", *parts]
    if tensor not in _ROLE_OF_TENSOR:
        layer, tensor = tensor, "kernel"
    for role, names in _LAYERS.items():
        if names.search(layer):
            return role
    return _ROLE_OF_TENSOR[tensor]


def _check_known(name: str, memory: Mapping[str, Memory]) -> None:
    if not all(map(is_known, jax.tree.leaves(dict(memory)))):
        raise ValueError(f"{name} must have values: adapt it outside of jit")


def _check_mapping(mapping: Any, new: set[str], old: set[str]) -> None:
    if not isinstance(mapping, Mapping) or set(mapping) != new:
        raise ValueError(
            f"mapping must have the labels of opt_state, {sorted(new)}, got {mapping!r}"
        )
    unknown = {one for one in mapping.values() if one is not None} - old
    if unknown:
        raise ValueError(
            f"mapping must lead to labels of memory, {sorted(old)}, or None, got "
            f"{sorted(map(str, unknown))}"
        )


def _resample(memory: Memory, like: Memory) -> Memory:
    """Return the memory with the kernels of another, in NumPy."""
    (old, rates, counts, relative), new = _in_numpy(memory), _in_numpy(like)
    alone = 1 in (rates.size, new.rates.size)
    elsewhere = relative is not None and relative != new.relative
    if alone or elsewhere:
        rates = np.full(new.rates.shape, _mean(rates, counts))
        counts = np.full(new.rates.shape, counts.sum() / new.rates.size)
    elif not all(_is_same(*pair) for pair in zip(old, new.kernels, strict=True)):
        rates = np.asarray(read(memory, jnp.asarray(new.kernels.centers)))
        centers = jnp.asarray(old.centers)
        strength = np.array(
            [log_activation(one, new.kernels, centers) for one in _each(new.kernels)]
        )
        strength = np.exp(strength - strength.max(axis=0))
        counts = strength / strength.sum(axis=0) @ counts
    dtype = new.rates.dtype
    return new._replace(rates=rates.astype(dtype), counts=counts.astype(dtype))


def _in_numpy(memory: Memory) -> Any:
    (centers, widths), rates, counts, relative = memory
    return Memory(
        Kernels(np.asarray(centers), np.asarray(widths)),
        np.asarray(rates),
        np.zeros(np.shape(rates)) if counts is None else np.asarray(counts),
        None if relative is None else np.asarray(relative),
    )


def _is_same(one: np.ndarray, other: np.ndarray) -> bool:
    """Return whether arrays are equal in the less precise of their dtypes."""
    dtype = min(one.dtype, other.dtype, key=lambda dtype: dtype.itemsize)
    return np.array_equal(one.astype(dtype), other.astype(dtype))


def _each(kernels: Kernels) -> list[Kernels]:
    return [Kernels(*one) for one in zip(*kernels, strict=True)]


def _pool(memories: Sequence[Memory]) -> Memory:
    """Return the mean of memories with equal kernels."""
    rates = np.stack([one.rates for one in memories]).astype(np.float64)
    evidence = np.array([one.counts.sum() for one in memories])
    pooled = [_mean(column, evidence) for column in rates.T]
    one = memories[0]
    return one._replace(
        rates=np.array(pooled, one.rates.dtype), counts=np.zeros_like(one.counts)
    )


def _mean(rates: np.ndarray, counts: np.ndarray) -> float:
    weights = counts if counts.sum() > 0 else np.ones_like(counts)
    logs = np.log(rates, dtype=np.float64)
    return float(np.exp(np.average(logs, weights=weights)))
