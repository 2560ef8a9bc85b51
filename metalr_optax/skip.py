"""Steps that are not finite are skipped: one bad batch must not end a run."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from metalr_optax.checks import check_real, check_state
from metalr_optax.table import count_step, pack, unpack
from metalr_optax.transform import ScaleByMemoryState


def skip_not_finite(
    optimizer: optax.GradientTransformationExtraArgs,
) -> optax.GradientTransformationExtraArgs:
    """Return a chain that begins with a memory and skips what is not finite.

    If a coordinate of the updates is not finite, the update is zero and the state as
    before, a schedule's count too; the table of the memory counts it. The memory gets
    the norm that was taken to see it, as the extra argument `norm`, and answers one
    that is not finite with updates of zero and the base as it was.
    """

    def update(updates, state, params=None, **extra_args):
        updates = jax.tree.map(jnp.asarray, updates)
        memory, *others = state if type(state) is tuple else [state]
        check_state(memory, ScaleByMemoryState)
        check_real(updates)
        ((name, array),) = memory.table.items()
        norm = safe_norm(jax.tree.leaves(updates), array.dtype)
        usable = jnp.isfinite(norm)

        def choose(new: Any, old: Any) -> Any:
            return jax.tree.map(lambda one, two: jnp.where(usable, one, two), new, old)

        extra_args["norm"] = norm
        step: Any = optimizer.update(updates, state, params, **extra_args)
        # The memory has seen to it that these are zero.
        moves, (new, *new_others) = step
        table = count_step(unpack(choose(new.table, memory.table)[name]), usable)
        # Rows are what they were: nothing is to be traced for every label.
        new = new._replace(
            table={name: pack(table)},
            memory_optimizer_state=choose(
                new.memory_optimizer_state, memory.memory_optimizer_state
            ),
        )
        return moves, (new, *choose(new_others, others))

    return optax.GradientTransformationExtraArgs(optimizer.init, update)


def safe_norm(leaves: Sequence[jax.Array], dtype: Any) -> jax.Array:
    """Return the norm of tensors in a wider dtype, which is finite if they are."""
    wide = [leaf.astype(dtype) for leaf in leaves]

    def root(unit: jax.Array | None = None) -> jax.Array:
        # As little as possible to trace: it is done for every tensor of a model.
        parts = wide if unit is None else [leaf / unit for leaf in wide]
        squares = [jnp.sum(jax.lax.mul(part, part)) for part in parts]
        total = functools.reduce(jax.lax.add, squares, jnp.zeros([], dtype))
        # A root has no derivative at 0.
        return jnp.where(total > 0, jnp.sqrt(jnp.where(total > 0, total, 1)), total)

    def careful() -> jax.Array:
        each = [jnp.max(jax.lax.abs(leaf), initial=0.0) for leaf in wide]
        largest = functools.reduce(jax.lax.max, each)
        return jnp.minimum(largest * root(largest), jnp.finfo(dtype).max)

    norm = root()
    return jax.lax.cond(jnp.isfinite(norm), lambda: norm, careful) if leaves else norm
