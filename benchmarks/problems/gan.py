"""BEGAN on MNIST digits: two dense players, in balance.

Source: Berthelot, Schumm, Metz, "BEGAN: Boundary Equilibrium Generative Adversarial
Networks", 2017 (arXiv 1703.10717).
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.problems.digits import load_digits, select
from benchmarks.problems.networks import Autoencoder, Mlp
from benchmarks.problems.problem import Problem, squared_error

NAME = "gan"
LATENT = 16
HIDDEN = 128
BATCH = 16
GAMMA = 0.7  # how varied, against how sharp
BALANCE_RATE = 0.05
_PIXELS = 28 * 28
_GENERATOR = Mlp((HIDDEN, _PIXELS), nn.elu)
DISCRIMINATOR = Autoencoder(HIDDEN, LATENT)


class Images(NamedTuple):
    """Images in [0, 1] and the latents that are judged."""

    train: jax.Array  # [N, 784]
    judged: jax.Array  # [J, 784]
    latents: jax.Array  # [J, 16]


class Game(NamedTuple):
    """What goes from update to update beside the two networks."""

    key: jax.Array
    balance: jax.Array  # k in [0, 1]


def generate(params: Any, latents: jax.Array) -> jax.Array:
    """Return images [B, 784] in [0, 1] for latents [B, 16]."""
    return nn.sigmoid(jnp.asarray(_GENERATOR.apply(params["generator"], latents)))


def _reconstruction(discriminator: Any, images: jax.Array) -> jax.Array:
    again = jnp.asarray(DISCRIMINATOR.apply(discriminator, images))
    return squared_error(again, images)


def _start(arrays: Images, key: jax.Array) -> tuple[Any, Game]:
    keys = jax.random.split(key)
    params = {
        "generator": _GENERATOR.init(keys[0], arrays.latents[:1]),
        "discriminator": DISCRIMINATOR.init(keys[1], arrays.train[:1]),
    }
    return params, Game(key, jnp.zeros(()))


def _gradients(arrays: Images, params: Any, game: Game, count: jax.Array) -> Any:
    image_key, latent_key = jax.random.split(jax.random.fold_in(game.key, count))
    chosen = jax.random.randint(image_key, (BATCH,), 0, len(arrays.train))
    images = arrays.train[chosen]
    latents = jax.random.uniform(latent_key, (BATCH, LATENT), minval=-1.0)
    drawn = generate(params, latents)

    def generator_loss(generator: Any) -> jax.Array:
        fakes = generate({"generator": generator}, latents)
        return _reconstruction(params["discriminator"], fakes)

    def discriminator_loss(discriminator: Any) -> tuple[jax.Array, Any]:
        real = _reconstruction(discriminator, images)
        fake = _reconstruction(discriminator, drawn)
        return real - game.balance * fake, (real, fake)

    descend = jax.grad(discriminator_loss, has_aux=True)
    discriminator, (real, fake) = descend(params["discriminator"])
    generator = jax.grad(generator_loss)(params["generator"])
    gradients = {"generator": generator, "discriminator": discriminator}
    balance = jnp.clip(game.balance + BALANCE_RATE * (GAMMA * real - fake), 0.0, 1.0)
    return gradients, game._replace(balance=balance)


def _measure(arrays: Images, params: Any, game: Game) -> jax.Array:
    real = _reconstruction(params["discriminator"], arrays.judged)
    fake = _reconstruction(params["discriminator"], generate(params, arrays.latents))
    return real + jnp.abs(GAMMA * real - fake)


def make_arrays(train: jax.typing.ArrayLike, judged: jax.typing.ArrayLike) -> Images:
    """Return images [N, 28, 28] in [0, 1] flat, with fixed latents to judge."""
    rng, images = np.random.default_rng(0), jnp.asarray(judged, jnp.float32)
    latents = rng.uniform(-1.0, 1.0, (len(images), LATENT))
    return Images(
        jnp.asarray(train, jnp.float32).reshape(-1, _PIXELS),
        images.reshape(-1, _PIXELS),
        jnp.asarray(latents, jnp.float32),
    )


def load_problem() -> Problem:
    """Return the game on the digits 5 to 9; related are 0 to 4, unrelated is noise."""
    high, low = (select(load_digits(), some) for some in (range(5, 10), range(5)))
    data, related = (make_arrays(x.inputs, x.judged_inputs[::8]) for x in (high, low))
    drawn = np.random.default_rng(1).uniform(size=(5125, 28, 28))
    noise = make_arrays(drawn[125:], drawn[:125])
    functions = _start, _gradients, _measure
    return Problem(NAME, data, *functions, 1000, 20, related, noise)
