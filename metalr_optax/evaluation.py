"""How all tensors of a model are judged and scaled by their memories.

Small tensors are evaluated exactly, those of one shape together. Large ones go by
tables, which memories with the same kernels share.
"""

import dataclasses
import functools
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from metalr_optax.kernels import Array, Kernels, is_traced
from metalr_optax.memory import (
    Memory,
    Signal,
    clipped_product,
    evidence,
    raw_product,
    read,
    sign_agreement,
    weigh_agreement,
)
from metalr_optax.sample import sample
from metalr_optax.table import (
    Table,
    collect,
    look_up,
    make_table,
    resolves,
    spread,
    tabulate,
)

# From this size and number of local models on a table pays.
_LARGE = 2**14
_MANY = 4
# Coordinates that are counted at a time where nothing is sharded: what is computed on
# the way stays in the cache, and counts stay exact in float32.
_PIECE = 2**20
# XLA vectorises and shares out a loop over a multiple of this, an odd one it may not.
_ALIGNED = 8
# So many coordinates of a tensor at most, and at least a quarter, tell for its logs
# whether gradients agree: a standard error of .008 to .016.
_TOLD = 2**12
# Signals of which it is known that they look at one coordinate at a time.
_BY_COORDINATE = (sign_agreement, clipped_product, raw_product)

Compare = Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]
# What the directions of a tensor are divided by to be an address.
Unit = Callable[[jax.Array], Array]


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["gradient", "previous"],
    meta_fields=["label", "weight"],
)
@dataclasses.dataclass(frozen=True)
class Judged:
    """A tensor whose new gradient judges its last direction.

    Attributes:
      label: of its memory.
      weight: how many coordinates each of these stands for.
      gradient: [...].
      previous: [...], the last direction, which had been the address.
    """

    label: str
    weight: float
    gradient: jax.Array
    previous: jax.Array


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["table"],
    meta_fields=["labels", "num"],
)
@dataclasses.dataclass(frozen=True)
class Tables:
    """The table that memories with the same kernels share.

    Attributes:
      labels: of the memories.
      num: M.
      table: of their kernels.
    """

    labels: tuple[str, ...]
    num: int
    table: Table


def can_be_tabled(kernels: Kernels) -> bool:
    """Return whether tables of these kernels keep the stated accuracy."""
    if len(kernels.centers) < _MANY or is_traced(kernels):
        return False
    with jax.ensure_compile_time_eval():
        return bool(resolves(kernels))


def is_large(tensor: jax.Array) -> bool:
    """Return whether a table pays for a tensor."""
    return tensor.size >= _LARGE


def make_tables(
    memory: dict[str, Memory], kinds: Mapping[str, Hashable]
) -> list[Tables]:
    """Make one table for all labels of a kind: those memories have the same kernels."""
    alike: dict[Hashable, list[str]] = {}
    for label, kind in kinds.items():
        alike.setdefault(kind, []).append(label)
    tables = []
    for labels in alike.values():
        kernels = memory[labels[0]].kernels
        table = make_table(kernels)
        tables.append(Tables(tuple(labels), len(kernels.centers), table))
    return tables


def judge(
    memory: dict[str, Memory],
    tables: list[Tables],
    signal: Signal,
    orientation: float | jax.Array,
    tensors: list[Judged],
    unit: Unit,
    magnitude: bool = False,
) -> dict[str, jax.Array]:
    """Return label -> [M], what gradients say about the rates of the last directions.

    Args:
      memory: label -> memory.
      tables: of the memories whose large tensors go by table.
      signal: how a gradient judges the last direction.
      orientation: 1 or -1, turns the last directions along their gradients; with 0,
        nothing is known and nothing said.
      tensors: what is judged.
      unit: of an address.
      magnitude: whether to return how much they say, whatever the sign.
    """
    function = to_every_device(
        functools.partial(_judge, signal, unit, magnitude),
        [one.gradient for one in tensors],
    )
    return function(memory, tables, orientation, tensors)


def share_agreeing(
    tensors: list[Judged],
    orientation: float | jax.Array,
    last: dict[str, jax.Array],
) -> dict[str, jax.Array]:
    """Return label -> [], the share of coordinates that went on along the gradient.

    That is where the gradient has the sign of the last direction. Of large tensors it
    is the share in a sample. Zeros do not count; where nothing does, the last share is
    returned.
    """
    function = to_every_device(_share_agreeing, [one.gradient for one in tensors])
    return function(tensors, orientation, last)


def scale(
    memory: dict[str, Memory],
    tables: list[Tables],
    labels: Sequence[str],
    directions: list[jax.Array],
    unit: Unit,
) -> list[jax.Array]:
    """Return every direction [...] times the rates it reads from its memory."""
    explicit = _explicit_mesh(directions) is not None
    shardings = [jax.typeof(one).sharding for one in directions] if explicit else None
    function = _automatically(functools.partial(_scale, unit, labels), shardings)
    return function(memory, tables, directions)


