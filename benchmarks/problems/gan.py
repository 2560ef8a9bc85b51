"""BEGAN on MNIST digits (the paper's figure 2, right).

Generator and discriminator are dense, and small enough for two cores: 16 numbers in
[-1, 1] to 128 ELU to 28 x 28 sigmoid; the discriminator is an autoencoder, 784 - 128 -
16 - 128 - 784. L(x) is the mean squared error of its reconstruction. It descends
L(x) - k L(G(z)), the generator L(G(z)), and k keeps L(G(z)) at gamma L(x), gamma = 0.7.
Batches of 16 of the digits 5 to 9; a memory comes from the digits 0 to 4, the unrelated
one from noise. The measure is BEGAN's own, L(x) + |gamma L(x) - L(G(z))|, on held-out
images and fixed z. It does not see how varied the generated digits are: the picture
shows them. A mean over pixels has small gradients: tuned SGD goes beyond a rate of 2,
and the rates of a memory at its fixed setting come to rest at their bound, 1.

Source: Berthelot, Schumm, Metz, "BEGAN: Boundary Equilibrium Generative Adversarial
Networks", 2017 (arXiv 1703.10717).
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.problems.digits import load_digits
from benchmarks.problems.problem import Problem

NAME = "gan"
LATENT = 16
HIDDEN = 128
BATCH = 16
GAMMA = 0.7  # how varied, against how sharp
BALANCE_RATE = 0.05


class Generator(nn.Module):
    """Draws images."""

    @nn.compact
    def __call__(self, latents: jax.Array) -> jax.Array:
        """Return images [B, 784] in [0, 1] for latents [B, 16]."""
        hidden = nn.elu(nn.Dense(HIDDEN)(latents))
        return nn.sigmoid(nn.Dense(784)(hidden))


class Discriminator(nn.Module):
    """Reconstructs images through a narrow middle."""

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Return images [B, 784] in [0, 1] for images [B, 784]."""
        middle = nn.Dense(LATENT)(nn.elu(nn.Dense(HIDDEN)(images)))
        return nn.sigmoid(nn.Dense(784)(nn.elu(nn.Dense(HIDDEN)(middle))))


class Arrays(NamedTuple):
    """Images in [0, 1] and the latents that are judged."""

    train: jax.Array  # [N, 784]
    judged: jax.Array  # [J, 784]
    latents: jax.Array  # [J, 16]


class Game(NamedTuple):
    """What goes from update to update beside the two networks."""

    key: jax.Array
    balance: jax.Array  # k in [0, 1]


def generate(params: Any, latents: jax.Array) -> jax.Array:
    """Return images [B, 784]."""
    return jnp.asarray(Generator().apply(params["generator"], latents))


def _reconstruction(discriminator: Any, images: jax.Array) -> jax.Array:
    again = jnp.asarray(Discriminator().apply(discriminator, images))
    return jnp.mean((images - again) ** 2)


def _start(arrays: Arrays, key: jax.Array) -> tuple[Any, Game]:
    keys = jax.random.split(key)
    params = {
        "generator": Generator().init(keys[0], arrays.latents[:1]),
        "discriminator": Discriminator().init(keys[1], arrays.train[:1]),
    }
    return params, Game(key, jnp.zeros(()))


def _gradients(arrays: Arrays, params: Any, game: Game, count: jax.Array) -> Any:
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

    discriminator, (real, fake) = jax.grad(discriminator_loss, has_aux=True)(
        params["discriminator"]
    )
    gradients = {
        "generator": jax.grad(generator_loss)(params["generator"]),
        "discriminator": discriminator,
    }
    balance = jnp.clip(game.balance + BALANCE_RATE * (GAMMA * real - fake), 0.0, 1.0)
    return gradients, game._replace(balance=balance)


def _measure(arrays: Arrays, params: Any, game: Game) -> jax.Array:
    del game
    real = _reconstruction(params["discriminator"], arrays.judged)
    fake = _reconstruction(params["discriminator"], generate(params, arrays.latents))
    return real + jnp.abs(GAMMA * real - fake)


def make_arrays(train: np.ndarray, judged: np.ndarray) -> Arrays:
    """Return images [N, 28, 28] in [0, 1] flat, with fixed latents to judge."""
    latents = np.random.default_rng(0).uniform(-1.0, 1.0, (len(judged), LATENT))
    return Arrays(
        jnp.asarray(train.reshape(-1, 784), jnp.float32),
        jnp.asarray(judged.reshape(-1, 784), jnp.float32),
        jnp.asarray(latents, jnp.float32),
    )


def load_problem() -> Problem:
    """Return the game on the digits 5 to 9; related are 0 to 4, unrelated is noise."""
    digits = load_digits()

    def select(low: int) -> Arrays:
        train = digits.train_labels // 5 == low // 5
        judged = np.flatnonzero(digits.test_labels // 5 == low // 5)[::8]
        return make_arrays(
            digits.train_images[train] / 255.0, digits.test_images[judged] / 255.0
        )

    noise = np.random.default_rng(1).uniform(size=(5125, 28, 28))
    return Problem(
        NAME,
        select(5),
        _start,
        _gradients,
        _measure,
        horizon=1000,
        every=20,
        related=select(0),
        unrelated=make_arrays(noise[125:], noise[:125]),
    )
