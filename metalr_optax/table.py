"""What a state holds: all memories of an optimizer in one table, a row for each."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from metalr_optax.memory import Kernels, Memory, mean_rate, padded
from metalr_optax.progress import MARKS


class Diagnostics(NamedTuple):
    """What logs need of L memories.

    Attributes:
      agreement_fraction: [L], of the evidence of the last step that had any.
      evidence_sign: [L], running mean of the sign of the evidence.
      at_bound_fraction: [L], of the local models.
      out_of_range_fraction: [L], of the coordinates that the evidence is about.
      start: [L], mean rate at the start.
      highest: [L], highest mean rate so far.
      ceiling: [L], no rate is raised above it; the largest number where there is none.
      updates: [L], so far.
      progress: [L], updates since there were other memories.
      highest_factor: [L], the highest factor on the rates so far.
      usual_norm: [L], the largest norm of a gradient of the last hundred steps or so.
      skipped: [L], steps that were not finite, so far.
      skipped_in_a_row: [L], of them, since the last one that was.
    """

    agreement_fraction: Any
    evidence_sign: Any
    at_bound_fraction: Any
    out_of_range_fraction: Any
    start: Any
    highest: Any
    ceiling: Any
    updates: Any
    progress: Any
    highest_factor: Any
    usual_norm: Any
    skipped: Any
    skipped_in_a_row: Any


class Table(NamedTuple):
    """L memories of M local models; packed, one array [L, 6 M + 33].

    One array, because every array of a state costs time in every call. A batch axis may
    stand in front.

    Attributes:
      rates: [L, M].
      evidence_weight: [L, M], in steps.
      centers: [L, M], of kernels.
      widths: [L, M], of kernels; 0 for those not in use.
      slopes: [L, M], of local models that are linear.
      disagreement: [L, M], running mean in [-1, 1] of how far evidence on the two sides
        of a centre differs; of the first local model not in use, how many inputs none
        answered for.
      schedule: [L, 20], log of the mean rate at update 1, 2, 4, ... over that in use.
      diagnostics: [L, 13].
    """

    rates: Any
    evidence_weight: Any
    centers: Any
    widths: Any
    slopes: Any
    disagreement: Any
    schedule: Any
    diagnostics: Any


_WORDS = ("rms", "capacity", "widths", "linear", "history")


class Kind(NamedTuple):
    """What memories are of, besides rates: the key under which a state has its table.

    Attributes:
      rms: whether kernel inputs are rms-normalised.
      grows: whether there is room for more local models.
      widens: whether widths are learned.
      linear: whether slopes are.
      history: whether kernels see the history of a coordinate.
    """

    rms: bool
    grows: bool = False
    widens: bool = False
    linear: bool = False
    history: bool = False

    @property
    def learns_more(self) -> bool:
        """Whether more than rates is learned."""
        return self.grows or self.widens or self.linear

    @property
    def is_exact(self) -> bool:
        """Whether kernels are evaluated one by one, because they or inputs change."""
        return self.learns_more or self.history

    @property
    def name(self) -> str:
        """Names of all that is so, such as "rms, linear"."""
        words = [word for word, one in zip(_WORDS[1:], self[1:], strict=True) if one]
        return ", ".join([_WORDS[0] if self.rms else "value", *words])


def kind_of(name: str) -> Kind:
    """Return the kind that a key names."""
    return Kind(*(word in name.split(", ") for word in _WORDS))


def unpack(array: jax.Array) -> Table:
    """Return the table that an array holds."""
    num = (array.shape[-1] - len(MARKS) - len(Diagnostics._fields)) // 6
    ends = [*range(num, 6 * num + 1, num), 6 * num + len(MARKS)]
    return Table(*jnp.split(array, ends, axis=-1))


def pack(table: Table) -> jax.Array:
    """Return a new array that holds a table."""
    return jnp.concatenate(table, axis=-1)


def from_memories(
    memories: Sequence[Memory], dtype: Any, ceiling: jax.Array | None = None
) -> Table:
    """Return the table of new memories, in the order of rows."""

    def column(arrays: Sequence[Any]) -> jax.Array:
        return jnp.stack([jnp.asarray(one, dtype) for one in arrays], axis=-2)

    rates = column([one.rates for one in memories])
    first = rates[..., 0, :]
    flat = jnp.zeros((*first.shape[:-1], len(MARKS)), dtype)
    zeros = jnp.zeros_like(first)
    weight, slopes, schedule = (
        column([none if one is None else one for one in some])
        for none, some in (
            (zeros, [one.evidence_weight for one in memories]),
            (zeros, [one.slopes for one in memories]),
            (flat, [one.schedule for one in memories]),
        )
    )
    start = mean_rate(rates, weight)
    zero = jnp.zeros_like(start)
    if ceiling is None:
        # Not infinity, which states do not survive that are blended with zero.
        ceiling = jnp.full_like(start, jnp.finfo(dtype).max)
    diagnostics = Diagnostics(
        agreement_fraction=zero + 0.5,
        evidence_sign=zero,
        at_bound_fraction=zero,
        out_of_range_fraction=zero,
        start=start,
        highest=start,
        ceiling=ceiling,
        updates=zero,
        progress=zero,
        highest_factor=zero,
        usual_norm=zero,
        skipped=zero,
        skipped_in_a_row=zero,
    )
    return Table(
        rates,
        weight,
        column([one.kernels.centers for one in memories]),
        column([one.kernels.widths for one in memories]),
        slopes,
        jnp.zeros_like(rates),
        schedule,
        jnp.stack(diagnostics, axis=-1),
    )


def diagnostics_of(table: Table) -> Diagnostics:
    """Return the columns by name."""
    return Diagnostics(*jnp.unstack(table.diagnostics, axis=-1))


def with_diagnostics(table: Table, diagnostics: Diagnostics) -> Table:
    """Return a table with other diagnostics."""
    return table._replace(diagnostics=jnp.stack(diagnostics, axis=-1))


def count_step(table: Table, usable: jax.Array) -> Table:
    """Return a table that knows of one more step, taken or skipped."""
    known = diagnostics_of(table)
    skips = jnp.where(usable, 0, 1).astype(known.skipped.dtype)
    known = known._replace(
        skipped=known.skipped + skips,
        skipped_in_a_row=skips * (known.skipped_in_a_row + 1),
    )
    return with_diagnostics(table, known)


def memory_at(table: Table, row: int | slice, kind: Kind) -> Memory:
    """Return a copy of the memory in a row, or of those in several.

    Local models that were added stand in their order, and those not in use last.
    """
    *columns, _, schedule, _ = (one[..., row, :] for one in table)
    if kind.grows:
        _, _, centers, widths, _ = columns
        order = jnp.argsort(jnp.where(widths > 0, centers, jnp.inf), axis=-1)
        columns = [jnp.take_along_axis(one, order, axis=-1) for one in columns]
    rates, weight, centers, widths, slopes = map(jnp.array, columns)
    normalized = jnp.full(rates.shape[:-1], kind.rms)
    memory = Memory(
        *(Kernels(centers, widths), rates, weight, normalized, jnp.array(schedule)),
        slopes=slopes if kind.linear else None,
        history=jnp.ones(rates.shape[:-1], bool) if kind.history else None,
    )
    return padded(memory, rates.shape[-1]) if kind.grows else memory
