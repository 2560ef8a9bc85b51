"""Guards skip bad steps and limit outliers, so that no single batch can ruin a run."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.extend.core import Literal

from metalr_optax.checks import check_real, check_state
from metalr_optax.groups import memory_dtype

# Without a clip a gradient of more than this many times the usual norm is scaled down.
_OUTLIER = 10.0
# The usual norm is the largest of about the last hundred steps.
_NORM_DECAY = 0.99
# A norm of at most this counts as 0.
_TINY = 1e-18
# The usual norm at most doubles in a step: two outliers in a row are still outliers.
_NORM_GROWTH = 2.0


class GuardState(NamedTuple):
    """State of :func:`guard`.

    Attributes:
      inner_state: of the guarded optimizer.
      usual_norm: [], the largest norm of a gradient of the last hundred steps or so.
      counts: [3], int32, steps skipped so far, steps skipped since the last step taken,
        and 1 if that was limited as an outlier, else 0.
    """

    inner_state: Any
    usual_norm: jax.Array
    counts: jax.Array


def guard(
    init: Callable[..., Any], update: Callable[..., Any], clip_norm: Any = None
) -> optax.GradientTransformationExtraArgs:
    r"""Return an optimizer that skips bad steps and limits the norm of others.

    .. math::
      g &\leftarrow g \cdot \min(1, \text{limit} / \lVert g \rVert), \quad
        \text{limit} = \text{clip\_norm or } 10\, n \\
      n &\leftarrow \max(0.99\, n, \min(\lVert g \rVert, 2 n))

    A step is bad if a coordinate is not finite, or if the norm over the whole tree is
    more than 1e18 times the larger of 1 and the usual norm. Then updates are zero and
    the inner state does not change.

    Args:
      init: of the optimizer.
      update: (updates, state, params, extra_args, was_limited) -> (updates, state);
        ``was_limited`` is whether the last step was limited as an outlier.
      clip_norm: largest norm of a gradient; then no step counts as an outlier.
    """

    def guarded_init(params: optax.Params) -> GuardState:
        inner_state = init(params)
        dtype = memory_dtype(params)
        zeros = jnp.zeros(3, jnp.int32)
        return GuardState(inner_state, jnp.zeros([], dtype), zeros)

    def guarded_update(updates, state, params=None, **extra_args):
        if not isinstance(state, GuardState):
            check_state(state, GuardState)
        updates = jax.tree.map(jnp.asarray, updates)
        if any(map(jnp.iscomplexobj, jax.tree.leaves(updates))):
            check_real(updates)
        usual = state.usual_norm
        norm = _norm(updates, jnp.maximum(usual, 1))
        is_good = jnp.isfinite(norm)
        scale = _scale(norm, usual, clip_norm)
        total, _, was_limited = state.counts

        def limited_update(updates: Any, inner_state: Any) -> Any:
            limited = jax.tree.map(
                # In the wider dtype: small scales are 0 in float16.
                lambda g: (g.astype(scale.dtype) * scale).astype(g.dtype),
                updates,
            )
            return update(limited, inner_state, params, extra_args, was_limited > 0)

        # In a `shard_map` `jnp.where` makes every array vary as `is_good` does.
        inner_state = varying_like(is_good, state.inner_state)
        moves, inner_state = update_if(is_good, limited_update, updates, inner_state)
        usual = jnp.where(is_good, _new_usual(norm, usual), usual)
        is_outlier = (scale < 1) & (clip_norm is None)
        taken = [total, jnp.zeros_like(total), is_outlier.astype(total.dtype)]
        skipped = jnp.append(optax.safe_increment(state.counts[:2]), was_limited)
        counts = jnp.where(is_good, jnp.stack(taken), skipped)
        moves = jax.tree.map(lambda move: jnp.where(is_good, move, 0), moves)
        return moves, GuardState(inner_state, usual, counts)

    return optax.GradientTransformationExtraArgs(guarded_init, guarded_update)


def varying_like(array: jax.Array, tree: Any) -> Any:
    """Return a tree that varies over devices where an array does, in a `shard_map`."""
    false = jnp.zeros_like(array, bool, ())
    if jax.typeof(false) == jax.typeof(jnp.zeros((), bool)):
        return tree
    return jax.tree.map(lambda x: jnp.where(false, x, x), tree)


def update_if(
    is_good: jax.Array, update: Callable[..., Any], updates: Any, state: Any
) -> tuple[Any, Any]:
    """Return (updates, state) of a good step, or garbage and the old state.

    Every array of the state is selected, old or new, where it is computed, and the rest
    of the step uses the selected one. If all were selected after the step, XLA would
    copy a donated state, of which it would need the old and the new arrays.
    """
    closed, out = jax.make_jaxpr(update, return_shape=True)(updates, state)
    program, old = closed.jaxpr, jax.tree.leaves(state)
    split = len(program.outvars) - len(old)
    variables = program.outvars[split:]
    is_new = {v for eqn in program.eqns for v in eqn.outvars}
    choices = {
        v: before
        for v, before in zip(variables, old, strict=True)
        if not isinstance(v, Literal) and v in is_new and variables.count(v) == 1
    }
    values = dict(zip(program.constvars, closed.consts, strict=True))
    values |= dict(zip(program.invars, jax.tree.leaves((updates, state)), strict=True))

    def read(variable: Any) -> Any:
        return variable.val if isinstance(variable, Literal) else values[variable]

    for eqn in program.eqns:
        # JAX up to 0.9.0 returns (functions, options), later versions only options.
        bound = eqn.primitive.get_bind_params(eqn.params)
        functions, options = bound if isinstance(bound, tuple) else ((), bound)
        with eqn.ctx.manager:
            results = eqn.primitive.bind(*functions, *map(read, eqn.invars), **options)
        results = results if eqn.primitive.multiple_results else [results]
        for variable, new in zip(eqn.outvars, results, strict=True):
            before = choices.get(variable)
            values[variable] = (
                new if before is None else jnp.where(is_good, new, before)
            )
    leaves = [
        new if v in choices or new is before else jnp.where(is_good, new, before)
        for v, new, before in zip(variables, map(read, variables), old, strict=True)
    ]
    moves = [read(v) for v in program.outvars[:split]]
    return jax.tree.unflatten(jax.tree.structure(out), [*moves, *leaves])


def _scale(norm: jax.Array, usual: jax.Array, clip_norm: Any) -> jax.Array:
    """Return the factor, at most 1, that limits a norm."""
    if clip_norm is None:
        limit = jnp.where(usual > 0, _OUTLIER * usual, norm)
    else:
        limit = jnp.asarray(clip_norm, norm.dtype)
    return jnp.minimum(limit / norm, 1)


def _new_usual(norm: jax.Array, usual: jax.Array) -> jax.Array:
    """Return the largest norm of about the last hundred steps, this one among them."""
    grown = jnp.where(usual > 0, jnp.minimum(norm, _NORM_GROWTH * usual), norm)
    return jnp.maximum(_NORM_DECAY * usual, jnp.where(norm > _TINY, grown, 0))


def _norm(tree: Any, unit: jax.Array) -> jax.Array:
    """Return the norm of a tree in the dtype of a unit, not finite if a leaf is not.

    The root comes last, and only it uses the sum: XLA copies cheaper expressions of a
    sum over N tensors into the program of each, and compiling takes O(N^2).
    """
    parts = [leaf.astype(unit.dtype) / unit for leaf in jax.tree.leaves(tree)]
    # Not 0, because the root has no derivative there.
    smallest = jnp.asarray(_TINY**2, unit.dtype)
    return unit * jnp.sqrt(sum((jnp.sum(part * part) for part in parts), smallest))
