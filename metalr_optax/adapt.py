"""How a memory fits a model that it was not learned on."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from metalr_optax.checks import is_concrete, require
from metalr_optax.growing import LARGEST_SLOPE, padded
from metalr_optax.memory import Kernels, Memory, read
from metalr_optax.memory_checks import check_memories, check_memory, in_use
from metalr_optax.transfer import get_memory, memory_states

# The last part of a label that names a tensor; the part before it names the layer.
_ROLE_OF_TENSOR = {
    **dict.fromkeys(("kernel", "weight", "w"), "kernel"),
    **dict.fromkeys(("bias", "b"), "bias"),
    **dict.fromkeys(("scale", "offset"), "norm"),
    "embedding": "embedding",
}
_LAYERS = {
    "norm": re.compile(r"norm(?!al)|(^|[^a-z])(ln|bn)([^a-z]|$)"),
    "embedding": re.compile(r"embed|(^|[^a-z])(wte|wpe|pos|position)([^a-z]|$)"),
}


def match_labels(memory: Mapping[str, Any], opt_state: Any) -> dict[str, str | None]:
    """Return which of the known memories each label of a state should start from.

    In this order: the same label; the layer that a tensor is in; the same label where
    one of the two has something in front, such as ``params/`` or a part of an
    ``optax.partition``; a label that differs in numbers only, such as ``Dense_0`` and
    ``Dense_3``; one of the same role, which is kernel, bias, norm or embedding. Where
    there are several, the first layer goes to the first, the last to the last, and
    those between by their relative depth.

    Args:
      memory: label -> anything.
      opt_state: state with memories, as for :func:`get_memory`.

    Returns:
      label of the state -> label of the memory, or None where nothing has its role: all
      memories are pooled for it. Print it, change it, pass it to :func:`adapt_memory`.

    Raises:
      ValueError: a state that :func:`get_memory` refuses, no label, labels that are not
        strings.

    Examples:
      >>> import jax.numpy as jnp
      >>> from metalr_optax import match_labels, memory_sgd
      >>> params = {f"Dense_{i}": jnp.zeros((2, 2)) for i in range(4)}
      >>> state = memory_sgd().init(params | {"LayerNorm_0": jnp.zeros(2)})
      >>> match_labels({"Dense_0": ..., "Dense_1": ...}, state)  # doctest: +ELLIPSIS
      {'Dense_0': 'Dense_0', 'Dense_1': 'Dense_1', 'Dense_2': ... 'LayerNorm_0': None}

    .. seealso:: :func:`adapt_memory`.
    """
    check_memories(memory)
    new, old = list(get_memory(opt_state)), list(memory)
    return {label: _match(label, new, old) for label in new}


def adapt_memory(
    memory: Mapping[str, Memory],
    opt_state: Any,
    mapping: Mapping[str, str | None] | None = None,
) -> dict[str, Memory]:
    r"""Return memories with the labels and kernels of another optimizer's state.

    Other kernels are resampled: a rate is read at each new centre. With one local model
    on either side, or where kernels see something else, all new rates are the mean

    .. math:: \bar v = \exp(\textstyle\sum_m n_m \log v_m / \sum_m n_m)

    with the evidence weight :math:`n_m` of each local model, alike if there was none.
    A state with ``capacity`` takes a memory with its own kernels if there is room, and
    one with ``linear`` its slopes; where kernels are others, slopes are read too.

    Where a label starts from nothing, the rates are the same mean over all memories,
    each as it was resampled, weighted with all its evidence. Evidence goes along to the
    nearest new centres, or evenly to all of them where the rates are one mean; it is
    zero for what is pooled. So do schedules, of which a pooled one is the mean.

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
    check_memories(memory)
    likes = get_memory(opt_state)
    for name, memories in (("memory", memory), ("opt_state", likes)):
        known = all(map(is_concrete, jax.tree.leaves(dict(memories))))
        require(known, name, "have values: adapt it outside of jit", memories)
    for label, one in memory.items():
        check_memory(f"memory[{label!r}]", one)
    shapes = {like.rates.shape for like in likes.values() if like.rates.ndim != 1}
    hint = "adapt to one member of a vmapped state and stack"
    require(not shapes, "opt_state", "have rates of shape [M]", shapes, hint)
    mapping = match_labels(memory, opt_state) if mapping is None else mapping
    fits = isinstance(mapping, Mapping) and set(mapping) == set(likes)
    allowed = f"have the labels of opt_state, {sorted(likes)}"
    require(fits, "mapping", allowed, mapping)
    unknown = sorted(map(str, set(mapping.values()) - {*memory, None}))
    allowed = f"lead to labels of memory, {sorted(memory)}, or None"
    require(not unknown, "mapping", allowed, unknown)
    growing = _growing_labels(opt_state)
    adapted = {}
    for label, like in likes.items():
        source = mapping[label]
        if source is None:
            adapted[label] = _pool([_resample(one, like) for one in memory.values()])
        elif label in growing:
            adapted[label] = _resample(*_with_its_kernels(memory[source], like))
        else:
            adapted[label] = _resample(memory[source], like)
    return adapted


def _growing_labels(opt_state: Any) -> set[str]:
    """Return the labels of memories with room for more local models."""
    states = memory_states(opt_state)
    growing = [x for x in states if x[0].memory.disagreement is not None]
    return {label for _, labels in growing for label in labels}


def _with_its_kernels(memory: Memory, like: Memory) -> tuple[Memory, Memory]:
    """Return memories that both have the kernels of the first, if there is room."""
    num, kernels = len(like.rates), in_use(memory.kernels)
    elsewhere = _sees_else(memory, like)
    if elsewhere or not 1 < len(kernels.centers) <= num:
        return memory, like
    memory = padded(_only_used(memory), num)
    return memory, like._replace(kernels=memory.kernels)


