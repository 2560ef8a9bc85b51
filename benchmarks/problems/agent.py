"""A pole on a cart, balanced by an actor and a critic, whose targets move."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.problems.networks import ActorCritic
from benchmarks.problems.problem import Problem

_CARTS, _ROLLOUT, _LONGEST = 16, 32, 200  # trained on side by side; steps
_DISCOUNT, _LAMBDA = 0.98, 0.95
_JUDGED = 32  # episodes
_NETWORK: Any = ActorCritic(actions=2, width=64)


class Play(NamedTuple):
    """What goes on from rollout to rollout."""

    key: jax.Array
    states: jax.Array  # [N, 4]
    ages: jax.Array  # [N], steps


class Rollout(NamedTuple):
    """What was seen in T steps of N carts."""

    states: jax.Array  # [T, N, 4]
    actions: jax.Array  # [T, N]
    after: jax.Array  # [T, N, 4], where the actions led to
    over: jax.Array  # [T, N], the pole has fallen
    ended: jax.Array  # [T, N], fallen or as old as an episode gets


def push(state: jax.Array, action: jax.Array) -> jax.Array:
    """Return the state [..., 4] of cart and pole .02 s after a push to left or right.

    Position, speed, angle and its speed, as Barto, Sutton and Anderson (1983) have it:
    a cart of 1 kg, a pole of .1 kg and half a length of .5 m, a force of 10 N.
    """
    _, speed, angle, turning = jnp.moveaxis(state, -1, 0)
    force = jnp.where(action == 1, 10.0, -10.0)
    sine, cosine = jnp.sin(angle), jnp.cos(angle)
    pull = (force + 0.05 * turning**2 * sine) / 1.1
    bend = (9.8 * sine - cosine * pull) / (0.5 * (4 / 3 - 0.1 * cosine**2 / 1.1))
    acceleration = pull - 0.05 * bend * cosine / 1.1
    rates = jnp.stack([speed, acceleration, turning, bend], axis=-1)
    return state + 0.02 * rates


def fallen(state: jax.Array) -> jax.Array:
    """Return whether the pole [...] is more than 12 degrees off or the cart is out."""
    return (jnp.abs(state[..., 0]) > 2.4) | (jnp.abs(state[..., 2]) > np.radians(12))


def _reset(key: jax.Array, number: int) -> jax.Array:
    return jax.random.uniform(key, (number, 4), minval=-0.05, maxval=0.05)


def _roll(params: Any, play: Play, key: jax.Array) -> tuple[Play, Rollout]:
    def step(play: Play, key: jax.Array) -> tuple[Play, Rollout]:
        act_key, reset_key = jax.random.split(key)
        logits, _ = _NETWORK.apply(params, play.states)
        actions = jax.random.categorical(act_key, logits)
        after = push(play.states, actions)
        over = fallen(after)
        ended = over | (play.ages + 1 >= _LONGEST)
        states = jnp.where(ended[:, None], _reset(reset_key, len(over)), after)
        ages = jnp.where(ended, 0, play.ages + 1)
        seen = Rollout(play.states, actions, after, over, ended)
        return play._replace(states=states, ages=ages), seen

    return jax.lax.scan(step, play, jax.random.split(key, _ROLLOUT))


def _advantages(values: jax.Array, after: jax.Array, seen: Rollout) -> jax.Array:
    """Return generalised advantages [T, N] of a reward of 1 a step."""
    surprises = 1.0 + _DISCOUNT * after * (1.0 - seen.over) - values

    def back(later: jax.Array, now: Any) -> tuple[jax.Array, jax.Array]:
        surprise, ended = now
        later = surprise + _DISCOUNT * _LAMBDA * (1.0 - ended) * later
        return later, later

    zero = jnp.zeros_like(values[0])
    return jax.lax.scan(back, zero, (surprises, seen.ended), reverse=True)[1]


def _loss(params: Any, seen: Rollout) -> jax.Array:
    logits, values = _NETWORK.apply(params, seen.states)
    _, after = _NETWORK.apply(params, seen.after)
    log_odds = jax.nn.log_softmax(logits)
    advantages = jax.lax.stop_gradient(_advantages(values, after, seen))
    returns = jax.lax.stop_gradient(values) + advantages
    scaled = (advantages - advantages.mean()) / (advantages.std() + 1e-6)
    chosen = jnp.take_along_axis(log_odds, seen.actions[..., None], axis=-1)[..., 0]
    entropy = -jnp.sum(jnp.exp(log_odds) * log_odds, axis=-1)
    critic = 0.5 * jnp.mean((values - returns) ** 2)
    return critic - jnp.mean(chosen * scaled) - 0.01 * jnp.mean(entropy)


def _start(data: None, key: jax.Array) -> tuple[Any, Play]:
    play = Play(key, _reset(key, _CARTS), jnp.zeros(_CARTS, jnp.int32))
    return _NETWORK.init(key, play.states), play


def _gradients(data: None, params: Any, play: Play, count: jax.Array) -> Any:
    play, seen = _roll(params, play, jax.random.fold_in(play.key, count))
    return jax.grad(_loss)(params, seen), play


def _measure(data: None, params: Any, play: Play) -> jax.Array:
    reset_key, act_key = jax.random.split(jax.random.key(0))

    def step(carry: Any, key: jax.Array) -> tuple[Any, None]:
        states, alive, steps = carry
        logits, _ = _NETWORK.apply(params, states)
        states = push(states, jax.random.categorical(key, logits))
        alive = alive & ~fallen(states)
        return (states, alive, steps + alive), None

    carry = _reset(reset_key, _JUDGED), jnp.ones(_JUDGED, bool), jnp.zeros(_JUDGED)
    keys = jax.random.split(act_key, _LONGEST)
    (_, _, steps), _ = jax.lax.scan(step, carry, keys)
    broken = ~jnp.isfinite(optax.tree.norm(params))
    return jnp.where(broken, jnp.nan, 1.0 - jnp.mean(steps) / _LONGEST)


def load_problem() -> Problem:
    """Return the balancing; an update is the gradient over 32 steps of 16 carts.

    Judged by which part of 200 steps is missing on 32 episodes of the policy's draws.
    """
    return Problem("agent", None, _start, _gradients, _measure, 2400, 60)
