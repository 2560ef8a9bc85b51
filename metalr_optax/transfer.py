"""What comes after: take the memories out of a state, put them into another."""

import itertools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from metalr_optax import checks
from metalr_optax.groups import names_of
from metalr_optax.interpolation import make_grid
from metalr_optax.memory import Memory, padded
from metalr_optax.table import (
    Kind,
    Table,
    diagnostics_of,
    from_memories,
    kind_of,
    memory_at,
    pack,
    unpack,
    with_diagnostics,
)
from metalr_optax.transform import ScaleByMemoryState, same_kernels

# What is known of the run and not of its memories: other memories leave it as it is.
_OF_THE_RUN = (
    *("ceiling", "updates", "highest_factor", "usual_norm"),
    *("skipped", "skipped_in_a_row"),
)
_START = "to start from others, build the optimizer with initial=memory"


def get_memory(opt_state: Any) -> dict[str, Memory]:
    """Return the memories inside an optimizer state, by label.

    Take it at the end of a run. (Where memories do not go by progress, as those of
    ``paper_sgd``, earlier: once rates have climbed to what a task bears.)

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
        table, kind = table_in(state)
        for row, label in enumerate(labels):
            memories[label] = memory_at(table, row, kind)
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
    checks.check_labels(
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
    states = [node for _, node in nodes if _is_memory_state(node)]
    found = jax.tree.structure(opt_state)
    allowed = "contain a state of scale_by_memory"
    checks.require(states, "opt_state", allowed, found, checks.MOVE)
    labels = [labels_in(state) for state in states]
    if sum(map(len, labels)) > len(set(itertools.chain(*labels))):
        paths = [path for path, node in nodes if _is_memory_state(node)]
        labels = [
            [f"{prefix}/{label}" for label in some]
            for prefix, some in zip(_prefixes(paths), labels, strict=True)
        ]
    return list(zip(states, labels, strict=True))


def labels_in(state: ScaleByMemoryState) -> list[str]:
    """Return the names of memories in the order of rows; none without leaves."""
    return names_of(stacks_in(state))


def stacks_in(state: ScaleByMemoryState) -> dict[str, int | None]:
    """Return how many layers are stacked under each label, None for a single one."""
    if not isinstance(state.rows, Mapping):
        return {}
    # Flax NNX keeps every array of an optimizer in a variable.
    (table,) = jax.tree.leaves(state.table)
    batched = table.ndim - 2
    shapes = {
        label: jax.tree.leaves(state.rows[label])[0].shape[batched:]
        for label in sorted(state.rows)
    }
    return {label: shape[0] if shape else None for label, shape in shapes.items()}


def table_in(state: ScaleByMemoryState) -> tuple[Table, Kind]:
    """Return the table of a state, and what its memories are of."""
    ((name, array),) = state.table.items()
    # Flax NNX keeps every array of an optimizer in a variable.
    (array,) = jax.tree.leaves(array)
    known = not isinstance(array, jax.ShapeDtypeStruct)
    checks.require(known, "opt_state", "have values, not only shapes", array)
    return unpack(array), kind_of(name)


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
    table, kind = table_in(state)
    if kind.grows:
        memory = {
            label: padded(one, table.rates.shape[-1])
            if isinstance(one, Memory) and np.ndim(one.rates) > 0
            else one
            for label, one in memory.items()
        }
    for row, (label, one) in enumerate(memory.items()):
        _check_fit(f"memory[{label!r}]", one, memory_at(table, row, kind), kind)
    if not kind.is_exact:
        _check_shared(table, memory)
    old = diagnostics_of(table)
    new = from_memories(list(memory.values()), table.rates.dtype)
    known = diagnostics_of(new)._replace(
        **{name: getattr(old, name) for name in _OF_THE_RUN}
    )
    array = pack(with_diagnostics(new, known))
    # Flax NNX keeps every array of an optimizer in a variable: fill that.
    structure = jax.tree.structure(state.table)
    return state._replace(table=jax.tree.unflatten(structure, [array]))


def _check_shared(table: Table, memory: Mapping[str, Memory]) -> None:
    """Raise ValueError if memories would no longer share the kernels they shared."""
    kind = Kind(rms=False)
    old = [memory_at(table, row, kind).kernels for row in range(len(memory))]
    new = [one.kernels for one in memory.values()]
    labels = list(memory)
    for row, label in enumerate(labels):
        known = all(map(checks.is_concrete, (*new[0], *new[row])))
        differ = known and not same_kernels(new[0], new[row])
        allowed = f"have the same kernels for {labels[0]!r} and {label!r}, as the state"
        fits = not (differ and same_kernels(old[0], old[row]))
        checks.require(fits, "memory", allowed, new[row], _START)


def _check_fit(name: str, memory: Memory, like: Memory, kind: Kind) -> None:
    """Raise ValueError unless a memory can stand in the place of another."""
    is_memory = isinstance(memory, Memory)
    checks.require(is_memory, name, "be a metalr_optax.Memory", memory)
    stacked = like.rates.ndim > 1
    hint = "a memory per member" if stacked else "adapt_memory resamples it"
    allowed = f"have arrays of shape {like.rates.shape} for this state"
    for array in jax.tree.leaves(memory[:2]):
        fits = np.shape(array) == like.rates.shape
        checks.require(fits, name, allowed, np.shape(array), hint)
    checks.check_seen(name, memory, kind)
    checks.check_slopes(name, memory, kind.linear)
    # A vmapped state has one memory per member.
    for member in np.ndindex(like.rates.shape[:-1]):
        one, old = (
            jax.tree.map(
                lambda array, i=member: array[i],
                both._replace(rms_normalized=None, history=None),
            )
            for both in (memory, like)
        )
        checks.check_memory(name, one)
        grids = make_grid(old.kernels), make_grid(one.kernels)
        fits = kind.is_exact or grids[0] is None or grids[0] == grids[1]
        allowed = "have kernels on the grid of the state, for large tensors"
        checks.require(fits, name, allowed, one.kernels, _START)