def _sees_else(memory: Memory, like: Memory) -> bool:
    """Return whether the kernels of two memories are known to see different things."""
    is_other = memory.rms_normalized not in (None, like.rms_normalized)
    return is_other or (memory.history is None) != (like.history is None)


def _only_used(memory: Memory) -> Memory:
    """Return a memory without the local models that are not in use."""
    kernels = in_use(memory.kernels)
    num = len(kernels.centers)
    weight, slopes = (
        None if one is None else np.asarray(one)[:num]
        for one in (memory.evidence_weight, memory.slopes)
    )
    return memory._replace(
        kernels=kernels,
        rates=np.asarray(memory.rates)[:num],
        evidence_weight=weight,
        slopes=slopes,
    )


def _match(label: str, new: Sequence[str], old: Sequence[str]) -> str | None:
    if label in old:
        return label
    pairs = [(f"/{label}", f"/{one}", one) for one in old]
    inside = [name for here, there, name in pairs if here.endswith(there)]
    behind = [name for here, there, name in pairs if there.endswith(here)]
    # The layer that the tensor is in.
    around = [one for one in old if f"{label}/".startswith(f"{one}/")]
    for some in (around, inside):
        if some:
            return max(some, key=len)
    if len(behind) == 1:
        return behind[0]
    # What stands between numbers, then the role.
    for trait in (re.compile(r"\d+").split, _role):
        found = sorted((one for one in old if trait(one) == trait(label)), key=_natural)
        alike = sorted((one for one in new if trait(one) == trait(label)), key=_natural)
        if found:
            depth = alike.index(label) / max(len(alike) - 1, 1)
            return found[round(depth * (len(found) - 1))]
    return None


def _natural(label: str) -> list[Any]:
    return [int(x) if x.isdecimal() else x for x in re.split(r"(\d+)", label)]


def _role(label: str) -> str:
    # Numbers count layers in a list; the list has the name.
    parts = [part for part in label.lower().split("/") if not part.isdecimal()]
    *_, layer, tensor = ["", "", *parts]
    if tensor not in _ROLE_OF_TENSOR:
        layer, tensor = tensor, "kernel"
    roles = (role for role, names in _LAYERS.items() if names.search(layer))
    return next(roles, _ROLE_OF_TENSOR[tensor])


def _resample(memory: Memory, like: Memory) -> Memory:
    """Return the memory with the kernels of another, in NumPy."""
    like = jax.tree.map(np.asarray, like)
    old, new = np.asarray(memory.kernels), np.asarray(like.kernels)
    slopes = memory.slopes
    rates, weight = np.asarray(memory.rates), memory.evidence_weight
    weight = np.zeros(rates.shape) if weight is None else np.asarray(weight)
    elsewhere = _sees_else(memory, like)
    # Equal in the less precise of their dtypes are equal kernels.
    dtype = min(old.dtype, new.dtype, key=lambda dtype: dtype.itemsize)
    is_same = np.array_equal(old.astype(dtype), new.astype(dtype))
    if elsewhere or 1 in (rates.size, like.rates.size):
        used = old[1] > 0
        rates = np.full(like.rates.shape, _mean(rates[used], weight[used]))
        weight = np.full(like.rates.shape, weight.sum() / like.rates.size)
        slopes = None
    elif not is_same or (slopes is not None and like.slopes is None):
        left, rates, right = (
            np.asarray(read(Kernels(*old), rates, jnp.asarray(z), slopes))
            for z in (new[0] - new[1] / 2, new[0], new[0] + new[1] / 2)
        )
        slopes = np.clip((right - left) / rates, -LARGEST_SLOPE, LARGEST_SLOPE)
        # What a memory of one 1 among 0s reads is the share of that local model.
        ones, centers = jnp.eye(like.rates.size), jnp.asarray(old[0])
        share = jax.vmap(read, (None, 0, None))(Kernels(*new), ones, centers)
        weight = np.asarray(share) @ weight
    schedule = memory.schedule
    schedule = np.zeros_like(like.schedule) if schedule is None else schedule
    slopes = np.zeros(like.rates.shape) if slopes is None else slopes
    rates, weight, schedule, slopes = (
        np.asarray(one, like.rates.dtype) for one in (rates, weight, schedule, slopes)
    )
    return like._replace(
        rates=rates,
        evidence_weight=weight,
        schedule=schedule,
        slopes=None if like.slopes is None else slopes,
    )


def _pool(memories: Sequence[Memory]) -> Memory:
    """Return the mean of memories with equal kernels."""
    evidence = np.array([one.evidence_weight.sum() for one in memories])
    rates = _mean(np.stack([one.rates for one in memories]), evidence)
    schedules = np.stack([one.schedule for one in memories])
    first, dtype = memories[0], memories[0].rates.dtype
    return first._replace(
        rates=np.asarray(rates, dtype),
        evidence_weight=np.zeros_like(first.evidence_weight),
        schedule=np.asarray(_average(schedules, evidence), dtype),
    )


def _mean(rates: np.ndarray, weights: np.ndarray) -> Any:
    """Return the geometric mean over the first axis, by weight if there is any."""
    return np.exp(_average(np.log(rates, dtype=np.float64), weights))


def _average(values: np.ndarray, weights: np.ndarray) -> Any:
    weights = weights if weights.sum() > 0 else np.ones_like(weights)
    return np.average(values, axis=0, weights=weights)
