"""Learning problems at the lengths people train: 8 to 10 times those of the suite.

Every task of the suite with more updates, classes judged by errors instead of losses,
which rise late on small data sets; and six kinds more: an autoencoder with a
likelihood, characters for a recurrent network, an agent whose targets move, a network
of coordinates, a differential equation with exact gradients, labels with noise.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import gan, mnist_problems, rnn, rosenbrock
from benchmarks.problem import Problem
from benchmarks.suite_problems import (
    Examples,
    Mlp,
    Residual,
    cross_entropy,
    digits,
    errors,
    language,
    quadratic,
    source_bytes,
    squares,
    supervised,
    teacher,
)

_CODE = 16  # numbers that an autoencoder makes of an image
_ENVIRONMENTS, _ROLLOUT, _LONGEST = 16, 32, 200  # of an agent, steps
_DISCOUNT, _LAMBDA = 0.98, 0.95
_CORRUPTED = 0.4  # of the labels


def _longer(load: Callable[[], Problem], horizon: int, every: int) -> Problem:
    problem = load()
    name = f"{problem.name}, long"
    return problem._replace(name=name, horizon=horizon, every=every)


def _classes(name: str, network: nn.Module, examples: Examples) -> Problem:
    return supervised(name, network, examples, cross_entropy, 64, 3000, 60, errors)


class Autoencoder(nn.Module):
    """A variational autoencoder 784-256-16-256-784."""

    @nn.compact
    def __call__(self, images: jax.Array, noise: jax.Array) -> Any:
        """Return logits [B, 784], means and log variances [B, 16] of the codes."""
        hidden = nn.relu(nn.Dense(256)(images))
        mean, log_variance = nn.Dense(_CODE)(hidden), nn.Dense(_CODE)(hidden)
        code = mean + jnp.exp(0.5 * log_variance) * noise
        logits = nn.Dense(784)(nn.relu(nn.Dense(256)(code)))
        return logits, mean, log_variance


def autoencoder() -> Problem:
    """Return digits to be coded, judged by minus the evidence bound in nats."""
    train, judged = (one.reshape(-1, 784) for one in (digits()[0], digits()[2][::4]))
    network = Autoencoder()

    def bound(params: Any, images: jax.Array, key: jax.Array) -> jax.Array:
        noise = jax.random.normal(key, (len(images), _CODE))
        outputs: Any = network.apply(params, images, noise)
        logits, mean, log_variance = outputs
        told = optax.sigmoid_binary_cross_entropy(logits, images).sum(axis=-1)
        kept = jnp.square(mean) + jnp.exp(log_variance) - log_variance - 1.0
        return jnp.mean(told + 0.5 * kept.sum(axis=-1))

    def start(data: Any, key: jax.Array) -> tuple[Any, jax.Array]:
        return network.init(key, data[0][:1], jnp.zeros((1, _CODE))), key

    def gradients(data: Any, params: Any, key: jax.Array, count: jax.Array) -> Any:
        image_key, noise_key = jax.random.split(jax.random.fold_in(key, count))
        chosen = jax.random.randint(image_key, (64,), 0, len(data[0]))
        return jax.grad(bound)(params, data[0][chosen], noise_key), key

    def measure(data: Any, params: Any, key: jax.Array) -> jax.Array:
        del key
        return bound(params, data[1], jax.random.key(0))

    data = train, judged
    return Problem("autoencoder", data, start, gradients, measure, 3000, 60)


class Recurrent(nn.Module):
    """An LSTM of 96 units over bytes."""

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Return logits [B, T, 256] for bytes [B, T]."""
        x: Any = nn.RNN(nn.OptimizedLSTMCell(96))(nn.Embed(256, 32)(tokens))
        return nn.Dense(256)(x)


def characters() -> Problem:
    """Return the next byte of Python's sources for an LSTM, windows of 32 bytes."""
    rows = source_bytes(32)
    split = len(rows) * 9 // 10
    train, judged = rows[:split], rows[split:][::64]
    arrays = (train[:, :-1], train[:, 1:], judged[:, :-1], judged[:, 1:])
    examples = Examples(*(jnp.asarray(one, jnp.int32) for one in arrays))
    name = "characters"
    return supervised(name, Recurrent(), examples, cross_entropy, 16, 2400, 60)


