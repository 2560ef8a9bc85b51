"""Every network that is trained here, once.

Flax names layers, and draws their parameters, in the order in which they are made: the
committed rows hold for the order in this file.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np


class Mlp(nn.Module):
    """Dense layers of the given widths."""

    widths: tuple[int, ...]
    activation: Callable[[jax.Array], jax.Array]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Return [B, widths[-1]] for x [B, ...]."""
        x = x.reshape(len(x), -1)
        for width in self.widths[:-1]:
            x = self.activation(nn.Dense(width)(x))
        return nn.Dense(self.widths[-1])(x)


class Residual(nn.Module):
    """Eight residual blocks, each with a normalisation and two dense layers."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Return logits [B, 10] for images x [B, 28, 28]."""
        x = nn.Dense(64)(x.reshape(len(x), -1))
        for _ in range(8):
            x += nn.Dense(64)(nn.relu(nn.Dense(64)(nn.LayerNorm()(x))))
        return nn.Dense(10)(nn.LayerNorm()(x))


class Cnn(nn.Module):
    """Convolutions of 3 x 3, each halving the image, and two dense layers."""

    channels: tuple[int, ...]
    width: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Return logits [B, 10] for images x [B, 28, 28]."""
        x = x[..., None]
        for channels in self.channels:
            x = nn.relu(nn.Conv(channels, (3, 3), strides=(2, 2))(x))
        x = x.reshape(len(x), -1)
        return nn.Dense(10)(nn.relu(nn.Dense(self.width)(x)))


class _ConvPool(nn.Module):
    """A convolution, 5 x 5 x 8, and the maxima of its windows of 2 x 2.

    One product gives all four numbers of a window, from its patch of 6 x 6: with
    nn.Conv and nn.max_pool a gradient takes a CPU three times as long.
    """

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Return [B, 12, 12, 8] for images [B, 28, 28]."""
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (25, 8))
        bias = self.param("bias", nn.initializers.zeros, (8,))
        square = kernel.reshape(5, 5, 8)
        kernels = [
            jnp.pad(square, ((row, 1 - row), (column, 1 - column), (0, 0)))
            for row, column in np.ndindex(2, 2)
        ]
        patches = [
            images[:, row : row + 24 : 2, column : column + 24 : 2]
            for row, column in np.ndindex(6, 6)
        ]
        wide = jnp.stack(kernels, -2).reshape(36, 32)
        features = wide.T @ jnp.stack(patches).reshape(36, -1)
        rows = jnp.maximum(*features.reshape(2, 16, -1))
        pooled = jnp.maximum(*rows.reshape(2, 8, -1)) + bias[:, None]
        return pooled.reshape(8, -1, 12, 12).transpose(1, 2, 3, 0)


class LeNet(nn.Module):
    """The authors' small LeNet: conv 5x5x8, max-pool, dense 128, 2 outputs."""

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Return logits [B, 2] for images [B, 28, 28] in [0, 1]."""
        pooled = nn.relu(_ConvPool(name="Conv_0")(images))
        hidden = nn.relu(nn.Dense(128)(pooled.reshape(-1, 12 * 12 * 8)))
        return nn.Dense(2)(hidden)


def apply_lenet(variables: Any, images: jax.Array) -> jax.Array:
    """Return the logits of LeNet: for hundreds of images in half the time on a CPU.

    The images are last, so that XLA convolves and pools in one loop over them; without
    the barrier it would transpose them in that loop. Gradients would be slow.
    """
    conv, dense, last = (
        variables["params"][name] for name in ("Conv_0", "Dense_0", "Dense_1")
    )
    kernel = conv["kernel"].reshape(5, 5, 8, 1, 1, 1)
    images = jax.lax.optimization_barrier(images.transpose(1, 2, 0)[None])

    def convolve(top: int, left: int) -> Any:
        return sum(
            kernel[i, j]
            * images[:, top + i : top + i + 24 : 2, left + j : left + j + 24 : 2]
            for i, j in np.ndindex(5, 5)
        )

    rows = [jnp.maximum(convolve(top, 0), convolve(top, 1)) for top in range(2)]
    pooled = jnp.maximum(*rows).reshape(8, 144, -1) + conv["bias"].reshape(8, 1, 1)
    weights = dense["kernel"].reshape(144, 8, 128)
    hidden = jnp.einsum("cpn,pcd->dn", nn.relu(pooled), weights).T
    return nn.relu(hidden + dense["bias"][None]) @ last["kernel"] + last["bias"][None]


class Transformer(nn.Module):
    """A language model over bytes."""

    width: int
    layers: int

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Return logits [B, T, 256] for bytes [B, T]."""
        x: Any = nn.Embed(256, self.width)(tokens)
        shape = (1, *x.shape[-2:])
        x += self.param("position", nn.initializers.normal(0.02), shape)
        mask = nn.make_causal_mask(tokens)
        for _ in range(self.layers):
            attend = nn.MultiHeadDotProductAttention(num_heads=4)
            x += attend(nn.LayerNorm()(x), mask=mask)
            out, inner = nn.Dense(self.width), nn.Dense(4 * self.width)
            x += out(nn.gelu(inner(nn.LayerNorm()(x))))
        return nn.Dense(256)(nn.LayerNorm()(x))


