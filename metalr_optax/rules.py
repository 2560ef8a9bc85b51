"""How evidence changes memories: the rules, and what limits the rates they reach."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from metalr_optax.checks import check_number
from metalr_optax.evidence import NEXT_TO_ZERO, Evidence
from metalr_optax.stack import StackedMemory

# The constants of `agreement_steps` were chosen on four problems and confirmed on
# others (benchmarks). Relative evidence above about this saturates.
_SATURATION = 0.3
# Fully inconsistent evidence makes this fraction of a step.
_INCONSISTENT = 0.2
# The consistency of evidence is measured over about five steps.
_AVERAGE_DECAY = 0.8
# Activity is compared with its maximum over about a hundred steps.
_PEAK_DECAY = 0.99
# The maximum of activity at most doubles in a step: an outlier must not stop learning.
_PEAK_GROWTH = 2.0
# Fully consistent evidence forgets this fraction of inconsistent evidence in a step.
_FORGOTTEN = 0.1
# Evidence with a consistency of 0.5 forgets only 0.5^8 times as much, because noise
# must not erase its own count.
_FORGOTTEN_POWER = 8
# This fraction of all activity is added to that of each local model, so that few
# coordinates do not decide alone.
_SHARED = 1e-3

# Added to Adam's second moments, because their root has no derivative at 0. With an eps
# of 1e-8 it changes no bit of a float32.
SMALLEST_ROOT = 1e-36


# Uncontradicted rates rise to this times the root of the RMS of the parameters, by two
# per cent in a step. A base in proportion to gradients has a size of four times the RMS
# of its directions, averaged over some twenty steps. A rate that will decay may settle
# where gradients disagree by 0.2. All were chosen on long tasks (benchmarks).
_USUAL, _RISE = 0.005, 0.02
# Beyond so many inputs of a unit that a step touches, the usual rate falls.
_INPUTS = 128.0
_PROPORTIONAL, _SIZE_DECAY = 4.0, 0.95
# The size falls by at most one per cent in a step: between rare hard samples directions
# almost vanish, and the next one must not meet rates that suit vanishing directions.
_SIZE_FALL = 0.99
_TARGET = 0.2


class Sizes(NamedTuple):
    """What limits of rates follow from, computed where it is asked for.

    Attributes:
      weights: () -> [L], root mean squares of the parameters of each memory.
      inputs: () -> [L], about how many inputs its units have.
      response: () -> the size of the steps of the base, 0 where they are in proportion
        to gradients.
    """

    weights: Callable[[], jax.Array]
    inputs: Callable[[], Any]
    response: Callable[[], float]


class Rule(NamedTuple):
    """How evidence changes memories.

    Attributes:
      init: (stack, sizes) -> state.
      update: (evidence, state, stack) -> (stack, state).
      bounds: (state, dtype) -> the smallest rate [] and the largest [] or [L, 1].
    """

    init: Callable[..., Any]
    update: Callable[[Evidence, Any, StackedMemory], tuple[StackedMemory, Any]]
    bounds: Callable[..., tuple[jax.Array, jax.Array]]


def from_optax(
    optimizer: optax.GradientTransformation, rate_bounds: tuple[Any, Any]
) -> Rule:
    """Return the rule of the paper: an Optax transformation steps the rates.

    It receives :math:`-u`, the rates [L, M] as parameters and, if it takes extra
    arguments, ``activity``. Rates are clipped to the bounds, and the shares of local
    models in the evidence are added to their weight.
    """
    takes_extra = isinstance(optimizer, optax.GradientTransformationExtraArgs)

    def init(memory: StackedMemory, sizes: Sizes) -> optax.OptState:
        del sizes
        # A copy: some optimizers keep the parameters that they start with.
        return optimizer.init(jnp.array(memory.rates))

    def update(evidence: Evidence, state: Any, memory: StackedMemory) -> Any:
        extra = {"activity": evidence.activity} if takes_extra else {}
        steps, state = optimizer.update(-evidence.u, state, memory.rates, **extra)
        rates: Any = optax.apply_updates(memory.rates, steps)
        low, high = bounds(state, rates.dtype)
        size = jnp.abs(evidence.u)
        total = jnp.sum(size, axis=-1, keepdims=True)
        usable = (total > 0) & jnp.isfinite(total)
        shares = jnp.where(usable, size / jnp.where(usable, total, 1), 0)
        weight = memory.evidence_weight + shares
        rates = jnp.clip(rates, low, high)
        return memory._replace(rates=rates, evidence_weight=weight), state

    def bounds(state: Any, dtype: Any) -> tuple[jax.Array, jax.Array]:
        del state
        low, high = rate_bounds
        return jnp.asarray(low, dtype), jnp.asarray(high, dtype)

    return Rule(init, update, bounds)


class CapState(NamedTuple):
    """State of :func:`cap`.

    Attributes:
      rule_state: of the rule.
      limits: [3, L] or [5, L], one array, because every array of a state costs time:
        the ceiling, above which no rate is raised, the largest finite number for none;
        the root mean square of the parameters, 0 where there is no ceiling; the inputs
        of a unit; and, if the ceiling is relative, the size of the steps of the base, 0
        until it is measured, and whether it is measured.
    """

    rule_state: Any
    limits: jax.Array

    @property
    def ceiling(self) -> jax.Array:
        """[L], above which no rate is raised."""
        return self.limits[0]

    def usual(self, touched: jax.Array) -> jax.Array:
        """Return rates [L] that need no evidence; 0 where there is no ceiling."""
        _, size, inputs, *unit = self.limits
        narrow = _INPUTS / jnp.maximum(inputs * touched, _INPUTS)
        return _USUAL * _root(size) * narrow / _divisor(unit)


def cap(rule: Rule, largest_step: Any, is_relative: bool = False) -> Rule:
    """Return a rule that raises no rate above a multiple of the RMS of the parameters.

    The multiple is divided by the size of the steps of the base if it is relative. A
    rate that starts above its ceiling stays there or falls.
    """

    def limits(size: jax.Array, inputs: jax.Array, *unit: jax.Array) -> jax.Array:
        # Not infinity, which times 0 is NaN when states are blended.
        largest = jnp.finfo(size.dtype).max
        ceiling = jnp.minimum(largest_step * size / _divisor(unit), largest)
        ceiling = jnp.where(size > 0, ceiling, largest)
        return jnp.stack([ceiling, size, inputs, *unit])

    def init(memory: StackedMemory, sizes: Sizes) -> CapState:
        size = sizes.weights().astype(memory.rates.dtype)
        usable = (size > NEXT_TO_ZERO) & jnp.isfinite(size * largest_step)
        size, unit = jnp.where(usable, size, 0), []
        if is_relative:
            response = jnp.full_like(size, sizes.response())
            unit = [response, jnp.where(response > 0, 0, 1).astype(size.dtype)]
        inputs = jnp.asarray(sizes.inputs(), size.dtype)
        return CapState(rule.init(memory, sizes), limits(size, inputs, *unit))

    def update(evidence: Evidence, state: CapState, memory: StackedMemory) -> Any:
        new, rule_state = rule.update(evidence, state.rule_state, memory)
        new_limits = state.limits
        if is_relative:
            _, size, inputs, *unit = state.limits
            unit = _measured(unit, evidence.direction_squares())
            new_limits = limits(size, inputs, *unit)
        state = CapState(rule_state, new_limits)
        highest = jnp.maximum(state.ceiling[:, None], memory.rates)
        return new._replace(rates=jnp.minimum(new.rates, highest)), state

    def bounds(state: CapState, dtype: Any) -> tuple[jax.Array, jax.Array]:
        low, high = rule.bounds(state.rule_state, dtype)
        return low, jnp.minimum(high, state.ceiling[:, None])

    return Rule(init, update, bounds)


def _divisor(unit: Sequence[jax.Array]) -> Any:
    return jnp.where(unit[0] > 0, unit[0], 1) if unit else 1


def _root(x: jax.Array) -> jax.Array:
    """Return the square root, whose derivative at 0 is 0 here and not infinite."""
    is_positive = x > 0
    return jnp.where(is_positive, jnp.sqrt(jnp.where(is_positive, x, 1)), 0)


def _measured(unit: Sequence[jax.Array], squares: jax.Array) -> list[jax.Array]:
    """Return the running mean of the sizes of directions, which falls slowly."""
    old, is_measured = unit
    sizes = _PROPORTIONAL * _root(squares)
    mean = _root(_SIZE_DECAY * old * old + (1 - _SIZE_DECAY) * sizes * sizes)
    new = jnp.where(old > 0, jnp.maximum(mean, _SIZE_FALL * old), sizes)
    return [jnp.where((is_measured > 0) & (sizes > 0), new, old), is_measured]


def rise_to_usual(rule: Rule, factor: float) -> Rule:
    r"""Return a rule that lets rates rise to a usual one until evidence disagrees.

    .. math::
      0.005 \sqrt{\mathrm{rms}(x)} / \text{unit} \cdot \text{factor}
        \cdot \min(1, 128 / (\text{inputs} \cdot \text{touched}))

    Moves of one sign add up over the inputs of a unit that a step touches, so the
    largest stable rate falls as one over them (Yang et al., *Tensor Programs V*, 2021).
    Of a table whose rows are rarely touched, gradients say nothing about the last step,
    whatever the rate. ``rule`` is one of :func:`cap`.
    """

    def update(evidence: Evidence, state: CapState, memory: StackedMemory) -> Any:
        new, state = rule.update(evidence, state, memory)
        _, high = rule.bounds(state, memory.rates.dtype)
        usual = factor * state.usual(evidence.touched)[:, None]
        usual = jnp.minimum(usual, high)
        rises = ~(evidence.contradicted | evidence.carried) & (evidence.counting > 0)
        risen = jnp.minimum(new.rates * (1 + _RISE), usual)
        rates = jnp.where(rises[:, None], jnp.maximum(new.rates, risen), new.rates)
        return new._replace(rates=rates), state

    return rule._replace(update=update)


def aim_below_zero(rule: Rule) -> Rule:
    """Return a rule that lowers contradicted rates to an agreement of -0.2, not of 0.

    Near the noise floor agreement is below 0 at any rate, in proportion to the rate: a
    rule that aims at 0 has no equilibrium there.
    """

    def update(evidence: Evidence, state: Any, memory: StackedMemory) -> Any:
        shift = jnp.where(
            evidence.contradicted[:, None], _TARGET * evidence.activity, 0
        )
        return rule.update(evidence._replace(u=evidence.u + shift), state, memory)

    return rule._replace(update=update)


def distrust_limited(rule: Rule) -> Rule:
    """Return a rule that raises no rate by evidence about a step that was limited.

    Such a step was smaller than its rate says: if the next gradient agrees, the rate
    need not be too small.
    """

    def update(evidence: Evidence, state: Any, memory: StackedMemory) -> Any:
        new, state = rule.update(evidence, state, memory)
        lower = jnp.minimum(new.rates, memory.rates)
        rates = jnp.where(evidence.was_limited, lower, new.rates)
        return new._replace(rates=rates), state

    return rule._replace(update=update)


class AgreementStepsState(NamedTuple):
    """State of :func:`agreement_steps`, of rates [L, M] of L memories.

    Attributes:
      history: [L, 3 M + 2], one array, because every array of a state costs time in
        every call: steps since the first evidence, the largest recent activity, and [M]
        each the running mean of the relative evidence, its running variance and the
        amount of inconsistent evidence.
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

    The first factor of :math:`e_m` is an agreement in [-1, 1], whatever the scale of
    gradients. The second makes evidence from gradients that have almost vanished count
    for little; without it, rates climb near a minimum. The consistency :math:`k_m` over
    about five steps (both means have Adam's bias correction) keeps noise from moving
    rates at full speed. The first activity is the first :math:`n`. Sums that overflow
    give no evidence.

    :math:`N_m` is the amount of inconsistent evidence so far, in steps; a local model
    that few coordinates use counts it in proportion. Near the noise floor gradients
    disagree slightly with the last step at any rate: steps of a constant size would
    lower the rates of a long run towards 0, while steps that fall like 1 / N converge,
    as in stochastic approximation. Consistent evidence does not count, so a rate climbs
    as far as it has to. Evidence that becomes consistent again, for example after a
    change of the task, reduces :math:`N_m`.

    Args:
      step: largest change of the logarithm of a rate in one step, positive.
      gain: largest change times :math:`N_m`, positive; None for steps that do not fall.

    Returns:
      A :class:`optax.GradientTransformationExtraArgs`. It receives :math:`-u` as a
      gradient, the rates as parameters and the extra argument ``activity``, all [L, M]
      with a row per memory, and returns updates of the rates. Rows are independent.
      Trees of such arrays, and of [M], work too.

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
    """Return updates of the rates [L, M], and the new history."""
    num = rates.shape[-1]
    places = [1, 2, 2 + num, 2 + 2 * num]
    count, peak, mean, variance, doubt = jnp.split(history, places, axis=-1)
    peak = _new_peak(peak, activity)
    count += (peak > 0).astype(count.dtype)
    e, own = _relative(minus_u, activity, peak)
    # The weight of this step, with Adam's bias correction.
    weight = (1 - _AVERAGE_DECAY) / (1 - _AVERAGE_DECAY ** jnp.maximum(count, 1))
    away = e - mean
    mean += weight * away
    variance = (1 - weight) * (variance + weight * away * away)
    total = variance + mean * mean
    # The reciprocal of a smaller number is not finite.
    usable = total > 4 * jnp.finfo(total.dtype).tiny
    share = jnp.where(usable, 1 / jnp.where(usable, total, 1), 0)
    # Not 1 - consistency, which loses its digits near a consistency of 1.
    consistency, inconsistency = mean * mean * share, variance * share
    doubt += own * jnp.where(e != 0, inconsistency, 0)
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
    """Return the evidence [L, M] in [-1, 1], and each local model's own share in it.

    Both are 0 where there is no evidence or its sum overflows.
    """
    total = jnp.sum(activity, axis=-1, keepdims=True)
    usable = (total > 0) & jnp.isfinite(total)
    share = jnp.where(usable, activity + _SHARED * total, 1)
    own = jnp.where(usable, activity + _SHARED * (total - activity), 1)
    size = jnp.minimum(total / jnp.where(usable, peak, 1), 1)
    e = jnp.where(usable, -minus_u / share * size, 0)
    return e, jnp.where(usable, activity / own, 0)
