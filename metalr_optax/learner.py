"""The steps of an optimizer with memories: when they are corrected and read."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from metalr_optax import checks, memory_checks
from metalr_optax import evidence as by_tensor
from metalr_optax.bases import response, steps_like_adam
from metalr_optax.evidence import Evidence
from metalr_optax.groups import (
    GroupBy,
    fan_ins,
    inputs_of,
    labels_of,
    memory_dtype,
    unique,
)
from metalr_optax.local_models import LocalModels
from metalr_optax.memory import Memory, mean_rate
from metalr_optax.orientation import find_orientation
from metalr_optax.rules import Rule, Sizes
from metalr_optax.signals import Signal, sign_agreement
from metalr_optax.stack import Info, StackedMemory, first_info

# The sign of the evidence is averaged over about (1 + .9) / (1 - .9) = 19 steps.
_SIGN_DECAY = 0.9
# Rates are within the bounds up to rounding.
_SLACK = 1e-6


class ScaleByMemoryState(NamedTuple):
    """State of :func:`scale_by_memory`; its memories are read with ``get_memory``.

    Attributes:
      memory: all L memories of M local models, ``rates`` [L, M] among its arrays.
      rows: label -> [], int32, the row of its memory, in the order of labels; None for
        labels of slices.
      last_direction: like the parameters; with ``evidence_sample`` one array of all
        samples.
      orientation: [], float32, 1 if the base points along the gradient, -1 if against
        it, 0 until that is determined; None for a base that always points along it.
      rule_state: of the rule that steps the rates.
      base_state: of the base optimizer.
      info: [7, L], a packed ``Info`` for logs and transfers.
    """

    memory: StackedMemory
    rows: Any
    last_direction: Any
    orientation: Any
    rule_state: Any
    base_state: Any
    info: jax.Array


class Learner(NamedTuple):
    """The parts of an optimizer with memories.

    Attributes:
      models: the family of local models, its ``gather`` with a signal.
      rule: how evidence changes memories.
      base: the base optimizer.
      memories: labels -> the memories they start with.
      group_by: which tensors share a memory.
      evidence_sample: coordinates of a tensor that give evidence; None for all.
      progress: whether memories have a learned schedule.
      finds_orientation: whether the orientation of the base has to be determined.
    """

    models: LocalModels
    rule: Rule
    base: optax.GradientTransformationExtraArgs
    memories: Callable[[Sequence[str]], list[Memory]]
    group_by: GroupBy
    evidence_sample: int | None
    progress: bool
    finds_orientation: bool


def with_signal(models: LocalModels, signal: Signal | None) -> LocalModels:
    """Return a family whose evidence comes from a signal.

    Its functions are traced once for all tensors of one shape, and compiled once if the
    step itself is not jitted.
    """
    # XLA does not optimise across a call of a function with a program per platform.
    jit = functools.partial(jax.jit, inline=models.depends_on_platform)
    gather = jit(models.gather, static_argnums=0)
    return models._replace(
        gather=functools.partial(gather, signal or sign_agreement),
        scale=jit(models.scale),
    )


def start(learner: Learner, params: optax.Params) -> ScaleByMemoryState:
    """Return the state before the first step."""
    dtype = memory_dtype(params)
    params = jax.tree.map(jnp.asarray, params)
    labels = labels_of(params, learner.group_by)
    names = unique(labels)
    memories = learner.memories(names)
    for memory in memories:
        memory_checks.check_kernels(memory_checks.in_use(memory.kernels), dtype)
    memory = learner.models.init(memories, dtype, learner.progress)
    # Without labels `memories` returns a single memory, of which no row is kept.
    memory = jax.tree.map(lambda x: x[: len(names)], memory)
    of_tensors = {label for label in labels if isinstance(label, str)}
    rows: Any = {
        name: jnp.array(row, jnp.int32) if name in of_tensors else None
        for row, name in enumerate(names)
    }
    size, fan_in = learner.evidence_sample, fan_ins(params, labels)
    base_state = learner.base.init(params)
    if steps_like_adam(base_state):
        memory_checks.warn_of_width(names, memories, fan_in)
    pieces = by_tensor.whole_tensors(params, labels, rows)
    sizes = Sizes(
        weights=lambda: by_tensor.sizes_of(pieces, dtype),
        inputs=lambda: inputs_of(params, labels, fan_in),
        response=lambda: response(learner.base, params),
    )
    return ScaleByMemoryState(
        memory=memory,
        # `optax.tree.map_params` initialises with a tree without leaves and takes the
        # result for a prefix of the state: an array is a prefix of anything.
        rows=rows or jnp.zeros(0, jnp.int32),
        last_direction=by_tensor.keep_zeros(pieces, size, params, dtype),
        orientation=jnp.zeros([], jnp.float32) if learner.finds_orientation else None,
        rule_state=learner.rule.init(memory, sizes),
        base_state=base_state,
        info=first_info(memory, fan_in),
    )


def step(
    learner: Learner,
    updates: optax.Updates,
    state: ScaleByMemoryState,
    params: optax.Params | None,
    extra_args: dict[str, Any],
    multiplier: Any = 1.0,
    was_limited: Any = False,
) -> tuple[optax.Updates, ScaleByMemoryState]:
    """Return the scaled directions, in the dtype of the rates, and the new state."""
    updates, gradient = jax.tree.map(jnp.asarray, (updates, extra_args.get("grad")))
    labels, models = labels_of(updates, learner.group_by), learner.models
    checks.check_step(updates, labels, state, ScaleByMemoryState, gradient)
    if not labels:
        return updates, state
    gradient = updates if gradient is None else gradient
    histories, size = models.histories(state.base_state), learner.evidence_sample
    evidence = by_tensor.collect(
        models.gather, histories, gradient, labels, state, size
    )._replace(multiplier=multiplier, was_limited=was_limited)
    memory, rule_state = learner.rule.update(evidence, state.rule_state, state.memory)
    dtype = memory.rates.dtype
    bounds = learner.rule.bounds(rule_state, dtype)
    direction, base_state = learner.base.update(
        updates, state.base_state, params, **extra_args
    )
    orientation = state.orientation
    if orientation is not None:
        orientation = find_orientation(orientation, gradient, direction)
    pieces = by_tensor.whole_tensors(direction, labels, state.rows)
    state = ScaleByMemoryState(
        memory=memory,
        rows=state.rows,
        last_direction=by_tensor.keep(pieces, size, state.last_direction, dtype),
        orientation=orientation,
        rule_state=rule_state,
        base_state=base_state,
        info=_new_info(state.info, evidence, memory, bounds),
    )
    histories = models.histories(base_state)
    scaled = [
        by_tensor.by_row(models.scale, piece.rows)(
            memory, piece.rows, piece.array, history
        )
        for piece, history in zip(pieces, histories, strict=False)
    ]
    return jax.tree.unflatten(jax.tree.structure(direction), scaled), state


def _new_info(
    array: jax.Array, evidence: Evidence, memory: StackedMemory, bounds: Any
) -> jax.Array:
    """Return what logs need after a step."""
    old = Info(*jnp.unstack(array))
    usable = (evidence.counting > 0) & jnp.isfinite(evidence.counting)
    ratio = evidence.agreeing / jnp.where(usable, evidence.counting, 1)
    sign = jnp.sign(jnp.sum(evidence.u, axis=-1))
    sign = jnp.where(jnp.isnan(sign), 0, sign)
    low, high = bounds
    rates, used = memory.rates, memory.kernels[:, 1] > 0
    at_bound = (rates <= low * (1 + _SLACK)) | (rates >= high * (1 - _SLACK))
    means = mean_rate(rates, memory.evidence_weight)
    return jnp.stack(
        Info(
            agreement_fraction=jnp.where(
                usable, 0.5 + 0.5 * ratio, old.agreement_fraction
            ),
            evidence_sign=_SIGN_DECAY * old.evidence_sign + (1 - _SIGN_DECAY) * sign,
            at_bound_fraction=jnp.mean(
                at_bound, axis=-1, dtype=rates.dtype, where=used
            ),
            out_of_range_fraction=evidence.outside,
            start=old.start,
            highest=jnp.maximum(old.highest, means),
            fan_in=old.fan_in,
        )
    )
