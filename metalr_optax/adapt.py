"""Adapt a memory to a model that it was not learned on."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from metalr_optax.bases import steps_like_adam
from metalr_optax.checks import describe, is_concrete, require
from metalr_optax.growing import LARGEST_SLOPE, padded
from metalr_optax.memory import MARKS, Kernels, Memory, read
from metalr_optax.memory_checks import check_memories, check_memory, in_use
from metalr_optax.transfer import get_memory, memory_states

# The first pattern that is found in a label gives its role; without any it is a kernel.
# Names of layers are the last part of a label, or precede the name of a tensor.
_LAYER_END = r"[^/]*(/(kernel|weight|w|bias|b|scale|offset|embedding))?$"
_ROLES = (
    ("norm", rf"(norm(?!al)|(?<![a-z])(ln|bn)(?![a-z])){_LAYER_END}"),
    ("embedding", rf"(embed|(?<![a-z])(wte|wpe|pos|position)(?![a-z])){_LAYER_END}"),
    ("norm", r"(^|/)(scale|offset)$"),
    ("bias", r"(^|/)(bias|b)$"),
)


def match_labels(memory: Mapping[str, Any], opt_state: Any) -> dict[str, str | None]:
    """Return which memory each label of a state should start from.

    In this order: the same label; the layer that a tensor is in; the same label where
    one of the two has a prefix, such as ``params/`` or a part of an
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
    targets = list(get_memory(opt_state))
    return {label: _match(label, targets, list(memory)) for label in targets}


def adapt_memory(
    memory: Mapping[str, Memory],
    opt_state: Any,
    mapping: Mapping[str, str | None] | None = None,
) -> dict[str, Memory]:
    r"""Return memories with the labels and kernels of another optimizer's state.

    Other kernels are resampled: a rate is read at each new centre. With one local model
    on either side, or with other kernel inputs, all new rates are the mean

    .. math:: \bar v = \exp(\textstyle\sum_m n_m \log v_m / \sum_m n_m)

    with the evidence weight :math:`n_m` of each local model, all equal without any. A
    state with ``capacity`` keeps the kernels of the memory if there is room, and one
    with ``linear`` its slopes; with other kernels, slopes are resampled too.

    A label without a source pools all memories: its rates are the same mean over the
    resampled memories, each weighted with all its evidence, its schedule is their mean
    schedule, and its evidence is zero. Otherwise schedules are copied, and evidence
    moves to the nearest new centres, or evenly to all if the rates are one mean.

    Steps of Adam are as large in every coordinate, so what they change in the output of
    a unit grows with its inputs :math:`n` (``fan_in`` of a memory). Where a state has
    Adam for all of its tensors, and both are known,

    .. math:: v \leftarrow v \cdot \min(1, n_\mathrm{memory} / n_\mathrm{state})

    comes first. Rates are never raised by this: they climb by themselves. The rates of
    other optimizers are as they were.

    Args:
      memory: label -> :class:`Memory`, from :func:`get_memory` or :func:`load_memory`.
      opt_state: state whose labels and kernels are meant, such as a fresh one.
      mapping: label of the state -> label of the memory, or None for all of them;
        labels that it leaves out keep the memory of the state, such as a new head;
        default ``match_labels(memory, opt_state)``.

    Returns:
      label -> :class:`Memory` of NumPy arrays, for ``initial=`` or :func:`set_memory`.

    Raises:
      ValueError: memories that are none or not [M], a mapping that does not fit, a
        state that :func:`get_memory` refuses.

    Examples:
      A deeper network starts with what a shallower one learned:

      >>> import jax.numpy as jnp
      >>> from metalr_optax import adapt_memory, get_memory, memory_sgd, set_memory
      >>> small = {f"Dense_{i}": jnp.zeros((2, 2)) for i in range(2)}
      >>> large = {f"Dense_{i}": jnp.zeros((9, 9)) for i in range(5)}
      >>> learned = get_memory(memory_sgd(initial=0.25).init(small))
      >>> state = memory_sgd().init(large)
      >>> state = set_memory(state, adapt_memory(learned, state))
      >>> [float(x.rates[0]) for x in get_memory(state).values()]
      [0.25, 0.25, 0.25, 0.25, 0.25]

    References:
      Yang et al., `Tensor Programs V: Tuning Large Neural Networks via Zero-Shot
      Hyperparameter Transfer <https://arxiv.org/abs/2203.03466>`_, 2022.

    .. seealso:: :func:`match_labels`, :func:`set_memory`.
    """
    check_memories(memory)
    targets, growing, of_adam = get_memory(opt_state), set(), set()
    for state, labels in memory_states(opt_state):
        if state.memory.disagreement is not None:
            growing.update(labels)
        if steps_like_adam(state.base_state):
            of_adam.update(labels)
    for label, source in memory.items():
        check_memory(f"memory[{label!r}]", source)
    has_values = all(map(is_concrete, jax.tree.leaves((dict(memory), targets))))
    allowed = "have values: adapt it outside of jit"
    require(has_values, "memory and opt_state", allowed, memory)
    shapes = {target.rates.shape for target in targets.values()}
    fits = all(len(shape) == 1 for shape in shapes)
    hint = "adapt to one member of a vmapped state and stack"
    require(fits, "opt_state", "have rates of shape [M]", shapes, hint)
    mapping = match_labels(memory, opt_state) if mapping is None else mapping
    fits = isinstance(mapping, Mapping) and set(mapping) <= set(targets)
    allowed = f"have labels of opt_state, {describe(sorted(targets))}"
    hint = "match_labels(memory, opt_state) returns one to start from"
    require(fits, "mapping", allowed, mapping, hint)
    texts = (value for value in mapping.values() if value is not None)
    unknown = [x for x in texts if not isinstance(x, str) or x not in memory]
    allowed = f"lead to labels of memory, {describe(sorted(memory))}, or None"
    require(not unknown, "mapping", allowed, unknown)
    adapted = {label: jax.tree.map(np.asarray, x) for label, x in targets.items()}
    for label, source in mapping.items():
        target = targets[label]
        sources = list(memory.values()) if source is None else [memory[source]]
        if label in of_adam:
            sources = [_scaled(other, target) for other in sources]
        if source is None:
            new = _pooled([_resampled(other, target) for other in sources])
        else:
            new = _resampled(sources[0], target, label in growing)
        new = padded(new, len(target.rates))
        adapted[label] = jax.tree.map(
            lambda array, old: np.asarray(array, old.dtype), new, target
        )
    return adapted


