"""What comes after: take the memories out of a state, put them into another."""

import itertools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from metalr_optax import checks, memory_checks
from metalr_optax.grid import make_grid
from metalr_optax.growing import padded, with_slopes
from metalr_optax.initial import same_kernels
from metalr_optax.learner import ScaleByMemoryState
from metalr_optax.memory import Memory
from metalr_optax.progress import FollowState
from metalr_optax.stack import (
    ByHistory,
    StackedMemory,
    first_info,
    memory_at,
    stack_memories,
)

_START = "to start from others, build the optimizer with initial=memory"


def get_memory(opt_state: Any) -> dict[str, Memory]:
    """Return the memories inside an optimizer state, by label.

    Take it at the end of a run. (Where memories do not go by progress, as those of
    ``paper_sgd``, earlier: once rates have reached the largest that are stable.)

    Args:
      opt_state: any pytree with states of :func:`metalr_optax.scale_by_memory` in it:
        the state of a chain or wrapper, a Flax ``TrainState``, an ``nnx.Optimizer``.

    Returns:
      label -> :class:`Memory`. The arrays are copies: they outlive a state that is
      donated to its next step. Where one label is in several states (two optimizers in
      one tree, or an ``optax.partition`` that splits a layer), all labels begin with
      where in the tree their state is, such as ``decay/dense`` and ``rest/dense``.

    Raises:
      ValueError: no memory inside.

    Examples:
      >>> import jax.numpy as jnp, optax
      >>> from metalr_optax import get_memory, memory_sgd
      >>> params = {"dense": {"kernel": jnp.zeros((3, 2)), "bias": jnp.zeros(2)}}
      >>> memory = get_memory(memory_sgd(initial=0.25).init(params))
      >>> list(memory), memory["dense"].rates.shape, float(memory["dense"].rates[0])
      (['dense'], (1,), 0.25)
    """
    memories: dict[str, Memory] = {}
    for state, labels in memory_states(opt_state):
        for row, label in enumerate(labels):
            memories[label] = memory_at(state.memory, row)
    return memories