class ImageTransformer(nn.Module):
    """A block of attention over the seven stripes of an image, four rows each."""

    width: int

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Return logits [B, 10] for images [B, 28, 28]."""
        x: Any = nn.Dense(self.width)(images.reshape(len(images), 7, -1))
        x += self.param("position", nn.initializers.normal(0.02), (1, *x.shape[-2:]))
        x += nn.MultiHeadDotProductAttention(num_heads=4)(nn.LayerNorm()(x))
        out, inner = nn.Dense(self.width), nn.Dense(2 * self.width)
        x += out(nn.gelu(inner(nn.LayerNorm()(x))))
        return nn.Dense(10)(nn.LayerNorm()(x).mean(axis=1))


class Lstm(nn.Module):
    """LSTM cells and a linear layer."""

    cells: int
    width: int

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Return [B, T, width] for inputs [B, T, ...]."""
        hidden = nn.RNN(nn.OptimizedLSTMCell(self.cells, name="LSTM"))(inputs)
        return nn.Dense(self.width)(hidden)


class Autoencoder(nn.Module):
    """Dense layers that draw images again through a narrow middle."""

    width: int
    middle: int

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Return images [B, P] in [0, 1] for images [B, P]."""
        middle = nn.Dense(self.middle)(nn.elu(nn.Dense(self.width)(images)))
        out, hidden = nn.Dense(images.shape[-1]), nn.Dense(self.width)
        return nn.sigmoid(out(nn.elu(hidden(middle))))


class VariationalAutoencoder(nn.Module):
    """Dense layers that draw images again from a code with noise in it."""

    width: int
    code: int

    @nn.compact
    def __call__(self, images: jax.Array, noise: jax.Array) -> Any:
        """Return logits [B, P], means and log variances [B, code] for images [B, P]."""
        hidden = nn.relu(nn.Dense(self.width)(images))
        mean, log_variance = nn.Dense(self.code)(hidden), nn.Dense(self.code)(hidden)
        code = mean + jnp.exp(0.5 * log_variance) * noise
        out, inner = nn.Dense(images.shape[-1]), nn.Dense(self.width)
        return out(nn.relu(inner(code))), mean, log_variance


class ByteLstm(nn.Module):
    """A recurrent language model over bytes."""

    cells: int
    width: int

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Return logits [B, T, 256] for bytes [B, T]."""
        recur = nn.RNN(nn.OptimizedLSTMCell(self.cells))
        return nn.Dense(256)(recur(nn.Embed(256, self.width)(tokens)))


class ActorCritic(nn.Module):
    """Two tanh layers, then how much each action is wanted, and what comes of it."""

    actions: int
    width: int

    @nn.compact
    def __call__(self, states: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return logits [..., actions] and values [...] for states [..., S]."""
        outer, inner = nn.Dense(self.width), nn.Dense(self.width)
        hidden = nn.tanh(outer(nn.tanh(inner(states))))
        return nn.Dense(self.actions)(hidden), nn.Dense(1)(hidden)[..., 0]


class Waves(nn.Module):
    """Sines of fixed random directions, then dense layers."""

    waves: int
    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, places: jax.Array) -> jax.Array:
        """Return [B] for places [B, 2] in [-1, 1]."""
        directions = np.random.default_rng(0).normal(size=(2, self.waves)) * 6.0
        phases = places @ jnp.asarray(directions, jnp.float32)
        x = jnp.concatenate([jnp.sin(phases), jnp.cos(phases)], axis=-1)
        return Mlp((*self.widths, 1), nn.relu)(x)[:, 0]
