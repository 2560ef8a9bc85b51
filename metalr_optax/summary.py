"""What a state knows of its memories: numbers to log, rates and addresses in use."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from metalr_optax.evaluation import root_mean_square, to_every_device
from metalr_optax.kernels import Array
from metalr_optax.labels import GroupBy, labels_of
from metalr_optax.memory import Memory, read
from metalr_optax.sample import sample
from metalr_optax.transfer import memory_states, unwrapped
from metalr_optax.transform import ScaleByMemoryState

# A local model that has had less than this of the evidence of another is not in use.
_IN_USE = 0.01
# Beyond it a trend is clear: if nothing drove it, one in forty would be.
_CLEAR = 0.5
# So many coordinates of a tensor at most, and at least a quarter, tell how many look
# outside: a standard error of .004 to .008.
_TOLD = 2**14
# Rates are within the bounds up to rounding.
_ROUNDING = 1e-6


class _Bare(NamedTuple):
    """What is looked at in a state, as bare arrays, whatever they are wrapped in."""

    memory: dict[str, Memory]
    directions: list[jax.Array]  # the last ones, in the order of leaves
    agreement: dict[str, jax.Array]
    trend: dict[str, jax.Array]
    rate_bounds: jax.Array


def summarize_memory(
    opt_state: Any, group_by: GroupBy | None = None
) -> dict[str, jax.Array]:
    r"""Return what there is to log of every memory: a flat dict of scalars.

    For every label:

    - ``rate_mean/label``: mean of the rates, weighted by the evidence each local model
      has had (all alike as long as there is none).
    - ``rate_min/label``, ``rate_max/label``: smallest and largest rate in use, that is
      of local models with at least 1 % of the evidence that the busiest one has had.
    - ``agreement/label``: in [0, 1], the share of coordinates whose gradient pointed
      along the last direction, which without momentum is the last gradient, in the
      last step that had any; zeros do not count. 0.5 before. Of large tensors it is
      the share on a lattice of 1,024 to 4,096, and its standard error up to 0.016;
      what repeats itself with a period of a power of two is not seen there.
    - ``trend/label``: in [-1, 1], how often the evidence of a step was for larger rates
      rather than for smaller ones, a running mean over about 19 steps. If nothing
      drives it, it is 0 with a standard error of 0.23.
    - ``gauge/label``: 1 where the trend is above 0.5 (rates are too small), -1 where it
      is below -0.5 (too large), 0 between (they fit, or noise hides what would).
    - ``at_bound/label``: in [0, 1], the share of local models at a bound of the rates.
    - ``outside/label``: in [0, 1], the share of coordinates that looked at the
      outermost local model or further out, what ``optax.clip`` in front has cut back
      to it among them; of large tensors on a lattice of 4,096 to 16,384. What is not
      finite is outside. Always 0 with a single local model.

    Args:
      opt_state: any pytree with states of :func:`metalr_optax.scale_by_memory` in it,
        as for :func:`metalr_optax.get_memory`. Of a vmapped state take the
        ``jax.vmap`` of this function.
      group_by: that of the optimizer, if it is a function of your own; the names
        that it knows are told by the labels. It is called with the stored directions
        for leaves, so with ``evidence_sample`` or ``direction_dtype`` it must look at
        the path only.

    Returns:
      ``{"quantity/label": []}``, float32 (float64 with float64 parameters). Works under
      ``jit``; memories with a single local model cost next to nothing, others a pass
      over the last directions.

    Raises:
      ValueError: as :func:`metalr_optax.get_memory`; labels that ``group_by`` does not
        give; a state with a leading axis of ``vmap``.

    Examples:
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
      >>> float(logs["agreement/params"]), float(logs["gauge/params"])
      (1.0, 1.0)
      >>> bool(1e-4 < logs["rate_mean/params"])
      True

    .. seealso:: :func:`get_rates` for every parameter, and :func:`get_addresses` and
      ``metalr_optax.plots`` for pictures.
    """
    logs: dict[str, jax.Array] = {}
    for state in memory_states(opt_state):
        logs |= _summarize(_labels(state, group_by), _unwrap(state))
    return logs


def get_rates(opt_state: Any, group_by: GroupBy | None = None) -> Any:
    r"""Return the learning rate that every parameter had in the last step.

    .. math:: \eta(z_i) = \sum_m \psi_m(z_i) v_m / \sum_m \psi_m(z_i)

    at the address :math:`z_i` of the last direction: what the direction was multiplied
    by, without any factor further on in a chain.

    Args:
      opt_state: as for :func:`summarize_memory`, with one state of
        :func:`metalr_optax.scale_by_memory` in it.
      group_by: as for :func:`summarize_memory`.

    Returns:
      A tree like the parameters; with ``evidence_sample`` like the sample of them, and
      then relative addresses are relative to the root mean square of the sample.
      Before the first step, the rates of address 0. Tensors of 16,384 numbers and more
      were read from a table and may differ by 1e-4 of the largest rate, and any by the
      rounding of ``direction_dtype``.

    Raises:
      ValueError: as :func:`summarize_memory`; more than one state of a memory.

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
    states = memory_states(opt_state)
    if len(states) > 1:
        raise ValueError(
            f"opt_state must contain one state of a memory, got {len(states)}: pass "
            "the part that is meant, such as state.inner_states['kernels']"
        )
    rates = _rates(_labels(states[0], group_by), _unwrap(states[0]))
    structure = jax.tree.structure(states[0].previous_direction)
    return jax.tree.unflatten(structure, rates)


