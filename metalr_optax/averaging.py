"""The average of the weights: the effect of a decay, without a horizon to choose."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from metalr_optax import checks

# Powers from here to 1 are probably meant as the decay of an exponential average.
_LIKE_A_DECAY = 0.9


class AverageWeightsState(NamedTuple):
    """State of :func:`average_weights`, read with :func:`averaged_weights`.

    Attributes:
      count: [], int32, steps in the average.
      average: like the parameters, float32 or wider; ``optax.MaskedNode()`` instead of
        leaves that have no average.
    """

    count: jax.Array
    average: Any


def average_weights(
    power: jax.typing.ArrayLike = 8.0,
) -> optax.GradientTransformationExtraArgs:
    r"""Keep the polynomial average of the weights, as the last part of any chain.

    .. math::
      \bar x_t = \bar x_{t-1} + \frac{\text{power} + 1}{t + \text{power}}
        (x_t - \bar x_{t-1}), \quad t = 1, 2, \ldots

    Updates pass unchanged, and :math:`x_t` are the weights after them,
    ``optax.apply_updates(params, updates)``. Step :math:`s` of :math:`t` has a share
    that grows like :math:`s^\text{power}`: the first step replaces the initial weights,
    and nine tenths of the average come from about the last
    :math:`1 - 10^{-1 / (\text{power} + 1)}` of all steps (the last 23 % at 8). The
    average ends about where a decay to zero would. Training continues with the raw
    weights; :func:`averaged_weights` returns the average, for evaluation and
    checkpoints.

    A step whose updates are all zero does not count, such as one that a guard skips
    (:func:`learn_rates`, ``optax.apply_if_finite``) or that ``optax.MultiSteps`` only
    collects. Without a guard, weights that are not finite stay in the average.

    Args:
      power: a positive number; 0 would be the mean of all steps, and a larger power
        forgets the beginning sooner. It may be traced (``optax.inject_hyperparams``).
        From 0.9 to below 1 it warns, because it was probably meant as the decay of a
        moving average.

    Returns:
      A :class:`optax.GradientTransformationExtraArgs` that changes no update. It must
      be the last of a chain: the average misses what comes after it. Wrappers, such as
      ``optax.MultiSteps`` and ``optax.partition``, go around the chain.

    Raises:
      ValueError: a power that is not positive and finite; at ``update``, no ``params``.

    Shapes: parameters are any pytree. The average has the shapes of the parameters, in
    float32 or, where those are wider, in their dtype. Leaves that are neither floating
    nor complex, such as counters and keys, have none. In float32 a difference from the
    average of less than about 5e-9 t of a weight is lost to rounding (0.05 % after
    100,000 steps at a power of 8).

    Examples:
      Noisy gradients make the weights oscillate about the minimum at 1; their average
      is closer to it:

      >>> import jax, jax.numpy as jnp, optax
      >>> from metalr_optax import average_weights, averaged_weights
      >>> optimizer = optax.chain(optax.sgd(0.1), average_weights())
      >>> x = jnp.zeros(1000)
      >>> state, update = optimizer.init(x), jax.jit(optimizer.update)
      >>> for key in jax.random.split(jax.random.key(0), 300):
      ...   gradient = x - 1 + jax.random.normal(key, x.shape)
      ...   updates, state = update(gradient, state, x)
      ...   x = optax.apply_updates(x, updates)
      >>> error = lambda x: float(jnp.sqrt(jnp.mean((x - 1) ** 2)))
      >>> error(averaged_weights(state, x)) < 0.7 * error(x)
      True

    References:
      Shamir, Zhang, `Stochastic Gradient Descent for Non-smooth Optimization:
      Convergence Results and Optimal Averaging Schemes
      <https://arxiv.org/abs/1212.1824>`_, 2013: polynomial-decay averaging, and beside
      it the mean of a suffix (Rakhlin, Shamir, Sridharan, `Making Gradient Descent
      Optimal for Strongly Convex Stochastic Optimization
      <https://arxiv.org/abs/1109.5647>`_, 2012), which needs the horizon.

    .. seealso:: :func:`averaged_weights`, ``optax.contrib.schedule_free``.
    """
    checks.check_number("power", power)
    _warn_of_decay(power)

    def init(params: optax.Params) -> AverageWeightsState:
        zero = jnp.zeros([], jnp.int32)
        return AverageWeightsState(zero, jax.tree.map(_start, params))

    def update(updates, state, params=None, **extra_args):
        checks.require(params is not None, "params", "be given to update", params)
        t = optax.safe_increment(state.count)
        weight = _weight(power, t, state.average, updates)

        def mix(x: Any, move: Any, average: Any) -> Any:
            if not _has_average(x):
                return average
            new: Any = optax.apply_updates(x, move)
            if new.dtype != average.dtype:
                # XLA would remove a cast to bfloat16 and back.
                digits = jnp.finfo(new.dtype).nmant
                new = jax.lax.reduce_precision(new.astype(average.dtype), 8, digits)
            w = weight.astype(jnp.finfo(average.dtype).dtype)
            # At a weight of 1 rounding, or NaN, would keep a trace of the start.
            return jnp.where(w < 1, average + w * (new - average), new)

        average = jax.tree.map(mix, params, updates, state.average)
        count = jnp.where(weight > 0, t, state.count)
        return updates, AverageWeightsState(count, average)

    return optax.GradientTransformationExtraArgs(init, update)


def _warn_of_decay(power: Any) -> None:
    # Under jit a comparison of a concrete array would be traced.
    if checks.is_concrete(power) and _LIKE_A_DECAY <= float(power) < 1:
        checks.warn(
            f"power={power:g} looks like the decay of a moving average; it is the "
            "power of a polynomial average, of which 8 is usual"
        )


def averaged_weights(state: Any, params: optax.Params) -> optax.Params:
    """Return the average that :func:`average_weights` keeps, in the form of weights.

    Args:
      state: any pytree with the state of :func:`average_weights` in it: that of a chain
        or wrapper, a Flax ``TrainState``, an ``nnx.Optimizer``. Parts of an
        ``optax.partition`` may have one each.
      params: the parameters; the result has their structure and dtypes. Leaves that
        have no average, such as those that a mask left out, are copied from here.

    Returns:
      A tree like ``params``; before the first step, the parameters at ``init``.
      Its arrays are copies: they outlive a state that is donated to its next step.

    Raises:
      ValueError: no average inside, several of one leaf, or parameters of another
        structure or shape.

    Examples:
      >>> import jax.numpy as jnp, optax
      >>> from metalr_optax import average_weights, averaged_weights
      >>> optimizer = optax.chain(optax.sgd(1.0), average_weights(power=1.0))
      >>> params = {"w": jnp.array([4.0], jnp.bfloat16)}
      >>> state = optimizer.init(params)
      >>> for _ in range(2):  # to 3 and 2, with weights 1 and 2/3
      ...   grads = {"w": jnp.array([1.0], jnp.bfloat16)}
      ...   updates, state = optimizer.update(grads, state, params)
      ...   params = optax.apply_updates(params, updates)
      >>> averaged_weights(state, params)
      {'w': Array([2.32812], dtype=bfloat16)}
    """
    averages = _averages_in(state)
    leaves = jax.tree_util.tree_leaves_with_path(params)
    shapes = {_name_of(path): getattr(leaf, "shape", ()) for path, leaf in leaves}
    for name, average in averages.items():
        allowed = f"have at {name} the shape that init saw, {average.shape}"
        found = shapes.get(name)
        got = params if found is None else found
        checks.require(found == average.shape, "params", allowed, got)

    def weights_at(path: Any, leaf: Any) -> Any:
        if _name_of(path) in averages:
            return jnp.array(averages[_name_of(path)], jnp.result_type(leaf))
        return jnp.copy(leaf) if isinstance(leaf, jax.Array) else leaf

    return jax.tree_util.tree_map_with_path(weights_at, params)


def _has_average(leaf: Any) -> bool:
    # A model of Equinox may have functions among its leaves.
    return jnp.issubdtype(getattr(leaf, "dtype", type(leaf)), jnp.inexact)


def _start(leaf: Any) -> Any:
    """Return the first average of a leaf, a copy, in float32 at least."""
    if not _has_average(leaf):
        return optax.MaskedNode()
    return jnp.array(leaf, jnp.promote_types(jnp.result_type(leaf), jnp.float32))


def _weight(power: Any, t: Any, average: Any, updates: Any) -> jax.Array:
    """Return the weight of a step, 0 if it moves nothing.

    The division comes last: XLA copies cheaper expressions of a sum over N tensors into
    the program of each, and compiling takes O(N^2).
    """
    dtype = jnp.finfo(jnp.result_type(jnp.float32, *jax.tree.leaves(average))).dtype
    power = jnp.asarray(power, dtype)
    moves = filter(_has_average, jax.tree.leaves(updates))
    moved = sum((jnp.any(move != 0) for move in moves), jnp.array(False))
    return jnp.where(moved, power + 1, 0) / (t.astype(dtype) + power)


def _averages_in(state: Any) -> dict[str, Any]:
    """Return the averages of all leaves, by the name of the leaf."""
    trees = [node.average for _, node in checks.nodes_of(state, AverageWeightsState)]
    hint = "make average_weights() the last part of the chain"
    checks.require(trees, "state", "contain a state of average_weights", state, hint)
    leaves = jax.tree_util.tree_leaves_with_path(trees)
    averages = {_name_of(path[1:]): leaf for path, leaf in leaves}
    fits, allowed = len(averages) == len(leaves), "contain one average of each leaf"
    checks.require(fits, "state", allowed, f"{len(trees)} averages")
    return averages


def _name_of(path: Any) -> str:
    """Return the name of a leaf, without the attribute in which Flax wraps it."""
    wrapped = path and path[-1] == jax.tree_util.GetAttrKey("value")
    return checks.name_of(path[:-1] if wrapped else path) or "the top"
