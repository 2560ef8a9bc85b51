"""How far evidence moves rates when only its size relative to the past counts."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from metalr_optax.checks import check_number

# Chosen on four problems and tried on others, see benchmarks: evidence above this is
# full evidence, ...
_SATURATION = 0.3
# ... this much of a step is left to evidence that contradicts itself, ...
_INCONSISTENT = 0.2
# ... its consistency is measured over about five steps, ...
_AVERAGE_DECAY = 0.8
# ... and activity is compared with its maximum over about a hundred.
_PEAK_DECAY = 0.99
# At most this much higher in one step: an outlier must not stop all learning.
_PEAK_GROWTH = 2.0
# What is inconsistent is forgotten by so much in a step when evidence agrees fully, ...
_FORGOTTEN = 0.1
# ... and by next to nothing when it agrees by half: noise must not undo its own count.
_FORGOTTEN_POWER = 8
# A local model that few coordinates use shares this much of everyone's activity, so
# that they do not decide alone.
_SHARED = 1e-3


class AgreementStepsState(NamedTuple):
    """State of :func:`agreement_steps`, of rates [L, M] of L memories.

    Attributes:
      history: [L, 3 M + 2], one array, because every array of a state costs time in
        every call: steps since there was evidence for the first time, the largest
        activity of the recent past, and [M] each the running means of the relative
        evidence and of its squared distance from that, and the amount of
        inconsistent evidence.
    """

    history: Any


def agreement_steps(
    step: jax.typing.ArrayLike = 0.5, gain: jax.typing.ArrayLike | None = 2.0
) -> optax.GradientTransformationExtraArgs:
    r"""Multiply learning rates by how far gradients agreed, relative to the past.

    A ``memory_optimizer`` for :func:`metalr_optax.scale_by_memory`, to be used with
    ``signal=raw_product``. With :math:`u_m` the evidence of a local model and
    :math:`b_m` its activity (the same mean, of :math:`|a_i|` instead of :math:`a_i`):

    .. math::
      n &\leftarrow \max(0.99\, n, \min(\textstyle\sum_k b_k, 2 n)) \\
      e_m &= \frac{u_m}{b_m + 0.001 \sum_k b_k}
        \cdot \min(\textstyle\sum_k b_k / n, 1) \\
      k_m &= \mathrm{mean}(e_m)^2 / \mathrm{mean}(e_m^2) \\
      N_m &\leftarrow \Big(N_m + \frac{b_m (1 - k_m)}{b_m + 0.001 \sum_{k \ne m} b_k}
        \Big) (1 - 0.1\, k_m^8) \\
      v_m &\leftarrow v_m \exp\big(\min(\text{step}, \text{gain} / N_m)
        \cdot \tanh(e_m / 0.3) \cdot (0.2 + 0.8\, k_m)\big)

    The first factor of :math:`e_m` is an agreement in [-1, 1] that no scale of
    gradients changes. The second lets evidence from gradients that have all but
    vanished count for little: a rule without it drives rates up near a minimum. The
    consistency :math:`k_m` of about five steps (both means are corrected for their
    start, as Adam's are) keeps noise from moving rates at full speed. The first
    activity is the first :math:`n`. Sums that overflow are no evidence.

    :math:`N_m` is how much inconsistent evidence there was, in steps, of which a local
    model that few coordinates use takes its share. Near the noise floor a
    gradient disagrees a little with the last step at any rate; steps of a constant size
    follow that down for ever, and a long run ends with rates of nothing. Steps that
    fall like 1 / N settle instead, as in stochastic approximation. Evidence that agrees
    does not count, so a rate climbs as far as it has to; evidence that begins to agree
    again, as after a change of the task, makes the rule forget what it had settled on.

    Args:
      step: largest change of the logarithm of a rate in one step, positive.
      gain: the same times the inconsistent evidence so far, positive; None for steps
        that do not fall.

    Returns:
      A :class:`optax.GradientTransformationExtraArgs`. It receives :math:`-u` as a
      gradient, the rates as parameters and the extra argument ``activity``, all [L, M]
      with a row per memory, and returns what is to be added to the rates. Rows know
      nothing of each other. Trees of such arrays, and of [M], work too.

    Raises:
      ValueError: at construction, a step that is not positive and finite or a gain that
        is not positive; at ``update``, no rates or no activity.

    Examples:
      Gradients that all agree raise a rate by a factor of almost e for a step of 1;
      when they all disagree, it falls again:

      >>> import jax.numpy as jnp, optax
      >>> from metalr_optax import agreement_steps
      >>> rates, steps = jnp.array([[1e-3]]), agreement_steps(1.0)
      >>> state = steps.init(rates)
      >>> for sign in (1.0, 1.0, -1.0):
      ...   minus_u, activity = jnp.array([[-sign]]), jnp.ones([1, 1])
      ...   changes, state = steps.update(minus_u, state, rates, activity=activity)
      ...   rates = optax.apply_updates(rates, changes)
      ...   print(f"{rates[0, 0]:.4f}")
      0.0027
      0.0074
      0.0059

    References:
      The normalisation by a running maximum follows Mahmood, Sutton, Degris, Pilarski,
      *Tuning-free step-size adaptation*, 2012 (Autostep).

    .. seealso:: :func:`metalr_optax.scale_by_memory`,
      :func:`metalr_optax.raw_product`.
    """
    check_number("step", step)
    if gain is not None:
        check_number("gain", gain)

    def init_fn(params: optax.Params) -> AgreementStepsState:
        def zeros(rates: jax.Array) -> jax.Array:
            return jnp.zeros((*rates.shape[:-1], 2 + 3 * rates.shape[-1]), rates.dtype)

        return AgreementStepsState(jax.tree.map(zeros, params))

    def update_fn(updates, state, params=None, *, activity=None, **extra_args):
        del extra_args
        if params is None or activity is None:
            raise ValueError(
                "agreement_steps needs the rates as params and the extra argument "
                "activity, as scale_by_memory gives them to its memory_optimizer"
            )

        change = functools.partial(_change, step, gain)
        both = jax.tree.map(change, updates, activity, state.history, params)
        changes, history = (
            jax.tree.map(lambda _, pair, i=i: pair[i], params, both) for i in range(2)
        )
        return changes, AgreementStepsState(history)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def inconsistent_evidence(state: AgreementStepsState) -> jax.Array:
    """Return N [L, M], the amount of inconsistent evidence, in steps."""
    # Flax NNX keeps every array of an optimizer in a variable.
    (history,) = jax.tree.leaves(state.history)
    num = (history.shape[-1] - 2) // 3
    return history[..., -num:]


def _change(
    step: Any,
    gain: Any,
    minus_u: jax.Array,
    activity: jax.Array,
    history: jax.Array,
    rates: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Return what is to be added to the rates [L, M], and the new history."""
    num = rates.shape[-1]
    places = [1, 2, 2 + num, 2 + 2 * num]
    count, peak, mean, variance, doubt = jnp.split(history, places, axis=-1)
    peak = _new_peak(peak, activity)
    count += (peak > 0).astype(count.dtype)
    e, own = _relative(minus_u, activity, peak)
    # The weight of this step, corrected for the start as Adam's means are.
    weight = (1 - _AVERAGE_DECAY) / (1 - _AVERAGE_DECAY ** jnp.maximum(count, 1))
    away = e - mean
    mean += weight * away
    variance = (1 - weight) * (variance + weight * away * away)
    total = variance + mean * mean
    # Not 1 less the other: of that little would be left where evidence agrees.
    consistency, inconsistency = (
        jnp.where(total > 0, one / jnp.where(total > 0, total, 1), 0)
        for one in (mean * mean, variance)
    )
    doubt += own * jnp.where((e != 0) & (total > 0), inconsistency, 0)
    doubt *= 1 - _FORGOTTEN * consistency**_FORGOTTEN_POWER
    trust = _INCONSISTENT + (1 - _INCONSISTENT) * consistency
    power = step * trust * jnp.tanh(e / _SATURATION)
    if gain is not None:
        power *= gain / jnp.maximum(gain, step * doubt)
    history = jnp.concatenate([count, peak, mean, variance, doubt], axis=-1)
    return rates * jnp.expm1(power).astype(rates.dtype), history


def _new_peak(peak: jax.Array, activity: jax.Array) -> jax.Array:
    total = jnp.sum(activity, axis=-1, keepdims=True)
    total = jnp.where(jnp.isfinite(total), total, 0)
    most = jnp.where(peak > 0, _PEAK_GROWTH * peak, total)
    return jnp.maximum(_PEAK_DECAY * peak, jnp.minimum(total, most))


def _relative(
    minus_u: jax.Array, activity: jax.Array, peak: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Return the evidence [L, M] in [-1, 1], and how much of it is a model's own.

    Both are 0 where there is none or it overflowed.
    """
    total = jnp.sum(activity, axis=-1, keepdims=True)
    usable = (total > 0) & jnp.isfinite(total)
    share = jnp.where(usable, activity + _SHARED * total, 1)
    own = jnp.where(usable, activity + _SHARED * (total - activity), 1)
    size = jnp.minimum(total / jnp.where(usable, peak, 1), 1)
    e = jnp.where(usable, -minus_u / share * size, 0)
    return e, jnp.where(usable, activity / own, 0)
