"""How rates change with the progress of a run: the learned schedule that it leaves.

Progress is the number of steps of a run. It has a local model with a triangular kernel
at every power of two: they are closest near the start, where rates change most. Each
holds the logarithm of a rate relative to the rate in use, so that evidence moves the
rate in use and all later ones by the same factor.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from metalr_optax.evidence import Evidence
from metalr_optax.memory import MARKS, mean_rate
from metalr_optax.rules import Rule, Sizes
from metalr_optax.stack import StackedMemory

# A multiplier below this fraction of its highest value decays.
_DECAYED = 0.9
# Gradients contradict a rate once the sum of their agreement, counted from its last
# highest, is this many standard deviations below 0. Pure noise gets there in one of
# sixty memories within 5,000 steps.
_CONTRADICTED = 4.0


class FollowState(NamedTuple):
    """State of :func:`follow_schedule`.

    Attributes:
      rule_state: of the rule.
      progress: [], int32, steps since the memories were set.
      disagreement: [3, L], the sum of agreement in [-1, 1] since it was last 0, never
        above 0; that of its squares; and the highest multiplier since gradients
        contradicted a rate, 0 before.
    """

    rule_state: Any
    progress: jax.Array
    disagreement: jax.Array


def follow_schedule(rule: Rule) -> Rule:
    """Return a rule whose memories learn how rates change with the progress of a run.

    A memory freezes while the multiplier is below 0.9 of its highest value: otherwise
    adaptation would compensate for the decay, or noise would lower the rate as well.
    The highest value is that since gradients first contradicted the rate: before that,
    the memory adapts whatever the multiplier does.
    """

    def init(memory: StackedMemory, sizes: Sizes) -> FollowState:
        zeros = jnp.zeros((3, len(memory.rates)), memory.rates.dtype)
        state = rule.init(memory, sizes)
        return FollowState(state, jnp.zeros([], jnp.int32), zeros)

    def update(evidence: Evidence, state: FollowState, memory: StackedMemory) -> Any:
        dtype = memory.rates.dtype
        multiplier = jnp.asarray(evidence.multiplier, dtype)
        highest = state.disagreement[2]
        holds = multiplier < _DECAYED * highest
        disagreement = _disagreement(evidence, state.disagreement, multiplier)
        evidence = evidence._replace(
            contradicted=disagreement[2] > 0,
            # A memory of this run has evidence from at most all of its steps.
            carried=jnp.sum(memory.evidence_weight, -1)
            > state.progress.astype(dtype) + 0.5,
        )
        step = jnp.where(holds, 0, step_along(memory.schedule, state.progress))
        new, rule_state = rule.update(evidence, state.rule_state, memory)
        low, high = rule.bounds(rule_state, step.dtype)
        corrected = jnp.where(holds[:, None], memory.rates, new.rates)
        # A rate that started above its ceiling stays where evidence left it.
        moved = jnp.clip(
            corrected * jnp.exp(step)[:, None], low, jnp.maximum(high, corrected)
        )
        rates = jnp.where(step[:, None] != 0, moved, corrected)
        weight = memory.evidence_weight
        change = jnp.log(mean_rate(rates, weight) / mean_rate(memory.rates, weight))
        schedule = record(memory.schedule, state.progress, step, change)
        progress: Any = optax.safe_increment(state.progress)
        state = FollowState(rule_state, progress, disagreement)
        return new._replace(rates=rates, schedule=schedule), state

    return Rule(init, update, lambda s, dtype: rule.bounds(s.rule_state, dtype))


def _disagreement(
    evidence: Evidence, state: jax.Array, multiplier: jax.Array
) -> jax.Array:
    """Return the test [3, L] of whether gradients contradict rates, after a step."""
    total, squares, highest = jnp.unstack(state)
    usable = (evidence.counting > 0) & jnp.isfinite(evidence.counting)
    ratio = evidence.agreeing / jnp.where(usable, evidence.counting, 1)
    ratio = jnp.where(usable, ratio, 0)
    total = jnp.minimum(total + ratio, 0)
    squares = jnp.where(total < 0, squares + ratio * ratio, 0)
    is_found = (highest > 0) | (total * total > _CONTRADICTED**2 * squares)
    highest = jnp.where(is_found, jnp.maximum(highest, multiplier), 0)
    return jnp.stack([total, squares, highest])


def step_along(schedule: jax.Array, progress: jax.Array) -> jax.Array:
    r"""Return how far the learned schedule moves the logs of rates in the next step.

    .. math:: \delta = s_p / (2^p - t), \quad p = \min \{p : 2^p > t\}

    Args:
      schedule: [L, P], :math:`s_p`, log of the rate at step 2^p over that in use.
      progress: [] or [L], :math:`t`, steps so far.

    Returns:
      [L]: linear towards the next local model, 0 beyond the last.
    """
    done, marks = _places(schedule, progress)
    is_next = (marks > done) & (marks <= jnp.maximum(2 * done, 1))
    return jnp.sum(jnp.where(is_next, schedule, 0) / jnp.maximum(marks - done, 1), -1)


def record(
    schedule: jax.Array, progress: jax.Array, step: jax.Array, change: jax.Array
) -> jax.Array:
    r"""Return the learned schedule after a step, relative to the rate now in use.

    .. math::
      s_p \leftarrow s_p - \begin{cases} \delta & 2^p > t \\ c & 2^p \le t \end{cases},
      \quad s_p \leftarrow \max(s_p, 0) \text{ where } 2^p \le t + 1

    Later rates keep their ratio to the rate in use, less the part that the step has
    covered. Earlier ones keep the highest rate since then: the next run starts with a
    rate that this one had to climb to, and a rate that fell falls again.

    Args:
      schedule: [L, P], :math:`s_p`, before.
      progress: [] or [L], :math:`t`, before.
      step: [L], :math:`\delta`, of :func:`step_along`.
      change: [L], :math:`c`, of the log of the rate in use: :math:`\delta` plus the
        correction by evidence.
    """
    done, marks = _places(schedule, progress)
    schedule -= jnp.where(marks > done, step[:, None], change[:, None])
    return jnp.where(marks <= done + 1, jnp.maximum(schedule, 0), schedule)


def _places(schedule: jax.Array, progress: jax.Array) -> tuple[jax.Array, jax.Array]:
    dtype = schedule.dtype
    marks = jnp.asarray(MARKS, dtype)[None]
    return progress.astype(dtype).reshape(-1, 1), marks
