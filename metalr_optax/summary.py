"""Numbers to log, rates and kernel inputs of the memories in a state."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from metalr_optax.checks import describe, nodes_of, require
from metalr_optax.evidence import Samples, replicated
from metalr_optax.groups import GroupBy, Label, labels_of, names_in, unique
from metalr_optax.guards import GuardState
from metalr_optax.learner import ScaleByMemoryState
from metalr_optax.local_models import kernel_inputs
from metalr_optax.memory import Kernels, mean_rate, read
from metalr_optax.rules import AgreementStepsState, CapState, inconsistent_evidence
from metalr_optax.stack import ByHistory, StackedMemory, unpack_info
from metalr_optax.transfer import memory_states

# A local model with less than this fraction of the evidence of another is not in use.
_IN_USE = 0.01
# Rates are at their ceiling up to rounding.
_SLACK = 1e-6
# A sign beyond this is clear: in pure noise, one in forty would be.
_CLEAR = 0.5


def summarize_memory(opt_state: Any) -> dict[str, jax.Array]:
    r"""Return numbers to log for every memory, as a flat dict of scalars.

    For every label:

    - ``rate_mean/label``: mean of the rates, weighted by the evidence each local model
      has had (all equal as long as there is none).
    - ``rate_min/label``, ``rate_max/label``: smallest and largest rate in use, that is
      of local models with at least 1 % of the evidence that the busiest one has had.
    - ``rate_over_start/label``, ``rate_over_highest/label``: the mean rate over that at
      the start, and over the highest so far. Far below 1 the rates have collapsed.
    - ``agreement_fraction/label``: in [0, 1], the fraction of the last evidence that
      was for larger rates, :math:`\sum_i \max(a_i, 0) / \sum_i |a_i|`: with
      :func:`sign_agreement` the fraction of coordinates whose gradient had the sign of
      the last direction, with :func:`raw_product` weighted by size. 0.5 before there
      was any. With more than one local model, from at most 4,096 coordinates a tensor.
    - ``evidence_sign/label``: in [-1, 1], running mean over about 19 steps of whether
      the evidence of a step was for larger rates (1) or smaller ones (-1). In pure
      noise it is 0 with a standard error of 0.23.
    - ``rate_too_small/label``, ``rate_too_large/label``: 1 where that sign is above 0.5
      and below -0.5, else 0. Where both are 0, rates fit or noise hides the evidence.
    - ``at_bound_fraction/label``: of the local models, at one of ``rate_bounds``.
    - ``at_ceiling_fraction/label``: of the local models, at or above the ceiling that
      ``largest_step`` sets, which does not count as a bound. 1 is normal: the rate has
      climbed as far as it may. If ``rate_too_small`` is 1 too, only the ceiling keeps
      the rate from climbing.
    - ``never_corrected/label``: 1 if no step, or none of the last thousand, had
      evidence for the memory; else 0. 1 is normal in the first step, and for a layer
      that the loss does not depend on.
    - ``out_of_range_fraction/label``: of the coordinates, with a kernel input that is
      not finite, or at the outermost centre (to which ``optax.clip`` cuts back) or
      beyond; from at most 4,096 a tensor. Always 0 with a single local model.
    - ``inconsistent_evidence/label``: :math:`N` of :func:`agreement_steps`, in steps,
      if that steps the rates; averaged as the rates are. With its defaults a rate moves
      by at most 2 / N of itself in a step, once N is above 4.
    - ``skipped/label``, ``skipped_in_a_row/label``: steps that :func:`learn_rates` and
      its variants skipped, so far and since the last step that was not. The same for
      all labels.

    Args:
      opt_state: any pytree with states of :func:`metalr_optax.scale_by_memory` in it,
        as for :func:`metalr_optax.get_memory`. For a vmapped state use the
        ``jax.vmap`` of this function.

    Returns:
      ``{"quantity/label": []}``, float32 (float64 with float64 parameters). Works under
      ``jit`` and costs almost nothing, because a step has computed the sums already.

    Raises:
      ValueError: as :func:`metalr_optax.get_memory`; a state with a leading axis of
        ``vmap``.

    Examples:
      A compiled loop cannot warn that it learns nothing. Check the logs outside of
      ``jit``, about every hundred steps. Here the loss is infinite from the start:

      >>> import warnings, jax, jax.numpy as jnp
      >>> from metalr_optax import memory_sgd, summarize_memory
      >>> limits = {"skipped_in_a_row": 10, "never_corrected": 0}
      >>> def warn_if_stuck(opt_state):
      ...   for name, value in summarize_memory(opt_state).items():
      ...     if value > limits.get(name.split("/")[0], jnp.inf):
      ...       warnings.warn(f"{name} is {float(value):g}")
      >>> state, update = memory_sgd().init(jnp.zeros(2)), jax.jit(memory_sgd().update)
      >>> for _ in range(100):
      ...   _, state = update(jnp.full(2, jnp.inf), state)
      >>> with warnings.catch_warnings(record=True, action="always") as caught:
      ...   warn_if_stuck(state)
      >>> [str(warning.message) for warning in caught]
      ['never_corrected/params is 1', 'skipped_in_a_row/params is 100']

      With ``"at_ceiling_fraction": 0.99`` among the limits it also warns of rates that
      have climbed as far as they may.

      A rate that is a thousand times too small:

      >>> import jax, jax.numpy as jnp, optax
      >>> from metalr_optax import memory_sgd, summarize_memory
      >>> optimizer = memory_sgd(initial=1e-5)
      >>> x = jnp.array([1.0, -2.0])
      >>> state, update = optimizer.init(x), jax.jit(optimizer.update)
      >>> for _ in range(10):
      ...   updates, state = update(2 * x, state)
      ...   x = optax.apply_updates(x, updates)
      >>> logs = summarize_memory(state)
      >>> float(logs["agreement_fraction/params"]), float(logs["rate_too_small/params"])
      (1.0, 1.0)
      >>> bool(logs["rate_over_start/params"] > 10)
      True

    .. seealso:: :func:`get_rates` for every parameter, and :func:`get_kernel_inputs`
      and ``metalr_optax.plots`` for pictures.
    """
    logs: dict[str, jax.Array] = {}
    guards = _guards(opt_state)
    for (state, labels), guard in zip(memory_states(opt_state), guards, strict=True):
        _check_run(state)
        caps = nodes_of(state.rule_state, CapState)
        ceilings = jax.tree.leaves([cap.ceiling for _, cap in caps])
        quantities = _quantities(state.memory, state.info, ceilings)
        for _, rule_state in nodes_of(state.rule_state, AgreementStepsState):
            inconsistent = inconsistent_evidence(rule_state)
            mean = mean_rate(inconsistent, state.memory.evidence_weight)
            quantities["inconsistent_evidence"] = mean
        # Without a guard there are no counts.
        for counts in jax.tree.leaves(getattr(guard, "counts", None)):
            total, in_a_row, _ = counts.astype(jnp.float32)
            quantities["skipped"] = [total] * len(labels)
            quantities["skipped_in_a_row"] = [in_a_row] * len(labels)
        for name, values in quantities.items():
            for label, value in zip(labels, values, strict=True):
                logs[f"{name}/{label}"] = value
    return logs


def get_rates(
    opt_state: Any, direction: Any = None, *, group_by: GroupBy | None = None
) -> Any:
    r"""Return the learning rate of every parameter.

    .. math:: \eta(z_i) = \sum_m \psi_m(z_i) v_m / \sum_m \psi_m(z_i)

    at the kernel input :math:`z_i` of the last direction. Factors that follow in a
    chain are not included.

    Args:
      opt_state: as for :func:`summarize_memory`, with one state of
        :func:`metalr_optax.scale_by_memory` in it.
      direction: a tree like the parameters to read the rates at; default: the last
        direction, if the state has it (``scale_by_memory`` and ``paper_sgd`` do,
        without ``evidence_sample``). With one rate per memory any tree like the
        parameters will do, and is only needed if the state has none.
      group_by: that of the optimizer, if it is a function of your own; the labels show
        which of the named ones it was.

    Returns:
      A tree like the direction. Before the first step, the rates of input 0. For
      tensors of at least 16,384 numbers the step interpolated its rates, which may
      differ by 1e-4 of the largest rate.

    Raises:
      ValueError: as :func:`summarize_memory`; more than one state of a memory; no last
        direction in the state; labels that ``group_by`` does not give.

    Examples:
      A memory whose rate is 0.1 for small gradients and 0.2 for large ones:

      >>> import jax.numpy as jnp
      >>> from metalr_optax import Kernels, Memory, get_rates, scale_by_memory
      >>> memory = Memory(Kernels(jnp.array([0.0, 2.0]), jnp.full(2, 0.1)),
      ...                 jnp.array([0.1, 0.2]))
      >>> optimizer = scale_by_memory(memory)
      >>> params = {"w": jnp.zeros(3)}
      >>> _, state = optimizer.update({"w": jnp.array([0.0, 0.5, 2.0])},
      ...                             optimizer.init(params))
      >>> [round(float(rate), 3) for rate in get_rates(state)["w"]]
      [0.1, 0.1, 0.2]
    """
    tree, _, rates = _map_leaves(_rates, opt_state, direction, group_by)
    return jax.tree.unflatten(jax.tree.structure(tree), rates)


def get_layer_rates(opt_state: Any) -> dict[str, jax.Array]:
    r"""Return one learning rate for each layer, by the label of its memory.

    .. math:: \bar v = \sum_m n_m v_m / \sum_m n_m

    with the evidence weight :math:`n_m` of each local model, all equal as long as there
    is none. It is ``rate_mean/label`` of :func:`summarize_memory`.

    Args:
      opt_state: as for :func:`summarize_memory`; that of a ``vmap`` too.

    Returns:
      ``{"label": []}``, or [...] with the axes of a ``vmap``. Works under ``jit``.

    Raises:
      ValueError: as :func:`metalr_optax.get_memory`.

    Examples:
      >>> import jax.numpy as jnp
      >>> from metalr_optax import get_layer_rates, memory_adam
      >>> params = {"dense": {"w": jnp.ones((3, 2)), "b": jnp.zeros(2)}}
      >>> state = memory_adam(initial=0.001).init(params)
      >>> get_layer_rates(state)
      {'dense': Array(0.001, dtype=float32)}

    .. seealso:: :func:`get_rates`, a rate for every parameter.
    """
    rates: dict[str, jax.Array] = {}
    for state, labels in memory_states(opt_state):
        means = mean_rate(state.memory.rates, state.memory.evidence_weight)
        rates |= zip(labels, jnp.unstack(means, axis=-1), strict=True)
    return rates


def get_kernel_inputs(
    opt_state: Any, direction: Any = None, *, group_by: GroupBy | None = None
) -> dict[str, jax.Array]:
    """Return where every memory was read in the last step.

    Args:
      opt_state: as for :func:`get_rates`.
      direction: as for :func:`get_rates`.
      group_by: as for :func:`get_rates`.

    Returns:
      label -> [n], the kernel inputs of all coordinates that share the memory,
      replicated for a sharded model.

    Raises:
      ValueError: as :func:`get_rates`.

    Examples:
      Directions over the root mean square of their tensor as kernel inputs:

      >>> import jax.numpy as jnp
      >>> from metalr_optax import get_kernel_inputs, scale_by_memory
      >>> optimizer = scale_by_memory(normalize="rms")
      >>> state = optimizer.init({"w": jnp.zeros(2)})
      >>> _, state = optimizer.update({"w": jnp.array([0.3, -0.3])}, state)
      >>> get_kernel_inputs(state)["w"].tolist()
      [1.0, -1.0]

    .. seealso:: :func:`metalr_optax.plot_memory`, which shows them as a histogram.
    """
    _, labels, inputs = _map_leaves(_inputs, opt_state, direction, group_by)
    parts: dict[str, list[jax.Array]] = {}
    for label, leaf in zip(labels, inputs, strict=True):
        slices = [leaf] if isinstance(label, str) else leaf
        for name, z in zip(names_in(label), slices, strict=True):
            parts.setdefault(name, []).append(replicated(jnp.ravel, z)(z))
    return {name: jnp.concatenate(arrays) for name, arrays in parts.items()}


# Compiled once for every kind of state, even if the caller is not jitted.
@jax.jit
def _quantities(
    memory: StackedMemory, info: jax.Array, ceilings: list[jax.Array]
) -> dict[str, Any]:
    """Return name -> [L]."""
    rates, weights, logs = memory.rates, memory.evidence_weight, unpack_info(info)
    highest = ceilings[0][:, None] if ceilings else jnp.inf
    is_high = rates >= highest * (1 - _SLACK)
    used = memory.kernels[:, 1] > 0
    at_ceiling = jnp.mean(is_high, axis=-1, dtype=rates.dtype, where=used)
    # A step counts a ceiling as a bound too.
    at_bound = jnp.round(jnp.maximum(logs.at_bound_fraction - at_ceiling, 0), 5)
    in_use = weights >= _IN_USE * jnp.max(weights, axis=-1, keepdims=True)
    mean, sign = mean_rate(rates, weights), logs.evidence_sign
    return {
        "rate_mean": mean,
        "rate_min": jnp.min(rates, axis=-1, where=in_use, initial=jnp.inf),
        "rate_max": jnp.max(rates, axis=-1, where=in_use, initial=0),
        "rate_over_start": mean / logs.start,
        "rate_over_highest": mean / logs.highest,
        "agreement_fraction": logs.agreement_fraction,
        "evidence_sign": sign,
        "rate_too_small": (sign > _CLEAR).astype(mean.dtype),
        "rate_too_large": (sign < -_CLEAR).astype(mean.dtype),
        "at_bound_fraction": at_bound,
        "at_ceiling_fraction": at_ceiling,
        "never_corrected": (sign == 0).astype(mean.dtype),
        "out_of_range_fraction": logs.out_of_range_fraction,
    }


def _guards(opt_state: Any) -> list[Any]:
    """Return the guard around each memory state, or the state itself without one."""
    return [
        node
        for _, node in nodes_of(opt_state, GuardState | ScaleByMemoryState)
        for _ in nodes_of(node, ScaleByMemoryState)
    ]


def _map_leaves(
    function: Callable[..., Any], opt_state: Any, direction: Any, group_by: Any
) -> tuple[Any, list[Label], list[jax.Array]]:
    """Apply a function (memory, row, array) to all that memories are read at.

    Returns:
      The direction, the label of each of its leaves, and the result for each of them.
    """
    states = memory_states(opt_state)
    hint = "pass the part that is meant, in optax.partition state.inner_states[label]"
    allowed = "contain one state of a memory"
    require(len(states) == 1, "opt_state", allowed, len(states), hint)
    state, names = states[0]
    _check_run(state)
    name = "group_by" if direction is None else "group_by or direction"
    got = direction if group_by is None else group_by
    direction = _direction(state, direction)
    rules = ("layer", "tensor", "all") if group_by is None else (group_by,)
    candidates = [labels_of(direction, rule) for rule in rules]
    fitting = [labels for labels in candidates if unique(labels) == names]
    allowed = f"be that of the optimizer, which gave {describe(names)}"
    hint = "get_rates(opt_state, direction, group_by=...) takes any function"
    require(fitting, name, allowed, got, hint)
    results = []
    for label, leaf in zip(fitting[0], jax.tree.leaves(direction), strict=True):
        rows, is_whole = map(names.index, names_in(label)), isinstance(label, str)
        slices = zip(rows, [leaf] if is_whole else leaf, strict=True)
        read_at = [function(state.memory, row, array) for row, array in slices]
        results.append(read_at[0] if is_whole else jnp.stack(read_at))
    return direction, fitting[0], results


def _direction(state: ScaleByMemoryState, direction: Any) -> Any:
    """Return what memories are read at: a direction, the last by default, or history.

    For a single rate any tree like the parameters will do.
    """
    if isinstance(state.memory.inputs, ByHistory):
        allowed = "be None with kernel_input='history'"
        require(direction is None, "direction", allowed, direction)
        return state.base_state.history
    if direction is not None:
        return direction
    if not isinstance(state.last_direction, Samples):
        return state.last_direction
    get_all, base_state = optax.tree.get_all_with_path, state.base_state
    momenta = [*get_all(base_state, "mu"), *get_all(base_state, "trace")]
    is_single = state.memory.rates.shape[-1] == 1
    allowed = "be given, a tree like the parameters: this state keeps samples of it"
    require(is_single and momenta, "direction", allowed, None)
    return momenta[0][1]


@jax.jit
def _rates(memory: StackedMemory, row: Any, direction: jax.Array) -> jax.Array:
    """Return the rates that a memory has for a direction."""
    kernels, rates, slopes = jax.tree.map(
        lambda array: array[row], (memory.kernels, memory.rates, memory.slopes)
    )
    return read(Kernels(*kernels), rates, _inputs(memory, row, direction), slopes)


@jax.jit
def _inputs(memory: StackedMemory, row: Any, direction: jax.Array) -> jax.Array:
    """Return the kernel inputs of a direction, or a history, which is one itself."""
    del row
    direction = direction.astype(memory.rates.dtype)
    is_history = isinstance(memory.inputs, ByHistory)
    return kernel_inputs(memory.inputs, direction, direction if is_history else None)


def _check_run(state: ScaleByMemoryState) -> None:
    fits = state.memory.rates.ndim == 2
    allowed = "be that of one run: apply jax.vmap to this function too"
    require(fits, "opt_state", allowed, "the state of a vmap")
