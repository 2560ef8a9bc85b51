"""What a learning problem is; most are a network, examples and a loss."""

import hashlib
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

Loss = Callable[[jax.Array, jax.Array], jax.Array]  # of outputs and labels
DATA = pathlib.Path(__file__).parents[1] / "data"


class Problem(NamedTuple):
    """What is to be learned, and how it is judged.

    A problem is a gradient oracle, so two players with a loss each are as welcome as
    one loss. `extra` goes from update to update beside the parameters: the key of the
    run, an order of samples, the balance of two players.
    """

    name: str
    data: Any  # arrays, the first argument of the three functions
    start: Callable[[Any, jax.Array], tuple[Any, Any]]  # data, key -> params, extra
    gradients: Callable[[Any, Any, Any, jax.Array], tuple[Any, Any]]  # + update count
    measure: Callable[[Any, Any, Any], jax.Array]  # data, params, extra; less is better
    horizon: int  # updates of a run
    every: int  # updates from one measure to the next
    related: Any = None  # data of a task like it, where a memory may come from
    unrelated: Any = None  # data of a task unlike it, for a control


class Examples(NamedTuple):
    """What a network is trained and judged on."""

    inputs: jax.Array  # [N, ...]
    labels: jax.Array  # [N, ...], what it is to say
    judged_inputs: jax.Array  # [J, ...]
    judged_labels: jax.Array  # [J, ...]


def squared_error(outputs: jax.Array, labels: jax.Array) -> jax.Array:
    """Return the mean of squared errors."""
    return jnp.mean((outputs - labels) ** 2)


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Return the mean of what each label costs in nats."""
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return jnp.mean(losses)


def errors(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Return the share of labels that are not told; nan once nothing is finite."""
    wrong = jnp.mean(jnp.argmax(logits, axis=-1) != labels)
    return jnp.where(jnp.isfinite(logits).all(), wrong, jnp.nan)


def minimized(
    name: str, data: Any, start: Any, loss: Any, judge: Any, *lengths: int
) -> Problem:
    """Return a problem of one loss(params, data, extra, count); judge(params, data)."""

    def gradients(data: Any, params: Any, extra: Any, count: Any) -> Any:
        return jax.grad(loss)(params, data, extra, count), extra

    def measure(data: Any, params: Any, extra: Any) -> jax.Array:
        return judge(params, data)

    return Problem(name, data, start, gradients, measure, *lengths)


def supervised(
    name: str,
    network: nn.Module,
    examples: Examples,
    loss: Loss,
    batch: int,
    *lengths: int,
    judge: Loss | None = None,
) -> Problem:
    """Return a problem of random batches, judged on what is held out.

    By the loss, unless there is another judge.
    """

    def apply(params: Any, inputs: jax.Array) -> jax.Array:
        return jnp.asarray(network.apply(params, inputs))

    def start(examples: Examples, key: jax.Array) -> tuple[Any, jax.Array]:
        return network.init(key, examples.inputs[:1]), key

    def of_batch(params: Any, examples: Examples, key: Any, count: Any) -> jax.Array:
        batch_key = jax.random.fold_in(key, count)
        chosen = jax.random.randint(batch_key, (batch,), 0, len(examples.inputs))
        inputs, labels = examples.inputs[chosen], examples.labels[chosen]
        return loss(apply(params, inputs), labels)

    def of_judged(params: Any, examples: Examples) -> jax.Array:
        outputs = apply(params, examples.judged_inputs)
        return (judge or loss)(outputs, examples.judged_labels)

    return minimized(name, examples, start, of_batch, of_judged, *lengths)


def checked(path: pathlib.Path, content: bytes, digest: str) -> bytes:
    """Return what a file holds if it is the original.

    Raises:
      ValueError: its MD5 is another.
    """
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != digest:
        raise ValueError(f"{path} is damaged: its MD5 is {found}, not {digest}")
    return content