def plain(direction: jax.Array) -> Array:
    """Return 1: a direction is its own address, as in the paper."""
    del direction
    return np.ones((), np.float32)


def root_mean_square(direction: jax.Array) -> jax.Array:
    """Return the root mean square of a tensor [...], of 1 where that is 0.

    What is not finite counts as 0; no square under- or overflows.
    """
    direction = jnp.where(jnp.isfinite(direction), direction, 0)
    largest = jnp.max(jnp.abs(direction), initial=0.0)
    # The reciprocal of anything smaller is no number.
    known = largest >= jnp.finfo(direction.dtype).tiny
    largest = jnp.where(known, largest, 1)
    total = jnp.sum(jnp.square(direction / largest))
    size = largest * jnp.sqrt(total / max(direction.size, 1))
    return jnp.where(known, size, 1)


def to_every_device(
    function: Callable[..., Any], tensors: Sequence[jax.Array]
) -> Callable[..., Any]:
    """Return a function whose result all devices have, on whatever mesh tensors lie."""
    mesh = _explicit_mesh(tensors)
    whole = mesh and jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    return _automatically(function, whole)


def _explicit_mesh(tensors: Sequence[jax.Array]) -> Any:
    """Return the mesh of tensors that have their sharding in their type, or None."""
    for tensor in tensors:
        mesh = jax.typeof(tensor).sharding.mesh
        if jax.sharding.AxisType.Explicit in mesh.axis_types:
            return mesh
    return None


def _automatically(function: Callable[..., Any], out_sharding: Any) -> Any:
    """Leave it to XLA how to share the work, as on a mesh of automatic axes."""
    if out_sharding is None:
        return function
    return jax.sharding.auto_axes(function, out_sharding=out_sharding)


