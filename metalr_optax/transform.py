"""When a memory is corrected and read: the Optax transformation."""

import functools
import itertools
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from metalr_optax import checks
from metalr_optax.bases import Base, remembered, with_history
from metalr_optax.evidence import Evaluation, mean_by_label, scaled, tensor_evidence
from metalr_optax.groups import (
    GroupBy,
    Stacked,
    by_layer,
    labels_of,
    memory_dtype,
    names_of,
    not_params,
    stack_by_label,
    stacks_of,
)
from metalr_optax.interpolation import is_sampled, make_grid
from metalr_optax.kernels import linspace_kernels
from metalr_optax.memory import Kernels, Memory, mean_rate, padded
from metalr_optax.progress import record, step_along
from metalr_optax.regression import Sums, learn
from metalr_optax.signals import Signal, sign_agreement
from metalr_optax.table import (
    Diagnostics,
    Kind,
    Table,
    diagnostics_of,
    from_memories,
    pack,
    unpack,
    with_diagnostics,
)

PAPER_KERNELS = linspace_kernels(2.0, 20)

# The sign of the evidence is averaged over about (1 + .9) / (1 - .9) = 19 steps.
_SIGN_DECAY = 0.9
# A schedule that has come down so far from its highest factor takes over.
_FALLEN = 0.9
# Without a clip a gradient of more than so many times the largest norm of the last
# hundred steps is brought down to that, ...
_OUTLIER = 10.0
# ... which is forgotten by so much in a step, ...
_NORM_DECAY = 0.99
# ... and grows at most by so much: two outliers in a row are still outliers.
_NORM_GROWTH = 2.0
# The first of all: its squares are finite.
_LARGEST_NORM = 1e18
# Rates are within the bounds up to rounding.
_SLACK = 1e-6

Normalize = Literal["rms"] | None
KernelInput = Literal["direction", "history"]
Initial = jax.typing.ArrayLike | Memory | Mapping[str, Memory]


class ScaleByMemoryState(NamedTuple):
    """State of :func:`scale_by_memory`; its memories are read with ``get_memory``.

    Attributes:
      rows: label -> [], int32, the row of its memory in the table, in the order of
        labels; [K] for K stacked layers.
      table: "value" or "rms" (what ``normalize`` says), with the names of what else is
        learned -> [L, 6 M + 33], rates, evidence weight, kernels, slopes and schedules
        of L memories of M local models, and what logs need.
      memory_optimizer_state: state of the transformation that steps the rates.
      base_state: state of the base optimizer, with a copy of the last direction where
        that does not follow from it.
    """

    rows: dict[str, jax.Array]
    table: dict[str, jax.Array]
    memory_optimizer_state: optax.OptState
    base_state: Any


class Settings(NamedTuple):
    """What an optimizer is built with; :func:`scale_by_memory` says what it means."""

    initial: Initial
    kernels: Any
    group_by: GroupBy
    rate_bounds: tuple[float, float]
    memory_optimizer: Any
    signal: Signal | None
    stacked: Stacked | None = None
    frozen: Collection[str] = ()
    progress: bool = False
    normalize: Normalize = None
    clip_norm: Any = None
    # Of weights, which are scaled by the mean rate of their memory.
    decay: optax.GradientTransformation | None = None
    # Of the root mean square of the parameters at the start, in one step.
    largest_step: Any = None
    # What rates are multiplied with further down, a number or a schedule.
    factor: Any = 1.0
    capacity: int | None = None
    learned_widths: bool = False
    linear: bool = False
    kernel_input: KernelInput = "direction"

    @property
    def kind(self) -> Kind:
        """What the memories are of."""
        grows = self.capacity is not None
        more = grows, self.learned_widths, self.linear, self.kernel_input == "history"
        return Kind(self.normalize == "rms", *more)


