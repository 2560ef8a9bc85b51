"""Ready optimizers that need no tuning: a clip, a memory, and a step of descent."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import numpy as np
import optax

from metalr_optax import bases
from metalr_optax.checks import (
    check_factor,
    check_number,
    is_concrete,
    is_number,
    require,
)
from metalr_optax.groups import GroupBy, Stacked
from metalr_optax.kernels import linspace_kernels
from metalr_optax.memory import Kernels, Memory
from metalr_optax.rules import agreement_steps
from metalr_optax.signals import raw_product
from metalr_optax.skip import skip_not_finite
from metalr_optax.transform import Initial, Settings, scale_base

# A rate per layer: more local models win where inputs are of unequal scale, and lose
# when samples come one at a time (benchmarks/README.md).
_KERNELS = linspace_kernels(1.0, num=1)

# Steps of Adam are as large as the rate in every coordinate, from the first one on.
_LARGEST_START_OF_ADAM = 0.01

# So many coordinates of a large tensor give evidence.
_SAMPLE = 2**12

Mask = Any | Callable[[optax.Params], Any]


def memory_sgd(
    learning_rate: optax.ScalarOrSchedule = 1.0,
    momentum: float | None = 0.9,
    nesterov: bool = False,
    accumulator_dtype: Any = None,
    *,
    initial: Initial = 1e-3,
    kernels: Kernels | None = None,
    clip_norm: float | None = 1.0,
    weight_decay: float = 0.0,
    mask: Mask | None = None,
    group_by: GroupBy = "layer",
    rate_bounds: tuple[float, float] = (1e-9, 10.0),
    evidence_sample: int | None = None,
    stacked: Stacked | None = None,
    frozen: Collection[str] = (),
) -> optax.GradientTransformationExtraArgs:
    r"""Stochastic gradient descent with momentum, its rates learned on the way.

    .. math::
      g &\leftarrow g \cdot \min(1, \text{clip\_norm} / \lVert g \rVert) \\
      d &\leftarrow g + \text{momentum} \cdot d \\
      x &\leftarrow x - \text{learning\_rate} \cdot
        (\eta(d / \mathrm{rms}(d)) \, d + \bar\eta \cdot \text{weight\_decay} \cdot x)

    with :math:`\lVert g \rVert` over the whole tree and the root mean square over a
    tensor; :math:`\bar\eta` is the mean rate of the memory by evidence. The rate
    :math:`\eta` is :func:`scale_by_memory`'s, corrected by
    :func:`agreement_steps` on :func:`raw_product`. It has no base rate to tune: the
    memory climbs from ``initial`` to what the task bears within some tens of steps and
    comes down again where gradients begin to contradict each other. The paper's own
    rule is :func:`paper_sgd`.

    A step is skipped whole if a coordinate of the gradient is not finite: its update is
    zero, and weights, memory and schedule are as before. (Inside ``optax.MultiSteps``
    one such batch skips the step of all.) A finite gradient never is, however large.

    Args:
      learning_rate: factor on all learned rates, a number or a schedule. While it is
        below 0.9 of its highest value so far, rates stand still: a decay means what it
        says. (A factor in a link of its own is not known here, and is made up for.)
        ``optax.linear_schedule(1.0, 0.0, updates)`` is the way to finish a run. What
        never reaches 0.05 warns: it was probably meant to be ``initial``.
      momentum: decay of the direction, in [0, 1); 0 or None for none.
      nesterov: as in ``optax.sgd``.
      accumulator_dtype: dtype of the momentum, as in ``optax.sgd``.
      initial: the rate the memory starts with, or memories, see
        :func:`scale_by_memory`.
      kernels: where the local models are, in root mean squares of a tensor; default
        ``linspace_kernels(1.0, num=1)``, a rate per layer. For inputs of unequal scale
        ``logspace_kernels(8.0, 20, smallest=0.02)`` learns further; it is not
        safe when samples come one at a time.
      clip_norm: largest norm of a gradient: the first steps and rare outliers cannot
        ruin a run. None for 10 times the largest norm of the last hundred steps.
      weight_decay: as in ``optax.adamw``: decoupled, times the factor and the learned
        rate of the memory. With momentum that is known as SGDW. It is no part of the
        direction, nor of the evidence.
      mask: a tree of booleans, or a function from parameters to one: what decays.
      group_by: which tensors share a memory, see :func:`scale_by_memory`.
      rate_bounds: smallest and largest rate a memory may hold.
      evidence_sample: how many coordinates of a large tensor give evidence, see
        :func:`scale_by_memory`; default 4,096, and any number above an eighth of the
        largest tensor for all.
      stacked: in which tensors the first axis counts layers, see
        :func:`scale_by_memory`.
      frozen: labels of memories that stay as they are.

    Returns:
      A :class:`optax.GradientTransformationExtraArgs` that descends; ``update`` needs
      the parameters if there is a weight decay.

    Raises:
      ValueError: a momentum outside [0, 1), a norm that is not positive, a negative
        decay; else see :func:`scale_by_memory`.

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
    size = _SAMPLE if evidence_sample is None else evidence_sample
    base = bases.momentum(momentum, nesterov, accumulator_dtype, size, stacked)
    settings = Settings(
        *(initial, kernels, group_by, rate_bounds, agreement_steps(), raw_product),
        *(stacked, frozen, True),
        normalize="rms",
        clip_norm=clip_norm,
        factor=learning_rate,
    )
    return _ready(base, settings, weight_decay, mask)


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
    initial: Initial = 1e-3,
    kernels: Kernels | None = None,
    clip_norm: float | None = None,
    group_by: GroupBy = "layer",
    rate_bounds: tuple[float, float] = (1e-9, 10.0),
    largest_step: float | None = 0.1,
    evidence_sample: int | None = None,
    stacked: Stacked | None = None,
    frozen: Collection[str] = (),
) -> optax.GradientTransformationExtraArgs:
    r"""Adam, its rates learned on the way.

    .. math::
      d &= \hat m / (\sqrt{\hat v} + \epsilon) \\
      x &\leftarrow x - \text{learning\_rate} \cdot
        (\eta(d / \mathrm{rms}(d)) \, d + \bar\eta \cdot \text{weight\_decay} \cdot x)

    As :func:`memory_sgd`, with directions of Adam. The evidence about them is the
    gradient of the next step, because directions of Adam agree with each other even in
    pure noise. Steps that are not finite are skipped, see :func:`memory_sgd`. The
    paper's own rule is :func:`paper_adam`.

    Args:
      learning_rate: see :func:`memory_sgd`.
      b1: decay of Adam's first moment, in [0, 1).
      b2: decay of Adam's second moment, in [0, 1). Gradients shrink while a task is
        learned, and with 0.999, Adam's own default, steps are those of gradients a
        thousand updates ago: the memory takes that for a rate that is too small.
      eps: added to the root of the second moment.
      eps_root: added to the second moment, as in ``optax.adam``.
      mu_dtype: dtype of the first moment, as in ``optax.adam``; evidence then comes
        from rounded directions.
      weight_decay: AdamW's, see :func:`memory_sgd`; none by default, as in
        ``optax.adam``.
      mask: what decays.
      nesterov: as in ``optax.adam``.
      initial: the rate the memory starts with, at most 0.01, or memories, see
        :func:`scale_by_memory`. A larger first step of Adam breaks what no memory
        repairs; the memory climbs higher by itself where it can.
      kernels: where the local models are, in root mean squares of a tensor; default
        ``linspace_kernels(1.0, num=1)``.
      clip_norm: largest norm of a gradient; default None. Steps of Adam do not grow
        with a gradient, and where every gradient is above the norm a clip takes from
        each another part: an agent that Adam teaches at any rate from .001 to .03 fails
        with it. Without it a gradient of more than 10 times the largest norm of the
        last hundred steps is brought down to that, or one outlier would hold up Adam's
        second moment for the rest of a run.
      group_by: which tensors share a memory.
      rate_bounds: smallest and largest rate a memory may hold.
      largest_step: a memory raises no rate above this times the root mean square of
        its parameters at ``init``, because gradients that agree do not say when a step
        has become too large for the layer; None for no such ceiling. Parameters that
        are all zero have that of the whole tree.
      evidence_sample: how many coordinates of a large tensor give evidence, see
        :func:`scale_by_memory`; default 4,096, and any number above an eighth of the
        largest tensor for all.
      stacked: in which tensors the first axis counts layers, see
        :func:`scale_by_memory`.
      frozen: labels of memories that stay as they are.

    Returns:
      A :class:`optax.GradientTransformationExtraArgs` that descends.

    Raises:
      ValueError: a rate above 0.01 to start with; else see :func:`memory_sgd`.

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
    is_rate = is_concrete(initial) and is_number(initial)
    rate: Any = initial
    fits = not is_rate or rate <= _LARGEST_START_OF_ADAM * (1 + 1e-6)
    allowed = (
        f"be at most {_LARGEST_START_OF_ADAM} for memory_adam, which climbs itself"
    )
    require(fits, "initial", allowed, initial)
    for name, value in (("b1", b1), ("b2", b2)):
        check_number(name, value, 0.0, 1.0, closed=True)
    for name, value in (("eps", eps), ("eps_root", eps_root)):
        check_number(name, value, closed=True)
    size = _SAMPLE if evidence_sample is None else evidence_sample
    base = bases.adam(b1, b2, eps, eps_root, mu_dtype, nesterov, size, stacked)
    if largest_step is not None:
        check_number("largest_step", largest_step)
    settings = Settings(
        *(initial, kernels, group_by, rate_bounds, agreement_steps(), raw_product),
        *(stacked, frozen, True),
        normalize="rms",
        clip_norm=clip_norm,
        largest_step=largest_step,
        factor=learning_rate,
    )
    return _ready(base, settings, weight_decay, mask)


def _ready(
    base: bases.Base, settings: Settings, weight_decay: float, mask: Mask | None
) -> optax.GradientTransformationExtraArgs:
    """Always two links: a memory is found, and a state restored, at one place."""
    if settings.clip_norm is not None:
        smallest = float(np.finfo(np.float32).tiny)
        check_number("clip_norm", settings.clip_norm, smallest, closed=True)
    check_number("weight_decay", weight_decay, closed=True)
    # Without a decay nobody needs to pass the parameters.
    decays = isinstance(weight_decay, jax.Array) or weight_decay > 0
    decay = optax.add_decayed_weights(weight_decay, mask) if decays else None
    factor, kernels = settings.factor, settings.kernels
    if kernels is None and not isinstance(settings.initial, Memory | Mapping):
        kernels = _KERNELS
    link = scale_base(base, settings._replace(kernels=kernels, decay=decay))
    chain = optax.chain(link, optax.scale_by_learning_rate(factor))
    return check_factor(factor, skip_not_finite(chain))