def _judge(
    signal: Signal,
    unit: Unit,
    magnitude: bool,
    memory: dict[str, Memory],
    tables: list[Tables],
    orientation: float | jax.Array,
    tensors: list[Judged],
) -> dict[str, jax.Array]:
    def compare(
        like: Array, size: Array, g: jax.Array, d: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        g, d = g.astype(like.dtype), d.astype(like.dtype)
        address = jnp.where(jnp.isfinite(d), d, 0) / size
        agreement = weigh_agreement(signal, g, orientation * d)
        return address, jnp.abs(agreement) if magnitude else agreement

    def judge_alone(kernels: Kernels, g: jax.Array, d: jax.Array) -> jax.Array:
        like = kernels.centers
        return evidence(kernels, *compare(like, unit(d.astype(like.dtype)), g, d))

    def one_by_one(tensors: list[Judged]) -> dict[str, jax.Array]:
        sums = _map_alike(
            judge_alone,
            [(memory[t.label].kernels, t.gradient, t.previous) for t in tensors],
        )
        return _add_up(tensors, sums)

    def by_table(tensors: list[Judged]) -> dict[str, jax.Array]:
        counts = []
        for t in tensors:
            like = memory[t.label].rates
            size = unit(t.previous.astype(like.dtype))
            both = functools.partial(compare, like, size)
            counts.append(_count(shared[t.label], both, signal, t))
        return _collect(tables, _add_up(tensors, counts))

    shared = {label: one for one in tables for label in one.labels}
    large = [t for t in tensors if t.label in shared and is_large(t.gradient)]
    small = [t for t in tensors if t.label not in shared or not is_large(t.gradient)]
    parts = [one_by_one(small)]
    if large:
        # A CPU is good at counting; elsewhere coordinates would queue for a node.
        parts.append(
            jax.lax.platform_dependent(large, cpu=by_table, default=one_by_one)
        )
    totals = {label: jnp.zeros_like(one.rates) for label, one in memory.items()}
    for part in parts:
        for label, total in part.items():
            totals[label] += total
    return totals


def _share_agreeing(
    tensors: list[Judged],
    orientation: float | jax.Array,
    last: dict[str, jax.Array],
) -> dict[str, jax.Array]:
    def signs(tensor: jax.Array) -> jax.Array:
        usable = jnp.isfinite(tensor)
        return jnp.where(usable, jnp.sign(tensor), 0).astype(jnp.float32)

    def count(g: jax.Array, d: jax.Array) -> jax.Array:
        agreement = signs(g) * signs(d)
        kept, told = jnp.sum(agreement > 0), jnp.sum(agreement != 0)
        return jnp.stack([kept, told]).astype(jnp.float32)

    samples = [(sample(t.gradient, _TOLD), sample(t.previous, _TOLD)) for t in tensors]
    counts = _map_alike(count, samples)
    weighted = [
        dataclasses.replace(t, weight=t.weight * t.gradient.size / max(g.size, 1))
        for t, (g, _) in zip(tensors, samples, strict=True)
    ]
    shares = dict(last)
    for label, (kept, told) in _add_up(weighted, counts).items():
        share = kept / jnp.maximum(told, 1)
        share = jnp.where(orientation < 0, 1 - share, share)
        known = (told > 0) & (orientation != 0)
        shares[label] = jnp.where(known, share, last[label])
    return shares


def _count(
    shared: Tables, compare: Compare, signal: Signal, tensor: Judged
) -> jax.Array:
    """Return the agreement of a large tensor, added up at the fine nodes."""

    def count(g: jax.Array, d: jax.Array, start: int | jax.Array) -> jax.Array:
        address, agreement = compare(g, d)
        return spread(shared.table.grid, address, agreement, shared.num, start)

    size = tensor.gradient.size
    aligned = size % _ALIGNED == 0
    # Any other shape, or a piece, of a sharded tensor would have to be gathered.
    if (
        _on_mesh(tensor.gradient)
        or signal not in _BY_COORDINATE
        or (aligned and size <= _PIECE)
    ):
        return count(tensor.gradient, tensor.previous, 0)
    flat = [tensor.gradient.ravel(), tensor.previous.ravel()]

    def count_piece(start: int | jax.Array, length: int) -> jax.Array:
        g, d = (jax.lax.dynamic_slice_in_dim(one, start, length) for one in flat)
        return count(g, d, start)

    whole, rest = divmod(size, _PIECE)
    odd = rest % _ALIGNED
    total = count_piece(size - rest, rest - odd) + count_piece(size - odd, odd)
    if not whole:
        return total
    return jax.lax.fori_loop(
        0, whole, lambda i, sums: sums + count_piece(i * _PIECE, _PIECE), total
    )


def _collect(
    tables: list[Tables], counts: dict[str, jax.Array]
) -> dict[str, jax.Array]:
    """Return label -> [M] from the counts of the memories."""
    totals = {}
    for one in tables:
        # A memory may be read by table and judged by a small sample.
        judged = [label for label in one.labels if label in counts]
        if judged:
            stack = jnp.stack([counts[label] for label in judged])
            sums = jax.vmap(collect, (None, 0, None))(one.table, stack, one.num)
            totals.update(zip(judged, jnp.unstack(sums), strict=True))
    return totals


def _scale(
    unit: Unit,
    labels: Sequence[str],
    memory: dict[str, Memory],
    tables: list[Tables],
    directions: list[jax.Array],
) -> list[jax.Array]:
    fine = {}
    for one in tables:
        rates = jnp.stack([memory[label].rates for label in one.labels])
        rows = jnp.unstack(jax.vmap(tabulate, (None, 0))(one.table, rates))
        for label, nodes in zip(one.labels, rows, strict=True):
            fine[label] = one.table.grid, nodes, memory[label].rates

    scaled: dict[int, jax.Array] = {}
    small = []
    for index, (label, d) in enumerate(zip(labels, directions, strict=True)):
        if label in fine and is_large(d):
            scaled[index] = d * look_up(*fine[label], d / unit(d))
        else:
            small.append(index)

    def read_alone(memory: Memory, d: jax.Array) -> jax.Array:
        # A single rate has no address, and its unit costs two passes over the tensor.
        return d * read(memory, d if memory.rates.size == 1 else d / unit(d))

    exact = _map_alike(
        read_alone,
        [(memory[labels[index]], directions[index]) for index in small],
    )
    scaled.update(zip(small, exact, strict=True))
    return [scaled[index] for index in range(len(labels))]


def _add_up(
    tensors: Sequence[Judged], sums: Sequence[jax.Array]
) -> dict[str, jax.Array]:
    """Return label -> weighted sum."""
    totals: dict[str, jax.Array] = {}
    for tensor, one in zip(tensors, sums, strict=True):
        one = tensor.weight * one
        known = totals.get(tensor.label)
        totals[tensor.label] = one if known is None else known + one
    return totals


def _on_mesh(tensor: jax.Array) -> bool:
    """Return whether a tensor may be sharded: only what is traced can be known."""
    mesh = jax.typeof(tensor).sharding.mesh
    return not (mesh.empty and jax.sharding.get_abstract_mesh().empty)


def _map_alike(
    function: Callable[..., jax.Array], arguments: Sequence[tuple[Any, ...]]
) -> list[jax.Array]:
    """Apply a function to each tuple of arrays, to small ones of one type together."""
    alike: dict[Any, list[int]] = {}
    for index, one in enumerate(arguments):
        leaves = jax.tree.leaves(one)
        types = tuple(jax.typeof(leaf) for leaf in leaves)
        apart = any(is_large(leaf) or _on_mesh(leaf) for leaf in leaves)
        alone = index if apart else None
        alike.setdefault((types, alone), []).append(index)
    results: dict[int, jax.Array] = {}
    for indices in alike.values():
        if len(indices) == 1:
            results[indices[0]] = function(*arguments[indices[0]])
            continue
        stacked = jax.vmap(function)(*_stack(arguments[i] for i in indices))
        results.update(zip(indices, jnp.unstack(stacked), strict=True))
    return [results[index] for index in range(len(arguments))]


def _stack(trees: Iterable[Any]) -> Any:
    return jax.tree.map(lambda *arrays: jnp.stack(arrays), *trees)
