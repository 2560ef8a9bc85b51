"""When a memory is corrected and read: the Optax transformation."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from metalr_optax import checks
from metalr_optax.evidence import (
    collect,
    joined,
    parted,
    sampled,
    sizes_of,
    whole_tensors,
)
from metalr_optax.follow import follow_schedule
from metalr_optax.groups import (
    GroupBy,
    Label,
    by_row,
    labels_of,
    memory_dtype,
    unique,
)
from metalr_optax.growing import Learned, grow, growing
from metalr_optax.history import histories_in, with_history
from metalr_optax.initial import Initial, initial_memories, kernels_of
from metalr_optax.local_models import Evidence, LocalModels, gaussian, scalar
from metalr_optax.memory import Kernels, Memory, mean_rate
from metalr_optax.orientation import find_orientation
from metalr_optax.rules import Rule, from_optax
from metalr_optax.signals import Signal, sign_agreement
from metalr_optax.stack import (
    ByDirection,
    ByHistory,
    ByRelativeDirection,
    Info,
    StackedMemory,
    first_info,
    unpack_info,
)

# The sign of the evidence is averaged over about (1 + .9) / (1 - .9) = 19 steps.
_SIGN_DECAY = 0.9
# Rates are within the bounds up to rounding.
_SLACK = 1e-6

Normalize = Literal["rms"] | None
KernelInput = Literal["direction", "history"]


class ScaleByMemoryState(NamedTuple):
    """State of :func:`scale_by_memory`; its memories are read with ``get_memory``.

    Attributes:
      memory: all L memories of M local models, ``rates`` [L, M] among its arrays.
      rows: label -> [], int32, the row of its memory, in the order of labels; None for
        labels of slices.
      last_direction: like the parameters; with ``evidence_sample`` one array of all
        samples.
      orientation: [], float32, 1 where the base points along the gradient, -1 where it
        points against it, 0 as long as that is unknown.
      rule_state: of what steps the rates.
      base_state: of the base optimizer.
      info: [6, L], what logs need.
    """

    memory: StackedMemory
    rows: Any
    last_direction: Any
    orientation: Any
    rule_state: Any
    base_state: Any
    info: jax.Array


class Learner(NamedTuple):
    """What a memory is made of, and what it learns from.

    Attributes:
      models: the family of local models.
      rule: what changes memories.
      base: the base optimizer.
      memories: labels -> the memories they start with.
      gather: ((stack, orientation), row, gradient, last direction, history) ->
        evidence of a tensor.
      scale: (stack, row, direction, history) -> direction times rates, of a tensor.
      group_by: which tensors share a memory.
      evidence_sample: coordinates of a tensor that give evidence; None for all.
      progress: whether memories have a learned schedule.
      finds_orientation: whether the base is not known to point along the gradient.
    """

    models: LocalModels
    rule: Rule
    base: optax.GradientTransformationExtraArgs
    memories: Callable[[Sequence[str]], list[Memory]]
    gather: Callable[..., Evidence]
    scale: Callable[..., jax.Array]
    group_by: GroupBy
    evidence_sample: int | None
    progress: bool
    finds_orientation: bool


def make_learner(
    models: LocalModels,
    rule: Rule,
    base: optax.GradientTransformationExtraArgs,
    memories: Callable[[Sequence[str]], list[Memory]],
    signal: Signal | None,
    *,
    group_by: GroupBy,
    evidence_sample: int | None,
    progress: bool = False,
    finds_orientation: bool = True,
) -> Learner:
    """Return a learner of checked arguments, see :class:`Learner`."""
    checks.check_evidence(signal, group_by, evidence_sample)

    def gather(shared, row, gradient, last, history):
        memory, turn = shared
        own, compare = models.row(memory, row), signal or sign_agreement
        return models.gather(own, compare, gradient, last, turn, history)

    def scale(memory, row, direction, history):
        direction = direction.astype(memory.rates.dtype)
        return models.read(models.row(memory, row), direction, history) * direction

    if not models.depends_on_platform:
        # Traced once for all tensors of one shape.
        gather, scale = jax.jit(gather), jax.jit(scale)
    return Learner(
        *(models, rule, base, memories, gather, scale),
        *(group_by, evidence_sample, progress, finds_orientation),
    )


@checks.without("stacked", "frozen", "inner", "address")
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
    progress: bool = False,
    capacity: int | None = None,
    learned_widths: bool = False,
    linear: bool = False,
    kernel_input: KernelInput = "direction",
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
        function ``(path, leaf) -> label`` of a path as JAX gives it. A list of labels
        gives each slice of the first axis a memory of its own, as for layers that a
        scan over blocks stacks (``nn.scan``).
      rate_bounds: smallest and largest rate a memory may hold.
      evidence_sample: of a tensor with more coordinates only a fixed lattice of at most
        so many gives evidence, spread over all rows and columns, and only their last
        direction is kept, in one array for all tensors. Every :math:`u_m` then has a
        standard error of up to :math:`1 / \sqrt{n}` for n coordinates that agree
        independently of each other (.016 for 4,096), more where whole rows agree.
        Default: all coordinates give evidence.
      progress: whether memories also learn how rates change with the progress of a run.
        A run then leaves a learned schedule, the rate of each memory at step 1, 2, 4
        and so on, and a run that starts with it follows it, high early and low late,
        corrected by evidence: take the memory at the end of a run. Without a learned
        schedule to start with a run is the same either way.
      capacity: how many local models a memory may have; ``kernels`` are those it starts
        with, whose number is the default. In a step at most one is added to a
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
        over about 19 steps, in [-1, 1]. A coordinate that has gone one way for long
        then reads a different rate from one that goes to and fro. It costs two more
        numbers for every parameter, and needs kernels on [-1, 1], evidence from all
        coordinates and ``normalize=None``.

    Returns:
      A :class:`optax.GradientTransformationExtraArgs`. Updates keep their sign, shape
      and dtype. Pass the raw gradient as the extra argument ``grad=`` of ``update``
      if this transformation stands behind a base optimizer in a chain: the signal then
      compares gradients with directions instead of directions with each other. A
      ``clip`` further up does not clip it; ``optax.masked`` needs
      ``mask_compatible_extra_args=True`` to pass it on.

    Raises:
      ValueError: at construction, an argument that is not as above or a rate outside
        ``rate_bounds``; at ``init``, parameters that are not real floating point
        numbers or labels of ``initial`` that do not fit; at ``update``, updates of
        another structure or shape than the parameters at ``init``, a ``grad=`` of
        another structure or shape than the updates.
      TypeError: an argument of an earlier version, with what replaces it.

    Shapes: parameters are any pytree, masked and empty ones included. Rates are [M] per
    label, float32, or float64 with float64 parameters. The state costs one number per
    parameter (or per sampled coordinate) besides that of ``base_optimizer``, plus, per
    memory, 4 M + 6 (20 more with ``progress``) and the state of ``memory_optimizer``.
    All memories have the same M, that of ``capacity`` if it is given.

    Labels: the path of the layer or tensor joined with ``/``, such as
    ``params/Dense_0``; a trailing ``value`` attribute without siblings (Flax NNX) is
    dropped, a tensor at the top of the tree is a layer of its own, a bare array is
    ``params``. Haiku's names keep the slashes they have. Paths that join to the same
    label share a memory, and so do layers stacked into one tensor by a scan unless
    ``group_by`` returns a list of labels for them.

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
      schedule; ``evidence_sample`` and ``capacity`` belong there too. Of tensors of at
      least 16,384 coordinates rates are interpolated, within 1e-4 of the largest, and
      evidence within 1e-3 of the mean absolute agreement. Kernels that are traced, that
      are neither even nor log-spaced or much narrower than their distance are evaluated
      individually, exactly and slowly, and so are all with ``capacity``,
      ``learned_widths`` or ``linear``, where a step also takes some ten sums more.

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
    checks.check_transformation("base_optimizer", base_optimizer)
    checks.check_transformation("memory_optimizer", memory_optimizer)
    checks.check_kernel_inputs(normalize, kernel_input, evidence_sample)
    base = optax.with_extra_args_support(base_optimizer or optax.identity())
    learned = Learned(capacity, learned_widths, linear)
    inputs = ByRelativeDirection() if normalize == "rms" else ByDirection()
    if kernel_input == "history":
        base, inputs = with_history(base), ByHistory()
    rule = from_optax(memory_optimizer or optax.adam(1e-2), rate_bounds)
    rule = follow_schedule(rule) if progress else rule
    models, memories = choose_models(initial, kernels, inputs, rate_bounds, learned)
    rule = grow(rule, learned) if any(learned) else rule
    return transformation(
        make_learner(
            *(models, rule, base, memories, signal),
            group_by=group_by,
            evidence_sample=evidence_sample,
            progress=progress,
        )
    )


def choose_models(
    initial: Initial,
    kernels: Kernels | None,
    inputs: Any,
    rate_bounds: tuple[Any, Any],
    learned: Learned | None = None,
) -> tuple[LocalModels, Callable[[Sequence[str]], list[Memory]]]:
    """Return the family for the kernels that memories start with, and those memories.

    Raises:
      ValueError: arguments that :func:`scale_by_memory` does not allow.
    """
    learned = learned or Learned(None, False, False)
    checks.check_bounds(rate_bounds)
    if kernels is not None:
        checks.check_kernels(kernels)
    checks.check_initial(initial, kernels, inputs, rate_bounds)
    found = kernels_of(initial, kernels)
    checks.check_local_models(initial, max(len(k.centers) for k in found), learned)
    memories = initial_memories(initial, found[0], rate_bounds[0])
    if any(learned):
        models = growing(learned, inputs)
    elif len(found[0].centers) == 1:
        models = scalar(inputs)
    else:
        models = gaussian(found, inputs)
    if isinstance(inputs, ByHistory):
        models = models._replace(histories=histories_in)
    return models, memories


def transformation(learner: Learner) -> optax.GradientTransformationExtraArgs:
    """Return the Optax transformation that scales what the base of a learner gives."""

    def init(params: optax.Params) -> ScaleByMemoryState:
        return start(learner, params)

    def update(updates, state, params=None, **extra_args):
        scaled, state = step(learner, updates, state, params, extra_args)
        return cast_like(scaled, updates), state

    return optax.GradientTransformationExtraArgs(init, update)


def cast_like(tree: Any, like: Any) -> Any:
    """Return a tree in the dtypes of another."""
    return jax.tree.map(lambda x, y: x.astype(jnp.result_type(y)), tree, like)


def start(learner: Learner, params: optax.Params) -> ScaleByMemoryState:
    """Return the state before the first step."""
    dtype = memory_dtype(params)
    params = jax.tree.map(jnp.asarray, params)
    leaves, labels = jax.tree.leaves(params), labels_of(params, learner.group_by)
    names = unique(labels)
    memories = learner.memories(names)
    for memory in memories:
        checks.check_kernels(checks.in_use(memory.kernels), dtype)
    memory = learner.models.init(memories, dtype, learner.progress)
    # Without labels there is a single memory all the same, of which no row is kept.
    memory = jax.tree.map(lambda x: x[: len(names)], memory)
    alone = {label for label in labels if isinstance(label, str)}
    rows: Any = {
        name: jnp.array(row, jnp.int32) if name in alone else None
        for row, name in enumerate(names)
    }
    pieces = whole_tensors(leaves, labels, rows)
    zeros = jax.tree.map(jnp.zeros_like, params)
    return ScaleByMemoryState(
        memory=memory,
        # `optax.tree.map_params` initialises with a tree without leaves and takes the
        # result for a prefix of the state: an array is a prefix of anything.
        rows=rows or jnp.zeros(0, jnp.int32),
        last_direction=_kept(learner, zeros, labels, rows, zeros, dtype),
        orientation=jnp.zeros([], jnp.float32) if learner.finds_orientation else None,
        rule_state=learner.rule.init(memory, lambda: sizes_of(pieces, dtype)),
        base_state=learner.base.init(params),
        info=first_info(memory),
    )


def step(
    learner: Learner,
    updates: optax.Updates,
    state: ScaleByMemoryState,
    params: optax.Params | None,
    extra_args: dict[str, Any],
    multiplier: Any = 1.0,
) -> tuple[optax.Updates, ScaleByMemoryState]:
    """Return the scaled directions, in the dtype of the rates, and the new state."""
    checks.check_state(state, ScaleByMemoryState)
    updates, gradient = jax.tree.map(jnp.asarray, (updates, extra_args.get("grad")))
    if gradient is not None:
        checks.check_gradient(gradient, updates)
    labels = labels_of(updates, learner.group_by)
    if not labels:
        return updates, state
    checks.check_updates(updates, labels, state.rows)
    gradient = updates if gradient is None else gradient
    evidence = _evidence(learner, state, gradient, labels)
    memory, rule_state = learner.rule.update(
        evidence._replace(multiplier=multiplier), state.rule_state, state.memory
    )
    direction, base_state = learner.base.update(
        updates, state.base_state, params, **extra_args
    )
    turn = state.orientation
    if turn is not None:
        turn = find_orientation(turn, gradient, direction)
    dtype = memory.rates.dtype
    state = ScaleByMemoryState(
        memory=memory,
        rows=state.rows,
        last_direction=_kept(
            learner, direction, labels, state.rows, state.last_direction, dtype
        ),
        orientation=turn,
        rule_state=rule_state,
        base_state=base_state,
        info=_new_info(
            state.info, evidence, memory, learner.rule.bounds(rule_state, dtype)
        ),
    )
    return _scaled(learner, state, direction, labels), state


def _evidence(
    learner: Learner, state: ScaleByMemoryState, gradient: Any, labels: list[Label]
) -> Evidence:
    """Return what a gradient says about the last step, by memory."""
    leaves = jax.tree.leaves(gradient)
    pieces = whole_tensors(leaves, labels, state.rows)
    pieces = sampled(pieces, learner.evidence_sample)
    if learner.evidence_sample is None:
        last = jax.tree.leaves(state.last_direction)
        checks.check_like_init(gradient, [leaf.shape for leaf in last])
    else:
        found = sum(piece.array.size for piece in pieces)
        checks.check_samples(gradient, found, state.last_direction.array.size)
        last = parted(state.last_direction, pieces)
    histories = learner.models.histories(state.base_state) or [None] * len(pieces)
    shared = state.memory, state.orientation
    num = state.memory.rates.shape[0]
    return collect(learner.gather, shared, pieces, last, histories, num)


def _kept(
    learner: Learner,
    direction: Any,
    labels: list[Label],
    rows: Any,
    like: Any,
    dtype: Any,
) -> Any:
    """Return what a state keeps of a direction: all in the dtypes of like, or samples."""
    if learner.evidence_sample is None:
        # A copy: without jit the direction may be the caller's gradient itself, which
        # the next donated step would take with it.
        return jax.tree.map(lambda new, old: jnp.array(new, old.dtype), direction, like)
    pieces = whole_tensors(jax.tree.leaves(direction), labels, rows)
    return joined(sampled(pieces, learner.evidence_sample), dtype)


def _scaled(
    learner: Learner, state: ScaleByMemoryState, direction: Any, labels: list[Label]
) -> optax.Updates:
    """Return a direction times its rates."""
    leaves, structure = jax.tree.flatten(direction)
    pieces = whole_tensors(leaves, labels, state.rows)
    histories = learner.models.histories(state.base_state) or [None] * len(pieces)
    scaled = [
        by_row(learner.scale, piece.rows)(
            state.memory, piece.rows, piece.array, history
        )
        for piece, history in zip(pieces, histories, strict=True)
    ]
    return jax.tree.unflatten(structure, scaled)


def _new_info(
    array: jax.Array, evidence: Evidence, memory: StackedMemory, bounds: Any
) -> jax.Array:
    """Return what logs need after a step."""
    old = unpack_info(array)
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
        )
    )
