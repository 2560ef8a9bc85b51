"""When a memory is corrected and read: the Optax transformation."""

import collections
import functools
from collections.abc import Callable, Hashable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from metalr_optax.evaluation import (
    Judged,
    Tables,
    Unit,
    can_be_tabled,
    is_large,
    judge,
    make_tables,
    plain,
    root_mean_square,
    scale,
    share_agreeing,
)
from metalr_optax.kernels import (
    Array,
    Kernels,
    check_kernels,
    is_traced,
    linspace_kernels,
)
from metalr_optax.labels import GroupBy, join, labels_of
from metalr_optax.memory import (
    Memory,
    Signal,
    check_address,
    check_memory,
    check_rates,
    sign_agreement,
)
from metalr_optax.sample import sample

PAPER_KERNELS = linspace_kernels(2.0, 20)

# The trend of the evidence is taken over about (1 + .9) / (1 - .9) = 19 steps.
_TREND_DECAY = 0.9

_UNITS = {"value": plain, "relative": root_mean_square}

Address = Literal["value", "relative"]
Initial = jax.typing.ArrayLike | Memory | Mapping[str, Memory]


class ScaleByMemoryState(NamedTuple):
    """State of :func:`scale_by_memory`.

    Attributes:
      count: shape=(), dtype=int32, updates so far.
      memory: label -> :class:`Memory`, one per group of tensors.
      memory_optimizer_state: state of the transformation that steps the rates.
      previous_direction: the last direction, like the parameters or a sample of them;
        besides ``inner_state`` the only part that is as large as the model.
      agreement: label -> [], the share of coordinates whose gradient pointed along the
        last direction, in the last step that could tell (of a large tensor on a lattice
        of at most 4,096); 0.5 before.
      trend: label -> [], running mean over about 20 steps of whether the evidence of a
        whole memory was for larger rates (1) or for smaller ones (-1).
      rate_bounds: [2], smallest and largest rate a memory may hold.
      orientation: shape=(), 1 if directions point along the gradient, -1 if against
        it, 0 as long as nothing is known. Always 0 where no raw gradient is seen.
      inner_state: state of ``inner``.
    """

    count: jax.typing.ArrayLike
    memory: dict[str, Memory]
    memory_optimizer_state: optax.OptState
    previous_direction: optax.Updates
    agreement: dict[str, jax.Array]
    trend: dict[str, jax.Array]
    rate_bounds: jax.Array
    orientation: jax.Array
    inner_state: optax.OptState