def get_addresses(
    opt_state: Any, group_by: GroupBy | None = None
) -> dict[str, jax.Array]:
    """Return where every memory was looked up in the last step.

    Args:
      opt_state: as for :func:`summarize_memory`.
      group_by: as for :func:`summarize_memory`.

    Returns:
      label -> [n], the addresses of all coordinates that share the memory (of the
      sampled ones with ``evidence_sample``, as in :func:`get_rates`), in the units of
      its kernels. Of a sharded model every device gets them all.

    Raises:
      ValueError: as :func:`summarize_memory`.

    Examples:
      The optimizer sees gradients relative to the root mean square of their tensor:

      >>> import jax.numpy as jnp
      >>> from metalr_optax import get_addresses, memory_sgd
      >>> optimizer = memory_sgd(momentum=0.0)
      >>> state = optimizer.init({"w": jnp.zeros(2)})
      >>> _, state = optimizer.update({"w": jnp.array([0.3, -0.3])}, state)
      >>> get_addresses(state)["w"].tolist()
      [1.0, -1.0]

    .. seealso:: :func:`metalr_optax.plot_memory`, which shows them as a histogram.
    """
    addresses: dict[str, jax.Array] = {}
    for state in memory_states(opt_state):
        addresses |= _addresses(_labels(state, group_by), _unwrap(state))
    return addresses


def _labels(state: ScaleByMemoryState, group_by: GroupBy | None) -> tuple[str, ...]:
    """Return the label of every leaf; one of several states may have another rule."""
    known = () if isinstance(group_by, str) else ("layer", "tensor", "all")
    for one in (*([] if group_by is None else [group_by]), *known):
        labels = labels_of(state.previous_direction, one)
        if set(labels) == set(state.memory):
            return tuple(labels)
    raise ValueError(
        f"group_by must be that of the optimizer, which gave {sorted(state.memory)}, "
        f"got {group_by!r}"
    )


def _unwrap(state: ScaleByMemoryState) -> _Bare:
    memory = {label: unwrapped(one) for label, one in state.memory.items()}
    if any(jnp.ndim(one.rates) != 1 for one in memory.values()):
        raise ValueError(
            "opt_state must be that of one run, got the state of a vmap: apply "
            "jax.vmap to this function too"
        )
    # Flax NNX wraps every array.
    agreement, trend = (
        dict(
            zip(memory, jax.tree.leaves([one[label] for label in memory]), strict=True)
        )
        for one in (state.agreement, state.trend)
    )
    directions = jax.tree.leaves(state.previous_direction)
    (bounds,) = jax.tree.leaves(state.rate_bounds)
    return _Bare(memory, directions, agreement, trend, bounds)


