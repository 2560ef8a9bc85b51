"""Ready optimizers: per-layer rates, adapted online, around any Optax optimizer."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from metalr_optax import checks
from metalr_optax.bases import UnitSteps, check_base
from metalr_optax.checks import check_number
from metalr_optax.evidence import by_row, in_float32, whole_tensors
from metalr_optax.groups import GroupBy, labels_of
from metalr_optax.guards import guard
from metalr_optax.initial import Initial
from metalr_optax.kernels import linspace_kernels
from metalr_optax.learner import Learner, ScaleByMemoryState, start, step, with_signal
from metalr_optax.local_models import at
from metalr_optax.memory import Kernels, Memory, mean_rate
from metalr_optax.progress import follow_schedule
from metalr_optax.rules import (
    SMALLEST_ROOT,
    agreement_steps,
    aim_below_zero,
    cap,
    distrust_limited,
    from_optax,
    rise_to_usual,
)
from metalr_optax.signals import raw_product
from metalr_optax.stack import ByRelativeDirection
from metalr_optax.transform import choose_models

# One rate per layer. More local models are better for inputs of unequal scale, and
# worse when samples come one at a time (benchmarks/README.md).
_KERNELS = linspace_kernels(1.0, num=1)

# Adam moves every coordinate by the whole rate, already in its first step.
_LARGEST_START_OF_ADAM = 0.01

# At most this many coordinates of a tensor give evidence.
_SAMPLE = 2**12

Mask = Any | Callable[[optax.Params], Any]


class LearnRatesState(NamedTuple):
    """State of :func:`learn_rates`, inside the state of its guard.

    Attributes:
      memory_state: :class:`ScaleByMemoryState`.
      count: [], int32, steps so far; None unless the multiplier is a schedule.
    """

    memory_state: ScaleByMemoryState
    count: Any


def learn_rates(
    base_optimizer: optax.GradientTransformation,
    learning_rate: optax.ScalarOrSchedule = 1.0,
    *,
    initial: Initial = 1e-4,
    kernels: Kernels | None = None,
    memory_optimizer: optax.GradientTransformation | None = None,
    clip_norm: float | None = None,
    weight_decay: float = 0.0,
    mask: Mask | None = None,
    group_by: GroupBy = "layer",
    rate_bounds: tuple[float, float] = (1e-9, 10.0),
    largest_step: float | None = 0.1,
    evidence_sample: int | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Wrap any Optax optimizer, with per-layer rates adapted online.

    For the updates :math:`-d` of ``base_optimizer``, a complete optimizer with a rate
    of 1 such as ``optax.lion(1.0)``:

    .. math::
      x \leftarrow x - \text{learning\_rate} \cdot
        (\eta(d / \mathrm{rms}(d)) \, d + \bar\eta \cdot \text{weight\_decay} \cdot x)

    The rates :math:`\eta` are those of :func:`scale_by_memory`; :math:`\bar\eta` is the
    mean rate of a memory, weighted by evidence. Rates climb from ``initial`` to the
    largest stable ones within some tens of steps, and fall when gradients begin to
    contradict each other. Until then a rate below a usual one,
    :math:`0.005 \sqrt{\mathrm{rms}(x)}` over the size of the steps of the base, also
    rises to that by two per cent a step: gradients of rows that are rarely touched say
    nothing about the last step. Where a step touches :math:`n > 128` inputs of a unit,
    the usual rate is :math:`128 / n` of that. Memories from another run do not rise.

    The evidence about a step is the gradient of the next step times the direction
    (:func:`raw_product`); :func:`agreement_steps` turns it into new rates. A run leaves
    a learned schedule, which the next run follows (``progress`` of
    :func:`scale_by_memory`).

    A step whose gradient is not finite, or more than 1e18 times as large as usual, is
    skipped: its updates are zero, and weights, memory and schedule do not change. Such
    a batch would stay in the sum of ``optax.MultiSteps``: pass that
    ``should_skip_update_fn=optax.skip_not_finite``.

    For float16 parameters the base computes in float32, because its ``eps`` would be 0.
    Steps can be differentiated if the base can: Adam and its variants need an
    ``eps_root`` for that, which :func:`memory_adam` sets.

    Args:
      base_optimizer: a complete optimizer with a rate of 1: ``optax.adamw(1.0)``, or
        ``optax.chain(optax.scale_by_adam(), optax.scale(-1.0))``. It must descend.
        Adaptation cancels a schedule inside: pass schedules as ``learning_rate``.
        Weight decay inside becomes part of the direction and of the evidence. A smaller
        rate inside only slows the start, and ``init`` warns.
      learning_rate: multiplier on all learned rates, a number or a schedule. Once
        gradients have contradicted the rate of a memory (their agreement has fallen
        four standard deviations of chance below 0), it freezes while the multiplier is
        below 0.9 of its highest value since then, so that adaptation cannot cancel your
        decay. Before that, it adapts whatever the multiplier does. Under a schedule, or
        an array, rates aim higher: at an agreement of -0.2 once contradicted, at twice
        the usual rate before. To finish a run, use ``optax.linear_schedule(1.0, 0.0,
        steps)``. A multiplier that never reaches 0.2 warns, because it was probably
        meant as ``initial``.
      initial: the rate the memory starts with, or memories, see
        :func:`scale_by_memory`. A start ten times too low costs some ten steps. Wide
        attention (512 units or more) does not recover from a start at 0.001.
      kernels: kernels of the local models, in units of the root mean square of a
        tensor; default ``linspace_kernels(1.0, num=1)``, one rate per layer. For inputs
        of unequal scale ``logspace_kernels(8.0, 20, smallest=0.02)`` is better, but not
        safe when samples come one at a time.
      memory_optimizer: transformation that adapts the rates; default
        :func:`agreement_steps`, with the usual rate and, under a schedule, the lower
        aim, which others do not have. With ``optax.set_to_zero()`` rates only follow
        their learned schedule.
      clip_norm: largest norm of a gradient; None for 10 times the largest norm of about
        the last hundred steps, where a step that was clipped raises no rate.
      weight_decay: as in ``optax.adamw``: decoupled, and scaled by the multiplier and
        the learned rate. It is not part of the direction or of the evidence.
      mask: which parameters decay: a tree of booleans, or a function from parameters to
        such a tree.
      group_by: which tensors share a memory, see :func:`scale_by_memory`.
      rate_bounds: smallest and largest rate a memory may hold.
      largest_step: ceiling above which no rate is raised, as a multiple of the root
        mean square of the memory's parameters at ``init``, over the size of the steps
        of the base; None for no ceiling and no usual rate. Gradients that agree do not
        show that a step has become too large for the layer. Layers with an RMS of at
        most 1e-3 (biases, a LayerScale of 1e-6) use the RMS of the whole tree; if that
        is as small, they have no ceiling. The size is 1 for bases that average
        gradients of changing sign, as Adam does; up to 10 for those that do not, as
        Lion and Muon; and for those that gradients scale, as SGD, 4 times the RMS of
        their directions, averaged over some twenty steps; it falls by at most one per
        cent in a step.
      evidence_sample: coordinates of a large tensor that give evidence, see
        :func:`scale_by_memory`; default 4,096. To use all coordinates, pass the size of
        the largest tensor.

    Returns:
      A :class:`optax.GradientTransformationExtraArgs` that descends; ``update`` needs
      the parameters if there is a weight decay. State: that of the base, one number per
      sampled coordinate, and a few per memory.

    Raises:
      ValueError: an invalid argument; at ``init``, a base that ascends or cannot be
        wrapped: a line search, which chooses its own rate, or
        ``optax.contrib.schedule_free``, which goes around ``learn_rates`` instead.

    Examples:
      Lion, from a rate a hundred times too small:

      >>> import jax, jax.numpy as jnp, optax
      >>> from metalr_optax import learn_rates
      >>> optimizer = learn_rates(optax.lion(1.0), initial=1e-5)
      >>> gradient = jax.grad(lambda x: jnp.sum(x**2))
      >>> x = jnp.array([1.0, -2.0])
      >>> state, update = optimizer.init(x), jax.jit(optimizer.update)
      >>> for _ in range(500):
      ...   updates, state = update(gradient(x), state, x)
      ...   x = optax.apply_updates(x, updates)
      >>> bool(jnp.sum(x**2) < 0.1)
      True

    References:
      Kappler, Schaal, Meier, `Learning to Learn while Learning`, 2017. The interface
      follows ``optax.contrib.mechanize``.

    .. seealso:: :func:`memory_adam`, :func:`memory_sgd`, :func:`scale_by_memory`.
    """
    checks.check_transformation("base_optimizer", base_optimizer, optional=False)
    checks.check_transformation("memory_optimizer", memory_optimizer)
    checks.check_multiplier(learning_rate)
    if clip_norm is not None:
        smallest = float(np.finfo(np.float32).tiny)
        check_number("clip_norm", clip_norm, smallest, closed=True)
    check_number("weight_decay", weight_decay, closed=True)
    checks.check_mask(mask)
    rule = from_optax(memory_optimizer or agreement_steps(), rate_bounds)
    # What is injected or traced may decay too.
    may_decay = callable(learning_rate) or isinstance(learning_rate, jax.Array)
    if largest_step is not None:
        check_number("largest_step", largest_step)
        rule = cap(rule, largest_step, not isinstance(base_optimizer, UnitSteps))
        if memory_optimizer is None:
            # Rates that decay have half of their value on average.
            rule = rise_to_usual(rule, 2.0 if may_decay else 1.0)
    if memory_optimizer is None and may_decay:
        rule = aim_below_zero(rule)
    if kernels is None and not isinstance(initial, Memory | Mapping):
        kernels = _KERNELS
    size = _SAMPLE if evidence_sample is None else evidence_sample
    checks.check_evidence(None, group_by, size)
    models, memories = choose_models(
        initial, kernels, ByRelativeDirection(), rate_bounds
    )
    models = with_signal(models, raw_product)
    rule = follow_schedule(distrust_limited(rule) if clip_norm is None else rule)
    base = optax.chain(in_float32(base_optimizer), optax.scale(-1.0))
    parts = models, rule, base, memories, group_by, size
    learner = Learner(*parts, progress=True, finds_orientation=False)
    # Without a decay the parameters need not be passed.
    decays = isinstance(weight_decay, jax.Array) or weight_decay > 0
    decay = optax.add_decayed_weights(weight_decay, mask) if decays else None
    needs_check = not isinstance(base_optimizer, UnitSteps)
    descent = _descent(learner, learning_rate, decay, needs_check)
    return guard(*descent, clip_norm)