def scale_by_memory(
    initial: Initial = 1e-3,
    *,
    inner: optax.GradientTransformation | None = None,
    kernels: Kernels | None = None,
    memory_optimizer: optax.GradientTransformation | None = None,
    signal: Signal | None = None,
    address: Address = "value",
    group_by: GroupBy = "layer",
    rate_bounds: tuple[float, float] = (1e-9, 1.0),
    evidence_sample: int | None = None,
    direction_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Scale updates by learning rates read from a memory that is learned online.

    Every coordinate looks up a learning rate for the value of its direction in the
    memory of its layer. One step later the local models that it used are raised if
    the gradient kept its sign and lowered if it flipped.

    With gradient :math:`g`, direction :math:`d` (what ``inner`` makes of the
    gradient; without ``inner``, what arrives), the last direction :math:`d^-`
    (``previous_direction``), its sign :math:`o` relative to the gradient
    (``orientation``), kernels :math:`\psi_m` and rates :math:`v_m` of one memory and
    the :math:`D` coordinates that share it:

    .. math::
      a_i &= \mathrm{signal}(g_i, o d^-_i) \\
      u_m &= \frac{1}{D} \sum_i a_i \psi_m(d^-_i) \\
      v_m &\leftarrow \mathrm{clip}(v_m + \mathrm{step}(-u)_m, \text{rate\_bounds}) \\
      \eta_i &= \sum_m \psi_m(d_i) v_m / \sum_m \psi_m(d_i) \\
      \text{update}_i &= \eta_i d_i

    The agreement is weighed with the kernels of the *last* address because it judges
    the rate that was read there; the rate is read *after* the correction. The defaults
    are the paper's rule. Like every ``scale_by_*`` of Optax this does not descend by
    itself: end the chain with ``optax.scale(-1.0)``, or use
    :func:`metalr_optax.memory_sgd` or :func:`metalr_optax.memory_adam`.

    Args:
      initial: the learning rate all local models start with, a :class:`Memory` that
        every group starts with, or a mapping from label to memory as
        :func:`metalr_optax.get_memory` returns it (a transfer; all labels must fit, so
        each part of an ``optax.partition`` takes its own). Values are copied.
      inner: the base optimizer that turns a gradient into a direction, for example
        ``optax.scale_by_adam()``; default: the gradient itself. It may point along the
        gradient or, as ``optax.adam(1.0)`` does, against it: the memory finds out
        at the first step at which it can tell. It is addressed by the direction as it
        is, so a memory learned along the gradient is the mirror image of one learned
        against it: transfer between bases of one kind.
      kernels: where the local models are, in units of the address; default
        ``linspace_kernels(2.0, 20)``. Not together with a memory in ``initial``, which
        brings its own.
      memory_optimizer: transformation that receives :math:`-u`, as a gradient to
        descend, and steps the rates; default ``optax.adam(1e-2)``. With
        ``optax.sgd(xi)`` the step is the paper's equation 6. It sees the rates of all
        memories as one tree ``{label: [M]}``, and an extra argument ``activity`` like
        it: :math:`u` with :math:`|a_i|` for :math:`a_i`, which
        :func:`metalr_optax.agreement_steps` needs.
      signal: function ``(gradient, previous_direction) -> values in [-1, 1]`` of two
        arrays of one shape; default :func:`metalr_optax.sign_agreement`.
      address: what is looked up: the ``"value"`` of a direction (the paper), or
        ``"relative"``, its value over the root mean square of its tensor, so that
        kernels fit gradients of any scale. A sample is judged by its own.
      group_by: which tensors share a memory: ``"layer"`` (siblings, such as a kernel
        and its bias: the paper), ``"tensor"`` (the authors' code), ``"all"``, or a
        function ``(path, leaf) -> label`` of a path as JAX gives it.
      rate_bounds: smallest and largest rate a memory may hold.
      evidence_sample: of a tensor with more coordinates than this only a fixed lattice
        of at most so many is judged, and only their last direction is kept: the state
        is as small as the memories and the sample. Every :math:`u_m` then has a
        standard error of up to :math:`1 / \sqrt{n}` for n coordinates that agree
        independently of each other (.004 for 65,536), more where whole rows agree.
        Default: all coordinates are judged.
      direction_dtype: dtype in which the last direction is kept, such as
        ``jnp.bfloat16``; default: that of the parameters.

    Returns:
      A :class:`optax.GradientTransformationExtraArgs`. Updates keep their sign, shape
      and dtype. Pass the raw gradient as the extra argument ``grad=`` of ``update``
      if this link stands behind a base optimizer in a chain: the signal then compares
      gradients with directions instead of directions with each other. A ``clip``
      further up does not clip it; ``optax.masked`` needs
      ``mask_compatible_extra_args=True`` to pass it on.

    Raises:
      ValueError: at construction, an argument that is not one of the above or a rate
        outside ``rate_bounds``; at ``init``, parameters that are not real floating
        point numbers or labels of ``initial`` that do not fit; at ``update``, a
        ``grad=`` of another structure than the updates.

    Shapes: parameters are any pytree, masked and empty ones included. Rates are [M] per
    label, float32, or float64 with float64 parameters. The state costs one number per
    parameter (or per sampled one) besides that of ``inner``, plus 4 M and the
    optimizer's state per memory.

    Labels: the path of the layer or tensor joined with ``/``, such as
    ``params/Dense_0``; a trailing ``value`` attribute without siblings (Flax NNX) is
    dropped, a tensor at the top of the tree is a layer of its own, a bare array is
    ``params``. Haiku's names keep the slashes they have. Paths that join to the same
    label share a memory, and so do layers stacked into one tensor by a scan.

    Examples:
      A loop on a quadratic that is 5 times steeper in one direction. From a rate of
      1e-3 the loss falls and the rates grow:

      >>> import jax, jax.numpy as jnp, optax
      >>> from metalr_optax import get_memory, scale_by_memory
      >>> optimizer = optax.chain(scale_by_memory(1e-3), optax.scale(-1.0))
      >>> loss = lambda x: 0.5 * jnp.sum(jnp.array([1.0, 5.0]) * x**2)
      >>> def run(state):
      ...   x, update = jnp.array([1.0, -0.5]), jax.jit(optimizer.update)
      ...   for _ in range(20):
      ...     updates, state = update(jax.grad(loss)(x), state)
      ...     x = optax.apply_updates(x, updates)
      ...   return float(loss(x)), state
      >>> first_loss, state = run(optimizer.init(jnp.zeros(2)))
      >>> memory = get_memory(state)
      >>> bool(first_loss < 0.1), bool(memory["params"].rates.max() > 0.1)
      (True, True)

      The memory it leaves makes the next run faster:

      >>> optimizer = optax.chain(scale_by_memory(memory), optax.scale(-1.0))
      >>> second_loss, _ = run(optimizer.init(jnp.zeros(2)))
      >>> bool(second_loss < 0.1 * first_loss)
      True

    Notes:
      The first step leaves the memory as it is. So does any coordinate that is zero
      or not finite; its update is passed on as it came. ``jit``, ``vmap``, ``scan``,
      donation and sharding are safe. Under ``optax.inject_hyperparams`` name your own
      functions in ``static_args=("signal", "group_by")``: it takes a function for a
      schedule; ``evidence_sample`` and ``direction_dtype`` belong there too. Tensors of
      at least 16,384 coordinates are read from a table: rates within 1e-4 of the
      largest, evidence within 1e-3 of the mean absolute agreement. Kernels that are
      traced, that overlap by dozens or that are much narrower than their distance are
      evaluated one by one, exactly and slowly.
      ``optax.tree.map_params`` does not work: the state is keyed by label.

    .. warning::
      The kernels must cover what arrives: directions outside read the outermost rate
      and teach nothing. ``optax.clip`` in front keeps gradients inside. Behind
      ``optax.sgd(1e-3)`` directions are 1000 times smaller, and so the kernels must be.
      A rate at its upper bound calls for a smaller step of ``memory_optimizer``.

    References:
      Kappler, Schaal, Meier, `Learning to Learn while Learning`, 2017; Meier, Kappler,
      Schaal, `Online Learning of a Memory for Learning Rates
      <https://arxiv.org/abs/1709.06709>`_, 2018.

    .. seealso:: :func:`metalr_optax.memory_sgd`, :func:`metalr_optax.memory_adam`,
      :func:`metalr_optax.get_memory`.
    """
    _check_arguments(inner, memory_optimizer, signal, group_by, rate_bounds)
    if address not in _UNITS:
        raise ValueError(f"address must be 'value' or 'relative', got {address!r}")
    unit = _UNITS[address]
    _check_initial(initial, kernels, address, rate_bounds)
    _check_sample(evidence_sample, direction_dtype)
    if kernels is None:
        kernels = PAPER_KERNELS
    if memory_optimizer is None:
        memory_optimizer = optax.adam(1e-2)
    if signal is None:
        signal = sign_agreement
    kind_of_kernels = _kinds_of_kernels(initial, kernels)
    base = optax.with_extra_args_support(optax.identity() if inner is None else inner)

    def init_fn(params: optax.Params) -> ScaleByMemoryState:
        memory = _init_memory(
            initial, kernels, address, _group_dtypes(params, group_by)
        )
        # Copies: some optimizers keep the parameters that they start with.
        rates = {label: jnp.array(one.rates) for label, one in memory.items()}
        return ScaleByMemoryState(
            count=jnp.zeros([], jnp.int32),
            memory=memory,
            memory_optimizer_state=memory_optimizer.init(rates),
            previous_direction=jax.tree.map(
                lambda p: sample(jnp.zeros_like(p, direction_dtype), evidence_sample),
                params,
            ),
            agreement={label: jnp.array(0.5, jnp.float32) for label in memory},
            trend={label: jnp.zeros([], jnp.float32) for label in memory},
            rate_bounds=jnp.array(rate_bounds, jnp.float32),
            orientation=jnp.zeros([], jnp.float32),
            inner_state=base.init(params),
        )

    def update_fn(updates, state, params=None, **extra_args):
        direction, inner_state = base.update(
            updates, state.inner_state, params, **extra_args
        )
        updates, direction = jax.tree.map(jnp.asarray, (updates, direction))
        gradient = _raw_gradient(extra_args, updates)
        orientation, sign = state.orientation, 1.0
        if inner is not None or gradient is not updates:
            orientation = sign = _orient(gradient, direction, orientation)

        labels = labels_of(updates, group_by)
        leaves = jax.tree.leaves(updates)
        kinds = {
            label: kind
            for label, leaf in zip(labels, leaves, strict=True)
            if is_large(leaf) and (kind := kind_of_kernels(label)) is not None
        }
        tables = make_tables(state.memory, kinds)
        tensors, sizes = _tensors_to_judge(state, gradient, labels, evidence_sample)
        agreement = share_agreeing(tensors, sign, state.agreement)
        # XLA judges in the buffer of a donated last direction. It must not do so before
        # the shares (none is negative) are known, or it copies all of it for them.
        known = sum(agreement.values()) >= 0
        sign = jnp.where(known, sign, jnp.zeros_like(orientation))
        mean = _judge(state, tables, tensors, sizes, sign, signal, unit)
        u = mean(False)
        memory, memory_optimizer_state = _correct(
            state, u, mean, memory_optimizer, rate_bounds
        )
        updates = _scale(direction, updates, memory, tables, labels, unit)
        return updates, ScaleByMemoryState(
            count=optax.safe_increment(state.count),
            memory=memory,
            memory_optimizer_state=memory_optimizer_state,
            # A copy: without jit the direction may be the caller's gradient itself,
            # which the next donated step would take with it.
            previous_direction=jax.tree.map(
                lambda d, last: jnp.array(sample(d, evidence_sample), last.dtype),
                direction,
                state.previous_direction,
            ),
            agreement=agreement,
            trend={label: _trend(state.trend[label], u[label]) for label in u},
            rate_bounds=jnp.array(rate_bounds, jnp.float32),
            orientation=orientation,
            inner_state=inner_state,
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _tensors_to_judge(
    state: ScaleByMemoryState,
    gradient: optax.Updates,
    labels: list[str],
    evidence_sample: int | None,
) -> tuple[list[Judged], dict[str, int]]:
    """Return what judges the last directions, and the coordinates per memory."""
    tensors = []
    sizes = dict.fromkeys(state.memory, 0)
    for label, whole, d in zip(
        labels,
        jax.tree.leaves(gradient),
        jax.tree.leaves(state.previous_direction),
        strict=True,
    ):
        g = sample(whole, evidence_sample)
        tensors.append(Judged(label, whole.size / max(g.size, 1), g, d))
        sizes[label] += whole.size
    return tensors, sizes


def _judge(
    state: ScaleByMemoryState,
    tables: list[Tables],
    tensors: list[Judged],
    sizes: dict[str, int],
    orientation: float | jax.Array,
    signal: Signal,
    unit: Unit,
) -> Callable[[bool], dict[str, jax.Array]]:
    """Return a function that gives u, or what it is without signs.

    It is the mean evidence of the coordinates that share each memory.
    """

    def mean(magnitude: bool) -> dict[str, jax.Array]:
        totals = judge(
            state.memory, tables, signal, orientation, tensors, unit, magnitude
        )
        return {
            label: total / float(max(sizes[label], 1))
            for label, total in totals.items()
        }

    return mean


def _correct(
    state: ScaleByMemoryState,
    u: dict[str, jax.Array],
    mean: Callable[[bool], dict[str, jax.Array]],
    memory_optimizer: optax.GradientTransformation,
    rate_bounds: tuple[float, float],
) -> tuple[dict[str, Memory], optax.OptState]:
    """Step the rates of all memories along the evidence, within the bounds."""
    rates = {label: memory.rates for label, memory in state.memory.items()}
    arguments = optax.tree.scale(-1.0, u), state.memory_optimizer_state, rates
    if isinstance(memory_optimizer, optax.GradientTransformationExtraArgs):
        activity = mean(True)
        result = memory_optimizer.update(*arguments, activity=activity)
    else:
        result = memory_optimizer.update(*arguments)
    steps, memory_optimizer_state = result
    rates = optax.tree.clip(optax.apply_updates(rates, steps), *rate_bounds)
    memory = {
        label: one._replace(rates=rates[label], counts=_count(one.counts, u[label]))
        for label, one in state.memory.items()
    }
    return memory, memory_optimizer_state


def _count(counts: jax.Array, u: jax.Array) -> jax.Array:
    """Add the share of each local model in the evidence of this step."""
    size = jnp.abs(u)
    total = jnp.sum(size)
    told = (total > 0) & jnp.isfinite(total)
    return counts + jnp.where(told, size / jnp.where(told, total, 1), 0)


def _trend(trend: jax.Array, u: jax.Array) -> jax.Array:
    """Return the running mean of which way the evidence of a memory points."""
    sign = jnp.sign(jnp.sum(u)).astype(trend.dtype)
    sign = jnp.where(jnp.isnan(sign), 0, sign)
    return _TREND_DECAY * trend + (1 - _TREND_DECAY) * sign


def _scale(
    direction: optax.Updates,
    updates: optax.Updates,
    memory: dict[str, Memory],
    tables: list[Tables],
    labels: list[str],
    unit: Unit,
) -> optax.Updates:
    """Multiply directions by the rates they read; the dtype is that of the updates."""
    leaves, structure = jax.tree.flatten(direction)
    precise = [
        d.astype(memory[label].rates.dtype)
        for label, d in zip(labels, leaves, strict=True)
    ]
    scaled = [
        one.astype(update.dtype)
        for one, update in zip(
            scale(memory, tables, labels, precise, unit),
            jax.tree.leaves(updates),
            strict=True,
        )
    ]
    return jax.tree.unflatten(structure, scaled)


def _orient(
    gradient: optax.Updates, direction: optax.Updates, orientation: jax.Array
) -> jax.Array:
    """Return the sign of <gradient, direction>, from the first step that has one."""
    pairs = list(
        zip(jax.tree.leaves(gradient), jax.tree.leaves(direction), strict=True)
    )
    if not pairs:
        return orientation

    def measure() -> jax.Array:
        # Every tensor brought to a size of 1, exactly: no product that matters under-
        # or overflows, and what cancels still does.
        products, sizes = [], []
        for g, d in (_finite_pair(g, d) for g, d in pairs):
            g_size, d_size = _power_of_two(g), _power_of_two(d)
            products.append(jnp.sum((g / g_size) * (d / d_size)))
            sizes.append((g_size, d_size))
        product = jnp.stack(products)
        exponents = jnp.frexp(jnp.array(sizes))[1]
        exponent = jnp.where(product != 0, jnp.sum(exponents, axis=1), -(2**20))
        product = jnp.ldexp(product, exponent - jnp.max(exponent))
        return jnp.sign(jnp.sum(product)).astype(orientation.dtype)

    return jax.lax.cond(orientation == 0, measure, lambda: orientation)


def _power_of_two(tensor: jax.Array) -> jax.Array:
    """Return a power of two near the largest magnitude, and far from its limits."""
    largest = jnp.max(jnp.abs(tensor), initial=0.0)
    # An eighth, so that its reciprocal is not lost when the largest is near infinity.
    power = largest / (8 * jnp.frexp(largest)[0])
    return jnp.maximum(jnp.where(largest > 0, power, 1), jnp.finfo(tensor.dtype).tiny)


def _finite_pair(g: jax.Array, d: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return both as at least float32, zero where either is not finite."""
    dtype = jnp.promote_types(jnp.promote_types(g.dtype, d.dtype), jnp.float32)
    finite = jnp.isfinite(g) & jnp.isfinite(d)
    return jnp.where(finite, g, 0).astype(dtype), jnp.where(finite, d, 0).astype(dtype)


def _group_dtypes(params: optax.Params, group_by: GroupBy) -> dict[str, Any]:
    """Return label -> dtype of the memory: at least float32, wider with the leaves."""
    dtypes: dict[str, Any] = {}
    leaves = jax.tree_util.tree_leaves_with_path(params)
    for label, (path, leaf) in zip(labels_of(params, group_by), leaves, strict=True):
        dtype = jnp.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.floating):
            raise ValueError(
                "params must be real floating point arrays, got "
                f"{dtype} at {join(path) or 'the top'}; leave others out with "
                "optax.masked, split complex ones with "
                "optax.contrib.split_real_and_imaginary"
            )
        dtypes[label] = jnp.promote_types(dtype, dtypes.get(label, jnp.float32))
    return dtypes


def _init_memory(
    initial: Initial, kernels: Kernels, address: Address, dtypes: dict[str, Any]
) -> dict[str, Memory]:
    """Return a memory per label that shares no buffer with the caller's."""
    if isinstance(initial, Mapping) and set(initial) != set(dtypes):
        raise ValueError(
            "initial must have a memory for every label of the parameters and no "
            f"other; missing {sorted(set(dtypes) - set(initial))}, unknown "
            f"{sorted(map(str, set(initial) - set(dtypes)))}; set_memory with "
            "adapt_memory maps another model's"
        )
    memories = {}
    for label, dtype in dtypes.items():
        one: Any = initial[label] if isinstance(initial, Mapping) else initial
        if not isinstance(one, Memory):
            one = Memory(kernels, one)
        check_kernels(one.kernels, dtype)
        shape = np.shape(one.kernels.centers)
        counts = 0.0 if one.counts is None else one.counts
        # Copies: a donated step must not take the caller's arrays with it.
        memories[label] = Memory(
            Kernels(*(jnp.array(array, dtype) for array in one.kernels)),
            jnp.array(jnp.broadcast_to(jnp.asarray(one.rates), shape), dtype),
            jnp.array(jnp.broadcast_to(jnp.asarray(counts), shape), dtype),
            jnp.array(address == "relative"),
        )
    return memories


def _kinds_of_kernels(
    initial: Initial, kernels: Kernels
) -> Callable[[str], Hashable | None]:
    """Return a function of a label, equal where kernels start equal.

    None is returned for kernels that have to be read one by one.
    """

    def hold(kernels: Kernels) -> Kernels:
        if is_traced(kernels):
            return kernels
        # Copies of what the caller may donate.
        return Kernels(*(np.array(array) for array in kernels))

    if isinstance(initial, Mapping):
        held = {label: hold(one.kernels) for label, one in initial.items()}
    else:
        one = hold(initial.kernels if isinstance(initial, Memory) else kernels)
        held = collections.defaultdict(lambda: one)

    # Not before it is needed: an optimizer may be built before JAX has its devices.
    @functools.cache
    def kind(label: str) -> Hashable | None:
        if not can_be_tabled(held[label]):
            return None
        return tuple(array.tobytes() for array in held[label])

    return kind


def _raw_gradient(extra_args: dict[str, Any], updates: optax.Updates) -> Any:
    """Return the extra argument `grad`, or the updates where it is not given."""
    gradient = extra_args.get("grad")
    if gradient is None:
        return updates
    gradient = jax.tree.map(jnp.asarray, gradient)
    structures = jax.tree.structure(gradient), jax.tree.structure(updates)
    shapes = [[leaf.shape for leaf in jax.tree.leaves(t)] for t in (gradient, updates)]
    if structures[0] != structures[1] or shapes[0] != shapes[1]:
        raise ValueError(
            "grad must have the structure and shapes of the updates, "
            f"{structures[1]} with {shapes[1]}, got {structures[0]} with {shapes[0]}; "
            "optax.masked and optax.partition mask it with "
            "mask_compatible_extra_args=True"
        )
    return gradient


def _check_arguments(
    inner: Any, memory_optimizer: Any, signal: Any, group_by: Any, rate_bounds: Any
) -> None:
    for name, value in (("inner", inner), ("memory_optimizer", memory_optimizer)):
        if value is not None and not isinstance(value, optax.GradientTransformation):
            raise ValueError(
                f"{name} must be an optax.GradientTransformation or None, got {value!r}"
            )
    if signal is not None and not callable(signal):
        raise ValueError(
            "signal must be a function of (gradient, previous_direction), got "
            f"{signal!r}"
        )
    if not callable(group_by) and group_by not in ("layer", "tensor", "all"):
        raise ValueError(
            "group_by must be 'layer', 'tensor', 'all' or a function "
            f"(path, leaf) -> label, got {group_by!r}"
        )
    try:
        low, high = rate_bounds
        if any(isinstance(bound, jax.core.Tracer) for bound in (low, high)):
            return
        ordered = 0 < float(low) < float(high) < np.inf
    except (TypeError, ValueError):
        ordered = False
    if not ordered:
        raise ValueError(
            "rate_bounds must be two finite numbers with 0 < smallest < largest, got "
            f"{rate_bounds!r}"
        )


def _check_sample(evidence_sample: Any, direction_dtype: Any) -> None:
    is_count = isinstance(evidence_sample, int | np.integer) and not isinstance(
        evidence_sample, bool
    )
    if evidence_sample is not None and not (is_count and evidence_sample >= 1):
        raise ValueError(
            "evidence_sample must be a positive whole number or None (under "
            "optax.inject_hyperparams name it in static_args), got "
            f"{evidence_sample!r}"
        )
    if direction_dtype is None:
        return
    try:
        is_floating = jnp.issubdtype(jnp.dtype(direction_dtype), jnp.floating)
    except TypeError:
        is_floating = False
    if not is_floating:
        raise ValueError(
            "direction_dtype must be a real floating point dtype or None, got "
            f"{direction_dtype!r}"
        )


def _check_initial(
    initial: Any, kernels: Any, address: Address, rate_bounds: tuple[float, float]
) -> None:
    if isinstance(initial, Memory | Mapping) and kernels is not None:
        raise ValueError(
            "kernels must be None when initial is a memory, which brings its own, got "
            f"{kernels!r}"
        )
    if kernels is not None:
        check_kernels(kernels)
    if isinstance(initial, Memory | Mapping):
        named: dict[str, Any] = {"initial": initial}
        if isinstance(initial, Mapping):
            named = {f"initial[{label!r}]": one for label, one in initial.items()}
        for name, memory in named.items():
            check_memory(name, memory, rate_bounds)
            check_address(name, memory, address == "relative")
    elif (
        isinstance(initial, bool)
        or not isinstance(initial, int | float | complex | np.number | Array)
        or np.shape(initial) != ()
    ):
        raise ValueError(
            "initial must be a rate, a metalr_optax.Memory or a mapping from label to "
            f"Memory, got {initial!r}"
        )
    else:
        check_rates("initial", initial, rate_bounds)
