"""Take the memories out of an optimizer state, and put them into another."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from metalr_optax import checks, memory_checks, stack
from metalr_optax.grid import make_grid
from metalr_optax.growing import padded
from metalr_optax.learner import ScaleByMemoryState
from metalr_optax.memory import Kernels, Memory
from metalr_optax.progress import FollowState


def get_memory(opt_state: Any) -> dict[str, Memory]:
    """Return the memories inside an optimizer state, by label.

    Call it at the end of a run. Without a learned schedule, as in ``paper_sgd``, call
    it earlier: once rates have reached the largest that are stable.

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
    return {
        label: stack.memory_at(state.memory, state.info, row)
        for state, labels in memory_states(opt_state)
        for row, label in enumerate(labels)
    }


def set_memory(opt_state: Any, memory: Mapping[str, Memory]) -> Any:
    """Return an optimizer state with other memories in it.

    Kernels, rates and schedules are copied, and progress restarts at 0. The rest, such
    as the last direction and the moments of the base and of the memory's own optimizer,
    does not change: pass a freshly initialised state to forget the old task. Rates are
    not changed: :func:`metalr_optax.adapt_memory` lowers those of narrower layers.

    Args:
      opt_state: state of an optimizer, as for :func:`get_memory`.
      memory: label -> :class:`Memory`, as :func:`get_memory` returns it. The labels
        and the number of local models must be those of the state;
        :func:`metalr_optax.adapt_memory` makes them so.

    Returns:
      A state like ``opt_state``.

    Raises:
      ValueError: labels or shapes that do not fit, rates that are not positive and
        finite, kernels that differ where those of the state do not or that its grid
        cannot resolve (build the optimizer with ``initial=memory`` instead), or a state
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
    hint = "adapt_memory(memory, opt_state) returns one"
    checks.require(isinstance(memory, Mapping), "memory", allowed, memory, hint)
    states = memory_states(opt_state)
    names = [label for _, labels in states for label in labels]
    memory_checks.check_labels("memory", memory, names)
    filled = iter([_fill(state, labels, memory) for state, labels in states])
    new_state = jax.tree.map(
        lambda node: next(filled) if _is_memory_state(node) else node,
        opt_state,
        is_leaf=_is_memory_state,
    )
    # Flax NNX has its variables around these arrays, in the same order.
    structure = jax.tree.structure(opt_state)
    return jax.tree.unflatten(structure, jax.tree.leaves(new_state))


def memory_states(opt_state: Any) -> list[tuple[ScaleByMemoryState, list[str]]]:
    """Return all states of memories inside, each with the labels of its rows.

    Their memories consist of arrays, also where Flax NNX has variables around them.

    Raises:
      ValueError: there are none, or they have no values.
    """
    nodes = checks.nodes_of(opt_state, ScaleByMemoryState)
    allowed = "contain a state of scale_by_memory"
    checks.require(nodes, "opt_state", allowed, opt_state, checks.MOVE)
    states = [_without_variables(node) for _, node in nodes]
    # Without parameters the rows are no mapping.
    rows = [state.rows if isinstance(state.rows, Mapping) else {} for state in states]
    labels = [sorted(names) for names in rows]
    if len(set().union(*labels)) < sum(map(len, labels)):
        prefixes = _prefixes([path for path, _ in nodes])
        pairs = zip(prefixes, labels, strict=True)
        labels = [[f"{prefix}/{name}" for name in names] for prefix, names in pairs]
    return list(zip(states, labels, strict=True))


def _is_memory_state(node: Any) -> bool:
    return isinstance(node, ScaleByMemoryState)


def _without_variables(state: ScaleByMemoryState) -> ScaleByMemoryState:
    """Return a state whose memories consist of arrays, not of variables of Flax NNX."""
    parts = (state.memory, state.info)
    leaves = jax.tree.leaves(parts)
    is_abstract = any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves)
    allowed = "have values, not only shapes"
    checks.require(not is_abstract, "opt_state", allowed, state.memory.rates)
    structure = jax.tree.structure(parts, is_leaf=lambda x: hasattr(x, "shape"))
    memory, info = jax.tree.unflatten(structure, leaves)
    return state._replace(memory=memory, info=info)


def _prefixes(paths: list[tuple[Any, ...]]) -> list[str]:
    """Return distinct prefixes of paths: the keys of dicts, or all if those repeat."""
    for kind in (jax.tree_util.DictKey, object):
        names = [
            [checks.name_of((key,)) for key in path if isinstance(key, kind)]
            for path in paths
        ]
        prefixes = ["/".join(path) for path in _without_ends(names)]
        if all(prefixes) and len(set(prefixes)) == len(paths):
            return prefixes
    return [jax.tree_util.keystr(path) for path in paths]


def _without_ends(paths: list[list[str]]) -> list[list[str]]:
    """Return paths without what all of them begin with, then end with."""
    while all(paths) and len({path[0] for path in paths}) == 1:
        paths = [path[1:] for path in paths]
    while min(map(len, paths)) > 1 and len({path[-1] for path in paths}) == 1:
        paths = [path[:-1] for path in paths]
    return paths


def _fill(
    state: ScaleByMemoryState, labels: list[str], memory: Mapping[str, Memory]
) -> ScaleByMemoryState:
    """Return a state with other memories, in the order of rows and in its dtypes."""
    if not labels:
        return state
    old, rule_state = state.memory, state.rule_state
    memories = [_fitting(label, memory[label], old) for label in labels]
    _check_kernels([memory.kernels for memory in memories], old)
    new = stack.stack_memories(
        old.inputs,
        memories,
        old.rates.dtype,
        progress=old.schedule is not None,
        slopes=old.slopes is not None,
        disagreement=old.disagreement is not None,
    )
    if isinstance(rule_state, FollowState):
        restarted = jax.tree.map(jnp.zeros_like, rule_state.progress)
        rule_state = rule_state._replace(progress=restarted)
    info = stack.first_info(new, stack.unpack_info(state.info).fan_in)
    return state._replace(memory=new, rule_state=rule_state, info=info)


def _fitting(label: str, memory: Memory, old: stack.StackedMemory) -> Memory:
    """Return a memory padded to the local models of a state, or raise ValueError."""
    name = f"memory[{label!r}]"
    memory_checks.check_type(name, memory)
    batch, num = old.rates.shape[:-2], old.rates.shape[-1]
    if old.disagreement is not None and np.ndim(memory.rates) > 0:
        memory = padded(memory, num)
    hint = "a memory per member" if batch else "adapt_memory resamples it"
    allowed = f"have arrays of shape {(*batch, num)} for this state"
    for array in (*memory.kernels, memory.rates):
        shape = np.shape(array)
        checks.require(shape == (*batch, num), name, allowed, shape, hint)
    memory_checks.check_inputs(name, memory, old.inputs)
    memory_checks.check_slopes(name, memory, old.slopes is not None)
    # A vmapped state has a memory per member; flags may be the same for all of them.
    arrays = memory._replace(rms_normalized=None, history=None, fan_in=None)
    for place in np.ndindex(*batch):
        member = jax.tree.map(lambda array, place=place: array[place], arrays)
        memory_checks.check_memory(name, member)
    return memory


def _check_kernels(kernels: list[Kernels], old: stack.StackedMemory) -> None:
    """Raise ValueError unless kernels can replace others; traced ones pass.

    Kernels that all labels share may be read from a grid, which is fixed when an
    optimizer is built. There is none for kernels that move or read histories.
    """
    moves = old.disagreement is not None or old.slopes is not None
    is_traced = not all(map(checks.is_concrete, jax.tree.leaves((kernels, old))))
    if moves or is_traced or isinstance(old.inputs, stack.ByHistory):
        return
    new = np.stack([np.stack(pair, axis=-2) for pair in kernels], axis=-3)
    arrays = (np.asarray(old.kernels), np.asarray(new, old.kernels.dtype))
    was_shared, is_shared = ((x == x[..., :1, :, :]).all() for x in arrays)
    tables = [
        [make_grid(Kernels(*pair)) for pair in array.reshape(-1, *array.shape[-2:])]
        for array in arrays
    ]
    same_table = all(now in (None, then) for now, then in zip(*tables, strict=True))
    allowed = "have the same kernels for all labels, on the grid of those of the state"
    hint = "to start from others, build the optimizer with initial=memory"
    fits = not was_shared or (is_shared and same_table)
    checks.require(fits, "memory", allowed, new, hint)