def scale_by_memory(
    initial: Initial = 1e-3,
    *,
    base_optimizer: optax.GradientTransformation | None = None,
    kernels: Kernels | None = None,
    memory_optimizer: optax.GradientTransformation | None = None,
    signal: Signal | None = None,
    normalize: Normalize = None,
    group_by: GroupBy = "layer",
    rate_bounds: tuple[float, float] = (1e-9, 1.0),
    evidence_sample: int | None = None,
    stacked: Stacked | None = None,
    frozen: Collection[str] = (),
    progress: bool = False,
    capacity: int | None = None,
    learned_widths: bool = False,
    linear: bool = False,
    kernel_input: KernelInput = "direction",
    inner: optax.GradientTransformation | None = None,
    address: str | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Scale updates by learning rates read from a memory that is learned online.

    Every coordinate looks up a learning rate for the value of its direction in the
    memory of its layer. One step later the local models that it used are raised if
    the gradient kept its sign and lowered if it flipped.

    With gradient :math:`g`, direction :math:`d` (what ``base_optimizer`` makes of the
    gradient; without one, what arrives), the last direction :math:`d^-`, its sign
    :math:`o` relative to the gradient, kernels :math:`\psi_m` and rates :math:`v_m` of
    one memory and the :math:`D` coordinates that share it:

    .. math::
      a_i &= \mathrm{signal}(g_i, o d^-_i) \\
      u_m &= \frac{1}{D} \sum_i a_i \psi_m(d^-_i) \\
      v_m &\leftarrow \mathrm{clip}(v_m + \mathrm{step}(-u)_m, \text{rate\_bounds}) \\
      \eta_i &= \sum_m \psi_m(d_i) v_m / \sum_m \psi_m(d_i) \\
      \text{update}_i &= \eta_i d_i

    The agreement is weighed with the kernels of the *last* input because it is about
    the rate that was read there; the rate is read *after* the correction. The defaults
    are the paper's rule. Like every ``scale_by_*`` of Optax this does not descend by
    itself: end the chain with ``optax.scale(-1.0)``, or use
    :func:`metalr_optax.memory_sgd` or :func:`metalr_optax.memory_adam`.

    Args:
      initial: the learning rate all local models start with, a :class:`Memory` that
        every group starts with, or a mapping from label to memory as
        :func:`metalr_optax.get_memory` returns it (a transfer; all labels must fit, so
        each part of an ``optax.partition`` takes its own). Values are copied.
      base_optimizer: turns a gradient into a direction, for example
        ``optax.scale_by_adam()``; default: the gradient itself. It may point along the
        gradient or, as ``optax.adam(1.0)`` does, against it: the memory finds out at
        the first step at which it can tell. Kernels see the direction as it is, so a
        memory learned along the gradient is the mirror image of one learned against it:
        transfer between bases of one kind.
      kernels: where the local models are, in units of what they see; default
        ``linspace_kernels(2.0, 20)``. Not together with a memory in ``initial``, which
        brings its own.
      memory_optimizer: transformation that receives :math:`-u`, as a gradient to
        descend, and steps the rates; default ``optax.adam(1e-2)``. With
        ``optax.sgd(xi)`` the step is the paper's equation 6. It sees the rates of all L
        memories as one array [L, M], and an extra argument ``activity`` like it:
        :math:`u` with :math:`|a_i|` for :math:`a_i`, which
        :func:`metalr_optax.agreement_steps` needs.
      signal: function ``(gradient, last_direction) -> values in [-1, 1]`` of two
        arrays of one shape; default :func:`metalr_optax.sign_agreement`.
      normalize: what kernels see: the value of a direction (None, the paper), or with
        ``"rms"`` its value over the root mean square of its tensor, so that kernels fit
        gradients of any scale. A sample is divided by its own.
      group_by: which tensors share a memory: ``"layer"`` (siblings, such as a kernel
        and its bias: the paper), ``"tensor"`` (the authors' code), ``"all"``, or a
        function ``(path, leaf) -> label`` of a path as JAX gives it.
      rate_bounds: smallest and largest rate a memory may hold.
      evidence_sample: of a tensor with more than 8 times as many coordinates only a
        fixed lattice of at most so many gives evidence, spread over all rows and
        columns, and only their last direction is kept. Every :math:`u_m` then has a
        standard error of up to :math:`1 / \sqrt{n}` for n coordinates that agree
        independently of each other (.016 for 4,096), more where whole rows agree.
        Default: all coordinates give evidence.
      stacked: function ``(path, leaf) -> bool``: in which tensors the first axis counts
        layers, as a scan over blocks has them (``nn.scan``). Each of these then has a
        memory of its own, ``label/0``, ``label/1`` and so on, in one update for all.
      frozen: labels of memories that stay as they are, such as those of layers that a
        transfer is to start from and keep; with ``progress``, that follow their
        schedule and nothing else.
      progress: whether memories also learn how rates change with the progress of a run.
        A run then leaves a schedule, the rate of each memory at update 1, 2, 4 and so
        on, and one that starts with it follows it, high early and low late, corrected
        by evidence: a memory from the end of a run is as good as any. Without a
        schedule to start with a run is the same either way.
      capacity: how many local models a memory may have; ``kernels`` are those it starts
        with, whose number is the default. In an update at most one is added to a
        memory: beside the others where at least one input in twenty falls so far from
        all that no activation is above 0.1, or by splitting the one whose evidence has
        disagreed the most, and for long, between the two sides of its centre. A new one
        starts with the rate that was read there. Single outliers, and inputs 100 widths
        from all, add none.
      learned_widths: whether the widths of kernels are learned from the same evidence,
        between a quarter of the distance to the nearest neighbour and all of it.
      linear: whether a local model also has a slope :math:`b_m` in [-.45, .45] that is
        learned, and reads :math:`v_m (1 + b_m \mathrm{clip}((z - c_m) / s_m, -2, 2))`
        for :math:`v_m`, within ``rate_bounds``. The module ``regression`` has the
        formulas.
      kernel_input: what kernels see: the ``"direction"``, or the ``"history"`` of a
        coordinate, a running mean of :math:`\mathrm{sign}(g_i) \mathrm{sign}(o d^-_i)`
        over about 19 updates, in [-1, 1]. A coordinate that has gone one way for long
        then reads another rate than one that goes to and fro. It costs one more number
        for every parameter, and needs kernels on [-1, 1], evidence from all coordinates
        and ``normalize=None``.
      inner: deprecated name of ``base_optimizer``.
      address: deprecated, ``"relative"`` for ``normalize="rms"``.

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
        point numbers or labels of ``initial`` or ``frozen`` that do not fit; at
        ``update``, updates of another structure or shape than the parameters at
        ``init``, a ``grad=`` of another one than the updates.

    Shapes: parameters are any pytree, masked and empty ones included. Rates are [M] per
    label, float32, or float64 with float64 parameters. The state costs one number per
    parameter (or per sampled one) besides that of ``base_optimizer``, plus 6 M + 33 and
    the optimizer's state per memory. All memories have the same M, that of ``capacity``
    if there is one.

    Labels: the path of the layer or tensor joined with ``/``, such as
    ``params/Dense_0``; a trailing ``value`` attribute without siblings (Flax NNX) is
    dropped, a tensor at the top of the tree is a layer of its own, a bare array is
    ``params``. Haiku's names keep the slashes they have. Paths that join to the same
    label share a memory, and so do layers stacked into one tensor by a scan unless
    ``stacked`` says otherwise.

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

      Kernels that see how the gradients of a coordinate agreed give one that goes one
      way a larger rate than one that goes to and fro:

      >>> from metalr_optax import agreement_steps, get_rates, linspace_kernels
      >>> from metalr_optax import raw_product
      >>> optimizer = scale_by_memory(
      ...   kernels=linspace_kernels(1.0, 5), kernel_input="history",
      ...   signal=raw_product, memory_optimizer=agreement_steps())
      >>> state, update = optimizer.init(jnp.zeros(2)), jax.jit(optimizer.update)
      >>> for sign in 20 * (1.0, -1.0):
      ...   _, state = update(jnp.array([1.0, sign]), state)
      >>> one_way, to_and_fro = get_rates(state)
      >>> bool(one_way > 100 * to_and_fro)
      True

    Notes:
      The first step leaves the memory as it is. So does any coordinate that is zero
      or not finite; its update is passed on as it came. ``jit``, ``vmap``, ``scan``,
      donation and sharding are safe. Under ``optax.inject_hyperparams`` name your own
      functions in ``static_args=("signal", "group_by")``: it takes a function for a
      schedule; all that is no number but in its type belongs there too, such as
      ``evidence_sample``, ``stacked``, ``frozen`` and ``capacity``. Of
      tensors of at least 16,384 coordinates rates are interpolated, within 1e-4 of the
      largest, and evidence within 1e-3 of the mean absolute agreement. Kernels that are
      traced, that are neither even nor log-spaced or much narrower than their distance
      are evaluated one by one, exactly and slowly, and so are all with ``capacity``,
      ``learned_widths`` or ``linear``, where the update also takes some ten sums more.

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
    if inner is not None or address is not None:
        text = "inner is called base_optimizer, and address='relative' normalize='rms'"
        warnings.warn(text, DeprecationWarning, stacklevel=2)
        base_optimizer = inner or base_optimizer
        old: Any = {"value": None, "relative": "rms", None: normalize}
        normalize = old.get(address, address)
    checks.check_transformation("base_optimizer", base_optimizer)
    memories = initial, kernels, group_by, rate_bounds
    settings = Settings(
        *(*memories, memory_optimizer, signal, stacked, frozen, progress),
        normalize=normalize,
        capacity=capacity,
        learned_widths=learned_widths,
        linear=linear,
        kernel_input=kernel_input,
    )
    base = remembered(base_optimizer or optax.identity(), evidence_sample, stacked)
    return scale_base(base, settings, has_gradient=base_optimizer is not None)


def scale_base(
    base: Base, settings: Settings, has_gradient: bool = False
) -> optax.GradientTransformationExtraArgs:
    """Return a base whose directions are scaled by memories.

    Args:
      base: the base optimizer.
      settings: all else.
      has_gradient: whether the base is to be compared with what comes in, raw
        gradients: nobody knows yet whether it points along them.

    Raises:
      ValueError: a setting that is not what :func:`scale_by_memory` allows.
    """
    _check(base, settings)
    if settings.kernel_input == "history":
        base = with_history(base)
    all_kernels = kernels_of(settings)
    grids = {make_grid(one) for one in all_kernels}
    kind = settings.kind
    grid = grids.pop() if len(grids) == 1 and not kind.is_exact else None
    signal = settings.signal or sign_agreement
    how = Evaluation(base, signal, settings.normalize == "rms", grid)
    evidence_of, scaled_by = (
        functools.partial(one, how) for one in (tensor_evidence, scaled)
    )
    if grid is None:
        # Traced once for all tensors of one shape. (What depends on the platform is
        # decided when that is compiled, unless it is inside of another jit.)
        evidence_of, scaled_by = jax.jit(evidence_of), jax.jit(scaled_by)
    link = _Link(
        base,
        settings._replace(
            kernels=all_kernels[0],
            memory_optimizer=settings.memory_optimizer or optax.adam(1e-2),
        ),
        has_gradient,
        not kind.is_exact
        and all(same_kernels(all_kernels[0], one) for one in all_kernels),
        evidence_of,
        scaled_by,
    )
    return optax.GradientTransformationExtraArgs(
        functools.partial(_init, link), functools.partial(_update, link)
    )


def same_kernels(one: Kernels, other: Kernels) -> bool:
    """Return whether kernels are known to be equal."""
    pairs = list(zip(one, other, strict=True))
    known = all(checks.is_concrete(array) for pair in pairs for array in pair)
    return one is other or (known and all(np.array_equal(*pair) for pair in pairs))


class _Link(NamedTuple):
    """An optimizer as it was built."""

    base: Base
    settings: Settings
    has_gradient: bool
    is_shared: bool  # all memories have the same kernels
    evidence_of: Callable[..., Any]
    scaled_by: Callable[..., Any]


class _Evidence(NamedTuple):
    """What a step says: means over the coordinates that share a memory.

    Attributes:
      u: [L, M], of agreement times activation.
      activity: [L, M], the same without signs.
      agreeing: [L], of agreement.
      counting: [L], the same without signs.
      outside: [L], whether the last direction was out of range.
      sums: [L, M] each, where more than rates is learned.
    """

    u: jax.Array
    activity: jax.Array
    agreeing: jax.Array
    counting: jax.Array
    outside: jax.Array
    sums: Sums | None = None


def _init(link: _Link, params: optax.Params) -> ScaleByMemoryState:
    settings = link.settings
    dtype = memory_dtype(params)
    leaves = labels_of(params, settings.group_by)
    stacks = stack_by_label(leaves, stacks_of(params, settings.stacked))
    labels = names_of(stacks)
    checks.check_frozen(settings.frozen, [*stacks, *labels])
    memories = _initial_memories(settings, labels)
    for memory in memories:
        checks.check_kernels(checks.in_use(memory.kernels), dtype)
    if settings.capacity is not None:
        num = settings.capacity
        memories = [padded(memory, num) for memory in memories]
    # Without a label there is one memory all the same, of which no row is kept.
    ceiling = _ceiling(settings, leaves, params, jnp.zeros(len(labels), dtype))
    table = pack(from_memories(memories, dtype, ceiling))[: len(labels)]
    rows, number = {}, itertools.count()
    for label, stack in stacks.items():
        some = next(number) if stack is None else [next(number) for _ in range(stack)]
        rows[label] = jnp.array(some, jnp.int32)
    # A copy: some optimizers keep the parameters that they start with.
    rule_state = settings.memory_optimizer.init(jnp.array(unpack(table).rates))
    tables = {settings.kind.name: table}
    return ScaleByMemoryState(
        not_params(rows), tables, rule_state, link.base.init(params)
    )


def _ceiling(
    settings: Settings, labels: Sequence[str], params: optax.Params, like: jax.Array
) -> jax.Array | None:
    """Return the largest rate [L] that the parameters of each memory bear."""
    leaves = [jnp.asarray(leaf, like.dtype) for leaf in jax.tree.leaves(params)]
    if settings.largest_step is None or not leaves:
        return None
    stacks = stacks_of(params, settings.stacked)
    sizes = [leaf.size // (k or 1) for leaf, k in zip(leaves, stacks, strict=True)]
    means = mean_by_label(
        labels,
        sizes,
        [by_layer(_mean_square, k)(x) for x, k in zip(leaves, stacks, strict=True)],
        like,
    )
    # What starts at zero, such as biases of their own, moves like all others.
    total = sum(_mean_square(leaf) * leaf.size for leaf in leaves)
    everything = total / max(sum(leaf.size for leaf in leaves), 1)
    sizes = jnp.sqrt(jnp.where(means > 0, means, everything))
    known = (sizes > 0) & jnp.isfinite(sizes)
    return jnp.where(
        known, settings.largest_step * sizes, jnp.finfo(like.dtype).max
    ).astype(like.dtype)


def _mean_square(tensor: jax.Array) -> jax.Array:
    return jnp.sum(jnp.square(tensor)) / max(tensor.size, 1)


def _update(link, updates, state, params=None, **extra_args):
    checks.check_state(state, ScaleByMemoryState)
    updates, gradient = jax.tree.map(jnp.asarray, (updates, extra_args.get("grad")))
    if gradient is not None:
        checks.check_gradient(gradient, updates)
    elif link.has_gradient:
        gradient = updates
    ((name, array),) = state.table.items()
    labels, table = labels_of(updates, link.settings.group_by), unpack(array)
    checks.check_known(labels, state.rows)
    checks.check_real(updates)
    rows = [state.rows[label] for label in labels]
    kernels = [_kernels_at(table, row, link.is_shared) for row in rows]
    norm = extra_args.get("norm")
    scale = _clip_scale(link.settings, diagnostics_of(table), norm)
    known = list(zip(kernels, _models(link, table, rows), strict=True))
    said, update = _compare(link, state, rows, known, scale, updates, gradient)
    direction, base_state = link.base.update(
        update, state.base_state, params, gradient, extra_args
    )
    if norm is not None:
        direction, base_state = _keep(link.base, norm, direction, base_state, state)
    sizes = [
        leaf.size // max(row.size, 1)
        for leaf, row in zip(jax.tree.leaves(updates), rows, strict=True)
    ]
    evidence = _gather(labels, sizes, said, table.rates)
    table, rule_state = _correct(link.settings, state, table, evidence)
    rates = table.rates
    if norm is not None:
        rates = jnp.where(jnp.isfinite(norm), rates, 0)
    seen = _inputs(link, base_state, rows)
    leaves = _scale(link, table._replace(rates=rates), rows, kernels, direction, seen)
    table = _diagnose(link.settings, table, evidence, norm)
    means = mean_rate(rates, table.evidence_weight)
    scaled = _finish(link.settings, means, rows, leaves, direction, updates, params)
    tables = {name: pack(table)}
    return scaled, ScaleByMemoryState(state.rows, tables, rule_state, base_state)


def _compare(
    link: _Link,
    state: ScaleByMemoryState,
    rows: Sequence[jax.Array],
    known: Sequence[tuple[Kernels, Any]],
    scale: jax.Array | None,
    updates: optax.Updates,
    gradient: optax.Updates | None,
) -> tuple[list[Any], optax.Updates]:
    """Return the evidence of every tensor, and the updates, clipped, for the base."""
    last = link.base.last(state.base_state, gradient is not None)
    gradients = jax.tree.leaves(updates if gradient is None else gradient)
    leaves, structure = jax.tree.flatten(updates)
    checks.check_number_of_leaves(updates, len(last))
    seen = _inputs(link, state.base_state, rows)
    # Of a sample the shape says nothing.
    size = None if link.base.is_derived else link.base.size
    shapes = [
        leaf.shape if is_sampled(leaf, size) else one[0].shape
        for leaf, one in zip(leaves, last, strict=True)
    ]
    checks.check_shapes(updates, shapes)
    pairs = [
        _by_row(link, link.evidence_of, row)(*one, scale, *tensors)
        for row, one, *tensors in zip(
            rows, known, gradients, leaves, last, seen, strict=True
        )
    ]
    said = [one for one, _ in pairs]
    return said, jax.tree.unflatten(structure, [update for _, update in pairs])


def _models(link: _Link, table: Table, rows: Sequence[jax.Array]) -> list[Any]:
    """Return rates and slopes of every tensor where more than rates is learned."""
    if not link.settings.kind.learns_more:
        return [None] * len(rows)
    return [(_row(table.rates, row), _row(table.slopes, row)) for row in rows]


def _scale(
    link: _Link,
    table: Table,
    rows: Sequence[jax.Array],
    kernels: Sequence[Kernels],
    direction: optax.Updates,
    seen: Sequence[jax.Array | None],
) -> list[jax.Array]:
    """Return the directions of all tensors times their rates in a corrected table."""
    kind = link.settings.kind
    if kind.learns_more:
        kernels = [_kernels_at(table, row, link.is_shared) for row in rows]
    return [
        _by_row(link, link.scaled_by, row)(
            one,
            (_row(table.rates, row), _row(table.slopes, row) if kind.linear else None),
            *tensors,
        )
        for one, row, *tensors in zip(
            kernels, rows, jax.tree.leaves(direction), seen, strict=True
        )
    ]


def _inputs(
    link: _Link, base_state: Any, rows: Sequence[jax.Array]
) -> list[jax.Array | None]:
    """Return for every tensor what kernels see instead of its direction, or None."""
    seen = link.base.inputs(base_state)
    return [None] * len(rows) if seen is None else list(seen)


def _keep(
    base: Base,
    norm: jax.Array,
    direction: optax.Updates,
    new: Any,
    state: ScaleByMemoryState,
) -> tuple[optax.Updates, Any]:
    """Return a finite direction and a base's state, as before if a norm is not finite.

    Where the direction follows from that state it is taken from what is kept: XLA would
    copy a donated state that it needs both as it was and as it will be.
    """
    usable = jnp.isfinite(norm)
    kept = jax.tree.map(
        lambda one, old: jnp.where(usable, one, old), new, state.base_state
    )
    current = base.current(kept)
    if current is not None:
        return current, kept
    return jax.tree.map(lambda d: jnp.where(usable, d, 0), direction), kept


def _clip_scale(
    settings: Settings, known: Diagnostics, norm: jax.Array | None
) -> jax.Array | None:
    """Return what brings a norm down to the largest that is allowed, at most 1."""
    if norm is None:
        return None
    largest = settings.clip_norm
    if largest is None:
        usual = _OUTLIER * jnp.max(known.usual_norm, initial=0)
        largest = jnp.where(usual > 0, jnp.minimum(usual, _LARGEST_NORM), _LARGEST_NORM)
    scale = largest / jnp.where(norm > 0, norm, 1)
    return jnp.clip(scale, jnp.finfo(norm.dtype).tiny, 1.0)


def _usual_norm(known: Diagnostics, norm: jax.Array | None) -> jax.Array:
    """Return the largest norm [L] of the last hundred steps, this one among them."""
    old = known.usual_norm
    if norm is None:
        return old
    norm = jnp.minimum(norm, _LARGEST_NORM).astype(old.dtype)
    grown = jnp.where(old > 0, jnp.minimum(norm, _NORM_GROWTH * old), norm)
    return jnp.maximum(_NORM_DECAY * old, grown)


def _gather(
    labels: Sequence[str], sizes: Sequence[int], said: Sequence[Any], like: jax.Array
) -> _Evidence:
    """Return the evidence of all tensors, by memory."""
    columns = list(zip(*said, strict=True)) or [()] * 5
    likes = [like] * 2 + [like[:, 0]] * 3 + [like] * len(Sums._fields)
    means = [
        mean_by_label(labels, sizes, *pair)
        for pair in zip(columns, likes, strict=False)
    ]
    if len(means) < 5:
        # One rate has evidence from all coordinates alike, and no range.
        means += [means[0][:, 0], means[1][:, 0], jnp.zeros_like(like[:, 0])]
    sums = Sums(*means[5:]) if len(means) > 5 else None
    return _Evidence(*means[:5], sums=sums)


def _correct(
    settings: Settings, state: ScaleByMemoryState, table: Table, evidence: _Evidence
) -> tuple[Table, optax.OptState]:
    """Step all rates along the evidence, within the bounds; weigh the evidence."""
    rule = settings.memory_optimizer
    takes_more = isinstance(rule, optax.GradientTransformationExtraArgs)
    extra = {"activity": evidence.activity} if takes_more else {}
    steps, rule_state = rule.update(
        -evidence.u, state.memory_optimizer_state, table.rates, **extra
    )
    rates: Any = optax.apply_updates(table.rates, steps)
    low, high = _bounds(settings, table)
    most = jnp.asarray(settings.rate_bounds[1], high.dtype)
    # What starts above its ceiling stays there, or falls.
    rates = jnp.clip(rates, low, jnp.maximum(high, jnp.minimum(table.rates, most)))
    size = jnp.abs(evidence.u)
    total = jnp.sum(size, axis=-1, keepdims=True)
    usable = (total > 0) & jnp.isfinite(total)
    shares = jnp.where(usable, size / jnp.where(usable, total, 1), 0)
    # Evidence about steps that a schedule makes smaller would only make up for it, and
    # rates that noise went on to take down would leave it nothing to finish with.
    known = diagnostics_of(table)
    stand = _factor(settings, known) < _FALLEN * known.highest_factor
    is_kept = stand
    if settings.frozen:
        is_kept = stand | _frozen_rows(settings.frozen, state.rows)
    rates = jnp.where(is_kept[:, None], table.rates, rates)
    if settings.progress:
        rates, schedule = _follow(table, rates, (low, high), stand)
        table = table._replace(schedule=schedule)
    weight = table.evidence_weight + shares
    table = table._replace(rates=rates, evidence_weight=weight)
    if evidence.sums is not None:
        both, bounds = (evidence.u, evidence.activity), (low, high)
        learned = learn(settings.kind, table, evidence.sums, both, bounds)
        table = jax.tree.map(
            lambda new, old: jnp.where(is_kept[:, None], old, new), learned, table
        )
    return table, rule_state


def _follow(
    table: Table,
    corrected: jax.Array,
    bounds: tuple[jax.Array, jax.Array],
    stand: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Return corrected rates [L, M] a step along their schedules, and those."""
    progress, weight = diagnostics_of(table).progress, table.evidence_weight
    step = jnp.where(stand, 0, step_along(table.schedule, progress))
    low, high = bounds
    # Evidence may have left rates above their ceiling, where they were.
    moved = jnp.clip(
        corrected * jnp.exp(step)[:, None], low, jnp.maximum(high, corrected)
    )
    rates = jnp.where(step[:, None] != 0, moved, corrected)
    change = jnp.log(mean_rate(rates, weight) / mean_rate(table.rates, weight))
    return rates, record(table.schedule, progress, step, change)


def _diagnose(
    settings: Settings, table: Table, evidence: _Evidence, norm: jax.Array | None
) -> Table:
    """Return a corrected table with new diagnostics."""
    old = diagnostics_of(table)
    usable = (evidence.counting > 0) & jnp.isfinite(evidence.counting)
    ratio = evidence.agreeing / jnp.where(usable, evidence.counting, 1)
    sign = jnp.sign(jnp.sum(evidence.u, axis=-1))
    sign = jnp.where(jnp.isnan(sign), 0, sign)
    low, high = _bounds(settings, table)
    at_low, at_high = (
        table.rates <= low * (1 + _SLACK),
        table.rates >= high * (1 - _SLACK),
    )
    means = mean_rate(table.rates, table.evidence_weight)
    new = Diagnostics(
        jnp.where(usable, 0.5 + 0.5 * ratio, old.agreement_fraction),
        _SIGN_DECAY * old.evidence_sign + (1 - _SIGN_DECAY) * sign,
        _mean_of_used(settings.kind, at_low | at_high, table),
        evidence.outside,
        old.start,
        jnp.maximum(old.highest, means),
        old.ceiling,
        old.updates + 1,
        old.progress + 1,
        jnp.maximum(old.highest_factor, _factor(settings, old)),
        _usual_norm(old, norm),
        old.skipped,
        old.skipped_in_a_row,
    )
    return with_diagnostics(table, new)


def _mean_of_used(kind: Kind, values: jax.Array, table: Table) -> jax.Array:
    """Return the mean [L] of [L, M] over the local models in use."""
    where = table.widths > 0 if kind.grows else None
    return jnp.mean(values, axis=-1, dtype=table.rates.dtype, where=where)


def _finish(
    settings: Settings,
    means: jax.Array,
    rows: Sequence[jax.Array],
    scaled: Sequence[jax.Array],
    direction: optax.Updates,
    updates: optax.Updates,
    params: optax.Params | None,
) -> optax.Updates:
    """Return scaled directions, with what decays, in the dtypes of the updates."""
    leaves = list(scaled)
    if settings.decay is not None:
        checks.check_params(params, updates)
        zeros = jax.tree.map(jnp.zeros_like, direction)
        decayed, _ = settings.decay.update(zeros, settings.decay.init(zeros), params)
        leaves = [
            leaf
            + by_layer(jnp.multiply, _stack(row))(
                _row(means, row), weight.astype(leaf.dtype)
            )
            for leaf, row, weight in zip(
                leaves, rows, jax.tree.leaves(decayed), strict=True
            )
        ]
    tree = jax.tree.unflatten(jax.tree.structure(direction), leaves)
    return jax.tree.map(lambda one, like: one.astype(like.dtype), tree, updates)


def _bounds(settings: Settings, table: Table) -> tuple[jax.Array, jax.Array]:
    """Return the smallest rate [] and the largest [L, 1] of each memory."""
    low, high = (jnp.asarray(one, table.rates.dtype) for one in settings.rate_bounds)
    return low, jnp.minimum(high, diagnostics_of(table).ceiling[:, None])


def _factor(settings: Settings, known: Diagnostics) -> jax.Array:
    """Return what the rates of this step are multiplied with further down."""
    factor = settings.factor
    if callable(factor):
        factor = factor(jnp.max(known.updates, initial=0).astype(jnp.int32))
    return jnp.asarray(factor, known.highest_factor.dtype)


def _by_row(
    link: _Link, function: Callable[..., Any], row: jax.Array
) -> Callable[..., Any]:
    """Return a function of kernels and arrays that treats each stacked layer alone."""
    if _stack(row) is None:
        return function

    def apply(kernels: Kernels, *arguments: Any) -> Any:
        # Numbers, such as the scale of a gradient, are those of all layers.
        axes = jax.tree.map(lambda one: 0 if one.ndim else None, arguments)
        axes = (None if link.is_shared else 0, *axes)
        return jax.vmap(function, axes)(kernels, *arguments)

    return apply


def _stack(row: jax.Array) -> int | None:
    """Return how many layers are stacked in the tensors of a row."""
    return row.shape[0] if row.ndim else None


def _frozen_rows(frozen: Collection[str], rows: Mapping[str, jax.Array]) -> np.ndarray:
    """Return which memories [L] are frozen, by name or with all layers of a label."""
    return np.array(
        [
            label in frozen or name in frozen
            for label in sorted(rows)
            for name in names_of({label: _stack(rows[label])})
        ]
    )


def _row(array: jax.Array, row: jax.Array) -> jax.Array:
    if row.ndim:
        return array[row]
    # The row is an operand: as a number it would be part of the program, and XLA would
    # compile that anew for every tensor. Unsigned: nobody asks whether it is negative.
    return jax.lax.dynamic_index_in_dim(array, row.astype(jnp.uint32), keepdims=False)


def _kernels_at(table: Table, row: jax.Array, is_shared: bool) -> Kernels:
    # What all share is the same operand for all, and evaluated once.
    pair = table.centers, table.widths
    return Kernels(*((one[0] if is_shared else _row(one, row)) for one in pair))


def kernels_of(settings: Settings) -> list[Kernels]:
    """Return the kernels that memories start with, copies of what may be donated."""
    initial: Any = settings.initial
    memories = list(initial.values()) if isinstance(initial, Mapping) else [initial]
    kernels = [one.kernels for one in memories if isinstance(one, Memory)]
    return [
        Kernels(*(np.array(a) if checks.is_concrete(a) else a for a in one))
        for one in kernels or [settings.kernels or PAPER_KERNELS]
    ]


def _initial_memories(settings: Settings, labels: Sequence[str]) -> list[Memory]:
    """Return the memory that each label starts with; one for no labels at all."""
    initial: Any = settings.initial
    if isinstance(initial, Mapping):
        if labels:
            checks.check_labels("initial", initial, labels)
            return [initial[label] for label in labels]
        initial = settings.rate_bounds[0]
    if not isinstance(initial, Memory):
        shape = np.shape(settings.kernels.centers)
        rates = jnp.broadcast_to(jnp.asarray(initial), shape)
        initial = Memory(settings.kernels, rates)
    return [initial] * max(len(labels), 1)


def _check(base: Base, settings: Settings) -> None:
    """Raise ValueError unless all settings are allowed."""
    if base.size is not None:
        hint = " or None (under optax.inject_hyperparams name it in static_args)"
        checks.check_integer("evidence_sample", base.size, 1, hint)
    checks.check_transformation("memory_optimizer", settings.memory_optimizer)
    signal, normalize, group_by = settings.signal, settings.normalize, settings.group_by
    allowed = "be a function of (gradient, last_direction)"
    checks.require(signal is None or callable(signal), "signal", allowed, signal)
    checks.require(
        normalize in ("rms", None), "normalize", "be 'rms' or None", normalize
    )
    fits = callable(group_by) or group_by in ("layer", "tensor", "all")
    allowed = "be 'layer', 'tensor', 'all' or a function (path, leaf) -> label"
    checks.require(fits, "group_by", allowed, group_by)
    checks.check_kernel_input(settings.kernel_input, normalize, base.size)
    fits = settings.stacked is None or callable(settings.stacked)
    allowed = "be a function (path, leaf) -> bool or None"
    checks.require(fits, "stacked", allowed, settings.stacked)
    fits = not isinstance(settings.frozen, str | bytes)
    fits = fits and isinstance(settings.frozen, Collection)
    allowed = "be a collection of labels, such as ['Dense_0']"
    checks.require(fits, "frozen", allowed, settings.frozen)
    checks.check_bounds(settings.rate_bounds)
    if settings.kernels is not None:
        checks.check_kernels(settings.kernels)
    checks.check_initial(
        settings.initial, settings.kernels, settings.kind, settings.rate_bounds
    )
    starts = [len(one.centers) for one in kernels_of(settings)]
    checks.check_local_models(
        settings.initial,
        max(starts),
        (settings.capacity, settings.learned_widths, settings.linear),
    )
