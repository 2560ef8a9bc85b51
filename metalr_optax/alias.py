"""Ready optimizers that need no tuning: a clip, a memory, and a step downhill."""

import warnings
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax

from metalr_optax.kernels import Kernels, linspace_kernels
from metalr_optax.labels import GroupBy
from metalr_optax.memory import Memory, raw_product
from metalr_optax.steps import agreement_steps
from metalr_optax.transform import Initial, scale_by_memory

# A rate per layer: more local models win where inputs are of unequal scale, and lose
# when samples come one at a time (benchmarks/README.md).
_KERNELS = linspace_kernels(1.0, num=1)

# Steps of Adam are as large as the rate in every coordinate, from the first one on.
_LARGEST_START_OF_ADAM = 0.01
# Who writes a smaller factor than this means a rate, as with other optimizers.
_RATE_NOT_FACTOR = 0.05

Mask = Any | Callable[[optax.Params], Any]


def memory_sgd(
    learning_rate: optax.ScalarOrSchedule = 1.0,
    *,
    momentum: float = 0.9,
    initial: Initial = 1e-3,
    kernels: Kernels | None = None,
    clip_norm: float | None = 1.0,
    weight_decay: float = 0.0,
    mask: Mask | None = None,
    group_by: GroupBy = "layer",
    rate_bounds: tuple[float, float] = (1e-9, 10.0),
    evidence_sample: int | None = None,
    direction_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Stochastic gradient descent with momentum, its rates learned on the way.

    .. math::
      g &\leftarrow g \cdot \min(1, \text{clip\_norm} / \lVert g \rVert) \\
      d &\leftarrow g + \text{momentum} \cdot d \\
      x &\leftarrow x - \text{learning\_rate} \cdot
        (\eta(d / \mathrm{rms}(d)) \, d + \text{weight\_decay} \cdot x)

    with :math:`\lVert g \rVert` over the whole tree and the root mean square over a
    tensor. The rate :math:`\eta` is :func:`scale_by_memory`'s, corrected by
    :func:`agreement_steps` on :func:`raw_product`. It has no base rate to tune: the
    memory climbs from ``initial`` to what the task bears within some tens of steps and
    comes down again where gradients begin to contradict each other. The paper's own
    rule is :func:`paper_sgd`.

    Args:
      learning_rate: factor on all learned rates, a number or a schedule. The
        memory does not see it and makes up for factors that change slowly: a warm-up
        or a decay over tens of steps works, one over thousands is learned away. A
        constant below 0.05 warns: it was probably meant to be ``initial``.
      momentum: decay of the direction, in [0, 1); 0 for none.
      initial: the rate the memory starts with, or memories, see
        :func:`scale_by_memory`.
      kernels: where the local models are, in root mean squares of a tensor; default
        ``linspace_kernels(1.0, num=1)``, a rate per layer. For inputs of unequal scale
        ``logspace_kernels(8.0, 20, smallest=0.02)`` learns further; it is not
        safe when samples come one at a time.
      clip_norm: largest norm of a gradient, or None: the first steps and rare outliers
        cannot ruin a run.
      weight_decay: the part of a parameter that one step takes away, whatever its
        learned rate (decoupled). AdamW with a rate of 1e-3 and a decay of .1 takes
        1e-4.
      mask: a tree of booleans, or a function from parameters to one: what decays.
      group_by: which tensors share a memory, see :func:`scale_by_memory`.
      rate_bounds: smallest and largest rate a memory may hold.
      evidence_sample: how many coordinates of a large tensor are judged; default all.
      direction_dtype: dtype of the last direction in the state.

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
    _check_range("momentum", momentum, 0.0, 1.0)
    link = _learned(
        optax.trace(momentum),
        initial,
        kernels,
        group_by=group_by,
        rate_bounds=rate_bounds,
        evidence_sample=evidence_sample,
        direction_dtype=direction_dtype,
    )
    return _chain(link, learning_rate, clip_norm, weight_decay, mask)


def memory_adam(
    learning_rate: optax.ScalarOrSchedule = 1.0,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    initial: Initial = 1e-3,
    kernels: Kernels | None = None,
    clip_norm: float | None = 1.0,
    weight_decay: float = 0.0,
    mask: Mask | None = None,
    group_by: GroupBy = "layer",
    rate_bounds: tuple[float, float] = (1e-9, 10.0),
    evidence_sample: int | None = None,
    direction_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Adam, its rates learned on the way.

    .. math::
      g &\leftarrow g \cdot \min(1, \text{clip\_norm} / \lVert g \rVert) \\
      d &= \hat m / (\sqrt{\hat v} + \epsilon) \\
      x &\leftarrow x - \text{learning\_rate} \cdot
        (\eta(d / \mathrm{rms}(d)) \, d + \text{weight\_decay} \cdot x)

    As :func:`memory_sgd`, with directions of Adam. They are judged by the gradient of
    the next step, because directions of Adam agree with each other even in pure noise.
    The paper's own rule is :func:`paper_adam`.

    Args:
      learning_rate: see :func:`memory_sgd`.
      b1: decay of Adam's first moment.
      b2: decay of Adam's second moment.
      eps: added to the root of the second moment.
      initial: the rate the memory starts with, at most 0.01, or memories, see
        :func:`scale_by_memory`. A larger first step of Adam breaks what no memory
        repairs; the memory climbs higher by itself where it can.
      kernels: where the local models are, in root mean squares of a tensor; default
        ``linspace_kernels(1.0, num=1)``.
      clip_norm: see :func:`memory_sgd`, as all that follow.
      weight_decay: the part of a parameter that one step takes away.
      mask: what decays.
      group_by: which tensors share a memory.
      rate_bounds: smallest and largest rate a memory may hold.
      evidence_sample: how many coordinates of a large tensor are judged; default all.
      direction_dtype: dtype of the last direction in the state.

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
    _check_start_of_adam(initial)
    link = _learned(
        optax.scale_by_adam(b1=b1, b2=b2, eps=eps),
        initial,
        kernels,
        group_by=group_by,
        rate_bounds=rate_bounds,
        evidence_sample=evidence_sample,
        direction_dtype=direction_dtype,
    )
    return _chain(link, learning_rate, clip_norm, weight_decay, mask)


def _learned(
    inner: optax.GradientTransformation,
    initial: Initial,
    kernels: Kernels | None,
    **options: Any,
) -> optax.GradientTransformationExtraArgs:
    """Return the memory that both have in common, around a base."""
    brings_its_own = isinstance(initial, Memory) or hasattr(initial, "items")
    if kernels is None and not brings_its_own:
        kernels = _KERNELS
    return scale_by_memory(
        initial,
        inner=inner,
        kernels=kernels,
        memory_optimizer=agreement_steps(),
        signal=raw_product,
        address="relative",
        **options,
    )


def _chain(
    link: optax.GradientTransformationExtraArgs,
    learning_rate: optax.ScalarOrSchedule,
    clip_norm: float | None,
    weight_decay: float,
    mask: Mask | None,
) -> optax.GradientTransformationExtraArgs:
    """Always four links: a memory is found, and a state restored, at one place."""
    clip = optax.identity()
    if clip_norm is not None:
        _check_range("clip_norm", clip_norm, float(np.finfo(np.float32).tiny), np.inf)
        clip = optax.clip_by_global_norm(clip_norm)
    _check_range("weight_decay", weight_decay, 0.0, np.inf)
    is_zero = not isinstance(weight_decay, jax.Array) and weight_decay == 0
    # Without a decay nobody needs to pass the parameters.
    decay = (
        optax.identity() if is_zero else optax.add_decayed_weights(weight_decay, mask)
    )
    if isinstance(learning_rate, int | float) and 0 < learning_rate < _RATE_NOT_FACTOR:
        warnings.warn(
            f"learning_rate={learning_rate} is a factor on the learned rates, which "
            f"climb against it; a rate to start from is initial={learning_rate}",
            stacklevel=3,
        )
    descend = optax.scale_by_learning_rate(learning_rate)
    return optax.chain(clip, link, decay, descend)


def _check_range(name: str, value: Any, low: float, high: float) -> None:
    if isinstance(value, jax.core.Tracer):
        return
    try:
        inside = not isinstance(value, bool) and bool(low <= value < high)
    except (TypeError, ValueError):
        inside = False
    if not inside:
        raise ValueError(f"{name} must be a number in [{low:g}, {high:g}), got {value}")


def _check_start_of_adam(initial: Any) -> None:
    is_known = isinstance(initial, int | float | np.number) or (
        isinstance(initial, jax.Array) and not isinstance(initial, jax.core.Tracer)
    )
    if is_known and np.max(np.asarray(initial)) > _LARGEST_START_OF_ADAM * (1 + 1e-6):
        raise ValueError(
            f"initial must be at most {_LARGEST_START_OF_ADAM} for memory_adam, which "
            f"climbs by itself, got {initial}"
        )