class Policy(nn.Module):
    """Two tanh layers: how much each of two actions is wanted, and what comes of it."""

    @nn.compact
    def __call__(self, states: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return logits [..., 2] and values [...] for states [..., 4]."""
        hidden = nn.tanh(nn.Dense(64)(nn.tanh(nn.Dense(64)(states))))
        return nn.Dense(2)(hidden), nn.Dense(1)(hidden)[..., 0]


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
    push = pull - 0.05 * bend * cosine / 1.1
    rates = jnp.stack([speed, push, turning, bend], axis=-1)
    return state + 0.02 * rates


def fallen(state: jax.Array) -> jax.Array:
    """Return whether the pole [...] is more than 12 degrees off or the cart is out."""
    return (jnp.abs(state[..., 0]) > 2.4) | (jnp.abs(state[..., 2]) > np.radians(12))


class Play(NamedTuple):
    """What goes on from rollout to rollout."""

    key: jax.Array
    states: jax.Array  # [N, 4]
    ages: jax.Array  # [N], steps


def _fresh(key: jax.Array, number: int) -> jax.Array:
    return jax.random.uniform(key, (number, 4), minval=-0.05, maxval=0.05)


def _roll(params: Any, play: Play, key: jax.Array) -> tuple[Play, Any]:
    """Return the play after 32 steps, and what was seen: [32, N, ...] each."""

    def step(play: Play, key: jax.Array) -> tuple[Play, Any]:
        act_key, reset_key = jax.random.split(key)
        logits: Any = Policy().apply(params, play.states)[0]
        actions = jax.random.categorical(act_key, logits)
        after = push(play.states, actions)
        over = fallen(after)
        ended = over | (play.ages + 1 >= _LONGEST)
        states = jnp.where(ended[:, None], _fresh(reset_key, len(over)), after)
        ages = jnp.where(ended, 0, play.ages + 1)
        seen = play.states, actions, after, over, ended
        return play._replace(states=states, ages=ages), seen

    return jax.lax.scan(step, play, jax.random.split(key, _ROLLOUT))


def _advantages(values: Any, following: Any, over: Any, ended: Any) -> jax.Array:
    """Return generalised advantages [T, N] of a reward of 1 a step."""
    surprise = 1.0 + _DISCOUNT * following * (1.0 - over) - values

    def back(later: jax.Array, now: Any) -> tuple[jax.Array, jax.Array]:
        surprise, ended = now
        later = surprise + _DISCOUNT * _LAMBDA * (1.0 - ended) * later
        return later, later

    zero = jnp.zeros_like(values[0])
    return jax.lax.scan(back, zero, (surprise, ended), reverse=True)[1]


def agent() -> Problem:
    """Return a pole to be balanced by actor and critic, whose targets move.

    An update is the gradient over 32 steps of 16 carts. Judged by which part of 200
    steps is missing on 32 plays of the policy's own draws.
    """

    def start(data: Any, key: jax.Array) -> tuple[Any, Play]:
        del data
        ages = jnp.zeros(_ENVIRONMENTS, jnp.int32)
        play = Play(key, _fresh(key, _ENVIRONMENTS), ages)
        return Policy().init(key, play.states), play

    def gradients(data: Any, params: Any, play: Play, count: jax.Array) -> Any:
        del data
        play, seen = _roll(params, play, jax.random.fold_in(play.key, count))
        states, actions, after, over, ended = seen

        def loss(params: Any) -> jax.Array:
            outputs: Any = Policy().apply(params, states)
            following: Any = Policy().apply(params, after)
            odds = jax.nn.log_softmax(outputs[0])
            gains = jax.lax.stop_gradient(
                _advantages(outputs[1], following[1], over, ended)
            )
            wanted = jax.lax.stop_gradient(outputs[1]) + gains
            gains = (gains - gains.mean()) / (gains.std() + 1e-6)
            chosen = jnp.take_along_axis(odds, actions[..., None], axis=-1)[..., 0]
            disorder = -jnp.sum(jnp.exp(odds) * odds, axis=-1)
            critic = 0.5 * jnp.mean((outputs[1] - wanted) ** 2)
            return critic - jnp.mean(chosen * gains) - 0.01 * jnp.mean(disorder)

        return jax.grad(loss)(params), play

    def measure(data: Any, params: Any, play: Play) -> jax.Array:
        del data, play
        first, rest = jax.random.split(jax.random.key(0))

        def step(carry: Any, key: jax.Array) -> tuple[Any, None]:
            states, alive, steps = carry
            logits: Any = Policy().apply(params, states)[0]
            states = push(states, jax.random.categorical(key, logits))
            alive = alive & ~fallen(states)
            return (states, alive, steps + alive), None

        carry = _fresh(first, 32), jnp.ones(32, bool), jnp.zeros(32)
        keys = jax.random.split(rest, _LONGEST)
        (_, _, steps), _ = jax.lax.scan(step, carry, keys)
        broken = ~jnp.isfinite(optax.tree.norm(params))
        return jnp.where(broken, jnp.nan, 1.0 - jnp.mean(steps) / _LONGEST)

    return Problem("agent", jnp.zeros(()), start, gradients, measure, 2400, 60)


class Waves(nn.Module):
    """Sines of fixed random directions, then dense layers."""

    @nn.compact
    def __call__(self, places: jax.Array) -> jax.Array:
        """Return [B] for places [B, 2] in [-1, 1]."""
        directions = np.random.default_rng(0).normal(size=(2, 64)) * 6.0
        phases = places @ jnp.asarray(directions, jnp.float32)
        x = jnp.concatenate([jnp.sin(phases), jnp.cos(phases)], axis=-1)
        return Mlp((64, 64, 1), nn.relu)(x)[:, 0]


def coordinates() -> Problem:
    """Return an image of 56 x 56, four digits, as a function of the place.

    Batches of 512 pixels; judged by the squared error over the variance.
    """
    images = np.asarray(digits()[0])[[0, 2500, 5000, 7500]]
    image = np.block([list(images[:2]), list(images[2:])])
    line = np.linspace(-1.0, 1.0, len(image))
    places = np.stack(np.meshgrid(line, line, indexing="ij"), axis=-1).reshape(-1, 2)
    heights = (image.ravel() - image.mean()) / image.std()
    x, y = jnp.asarray(places, jnp.float32), jnp.asarray(heights, jnp.float32)
    examples = Examples(x, y, x, y)
    return supervised("coordinates", Waves(), examples, squares, 512, 3000, 60)


def _height(x: Any) -> Any:
    return jnp.sin(2 * jnp.pi * x) + 0.3 * jnp.sin(6 * jnp.pi * x)


def physics() -> Problem:
    """Return -u'' = f on [0, 1], 0 at both ends, for a tanh network, all points.

    The solution is sin(2 pi x) + .3 sin(6 pi x); judged by the relative error.
    """
    network = Mlp((48, 48, 1), nn.tanh)

    def second(function: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
        return jax.vmap(jax.grad(jax.grad(function)))(x)

    def u(params: Any, x: jax.Array) -> jax.Array:
        return jnp.asarray(network.apply(params, x.reshape(1, 1)))[0, 0]

    def start(points: jax.Array, key: jax.Array) -> tuple[Any, tuple]:
        return network.init(key, points[:1, None]), ()

    def gradients(points: jax.Array, params: Any, extra: Any, count: Any) -> Any:
        del count

        def loss(params: Any) -> jax.Array:
            residual = second(lambda x: u(params, x), points) - second(_height, points)
            ends = u(params, points[0]) ** 2 + u(params, points[-1]) ** 2
            return jnp.mean(residual**2) / 1000.0 + ends

        return jax.grad(loss)(params), extra

    def measure(points: jax.Array, params: Any, extra: Any) -> jax.Array:
        del extra
        wrong = jax.vmap(lambda x: u(params, x))(points) - _height(points)
        return jnp.sqrt(jnp.mean(wrong**2) / jnp.mean(_height(points) ** 2))

    points = jnp.linspace(0.0, 1.0, 101)
    return Problem("physics", points, start, gradients, measure, 3000, 60)


def noisy_labels() -> Problem:
    """Return ten digits, 40 % of the labels drawn anew; judged by clean errors."""
    examples = digits()
    rng = np.random.default_rng(0)
    drawn = rng.integers(10, size=len(examples.targets))
    wrong = rng.random(len(drawn)) < _CORRUPTED
    targets = jnp.where(wrong, drawn, examples.targets)
    network = Mlp((64, 64, 10), nn.relu)
    return _classes("noisy labels", network, examples._replace(targets=targets))


LONG: dict[str, Callable[[], Problem]] = {
    "language, long": lambda: _longer(language, 2400, 60),
    "classes, long": lambda: _classes(
        "classes, long", Mlp((64, 64, 10), nn.relu), digits()
    ),
    "unequal inputs, long": lambda: _longer(
        lambda: teacher("unequal inputs", spread=10.0), 4000, 80
    ),
    "agent": agent,
    "physics": physics,
    "characters": characters,
    "autoencoder": autoencoder,
    "noisy teacher, long": lambda: _longer(
        lambda: teacher("noisy teacher", noise=0.5), 4000, 80
    ),
    "residual, long": lambda: _classes("residual, long", Residual(), digits()),
    "noisy labels": noisy_labels,
    "coordinates": coordinates,
    "teacher, long": lambda: _longer(lambda: teacher("teacher"), 4000, 80),
    "quadratic, long": lambda: _longer(quadratic, 3000, 60),
    "rosenbrock, long": lambda: _longer(rosenbrock.load_problem, 1000, 20),
    "mnist online, long": lambda: mnist_problems.load_problem(
        mnist_problems.ONLINE, longer=8
    ),
    "rnn change, long": lambda: _longer(
        lambda: rnn.load_problem(rnn.CHANGE), 4800, 120
    ),
    "gan, long": lambda: _longer(gan.load_problem, 8000, 160),
}