# Compiled once for every kind of state, also where nothing around it is.
@functools.partial(jax.jit, static_argnums=0)
def _summarize(labels: tuple[str, ...], state: _Bare) -> dict[str, jax.Array]:
    count = to_every_device(
        functools.partial(_shares_outside, labels), state.directions
    )
    outside = count(state.memory, state.directions)
    logs: dict[str, jax.Array] = {}
    for label, memory in state.memory.items():
        trend = state.trend[label]
        quantities = {
            **_rates_in_use(memory),
            "agreement": state.agreement[label],
            "trend": trend,
            "gauge": jnp.where(jnp.abs(trend) > _CLEAR, jnp.sign(trend), 0),
            "at_bound": _share_at_bound(memory.rates, state.rate_bounds),
            "outside": outside[label],
        }
        for name, value in quantities.items():
            logs[f"{name}/{label}"] = jnp.asarray(value, memory.rates.dtype)
    return logs


@functools.partial(jax.jit, static_argnums=0)
def _rates(labels: tuple[str, ...], state: _Bare) -> list[jax.Array]:
    return [
        read(memory, d / _size(memory, d))
        for memory, d in _pair(labels, state.memory, state.directions)
    ]


@functools.partial(jax.jit, static_argnums=0)
def _addresses(labels: tuple[str, ...], state: _Bare) -> dict[str, jax.Array]:
    def look(memory: dict[str, Memory], directions: list[jax.Array]) -> Any:
        parts: dict[str, list[jax.Array]] = {}
        pairs = _pair(labels, memory, directions)
        for label, (one, d) in zip(labels, pairs, strict=True):
            parts.setdefault(label, []).append((d / _size(one, d)).ravel())
        return {label: jnp.concatenate(some) for label, some in parts.items()}

    return to_every_device(look, state.directions)(state.memory, state.directions)


def _pair(
    labels: tuple[str, ...], memory: dict[str, Memory], directions: list[jax.Array]
) -> list[tuple[Memory, jax.Array]]:
    """Return the memory and the last direction of every tensor, of one type."""
    return [
        (memory[label], d.astype(memory[label].rates.dtype))
        for label, d in zip(labels, directions, strict=True)
    ]


def _size(memory: Memory, direction: jax.Array) -> jax.Array:
    """Return by what a direction is divided to look up its rate."""

    def one(direction: jax.Array) -> jax.Array:
        return jnp.ones((), direction.dtype)

    # Two passes over a tensor that most paper-like memories do not need.
    return jax.lax.cond(memory.relative, root_mean_square, one, direction)


def _rates_in_use(memory: Memory) -> dict[str, jax.Array]:
    rates, most = jnp.asarray(memory.rates), jnp.max(memory.counts)
    weights = jnp.where(most > 0, memory.counts / jnp.where(most > 0, most, 1), 1)
    in_use = weights >= _IN_USE
    return {
        "rate_mean": jnp.average(rates, weights=weights),
        "rate_min": jnp.min(rates, where=in_use, initial=jnp.inf),
        "rate_max": jnp.max(rates, where=in_use, initial=0),
    }


def _share_at_bound(rates: Array, rate_bounds: jax.Array) -> jax.Array:
    low, high = jnp.unstack(rate_bounds.astype(rates.dtype))
    lowest, highest = rates <= low * (1 + _ROUNDING), rates >= high * (1 - _ROUNDING)
    return jnp.mean(lowest | highest)


def _shares_outside(
    labels: tuple[str, ...], memory: dict[str, Memory], directions: list[jax.Array]
) -> dict[str, jax.Array]:
    outside = {label: jnp.zeros([], jnp.float32) for label in memory}
    sizes = dict.fromkeys(memory, 0)
    for label, (one, d) in zip(labels, _pair(labels, memory, directions), strict=True):
        centers = one.kernels.centers
        if len(centers) > 1 and d.size:
            address = sample(d, _TOLD) / _size(one, d)
            inside = (address > centers[0]) & (address < centers[-1])
            outside[label] += jnp.mean(~inside) * d.size
            sizes[label] += d.size
    return {label: total / max(sizes[label], 1) for label, total in outside.items()}
