"""What comes after: take the memories out of a state, put them into another."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from metalr_optax.evaluation import can_be_tabled
from metalr_optax.kernels import Kernels
from metalr_optax.memory import (
    POSITIVE,
    Memory,
    check_address,
    check_memory,
    is_known,
)
from metalr_optax.transform import ScaleByMemoryState


def get_memory(opt_state: Any) -> dict[str, Memory]:
    """Return the memories inside an optimizer state, by label.

    Take it when rates have climbed to what a task bears, after some tens of steps, to
    start another model with; at the end of a task they have come down again
    (benchmarks/README.md).

    Args:
      opt_state: any pytree with states of :func:`metalr_optax.scale_by_memory` in it:
        the state of a chain or wrapper, a Flax ``TrainState``, an ``nnx.Optimizer``.

    Returns:
      label -> :class:`Memory`. The arrays are copies: they outlive a state that is
      donated to its next step.

    Raises:
      ValueError: no memory inside, or one label in several states (two optimizers in
        one tree, or ``optax.partition`` that splits a layer): pass a part of the state,
        such as ``state.inner_states["kernels"]``.

    Examples:
      >>> import jax.numpy as jnp, optax
      >>> from metalr_optax import get_memory, memory_sgd
      >>> params = {"dense": {"kernel": jnp.zeros((3, 2)), "bias": jnp.zeros(2)}}
      >>> memory = get_memory(memory_sgd(initial=0.25).init(params))
      >>> list(memory), memory["dense"].rates.shape, float(memory["dense"].rates[0])
      (['dense'], (1,), 0.25)
    """
    memories: dict[str, Memory] = {}
    for state in memory_states(opt_state):
        for label, memory in state.memory.items():
            memories[label] = jax.tree.map(_copy, unwrapped(memory))
    return memories


def set_memory(opt_state: Any, memory: Mapping[str, Memory]) -> Any:
    """Return an optimizer state with other memories in it.

    Kernels and rates are copied in; all else, such as the previous direction, the
    moments of the base and of the memory's own optimizer, stays as it is. So start from
    a freshly initialised state: what belongs to the old task is then forgotten.

    Args:
      opt_state: state of an optimizer, as for :func:`get_memory`.
      memory: label -> :class:`Memory`, as :func:`get_memory` returns it. The labels
        and the number of local models must be those of the state;
        :func:`metalr_optax.adapt_memory` makes them so.

    Returns:
      A state like ``opt_state``.

    Raises:
      ValueError: labels or shapes that do not fit, rates that are not positive and
        finite, kernels that differ where those of the state do not or that a table
        would blur (build the optimizer with ``initial=memory`` instead), or a state
        that :func:`get_memory` would refuse.

    Examples:
      >>> import jax.numpy as jnp, optax
      >>> from metalr_optax import get_memory, memory_sgd, set_memory
      >>> learned = get_memory(memory_sgd(initial=0.25).init(jnp.zeros(3)))
      >>> state = set_memory(memory_sgd(initial=0.001).init(jnp.zeros(3)), learned)
      >>> float(get_memory(state)["params"].rates[0])
      0.25
    """
    if not isinstance(memory, Mapping):
        raise ValueError(
            "memory must be a mapping from label to metalr_optax.Memory, got "
            f"{memory!r}"
        )
    labels = {label for state in memory_states(opt_state) for label in state.memory}
    if set(memory) != labels:
        raise ValueError(
            "memory must have the labels of opt_state; missing "
            f"{sorted(labels - set(memory))}, unknown "
            f"{sorted(map(str, set(memory) - labels))}; "
            "adapt_memory(memory, opt_state) maps another model's"
        )

    def replace(node: Any) -> Any:
        if not isinstance(node, ScaleByMemoryState):
            return node
        fitted = {
            label: _fit(label, memory[label], unwrapped(old))
            for label, old in node.memory.items()
        }
        _check_shared(node.memory, fitted)
        # Flax NNX keeps every array of an optimizer in a variable: fill those.
        structure = jax.tree.structure(node.memory)
        return node._replace(
            memory=jax.tree.unflatten(structure, jax.tree.leaves(fitted))
        )

    return jax.tree.map(replace, opt_state, is_leaf=_is_memory_state)


def _is_memory_state(node: Any) -> bool:
    return isinstance(node, ScaleByMemoryState)


def memory_states(opt_state: Any) -> list[ScaleByMemoryState]:
    """Return all states of memories inside; raise ValueError as get_memory does."""
    nodes = jax.tree.leaves(opt_state, is_leaf=_is_memory_state)
    states = [node for node in nodes if _is_memory_state(node)]
    labels = [label for state in states for label in state.memory]
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if not states:
        raise ValueError(
            "opt_state must contain a state of scale_by_memory, got "
            f"{jax.tree.structure(opt_state)}"
        )
    if twice:
        raise ValueError(
            f"opt_state must have every label once, but {twice} are in several of its "
            f"{len(states)} memory states: pass the part that is meant"
        )
    return states


def _copy(array: Any) -> Any:
    return array if isinstance(array, jax.ShapeDtypeStruct) else jnp.array(array)


def _check_shared(old: Mapping[str, Memory], new: Mapping[str, Memory]) -> None:
    """Raise ValueError if memories would no longer share the kernels they shared.

    Those share a table as well, which was decided when the optimizer was built.
    """
    kinds: dict[Any, tuple[str, Kernels]] = {}
    for label, memory in old.items():
        before, after = unwrapped(memory).kernels, new[label].kernels
        if not all(map(is_known, (*before, *after))):
            return
        kind = tuple(np.asarray(array, np.float64).tobytes() for array in before)
        first, shared = kinds.setdefault(kind, (label, after))
        if not all(map(np.array_equal, shared, after)):
            raise ValueError(
                f"memory must have the same kernels for {first!r} and {label!r}, as "
                "this state has; to start from other kernels, build the optimizer "
                "with initial=memory"
            )
        if all(map(np.array_equal, before, after)):
            continue
        # A vmapped state has kernels per member.
        rows = (array.reshape(-1, array.shape[-1]) for array in after)
        if not all(can_be_tabled(Kernels(*row)) for row in zip(*rows, strict=True)):
            raise ValueError(
                f"memory[{label!r}] must have kernels that a table resolves, got "
                f"{after}; to start from others, build the optimizer with "
                "initial=memory"
            )


def unwrapped(memory: Memory) -> Memory:
    """Return the memory with bare arrays, whatever they are wrapped in."""
    centers, widths, *rest = jax.tree.leaves(memory)
    return Memory(Kernels(centers, widths), *rest)


def _fit(label: str, memory: Memory, old: Memory) -> Memory:
    """Return a copy of the memory with the shapes and dtypes of the old one."""
    name = f"memory[{label!r}]"
    if not isinstance(memory, Memory):
        raise ValueError(f"{name} must be a metalr_optax.Memory, got {memory!r}")
    if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(old)):
        raise ValueError("opt_state must have values, not only shapes")
    is_single = old.rates.ndim == 1
    hint = "; adapt_memory resamples it" if is_single else ", a memory per member"

    def fit(new: Any, like: Any) -> jax.Array:
        if np.shape(new) != like.shape:
            raise ValueError(
                f"{name} must have arrays of shape {like.shape} for this state, got "
                f"{np.shape(new)}{hint}"
            )
        return jnp.array(new, like.dtype)

    # What a memory that was made by hand does not say.
    if memory.counts is None:
        memory = memory._replace(counts=jnp.zeros_like(old.counts))
    relative = old.relative if memory.relative is None else memory.relative
    if np.shape(relative) == ():
        relative = jnp.broadcast_to(relative, old.relative.shape)
    memory = memory._replace(relative=relative)
    fitted = jax.tree.map(fit, memory, old)
    # A vmapped state has one memory per member.
    for member in np.ndindex(fitted.rates.shape[:-1]):
        one, before = (
            jax.tree.map(lambda array, member=member: array[member], memory)
            for memory in (fitted, old)
        )
        check_memory(name, one, POSITIVE)
        if is_known(before.relative):
            check_address(name, one, bool(before.relative))
    return fitted._replace(relative=jnp.array(old.relative))