def _descent(
    learner: Learner,
    learning_rate: optax.ScalarOrSchedule,
    decay: optax.GradientTransformation | None,
    needs_check: bool,
) -> tuple[Callable[..., LearnRatesState], Callable[..., Any]]:
    """Return `init` and `update` of a learner with a multiplier, for a guard."""

    def init(params: optax.Params) -> LearnRatesState:
        state = start(learner, params)
        checks.warn_of_rate(learning_rate)
        if needs_check:
            check_base(learner.base, params)
        count = jnp.zeros([], jnp.int32) if callable(learning_rate) else None
        return LearnRatesState(state, count)

    def update(updates, state, params, extra_args, was_limited):
        multiplier: Any = learning_rate
        count = state.count
        if callable(learning_rate):
            multiplier, count = learning_rate(count), optax.safe_increment(count)
        options = {"multiplier": multiplier, "was_limited": was_limited}
        scaled, memory_state = step(
            learner, updates, state.memory_state, params, extra_args, **options
        )
        if decay is not None:
            scaled = _decayed(decay, learner.group_by, memory_state, scaled, params)
        dtype = memory_state.memory.rates.dtype
        moves = optax.tree.scale(jnp.asarray(-multiplier, dtype), scaled)
        return optax.tree.cast_like(moves, updates), LearnRatesState(
            memory_state, count
        )

    return init, update