def set_memory(opt_state: Any, memory: Mapping[str, Memory]) -> Any:
    """Return an optimizer state with other memories in it.

    Kernels, rates and schedules are copied in, and progress begins anew; all else, such
    as the previous direction, the moments of the base and of the memory's own
    optimizer, stays as it is. So start from a freshly initialised state: what belongs
    to the old task is then forgotten.

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
    allowed = "be a mapping from label to metalr_optax.Memory"
    checks.require(isinstance(memory, Mapping), "memory", allowed, memory)
    states = memory_states(opt_state)
    memory_checks.check_labels(
        "memory", memory, [label for _, labels in states for label in labels]
    )
    in_turn = iter(states)

    def replace(node: Any) -> Any:
        if not _is_memory_state(node):
            return node
        _, labels = next(in_turn)
        return _fill(node, {label: memory[label] for label in labels})

    return jax.tree.map(replace, opt_state, is_leaf=_is_memory_state)


def memory_states(opt_state: Any) -> list[tuple[ScaleByMemoryState, list[str]]]:
    """Return all states of memories inside, each with the labels of its rows.

    Raises:
      ValueError: there are none.
    """
    nodes = jax.tree_util.tree_leaves_with_path(opt_state, is_leaf=_is_memory_state)
    states = [_without_variables(node) for _, node in nodes if _is_memory_state(node)]
    allowed = "contain a state of scale_by_memory"
    checks.require(states, "opt_state", allowed, opt_state, checks.MOVE)
    labels = [labels_in(state) for state in states]
    if sum(map(len, labels)) > len(set(itertools.chain(*labels))):
        paths = [path for path, node in nodes if _is_memory_state(node)]
        labels = [
            [f"{prefix}/{label}" for label in names]
            for prefix, names in zip(_prefixes(paths), labels, strict=True)
        ]
    return list(zip(states, labels, strict=True))


def labels_in(state: ScaleByMemoryState) -> list[str]:
    """Return the names of memories in the order of rows; none without leaves."""
    return sorted(state.rows) if isinstance(state.rows, Mapping) else []


def _without_variables(state: ScaleByMemoryState) -> ScaleByMemoryState:
    """Return a state of arrays; Flax NNX keeps each in a variable of its own."""
    is_array = {"is_leaf": lambda x: hasattr(x, "shape")}

    def array(x: Any) -> Any:
        (leaf,) = jax.tree.leaves(x) or [x]
        known = not isinstance(leaf, jax.ShapeDtypeStruct)
        checks.require(known, "opt_state", "have values, not only shapes", leaf)
        return leaf

    memory, info = jax.tree.map(array, (state.memory, state.info), **is_array)
    return state._replace(memory=memory, info=info)


def _prefixes(paths: list[tuple[Any, ...]]) -> list[str]:
    """Return what tells paths apart: the keys of dicts, if those do, or all that is."""
    keys = [
        tuple(key for key in path if isinstance(key, jax.tree_util.DictKey))
        for path in paths
    ]
    for some in (keys, paths):
        named = [
            [jax.tree_util.keystr((key,), simple=True) for key in path] for path in some
        ]
        first = _number_alike(named)
        last = _number_alike([path[:first:-1] for path in named])
        prefixes = ["/".join(path[first : len(path) - last]) for path in named]
        if len(set(prefixes)) == len(prefixes) and all(prefixes):
            return prefixes
    return [jax.tree_util.keystr(path) for path in paths]


def _number_alike(paths: list[list[str]]) -> int:
    """Return how many names all paths begin with."""
    alike = (len(set(names)) == 1 for names in zip(*paths, strict=False))
    return sum(itertools.takewhile(bool, alike))


def _is_memory_state(node: Any) -> bool:
    return isinstance(node, ScaleByMemoryState)


def _fill(
    state: ScaleByMemoryState, memory: Mapping[str, Memory]
) -> ScaleByMemoryState:
    """Return a state with other memories, in the order of rows and in its dtypes."""
    if not memory:
        return state
    plain = _without_variables(state)
    stack = plain.memory
    grows = stack.disagreement is not None
    if grows:
        memory = {label: _with_room(m, stack) for label, m in memory.items()}
    for row, (label, new) in enumerate(memory.items()):
        _check_fit(f"memory[{label!r}]", new, memory_at(stack, row), stack)
    if not (grows or isinstance(stack.inputs, ByHistory)):
        _check_shared(stack, memory)
    memories, dtype = list(memory.values()), stack.rates.dtype
    new = stack_memories(stack.inputs, memories, dtype, stack.schedule is not None)
    new = with_slopes(new, memories, stack)
    filled = plain._replace(memory=new, info=first_info(new))
    # Of Flax NNX the variables are filled, which have the structure of the state.
    leaves, structure = jax.tree.flatten(state)
    leaves = jax.tree.leaves(filled._replace(rule_state=_restarted(filled.rule_state)))
    return jax.tree.unflatten(structure, leaves)


def _restarted(rule_state: Any) -> Any:
    """Return the state of a rule whose progress begins anew."""

    def restart(node: Any) -> Any:
        if not isinstance(node, FollowState):
            return node
        return node._replace(progress=jax.tree.map(jnp.zeros_like, node.progress))

    return jax.tree.map(
        restart, rule_state, is_leaf=lambda node: isinstance(node, FollowState)
    )


def _with_room(memory: Any, stack: StackedMemory) -> Any:
    is_memory = isinstance(memory, Memory) and np.ndim(memory.rates) > 0
    return padded(memory, stack.rates.shape[-1]) if is_memory else memory


def _check_shared(stack: StackedMemory, memory: Mapping[str, Memory]) -> None:
    """Raise ValueError if memories would no longer share the kernels they shared."""
    old = [memory_at(stack, row).kernels for row in range(len(memory))]
    new = [m.kernels for m in memory.values()]
    labels = list(memory)
    for row, label in enumerate(labels):
        known = all(map(checks.is_concrete, (*new[0], *new[row])))
        differ = known and not same_kernels(new[0], new[row])
        allowed = f"have the same kernels for {labels[0]!r} and {label!r}, as the state"
        fits = not (differ and same_kernels(old[0], old[row]))
        checks.require(fits, "memory", allowed, new[row], _START)


def _check_fit(name: str, memory: Memory, like: Memory, stack: StackedMemory) -> None:
    """Raise ValueError unless a memory can stand in the place of another."""
    is_memory = isinstance(memory, Memory)
    checks.require(is_memory, name, "be a metalr_optax.Memory", memory)
    stacked = like.rates.ndim > 1
    hint = "a memory per member" if stacked else "adapt_memory resamples it"
    allowed = f"have arrays of shape {like.rates.shape} for this state"
    for array in jax.tree.leaves(memory[:2]):
        fits = np.shape(array) == like.rates.shape
        checks.require(fits, name, allowed, np.shape(array), hint)
    memory_checks.check_inputs(name, memory, stack.inputs)
    memory_checks.check_slopes(name, memory, stack.slopes is not None)
    moves = stack.disagreement is not None or stack.slopes is not None
    moves |= isinstance(stack.inputs, ByHistory)
    # A vmapped state has one memory per member.
    for member in np.ndindex(like.rates.shape[:-1]):
        new, old = (
            jax.tree.map(
                lambda array, i=member: array[i],
                both._replace(rms_normalized=None, history=None),
            )
            for both in (memory, like)
        )
        memory_checks.check_memory(name, new)
        grids = make_grid(old.kernels), make_grid(new.kernels)
        fits = moves or grids[0] is None or grids[0] == grids[1]
        allowed = "have kernels on the grid of the state, for large tensors"
        checks.require(fits, name, allowed, new.kernels, _START)
