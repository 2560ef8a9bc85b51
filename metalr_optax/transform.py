"""The Optax transformation that scales updates by learned rates."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from metalr_optax import checks, memory_checks
from metalr_optax.evidence import in_float32
from metalr_optax.groups import GroupBy
from metalr_optax.growing import Learned, grow, growing
from metalr_optax.history import histories_in, with_history
from metalr_optax.initial import Initial, initial_memories, kernels_of
from metalr_optax.learner import (
    Learner,
    ScaleByMemoryState,
    start,
    step,
    with_signal,
)
from metalr_optax.local_models import LocalModels, gaussian, scalar
from metalr_optax.memory import Kernels, Memory
from metalr_optax.orientation import AlongGradient
from metalr_optax.progress import follow_schedule
from metalr_optax.rules import SMALLEST_ROOT, from_optax
from metalr_optax.signals import Signal
from metalr_optax.stack import ByDirection, ByHistory, ByRelativeDirection

Normalize = Literal["rms"] | None
KernelInput = Literal["direction", "history"]


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

    With gradient :math:`g`, direction :math:`d` (the output of ``base_optimizer``;
    without one, the incoming updates), the last direction :math:`d^-`, its sign
    :math:`o` relative to the gradient, kernels :math:`\psi_m` and rates :math:`v_m` of
    one memory and the :math:`D` coordinates that share it:

    .. math::
      a_i &= \mathrm{signal}(g_i, o d^-_i) \\
      u_m &= \frac{1}{D} \sum_i a_i \psi_m(d^-_i) \\
      v_m &\leftarrow \mathrm{clip}(v_m + \mathrm{step}(-u)_m, \text{rate\_bounds}) \\
      \eta_i &= \sum_m \psi_m(d_i) v_m / \sum_m \psi_m(d_i) \\
      \text{update}_i &= \eta_i d_i

    The agreement is weighted with the kernels of the *last* input because it is about
    the rate that was read there; the rate is read *after* the correction. The defaults
    are the paper's rule. Like every ``scale_by_*`` of Optax this does not descend by
    itself: end the chain with ``optax.scale(-1.0)``, or use
    :func:`metalr_optax.memory_sgd` or :func:`metalr_optax.memory_adam`.

    Args:
      initial: the learning rate all local models start with, a :class:`Memory` that
        every group starts with, or a mapping from label to memory as
        :func:`metalr_optax.get_memory` returns it (a transfer; labels must match, so
        each part of an ``optax.partition`` takes its own). Values are copied.
      base_optimizer: turns a gradient into a direction, for example
        ``optax.scale_by_adam()``; default: the gradient itself. It may point along the
        gradient or, as ``optax.adam(1.0)`` does, against it: the first inner product of
        the two that is not 0 decides. Kernel inputs keep the sign of the direction, so
        a memory learned along the gradient is the mirror image of one learned against
        it: transfer between bases of equal sign.
      kernels: kernels of the local models, in units of the kernel input; default
        ``linspace_kernels(2.0, 20)``. A memory in ``initial`` brings its own.
      memory_optimizer: transformation that receives :math:`-u` as a gradient and adapts
        the rates; default ``optax.adam(1e-2)``. With ``optax.sgd(xi)`` its step is the
        paper's equation 6. The rates of all L memories are one array [L, M], and so is
        the extra argument ``activity``: :math:`u` with :math:`|a_i|` for :math:`a_i`,
        which :func:`metalr_optax.agreement_steps` needs.
      signal: function ``(gradient, last_direction) -> values in [-1, 1]`` of two
        arrays of one shape; default :func:`metalr_optax.sign_agreement`.
      normalize: the kernel input is the value of a direction (None, as in the paper),
        or with ``"rms"`` that value over the root mean square of its tensor, so that
        kernels fit gradients of any scale. A sample is divided by its own RMS.
      group_by: which tensors share a memory: ``"layer"`` (siblings, such as a kernel
        and its bias: the paper), ``"tensor"`` (the authors' code), ``"all"``, or a
        function ``(path, leaf) -> label`` of a path as JAX gives it. A list of labels
        gives each slice of the first axis a separate memory, as for layers that a
        scan over blocks stacks (``nn.scan``).
      rate_bounds: smallest and largest rate a memory may hold.
      evidence_sample: largest number of coordinates of a tensor that give evidence, in
        a fixed lattice over all rows and columns; default: all. Only their last
        direction is kept, in one array for all tensors. Every :math:`u_m` then has a
        standard error of up to :math:`1 / \sqrt{n}` for n coordinates that agree
        independently of each other (.03 for 1,024), more where whole rows agree.
      progress: whether memories also learn how rates change with the progress of a run.
        A run then leaves a learned schedule, the rate of each memory at step 1, 2, 4
        and so on. A run that starts with it follows it, corrected by evidence: take the
        memory at the end of a run. Without a schedule to start with, nothing changes.
      capacity: largest number of local models of a memory; ``kernels`` are those it
        starts with, whose number is the default. A step adds at most one per memory:
        where over 5 % of inputs have no activation above 0.1, or by splitting the local
        model whose evidence has disagreed most, over about fifty steps, between the two
        sides of its centre. It starts with the rate that was read there. Single
        outliers, and inputs 100 widths from all local models, add none.
      learned_widths: whether the widths of kernels are learned from the same evidence,
        between a quarter of the distance to the nearest neighbour and all of it.
      linear: whether a local model also learns a slope :math:`b_m` in [-.45, .45] and
        has the rate :math:`v_m (1 + b_m \mathrm{clip}((z - c_m) / s_m, -2, 2))`, within
        ``rate_bounds``. The module ``growing`` has the formulas.
      kernel_input: the ``"direction"``, or the ``"history"`` of a coordinate, a running
        mean of :math:`\mathrm{sign}(g_i) \mathrm{sign}(o d^-_i)` over about 19 steps,
        in [-1, 1]. A coordinate that keeps its direction then reads a different rate
        from one that oscillates. It costs two more numbers for every parameter, and
        needs kernels on [-1, 1], evidence from all coordinates and ``normalize=None``.

    Returns:
      A :class:`optax.GradientTransformationExtraArgs`. Updates keep their sign, shape
      and dtype. Pass the raw gradient as the extra argument ``grad=`` of ``update``
      if this transformation follows a base optimizer in a chain: the signal then
      compares gradients with directions instead of directions with each other. A
      ``clip`` earlier in the chain does not clip it; ``optax.masked`` needs
      ``mask_compatible_extra_args=True`` to pass it on.

    Raises:
      ValueError: at construction, an invalid argument or a rate outside
        ``rate_bounds``; at ``init``, parameters that are not real floating point
        numbers or labels of ``initial`` that do not fit; at ``update``, updates of
        another structure or shape than the parameters at ``init``, a ``grad=`` of
        another structure or shape than the updates.
      TypeError: an argument of an earlier version; the message names its replacement.

    Shapes: parameters are any pytree, masked and empty ones included. Rates are [M] per
    label, float32, or float64 with float64 parameters. The state costs one number per
    parameter (or per sampled coordinate) besides that of ``base_optimizer``, plus, per
    memory, 4 M + 7 (20 more with ``progress``) and the state of ``memory_optimizer``.
    All memories have the same M, that of ``capacity`` if it is given.

    Labels: the path of the layer or tensor joined with ``/``, such as
    ``params/Dense_0``; a trailing ``value`` attribute without siblings (Flax NNX) is
    dropped, a tensor at the top of the tree is a separate layer, a bare array is
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

      With histories as kernel inputs, a coordinate that keeps its direction reads a
      larger rate than one that oscillates:

      >>> from metalr_optax import agreement_steps, get_rates, linspace_kernels
      >>> from metalr_optax import raw_product
      >>> optimizer = scale_by_memory(
      ...   kernels=linspace_kernels(1.0, 5), kernel_input="history",
      ...   signal=raw_product, memory_optimizer=agreement_steps())
      >>> state, update = optimizer.init(jnp.zeros(2)), jax.jit(optimizer.update)
      >>> for sign in 20 * (1.0, -1.0):
      ...   _, state = update(jnp.array([1.0, sign]), state)
      >>> steady, oscillating = get_rates(state)
      >>> bool(steady > 100 * oscillating)
      True

    Notes:
      The first step does not change the memory, and neither does a coordinate that is
      zero or not finite, whose update passes unchanged. ``jit``, ``vmap``, ``scan``,
      donation and sharding are safe. Under ``optax.inject_hyperparams`` name your own
      functions in ``static_args=("signal", "group_by")``, because it takes functions
      for schedules; ``evidence_sample`` and ``capacity`` belong there too. For tensors
      of at least 16,384 coordinates rates are interpolated, within 1e-4 of the largest,
      and evidence within 1e-3 of the mean absolute agreement. Kernels are evaluated
      individually, exactly and slowly, if they are traced, fewer than four or much
      narrower than their distance, or with ``capacity``, ``learned_widths`` or
      ``linear``, where a step also takes about ten more sums.

      Steps can be differentiated; signs and clipped values have a derivative of zero.
      Adam and its variants, as ``memory_optimizer`` or base, need an ``eps_root``, or
      derivatives are NaN where evidence or gradients are zero; the default has one.

    .. warning::
      The kernels must cover the directions: those outside read the outermost rate and
      give no evidence. ``optax.clip`` in front keeps gradients inside. After
      ``optax.sgd(1e-3)`` directions are 1000 times smaller, and kernels must be too.
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
    checks.check_evidence(signal, group_by, evidence_sample)
    checks.check_flag("progress", progress)
    base = optax.with_extra_args_support(optax.identity())
    if base_optimizer is not None:
        base = in_float32(base_optimizer)
    learned = Learned(capacity, learned_widths, linear)
    inputs = ByRelativeDirection() if normalize == "rms" else ByDirection()
    if kernel_input == "history":
        base, inputs = with_history(base), ByHistory()
    if memory_optimizer is None:
        memory_optimizer = optax.adam(1e-2, eps_root=SMALLEST_ROOT)
    rule = from_optax(memory_optimizer, rate_bounds)
    rule = follow_schedule(rule) if progress else rule
    models, memories = choose_models(initial, kernels, inputs, rate_bounds, learned)
    rule = grow(rule, learned) if any(learned) else rule
    models = with_signal(models, signal)
    parts = models, rule, base, memories, group_by, evidence_sample, progress
    finds = not isinstance(base_optimizer, AlongGradient)
    learner = Learner(*parts, finds_orientation=finds)

    def init(params: optax.Params) -> ScaleByMemoryState:
        return start(learner, params)

    def update(updates, state, params=None, **extra_args):
        scaled, state = step(learner, updates, state, params, extra_args)
        return jax.tree.map(
            lambda x, y: x.astype(jnp.result_type(y)), scaled, updates
        ), state

    return optax.GradientTransformationExtraArgs(init, update)


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
        memory_checks.check_kernels(kernels)
    memory_checks.check_initial(initial, kernels, inputs, rate_bounds)
    found = kernels_of(initial, kernels)
    memory_checks.check_local_models(
        initial, max(len(k.centers) for k in found), learned
    )
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
