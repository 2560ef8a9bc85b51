"""How all tensors of a model are judged and scaled by their memories.

Small tensors are evaluated exactly, those of one shape together. Large ones go by
tables, which memories with the same kernels share.
"""

import dataclasses
import functools
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from metalr_optax.kernels import Kernels
from metalr_optax.memory import (
    Memory,
    Signal,
    clipped_product,
    evidence,
    read,
    sign_agreement,
    weigh_agreement,
)
from metalr_optax.table import (
    Grid,
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
# Signals of which it is known that they look at one coordinate at a time.
_BY_COORDINATE = (sign_agreement, clipped_product)

Compare = Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]


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


class Tables(NamedTuple):
    """The table that memories with the same kernels share.

    Attributes:
      labels: of the memories.
      table: of their kernels.
      num: M.
    """

    labels: list[str]
    table: Table
    num: int


@jax.jit
def _resolves(kernels: Kernels) -> jax.Array:
    return resolves(kernels)


def can_be_tabled(kernels: Kernels) -> bool:
    """Return whether tables of these kernels keep the stated accuracy."""
    if len(kernels.centers) < _MANY:
        return False
    if any(isinstance(array, jax.core.Tracer) for array in kernels):
        return False  # Nobody can tell.
    with jax.ensure_compile_time_eval():
        return bool(_resolves(kernels))


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
        tables.append(Tables(labels, make_table(kernels), len(kernels.centers)))
    return tables


def judge(
    memory: dict[str, Memory],
    tables: list[Tables],
    signal: Signal,
    orientation: float | jax.Array,
    tensors: Sequence[Judged],
) -> dict[str, jax.Array]:
    """Return label -> [M], what gradients say about the rates of the last directions.

    Args:
      memory: label -> memory.
      tables: of the memories whose large tensors go by table.
      signal: how a gradient judges the last direction.
      orientation: 1 or -1, turns the last directions along their gradients; with 0,
        nothing is known and nothing said.
      tensors: what is judged.
    """

    def compare(g: jax.Array, d: jax.Array) -> tuple[jax.Array, jax.Array]:
        address = jnp.where(jnp.isfinite(d), d, 0)
        return address, weigh_agreement(signal, g, orientation * d)

    def one_by_one(tensors: Sequence[Judged]) -> dict[str, jax.Array]:
        sums = _map_alike(
            lambda kernels, g, d: evidence(kernels, *compare(g, d)),
            [(memory[t.label].kernels, t.gradient, t.previous) for t in tensors],
        )
        return _add_up(tensors, sums)

    def by_table(tensors: Sequence[Judged]) -> dict[str, jax.Array]:
        found = _find(tables)
        histograms = [
            _count(*found[t.label], compare, signal in _BY_COORDINATE, t)
            for t in tensors
        ]
        return _collect(tables, _add_up(tensors, histograms))

    tabled = _find(tables)
    large = [t for t in tensors if t.label in tabled and is_large(t.gradient)]
    small = [t for t in tensors if t.label not in tabled or not is_large(t.gradient)]
    totals = {label: jnp.zeros_like(one.rates) for label, one in memory.items()}
    parts = [one_by_one(small)]
    if large:
        # A CPU is good at counting; elsewhere coordinates would queue for a node.
        parts.append(
            jax.lax.platform_dependent(large, cpu=by_table, default=one_by_one)
        )
    for part in parts:
        for label, total in part.items():
            totals[label] += total
    return totals


def scale(
    memory: dict[str, Memory],
    tables: list[Tables],
    labels: Sequence[str],
    directions: Sequence[jax.Array],
) -> list[jax.Array]:
    """Return every direction [...] times the rates it reads from its memory."""
    fine = {}
    for alike, table, num in tables:
        rates = jnp.stack([memory[label].rates for label in alike])
        rows = jnp.unstack(jax.vmap(tabulate, (None, 0))(table, rates))
        for label, nodes in zip(alike, rows, strict=True):
            fine[label] = table.grid, nodes, num

    scaled: dict[int, jax.Array] = {}
    small = []
    for index, (label, d) in enumerate(zip(labels, directions, strict=True)):
        if label in fine and is_large(d):
            grid, nodes, num = fine[label]
            scaled[index] = d * look_up(grid, nodes, d, num)
        else:
            small.append(index)
    exact = _map_alike(
        lambda memory, d: d * read(memory, d),
        [(memory[labels[index]], directions[index]) for index in small],
    )
    scaled.update(zip(small, exact, strict=True))
    return [scaled[index] for index in range(len(labels))]


def _find(tables: list[Tables]) -> dict[str, tuple[Grid, int]]:
    """Return label -> grid and M."""
    return {
        label: (table.grid, num) for labels, table, num in tables for label in labels
    }


def _count(
    grid: Grid, num: int, compare: Compare, in_pieces: bool, tensor: Judged
) -> jax.Array:
    """Return the agreement of a large tensor, added up at the fine nodes."""
    pair = tensor.gradient, tensor.previous
    on_mesh = (
        not jax.typeof(pair[0]).sharding.mesh.empty
        or not jax.sharding.get_abstract_mesh().empty
    )
    if on_mesh:
        # As it is: any other shape, or a piece, would have to be gathered.
        return spread(grid, *compare(*pair), num)
    if not in_pieces:
        pair, compare = compare(*pair), lambda *pair: pair
    flat = [array.ravel() for array in pair]

    def piece(start: int | jax.Array, size: int) -> jax.Array:
        parts = [jax.lax.dynamic_slice_in_dim(array, start, size) for array in flat]
        return spread(grid, *compare(*parts), num, start)

    whole, rest = divmod(flat[0].size, _PIECE)
    total = piece(whole * _PIECE, rest) if rest else 0.0
    if not whole:
        return total
    return (
        jax.lax.fori_loop(
            1, whole, lambda i, sums: sums + piece(i * _PIECE, _PIECE), piece(0, _PIECE)
        )
        + total
    )


def _collect(
    tables: list[Tables], histograms: dict[str, jax.Array]
) -> dict[str, jax.Array]:
    """Return label -> [M] from the histograms of the memories."""
    totals = {}
    for labels, table, num in tables:
        # A memory may be read by table and judged by a small sample.
        judged = [label for label in labels if label in histograms]
        if judged:
            stack = jnp.stack([histograms[label] for label in judged])
            sums = jax.vmap(collect, (None, 0, None))(table, stack, num)
            totals.update(zip(judged, jnp.unstack(sums), strict=True))
    return totals


def _add_up(
    tensors: Sequence[Judged], sums: Sequence[jax.Array]
) -> dict[str, jax.Array]:
    totals: dict[str, jax.Array] = {}
    for tensor, one in zip(tensors, sums, strict=True):
        one = tensor.weight * one if tensor.weight != 1.0 else one
        totals[tensor.label] = (
            totals[tensor.label] + one if tensor.label in totals else one
        )
    return totals


def _map_alike(
    function: Callable[..., jax.Array], arguments: Sequence[tuple[Any, ...]]
) -> list[jax.Array]:
    """Apply a function to each tuple of arrays, to small ones of one type together."""
    alike: dict[Any, list[int]] = {}
    for index, one in enumerate(arguments):
        leaves = jax.tree.leaves(one)
        types = tuple(jax.typeof(leaf) for leaf in leaves)
        alone = index if any(is_large(leaf) for leaf in leaves) else None
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