def _decayed(
    decay: optax.GradientTransformation,
    group_by: GroupBy,
    state: ScaleByMemoryState,
    scaled: optax.Updates,
    params: optax.Params | None,
) -> optax.Updates:
    """Add the weight decay, scaled by the mean rate of each memory, to directions."""
    checks.check_params(params, scaled)
    zeros = jax.tree.map(jnp.zeros_like, scaled)
    weights, _ = decay.update(zeros, decay.init(zeros), params)
    means = mean_rate(state.memory.rates, state.memory.evidence_weight)
    decays = [
        by_row(_at_mean_rate, piece.rows)(means, piece.rows, piece.array)
        for piece in whole_tensors(weights, labels_of(scaled, group_by), state.rows)
    ]
    decays = jax.tree.unflatten(jax.tree.structure(weights), decays)
    return jax.tree.map(jnp.add, scaled, decays)


def _at_mean_rate(means: jax.Array, row: jax.Array, weights: jax.Array) -> jax.Array:
    return at(means, row) * weights.astype(means.dtype)


@checks.without("stacked", "frozen")
def memory_sgd(
    learning_rate: optax.ScalarOrSchedule = 1.0,
    momentum: float | None = 0.9,
    nesterov: bool = False,
    accumulator_dtype: Any = None,
    *,
    initial: Initial = 1e-3,
    kernels: Kernels | None = None,
    memory_optimizer: optax.GradientTransformation | None = None,
    clip_norm: float | None = 1.0,
    weight_decay: float = 0.0,
    mask: Mask | None = None,
    group_by: GroupBy = "layer",
    rate_bounds: tuple[float, float] = (1e-9, 10.0),
    largest_step: float | None = 0.1,
    evidence_sample: int | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Stochastic gradient descent with momentum, with per-layer rates adapted online.

    .. math::
      g &\leftarrow g \cdot \min(1, \text{clip\_norm} / \lVert g \rVert) \\
      d &\leftarrow g + \text{momentum} \cdot d \\
      x &\leftarrow x - \text{learning\_rate} \cdot
        (\eta(d / \mathrm{rms}(d)) \, d + \bar\eta \cdot \text{weight\_decay} \cdot x)

    with :math:`\lVert g \rVert` over the whole tree and the root mean square over a
    tensor. This is ``learn_rates(optax.sgd(1.0, momentum), initial=1e-3,
    clip_norm=1.0)``; :func:`learn_rates` describes how rates are learned and when a
    step is skipped. The paper's own rule is :func:`paper_sgd`.

    Args:
      learning_rate: multiplier on all learned rates; :func:`learn_rates` describes it
        and the other arguments in full.
      momentum: decay of the momentum, in [0, 1); 0 or None for none.
      nesterov: as in ``optax.sgd``.
      accumulator_dtype: dtype of the momentum, as in ``optax.sgd``.
      initial: the rate the memory starts with, or memories.
      kernels: kernels of the local models, in units of the RMS of a tensor.
      memory_optimizer: transformation that adapts the rates.
      clip_norm: largest norm of a gradient, so that the first steps and rare outliers
        cannot ruin a run.
      weight_decay: decoupled; with momentum this is SGDW.
      mask: which parameters decay.
      group_by: which tensors share a memory.
      rate_bounds: smallest and largest rate a memory may hold.
      largest_step: ceiling of the rates, as a multiple of the RMS of the parameters
        over four times that of the directions.
      evidence_sample: coordinates of a large tensor that give evidence.

    Returns:
      A :class:`optax.GradientTransformationExtraArgs` that descends; ``update`` needs
      the parameters if there is a weight decay.

    Raises:
      ValueError: a momentum outside [0, 1), a norm that is not positive, a negative
        decay; else see :func:`learn_rates`.

    Examples:
      From a rate a thousand times too small:

      >>> import jax, jax.numpy as jnp, optax
      >>> from metalr_optax import memory_sgd
      >>> optimizer = memory_sgd(initial=1e-5)
      >>> gradient = jax.grad(lambda x: jnp.sum(x**2))
      >>> x = jnp.array([1.0, -2.0])
      >>> state, update = optimizer.init(x), jax.jit(optimizer.update)
      >>> for _ in range(100):
      ...   updates, state = update(gradient(x), state)
      ...   x = optax.apply_updates(x, updates)
      >>> bool(jnp.sum(x**2) < 0.01)
      True

    References:
      Kappler, Schaal, Meier, `Learning to Learn while Learning`, 2017.

    .. seealso:: :func:`paper_sgd`, :func:`scale_by_memory`.
    """
    if momentum is not None:
        check_number("momentum", momentum, 0.0, 1.0, closed=True)
    if checks.is_concrete(momentum) and momentum == 0:
        momentum = None  # so that the state has no array of zeros
    return learn_rates(
        optax.sgd(1.0, momentum, nesterov, accumulator_dtype),
        learning_rate,
        initial=initial,
        kernels=kernels,
        memory_optimizer=memory_optimizer,
        clip_norm=clip_norm,
        weight_decay=weight_decay,
        mask=mask,
        group_by=group_by,
        rate_bounds=rate_bounds,
        largest_step=largest_step,
        evidence_sample=evidence_sample,
    )


@checks.without("stacked", "frozen")
def memory_adam(
    learning_rate: optax.ScalarOrSchedule = 1.0,
    b1: float = 0.9,
    b2: float = 0.99,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    mu_dtype: Any = None,
    weight_decay: float = 0.0,
    mask: Mask | None = None,
    *,
    nesterov: bool = False,
    initial: Initial = 1e-4,
    kernels: Kernels | None = None,
    memory_optimizer: optax.GradientTransformation | None = None,
    clip_norm: float | None = None,
    group_by: GroupBy = "layer",
    rate_bounds: tuple[float, float] = (1e-9, 10.0),
    largest_step: float | None = 0.1,
    evidence_sample: int | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Adam, with per-layer rates adapted online.

    .. math::
      d &= \hat m / (\sqrt{\hat v} + \epsilon) \\
      x &\leftarrow x - \text{learning\_rate} \cdot
        (\eta(d / \mathrm{rms}(d)) \, d + \bar\eta \cdot \text{weight\_decay} \cdot x)

    This is ``learn_rates(optax.adam(1.0, b2=0.99))``, with steps of a size of 1 taken
    for granted; :func:`learn_rates` describes how rates are learned and when a step is
    skipped. The paper's own rule is :func:`paper_adam`.

    Args:
      learning_rate: multiplier on all learned rates; :func:`learn_rates` describes it
        and the other arguments in full.
      b1: decay of Adam's first moment, in [0, 1).
      b2: decay of Adam's second moment, in [0, 1). Gradients shrink during a run. With
        Adam's own 0.999 they are divided by the root mean square of a thousand steps,
        which makes steps too small, and the memory raises rates to compensate.
      eps: added to the root of the second moment.
      eps_root: added to the second moment, as in ``optax.adam``. Another 1e-36 makes
        steps differentiable where gradients are zero.
      mu_dtype: dtype of the first moment, as in ``optax.adam``.
      weight_decay: as in ``optax.adamw``; default 0, as in ``optax.adam``.
      mask: which parameters decay.
      nesterov: as in ``optax.adam``.
      initial: the rate the memory starts with, at most 0.01, or memories. Later
        adaptation cannot undo a larger first step of Adam; rates climb by themselves
        where larger ones are stable.
      kernels: kernels of the local models, in units of the RMS of a tensor.
      memory_optimizer: transformation that adapts the rates.
      clip_norm: largest norm of a gradient. The default, None, only scales gradients of
        more than 10 times the largest norm of about the last hundred steps down to
        that, because one outlier would keep Adam's second moment large for the rest of
        a run. A fixed norm that every gradient exceeds scales each by a different
        factor: an agent that Adam trains at any rate from .001 to .03 fails with one.
      group_by: which tensors share a memory.
      rate_bounds: smallest and largest rate a memory may hold.
      largest_step: ceiling of the rates, as a multiple of the RMS of the parameters.
      evidence_sample: coordinates of a large tensor that give evidence.

    Returns:
      A :class:`optax.GradientTransformationExtraArgs` that descends.

    Raises:
      ValueError: a rate above 0.01 to start with; else see :func:`learn_rates`.

    Examples:
      From a rate a thousand times too small:

      >>> import jax, jax.numpy as jnp, optax
      >>> from metalr_optax import memory_adam
      >>> optimizer = memory_adam(initial=1e-5)
      >>> gradient = jax.grad(lambda x: jnp.sum(x**2))
      >>> x = jnp.array([1.0, -2.0])
      >>> state, update = optimizer.init(x), jax.jit(optimizer.update)
      >>> for _ in range(100):
      ...   updates, state = update(gradient(x), state)
      ...   x = optax.apply_updates(x, updates)
      >>> bool(jnp.sum(x**2) < 0.1)
      True

    References:
      Kappler, Schaal, Meier, `Learning to Learn while Learning`, 2017; Kingma, Ba,
      `Adam: A Method for Stochastic Optimization <https://arxiv.org/abs/1412.6980>`_,
      2014; Loshchilov, Hutter, `Decoupled Weight Decay Regularization
      <https://arxiv.org/abs/1711.05101>`_, 2019.

    .. seealso:: :func:`paper_adam`, :func:`scale_by_memory`.
    """
    checks.check_start("memory_adam", initial, _LARGEST_START_OF_ADAM)
    checks.check_moments(b1, b2, eps, eps_root)
    root = eps_root + SMALLEST_ROOT
    return learn_rates(
        UnitSteps(*optax.adam(1.0, b1, b2, eps, root, mu_dtype, nesterov=nesterov)),
        learning_rate,
        initial=initial,
        kernels=kernels,
        memory_optimizer=memory_optimizer,
        clip_norm=clip_norm,
        weight_decay=weight_decay,
        mask=mask,
        group_by=group_by,
        rate_bounds=rate_bounds,
        largest_step=largest_step,
        evidence_sample=evidence_sample,
    )