def _match(label: str, targets: Sequence[str], sources: Sequence[str]) -> str | None:
    """Return the source of a label, by the rules of match_labels in their order."""
    around = [x for x in sources if f"{label}/".startswith(f"{x}/")]
    inside = [x for x in sources if f"/{label}".endswith(f"/{x}")]
    behind = [x for x in sources if f"/{x}".endswith(f"/{label}")]
    if around or inside:
        return max(around or inside, key=len)
    if len(behind) == 1:
        return behind[0]
    for trait in (re.compile(r"\d+").split, _role):
        found, alike = (
            sorted((x for x in labels if trait(x) == trait(label)), key=_by_number)
            for labels in (sources, targets)
        )
        if found:
            depth = alike.index(label) / max(len(alike) - 1, 1)
            return found[round(depth * (len(found) - 1))]
    return None


def _by_number(label: str) -> list[Any]:
    """Return a key for sorting with which 10 comes after 9."""
    return [int(x) if x.isdecimal() else x for x in re.split(r"(\d+)", label)]


def _role(label: str) -> str:
    """Return what a label is a memory of: kernel, bias, norm or embedding."""
    # Numbers count layers in a list; the list has the name.
    parts = label.lower().split("/")
    name = "/".join(part for part in parts if not part.isdecimal())
    return next((role for role, text in _ROLES if re.search(text, name)), "kernel")


def _scaled(memory: Memory, target: Memory) -> Memory:
    """Return a memory with lower rates where the fan-in of a target is known larger."""
    if not memory.fan_in or not target.fan_in:
        return memory
    ratio = min(1.0, float(memory.fan_in) / float(target.fan_in))
    return memory._replace(rates=np.asarray(memory.rates, np.float64) * ratio)


def _resampled(memory: Memory, target: Memory, grows: bool = False) -> Memory:
    """Return a memory in NumPy with the kernels of a target that are in use.

    Where the target grows, the memory keeps its own kernels if there is room for them.
    """
    is_comparable = memory.rms_normalized in (None, target.rms_normalized)
    is_comparable &= (memory.history is None) == (target.history is None)
    used, room = len(in_use(memory.kernels).centers), len(target.rates)
    keeps_kernels = grows and is_comparable and 1 < used <= room
    size = min(len(memory.rates), room) if keeps_kernels else used
    old = Kernels(*(np.asarray(array)[:size] for array in memory.kernels))
    new = old if keeps_kernels else in_use(target.kernels)
    rates, num = np.asarray(memory.rates, np.float64)[:size], len(new.centers)
    weight, slopes = (
        np.zeros(size) if array is None else np.asarray(array)[:size]
        for array in (memory.evidence_weight, memory.slopes)
    )
    # Files and states may differ in precision.
    is_same = np.array_equal(np.asarray(old, np.float32), np.asarray(new, np.float32))
    if not is_comparable or 1 in (size, num):
        rates = np.full(num, np.exp(_average(np.log(rates), weight)))
        weight, slopes = np.full(num, weight.sum() / num), np.zeros(num)
    elif not is_same or (slopes.any() and target.slopes is None):
        centers, widths = new
        z = jnp.stack([centers - widths / 2, centers, centers + widths / 2])
        left, rates, right = np.asarray(read(old, rates, z, slopes))
        slopes = np.clip((right - left) / rates, -LARGEST_SLOPE, LARGEST_SLOPE)
        # A memory with one rate of 1 among 0s reads the share of that local model.
        z, one_each = jnp.asarray(old.centers), np.eye(num)
        shares = jax.vmap(read, (None, 0, None))(new, one_each, z)
        weight = np.asarray(shares) @ weight
    return target._replace(
        kernels=new,
        rates=rates,
        evidence_weight=weight,
        schedule=np.zeros(MARKS.shape) if memory.schedule is None else memory.schedule,
        slopes=None if target.slopes is None else slopes,
    )


def _pooled(memories: Sequence[Memory]) -> Memory:
    """Return the mean of memories with equal kernels, as one without evidence."""
    evidence = np.array([memory.evidence_weight.sum() for memory in memories])
    logs = [memory._replace(rates=np.log(memory.rates)) for memory in memories]
    mean = jax.tree.map(lambda *arrays: _average(arrays, evidence), *logs)
    return mean._replace(
        kernels=memories[0].kernels,
        rates=np.exp(mean.rates),
        evidence_weight=np.zeros(mean.rates.shape),
    )


def _average(values: Any, evidence: np.ndarray) -> np.ndarray:
    """Return the mean over the first axis, by evidence if there is any."""
    weights = evidence if evidence.sum() > 0 else np.ones(evidence.shape)
    return np.average(values, axis=0, weights=weights)
