"""The rule of the paper as ready optimizers: a clip, a memory and a multiplier."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax

from metalr_optax.checks import check_moments, check_multiplier, warn_of_rate
from metalr_optax.groups import GroupBy
from metalr_optax.initial import Initial, kernels_of
from metalr_optax.kernels import covered
from metalr_optax.memory import Kernels
from metalr_optax.orientation import AlongGradient
from metalr_optax.rules import SMALLEST_ROOT
from metalr_optax.signals import Signal
from metalr_optax.transform import scale_by_memory


def paper_sgd(
    learning_rate: optax.ScalarOrSchedule = 1.0,
    *,
    initial: Initial = 1e-3,
    kernels: Kernels | None = None,
    memory_optimizer: optax.GradientTransformation | None = None,
    signal: Signal | None = None,
    group_by: GroupBy = "layer",
    rate_bounds: tuple[float, float] = (1e-9, 1.0),
    evidence_sample: int | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Stochastic gradient descent with a learned memory of learning rates.

    .. math:: x \leftarrow x - \text{learning\_rate} \cdot \eta(g) \, g

    with :math:`g` clipped to the outermost centre of the kernels (of the widest ones,
    if ``initial`` brings several), as the authors do. Non-finite coordinates are not
    clipped, so that they stay visible. The rest is :func:`scale_by_memory`, which
    describes all arguments but the first.

    Args:
      learning_rate: multiplier on all learned rates, a number or a schedule. It is not
        part of what the memory learns; 1 is the paper's rule.
      initial: the rate the memory starts with, or memories.
      kernels: kernels of the local models, in units of the gradient.
      memory_optimizer: transformation that adapts the rates.
      signal: how a gradient agrees with the last direction.
      group_by: which tensors share a memory.
      rate_bounds: smallest and largest rate a memory may hold.
      evidence_sample: coordinates of a large tensor that give evidence; default all.

    Returns:
      A :class:`optax.GradientTransformationExtraArgs` that descends.

    Raises:
      ValueError: see :func:`scale_by_memory`.

    Examples:
      >>> import jax, jax.numpy as jnp, optax
      >>> from metalr_optax import paper_sgd
      >>> optimizer = paper_sgd(initial=1e-4)
      >>> gradient = jax.grad(lambda x: jnp.sum(x**2))
      >>> x = jnp.array([1.0, -2.0])
      >>> state, update = optimizer.init(x), jax.jit(optimizer.update)
      >>> for _ in range(40):
      ...   updates, state = update(gradient(x), state)
      ...   x = optax.apply_updates(x, updates)
      >>> bool(jnp.sum(x**2) < 0.01)
      True

    References:
      Kappler, Schaal, Meier, `Learning to Learn while Learning`, 2017.
    """
    scale = scale_by_memory(
        initial,
        base_optimizer=None,
        kernels=kernels,
        memory_optimizer=memory_optimizer,
        signal=signal,
        group_by=group_by,
        rate_bounds=rate_bounds,
        evidence_sample=evidence_sample,
    )
    return _clipped(scale, kernels_of(initial, kernels), learning_rate)


def paper_adam(
    learning_rate: optax.ScalarOrSchedule = 1.0,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    initial: Initial = 1e-3,
    kernels: Kernels | None = None,
    memory_optimizer: optax.GradientTransformation | None = None,
    signal: Signal | None = None,
    group_by: GroupBy = "layer",
    rate_bounds: tuple[float, float] = (1e-9, 1.0),
    evidence_sample: int | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Adam with a learned memory of learning rates.

    .. math:: x \leftarrow x - \text{learning\_rate} \cdot \eta(d) \, d,
      \quad d = \hat m / (\sqrt{\hat v} + \epsilon)

    Adam's direction :math:`d` is the kernel input, and the evidence about it comes from
    the raw gradient of the next step, because directions of Adam agree with each other
    even in pure noise. Raw gradients are clipped as in :func:`paper_sgd`, before Adam:
    kernels that are much narrower than usual gradients change Adam too.

    Args:
      learning_rate: multiplier on all learned rates, a number or a schedule.
      b1: decay of Adam's first moment.
      b2: decay of Adam's second moment.
      eps: added to the root of the second moment.
      initial: the rate the memory starts with, or memories.
      kernels: kernels of the local models, in units of Adam's direction.
      memory_optimizer: transformation that adapts the rates.
      signal: how a gradient agrees with the last direction.
      group_by: which tensors share a memory.
      rate_bounds: smallest and largest rate a memory may hold.
      evidence_sample: coordinates of a large tensor that give evidence; default all.

    Returns:
      A :class:`optax.GradientTransformationExtraArgs` that descends.

    Raises:
      ValueError: a decay outside [0, 1), a negative ``eps``; else see
        :func:`scale_by_memory`.

    Examples:
      >>> import jax, jax.numpy as jnp, optax
      >>> from metalr_optax import paper_adam
      >>> optimizer = paper_adam(initial=1e-4)
      >>> gradient = jax.grad(lambda x: jnp.sum(x**2))
      >>> x = jnp.array([1.0, -2.0])
      >>> state, update = optimizer.init(x), jax.jit(optimizer.update)
      >>> for _ in range(60):
      ...   updates, state = update(gradient(x), state)
      ...   x = optax.apply_updates(x, updates)
      >>> bool(jnp.sum(x**2) < 0.1)
      True

    References:
      Kappler, Schaal, Meier, `Learning to Learn while Learning`, 2017; Kingma, Ba,
      `Adam: A Method for Stochastic Optimization <https://arxiv.org/abs/1412.6980>`_,
      2014.
    """
    check_moments(b1, b2, eps)
    adam = optax.with_extra_args_support(
        optax.scale_by_adam(b1, b2, eps, SMALLEST_ROOT)
    )
    scale = scale_by_memory(
        initial,
        base_optimizer=AlongGradient(*adam),
        kernels=kernels,
        memory_optimizer=memory_optimizer,
        signal=signal,
        group_by=group_by,
        rate_bounds=rate_bounds,
        evidence_sample=evidence_sample,
    )
    return _clipped(scale, kernels_of(initial, kernels), learning_rate)


def _clipped(
    scale: optax.GradientTransformationExtraArgs,
    kernels: Sequence[Kernels],
    learning_rate: optax.ScalarOrSchedule,
) -> optax.GradientTransformationExtraArgs:
    """Clip to the widest kernels; unlike `optax.clip`, infinity stays visible."""
    check_multiplier(learning_rate)
    bounds = [covered(pair) for pair in kernels]

    def clip(gradient: jax.typing.ArrayLike) -> jax.Array:
        gradient = jnp.asarray(gradient)
        bound = functools.reduce(jnp.maximum, map(jnp.asarray, bounds))
        bound = bound.astype(gradient.dtype)
        clipped = jnp.clip(gradient, -bound, bound)
        return jnp.where(jnp.isinf(gradient), gradient, clipped)

    first = optax.stateless(lambda updates, _: jax.tree.map(clip, updates))
    descend = optax.scale_by_learning_rate(learning_rate)
    chain = optax.chain(first, scale, descend)

    def init(params: optax.Params) -> optax.OptState:
        warn_of_rate(learning_rate)
        return chain.init(params)

    return chain._replace(init=init)
