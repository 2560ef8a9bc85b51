"""Kernel inputs from history: how far the gradients of a coordinate agreed so far."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from metalr_optax.local_models import agreement
from metalr_optax.orientation import find_orientation
from metalr_optax.signals import sign_agreement

# A history is a running mean over about (1 + .9) / (1 - .9) = 19 steps.
_PAST = 0.9


class HistoryState(NamedTuple):
    """State of :func:`with_history`.

    Attributes:
      base_state: of the base.
      last_direction: like the parameters.
      orientation: [], float32, 1 or -1, 0 until it is determined.
      history: like the parameters, at least float32, values in [-1, 1].
    """

    base_state: Any
    last_direction: Any
    orientation: jax.Array
    history: Any


def with_history(
    base: optax.GradientTransformationExtraArgs,
) -> optax.GradientTransformationExtraArgs:
    r"""Return a base that also keeps a running agreement of every coordinate.

    .. math:: h \leftarrow 0.9\, h + 0.1\, \mathrm{sign}(g) \, \mathrm{sign}(o d^-)

    A coordinate without evidence moves towards 0.
    """

    def init(params: optax.Params) -> HistoryState:
        def zeros(leaf: jax.Array) -> jax.Array:
            return jnp.zeros(leaf.shape, jnp.promote_types(leaf.dtype, jnp.float32))

        params = jax.tree.map(jnp.asarray, params)
        last = jax.tree.map(jnp.zeros_like, params)
        history = jax.tree.map(zeros, params)
        unknown = jnp.zeros([], jnp.float32)
        return HistoryState(base.init(params), last, unknown, history)

    def update(updates, state, params=None, **extra_args):
        gradient = extra_args.get("grad", updates)

        def follow(old: jax.Array, gradient: jax.Array, last: jax.Array) -> jax.Array:
            gradient = jnp.asarray(gradient, old.dtype)
            agreed = agreement(sign_agreement, gradient, last, state.orientation)
            return _PAST * old + (1 - _PAST) * agreed

        history = jax.tree.map(follow, state.history, gradient, state.last_direction)
        direction, base_state = base.update(
            updates, state.base_state, params, **extra_args
        )
        orientation = find_orientation(state.orientation, gradient, direction)
        last = jax.tree.map(
            lambda new, old: jnp.array(new, old.dtype), direction, state.last_direction
        )
        return direction, HistoryState(base_state, last, orientation, history)

    return optax.GradientTransformationExtraArgs(init, update)


def histories_in(base_state: HistoryState) -> list[jax.Array]:
    """Return the history of each tensor."""
    return jax.tree.leaves(base_state.history)
