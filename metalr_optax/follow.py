"""A rule that follows the schedule of its memories, and yields to that of the user."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from metalr_optax.local_models import Evidence
from metalr_optax.memory import mean_rate
from metalr_optax.progress import record, step_along
from metalr_optax.rules import Rule, Sizes
from metalr_optax.stack import StackedMemory

# A multiplier that has come down so far from its highest value decays.
_DECAYED = 0.9


class FollowState(NamedTuple):
    """State of :func:`follow_schedule`.

    Attributes:
      rule_state: of the rule.
      progress: [], int32, steps since the memories were set.
      highest_multiplier: [], of the run so far.
    """

    rule_state: Any
    progress: jax.Array
    highest_multiplier: jax.Array


def follow_schedule(rule: Rule) -> Rule:
    """Return a rule whose memories learn how rates change with the progress of a run.

    While the multiplier on all rates is below 0.9 of its highest value so far, memories
    hold: otherwise adaptation would compensate for the decay, or noise would lower the
    rates that the decay is to lower.
    """

    def init(memory: StackedMemory, sizes: Sizes) -> FollowState:
        zero = jnp.zeros([], memory.rates.dtype)
        state = rule.init(memory, sizes)
        return FollowState(state, jnp.zeros([], jnp.int32), zero)

    def update(evidence: Evidence, state: FollowState, memory: StackedMemory) -> Any:
        multiplier = jnp.asarray(evidence.multiplier, memory.rates.dtype)
        holds = multiplier < _DECAYED * state.highest_multiplier
        new, rule_state = rule.update(evidence, state.rule_state, memory)
        corrected = jnp.where(holds, memory.rates, new.rates)
        step = step_along(memory.schedule, state.progress)
        step = jnp.where(holds, 0, step)
        low, high = rule.bounds(rule_state, corrected.dtype)
        # Evidence may have left rates above their ceiling, where they were.
        moved = jnp.clip(
            corrected * jnp.exp(step)[:, None], low, jnp.maximum(high, corrected)
        )
        rates = jnp.where(step[:, None] != 0, moved, corrected)
        weight = memory.evidence_weight
        change = jnp.log(mean_rate(rates, weight) / mean_rate(memory.rates, weight))
        schedule = record(memory.schedule, state.progress, step, change)
        highest = jnp.maximum(state.highest_multiplier, multiplier)
        progress: Any = optax.safe_increment(state.progress)
        state = FollowState(rule_state, progress, highest)
        return new._replace(rates=rates, schedule=schedule), state

    return Rule(init, update, lambda s, dtype: rule.bounds(s.rule_state, dtype))
