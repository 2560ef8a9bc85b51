"""What can be a base, and how it responds to gradients."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from metalr_optax import checks
from metalr_optax.averaging import AverageWeightsState
from metalr_optax.guards import GuardState

# A base whose first step for a gradient of 1 is smaller than this has a rate inside.
_RATE_INSIDE = 0.05

# Steps for a gradient of 0.001 of less than this fraction of those for 1 are in
# proportion to gradients.
_SMALL, _IN_PROPORTION = 1e-3, 0.03
# Adam hardly moves a weight whose gradient changes sign, Lion moves it by a whole step
# and bears a tenth of Adam's rates.
_FULL_STEP = 10.0

# States of optimizers that choose their own rate or compute weights from their steps:
# none can be a base. To each, what to do instead.
_NO_BASES = dict.fromkeys(
    (
        GuardState,
        optax.ScaleByBacktrackingLinesearchState,
        optax.ScaleByZoomLinesearchState,
        optax.contrib.COCOBState,
        optax.contrib.DAdaptAdamWState,
        optax.contrib.DoGState,
        optax.contrib.DoWGState,
        optax.contrib.MechanicState,
        optax.contrib.MomoAdamState,
        optax.contrib.MomoState,
        optax.contrib.ProdigyState,
    ),
    "use it without learn_rates",
) | {
    AverageWeightsState: "chain(learn_rates(...), average_weights()) averages behind "
    "it",
    optax.contrib.ScheduleFreeState: "schedule_free goes around: "
    "schedule_free(learn_rates(...), 1.0)",
}


class UnitSteps(optax.GradientTransformationExtraArgs):
    """A base that descends in steps of size 1, so that nothing has to be measured."""


def check_base(base: optax.GradientTransformation, params: Any) -> None:
    """Raise ValueError for a base that cannot be wrapped, warn of a rate inside it.

    The base takes a step for a gradient of ones, with one number for each tensor. Like
    that of a learner it returns directions, the negative of the user's updates.
    """
    trial = start_trial(base, params)
    _, state = trial
    found = [type(node) for _, node in checks.nodes_of(state, tuple(_NO_BASES))]
    names = [kind.__name__ for kind in found]
    hint = _NO_BASES[found[0]] if found else ""
    allowed = "leave rates and weights to learn_rates"
    checks.require(not found, "base_optimizer", allowed, names, hint)
    steps = first_steps(base, trial, [1.0])
    if steps is None:
        return
    sizes = [-size for size in steps[0]]
    least, most = min(sizes, default=0.0), max(sizes, default=0.0)
    hint = "for example optax.chain(optax.scale_by_adam(), optax.scale(-1.0))"
    ascends = most > 0 and most > -least
    checks.require(
        not ascends, "base_optimizer", "descend", f"a first step of {most:g}", hint
    )
    if -_RATE_INSIDE < least < 0:
        checks.warn(
            f"base_optimizer makes a first step of {least:g} where the gradient is 1: "
            "use a rate of 1 inside, as in optax.adamw(1.0), and pass a rate to start "
            "from as `initial`"
        )


def response(base: optax.GradientTransformation, params: Any) -> float:
    """Return the size of the steps of a base, 0 where gradients scale them.

    1 for Adam, which averages gradients that change sign, up to 10 for Lion and Muon,
    which do not.
    """
    trial = start_trial(base, params)
    steps = first_steps(base, trial, [1.0, -1.0])
    small = first_steps(base, trial, [_SMALL])
    if steps is None or small is None:
        return 1.0
    first, second, smaller = (
        max(map(abs, sizes), default=0.0) for sizes in (*steps, *small)
    )
    if smaller <= _IN_PROPORTION * first:
        return 0.0
    return min(max(_FULL_STEP * second / first, 1.0), _FULL_STEP)


def steps_like_adam(state: Any) -> bool:
    """Return whether Adam gives all directions of a base: not only those of a part."""
    found = checks.nodes_of(state, optax.ScaleByAdamState)
    of_chains = jax.tree_util.SequenceKey
    return any(all(isinstance(x, of_chains) for x in path) for path, _ in found)


def start_trial(base: optax.GradientTransformation, params: Any) -> tuple[Any, Any]:
    """Return parameters of one number for each tensor, and the state of a base."""
    with jax.ensure_compile_time_eval():
        ones = jax.tree.map(
            lambda x: jnp.ones((1,) * jnp.ndim(x), jnp.result_type(x)), params
        )
        return ones, base.init(ones)


def first_steps(
    base: optax.GradientTransformation, trial: tuple[Any, Any], gradients: list[float]
) -> list[list[float]] | None:
    """Return the first steps of a base from a :func:`start_trial`, for each tensor.

    None if that cannot be told: the base needs extra arguments, which only a real step
    has, or the steps are not concrete.
    """
    (ones, state), steps = trial, []
    # A base such as Muon, whose loops are new functions in every call, would otherwise
    # be compiled again for each tensor and each step.
    update = jax.jit(base.update)
    with jax.ensure_compile_time_eval():
        try:
            for gradient in gradients:
                tree = jax.tree.map(lambda x, g=gradient: g * x, ones)
                updates, state = update(tree, state, ones)
                steps.append([jnp.mean(leaf) for leaf in jax.tree.leaves(updates)])
        except TypeError:
            return None
    if not all(checks.is_concrete(size) for sizes in steps for size in sizes):
        return None
    return [[float(size) for size in sizes] for sizes in steps]
