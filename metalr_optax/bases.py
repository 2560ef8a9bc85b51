"""Base optimizers, and how the direction that they gave last is known."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from metalr_optax.checks import is_concrete
from metalr_optax.groups import Stacked, by_layer, not_params, stacks_of
from metalr_optax.interpolation import sample
from metalr_optax.signals import agreement, sign_agreement

# A history is a running mean over about (1 + .9) / (1 - .9) = 19 updates.
_PAST = 0.9


class Base(NamedTuple):
    """A base optimizer whose last direction can be asked for.

    Attributes:
      init: parameters -> state.
      update: (updates, state, parameters, gradient or None, extra arguments) ->
        (direction, state).
      current: state -> the direction of the update that made it, or None where that
        does not follow from it.
      last: (state, whether there are gradients) -> for every tensor, arrays that its
        last direction follows from.
      direction: those arrays of a tensor -> its last direction, or the sample of it
        that gives evidence, and where it is not known to point along the gradient
        what turns it there, 1, -1, or 0 for nothing. Zeros before the first update.
      size: of a sample, or None.
      is_derived: whether the last direction follows from what is updated in place.
      inputs: state -> for every tensor what kernels see instead of its direction, or
        None.
    """

    init: Callable[[optax.Params], Any]
    update: Callable[..., tuple[optax.Updates, Any]]
    current: Callable[[Any], optax.Updates | None]
    last: Callable[[Any, bool], list[tuple[jax.Array, ...]]]
    direction: Callable[..., tuple[jax.Array, ...]]
    size: int | None
    is_derived: bool
    inputs: Callable[[Any], list[jax.Array] | None] = lambda state: None


class Samples(NamedTuple):
    """Samples of the tensors of a tree, in the order of its leaves."""

    leaves: list[jax.Array]


class RememberedState(NamedTuple):
    """State of :func:`remembered`.

    Attributes:
      base_state: of the base optimizer.
      last_direction: like the parameters; :class:`Samples` where evidence is sampled.
      orientation: [], float32, 1, -1, or 0 as long as nothing is known.
    """

    base_state: optax.OptState
    last_direction: Any
    orientation: jax.Array


def remembered(
    optimizer: optax.GradientTransformation,
    size: int | None,
    stacked: Stacked | None = None,
) -> Base:
    """Return any optimizer with a copy of its last direction in the state."""
    optimizer = optax.with_extra_args_support(optimizer)

    def keep(direction: optax.Updates) -> Any:
        # A copy: without jit the direction may be the caller's gradient itself, which
        # the next donated step would take with it.
        leaves, structure = jax.tree.flatten(direction)
        take = functools.partial(sample, size=size)
        kept = [
            jnp.array(by_layer(take, stack)(leaf))
            for leaf, stack in zip(leaves, stacks_of(direction, stacked), strict=True)
        ]
        whole = jax.tree.unflatten(structure, kept)
        return whole if size is None else not_params(Samples(kept))

    def init(params: optax.Params) -> RememberedState:
        zeros = jax.tree.map(jnp.zeros_like, params)
        unknown = jnp.zeros([], jnp.float32)
        return RememberedState(optimizer.init(params), keep(zeros), unknown)

    def update(updates, state, params, gradient, extra_args):
        direction, base_state = optimizer.update(
            updates, state.base_state, params, **extra_args
        )
        known = state.orientation
        if gradient is not None:
            known = jax.lax.cond(
                known == 0,
                lambda: _orientation(gradient, direction).astype(known.dtype),
                lambda: known,
            )
        last = jax.tree.map(
            lambda new, old: new.astype(old.dtype),
            keep(jax.tree.map(jnp.asarray, direction)),
            state.last_direction,
        )
        return direction, RememberedState(base_state, last, known)

    def last(state: RememberedState, oriented: bool) -> list[tuple[jax.Array, ...]]:
        more = (state.orientation,) if oriented else ()
        return [(leaf, *more) for leaf in jax.tree.leaves(state.last_direction)]

    # The last direction is known as it is, and so is what turns it.
    return Base(
        *(init, update, lambda _: None, last, lambda *known: known, size),
        is_derived=False,
    )


class HistoryState(NamedTuple):
    """State of :func:`with_history`.

    Attributes:
      base_state: of the base.
      history: like the parameters, at least float32, values in [-1, 1].
    """

    base_state: Any
    history: Any


def with_history(base: Base) -> Base:
    r"""Return a base of whose coordinates kernels see how their gradients agreed.

    .. math:: h \leftarrow 0.9\, h + 0.1\, \mathrm{sign}(g) \, \mathrm{sign}(d^-)

    A coordinate without evidence moves towards 0.
    """

    def init(params: optax.Params) -> HistoryState:
        def zeros(leaf: jax.Array) -> jax.Array:
            return jnp.zeros(leaf.shape, jnp.promote_types(leaf.dtype, jnp.float32))

        params = jax.tree.map(jnp.asarray, params)
        return HistoryState(base.init(params), jax.tree.map(zeros, params))

    def update(updates, state, params, gradient, extra_args):
        gradients = jax.tree.leaves(updates if gradient is None else gradient)
        last = base.last(state.base_state, gradient is not None)
        history, structure = jax.tree.flatten(state.history)

        def one(old: jax.Array, gradient: jax.Array, known: Any) -> jax.Array:
            along = turned(*base.direction(*known))
            pair = gradient.astype(old.dtype), along.astype(old.dtype)
            return _PAST * old + (1 - _PAST) * agreement(sign_agreement, *pair)

        new = [one(*some) for some in zip(history, gradients, last, strict=True)]
        direction, base_state = base.update(
            updates, state.base_state, params, gradient, extra_args
        )
        return direction, HistoryState(base_state, jax.tree.unflatten(structure, new))

    return base._replace(
        init=init,
        update=update,
        current=lambda state: base.current(state.base_state),
        last=lambda state, oriented: base.last(state.base_state, oriented),
        inputs=lambda state: jax.tree.leaves(state.history),
    )


def turned(direction: jax.Array, *turns: jax.Array) -> jax.Array:
    """Return a direction turned along the gradient, of its dtype."""
    for turn in turns:
        direction = direction * turn.astype(direction.dtype)
    return direction


def momentum(
    decay: Any,
    nesterov: bool,
    accumulator_dtype: Any,
    size: int | None,
    stacked: Stacked | None = None,
) -> Base:
    """Return gradient descent with momentum, whose trace is its last direction.

    Nesterov's direction holds a gradient that no state has; without momentum there is
    no trace. Both are remembered.
    """
    known = is_concrete(decay) and not isinstance(decay, jax.Array)
    if decay is None or (known and decay == 0):
        return remembered(optax.identity(), size, stacked)
    trace = optax.trace(decay, nesterov, accumulator_dtype)
    if nesterov:
        return remembered(trace, size, stacked)

    def last(state: Any, _: bool) -> list[tuple[jax.Array, ...]]:
        return [(leaf,) for leaf in jax.tree.leaves(state.trace)]

    def current(state: Any) -> optax.Updates | None:
        return state.trace if accumulator_dtype is None else None  # it was rounded

    return _derived(trace, current, last, lambda leaf: sample(leaf, size), size)


def adam(
    b1: Any,
    b2: Any,
    eps: Any,
    eps_root: Any,
    mu_dtype: Any,
    nesterov: bool,
    size: int | None,
    stacked: Stacked | None = None,
) -> Base:
    r"""Return Adam, whose last direction follows from its moments.

    .. math:: d^- = \hat m / (\sqrt{\hat v + \epsilon_0} + \epsilon)

    from the moments as they are stored: with ``mu_dtype`` the direction is rounded.
    """
    optimizer = optax.scale_by_adam(b1, b2, eps, eps_root, mu_dtype, nesterov=nesterov)
    if nesterov:
        return remembered(optimizer, size, stacked)

    def last(state: Any, _: bool) -> list[tuple[jax.Array, ...]]:
        # Before the first update both moments are 0, whatever they are divided by.
        steps = jnp.maximum(state.count, 1).astype(jnp.float32)
        scales = 1 / (1 - b1**steps), 1 / (1 - b2**steps)
        moments = zip(*map(jax.tree.leaves, (state.mu, state.nu)), strict=True)
        return [(*pair, *scales) for pair in moments]

    def direction(mu, nu, first, second):
        mu, nu = sample(mu, size).astype(nu.dtype), sample(nu, size)
        root = jnp.sqrt(nu * second.astype(nu.dtype) + eps_root)
        return mu * first.astype(nu.dtype) / (root + eps)

    def current(state: Any) -> optax.Updates | None:
        if mu_dtype is not None:
            return None  # it is of what was not yet rounded
        # Before the first update both moments are 0, whatever they are divided by.
        steps = jnp.maximum(state.count, 1)
        first, second = 1 - b1**steps, 1 - b2**steps

        def one(mu: jax.Array, nu: jax.Array) -> jax.Array:
            root = jnp.sqrt(nu / second.astype(nu.dtype) + eps_root)
            return mu / first.astype(mu.dtype) / (root + eps)

        return jax.tree.map(one, state.mu, state.nu)

    return _derived(optimizer, current, last, direction, size)


def _derived(
    optimizer: optax.GradientTransformation,
    current: Callable[[Any], optax.Updates | None],
    last: Callable[[Any, bool], list[tuple[jax.Array, ...]]],
    direction: Callable[..., jax.Array],
    size: int | None,
) -> Base:
    """Return a base of ours, which points along the gradient and keeps nothing else."""

    def update(updates, state, params, gradient, extra_args):
        del gradient, extra_args
        return optimizer.update(updates, state, params)

    def both(*known: jax.Array) -> tuple[jax.Array, ...]:
        return (direction(*known),)

    return Base(optimizer.init, update, current, last, both, size, is_derived=True)


def _orientation(gradient: optax.Updates, direction: optax.Updates) -> jax.Array:
    """Return the sign of <gradient, direction> over a whole tree."""

    def scaled(tree: optax.Updates) -> list[jax.Array]:
        """Bring the largest magnitude to 1, by a power of 2: exactly, what cancels."""
        leaves = [
            jnp.where(jnp.isfinite(leaf), leaf, 0).astype(jnp.float32)
            for leaf in map(jnp.asarray, jax.tree.leaves(tree))
        ]
        largest = [jnp.max(jnp.abs(leaf), initial=0.0) for leaf in leaves]
        exponent = jnp.frexp(jnp.max(jnp.stack(largest)))[1] if leaves else 0
        return [jnp.ldexp(leaf, -exponent) for leaf in leaves]

    pairs = zip(scaled(gradient), scaled(direction), strict=True)
    return jnp.sign(sum((jnp.sum(g * d) for g, d in pairs), jnp.float32(0)))
