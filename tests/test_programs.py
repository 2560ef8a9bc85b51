"""Small training programs of many kinds: they learn, and resume to the bit."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import serialization

from metalr_optax import (
    average_weights,
    averaged_weights,
    learn_rates,
    memory_adam,
    memory_sgd,
)

HALF = 25  # steps up to the checkpoint, and after it


def dense(rng, inputs, outputs):
    weights = rng.normal(size=(inputs, outputs)) / np.sqrt(inputs)
    return {"w": jnp.asarray(weights, jnp.float32), "b": jnp.zeros((1, outputs))}


def perceptron(rng, inputs, outputs, hidden=8):
    return {"in": dense(rng, inputs, hidden), "out": dense(rng, hidden, outputs)}


def apply(layer, x):
    return x @ layer["w"] + layer["b"]


def predict(layers, x):
    return apply(layers["out"], jnp.tanh(apply(layers["in"], x)))


def normal(rng, *shape):
    return jnp.asarray(rng.normal(size=shape), jnp.float32)


def batch(key, num, *arrays):
    """Return rows of arrays that are drawn with a key."""
    rows = jax.random.randint(key, (num,), 0, len(arrays[0]))
    return [array[rows] for array in arrays]


def graph_network(rng):
    """Two rounds of messages, with nodes dropped at random."""
    edges = np.eye(16) + (rng.random((16, 16)) < 0.2)
    spread = jnp.asarray(edges / edges.sum(1, keepdims=True), jnp.float32)
    nodes = normal(rng, 16, 4)
    targets = jnp.tanh(2 * spread @ spread @ nodes[:, :1])
    params = {"messages": dense(rng, 4, 8), "readout": dense(rng, 8, 1)}

    def loss(params, key):
        kept = nodes * jax.random.bernoulli(key, 0.9, (16, 1))
        hidden = jnp.tanh(spread @ apply(params["messages"], kept))
        found = spread @ apply(params["readout"], hidden)
        return jnp.mean(jnp.square(found - targets))

    return params, loss


def flow(rng):
    """The negative log-likelihood of a banana under two affine couplings."""
    first = normal(rng, 128, 1)
    data = jnp.concatenate([first, first**2 + 0.3 * normal(rng, 128, 1)], axis=1)
    params = {"first": perceptron(rng, 1, 2), "second": perceptron(rng, 1, 2)}

    def loss(params, key):
        (points,) = batch(key, 32, data)
        left, right = jnp.split(points, 2, axis=1)
        log_volume = 0.0
        for name in ("first", "second"):
            shift, log_scale = jnp.split(predict(params[name], left), 2, axis=1)
            left, right = (right - shift) * jnp.exp(-log_scale), left
            log_volume -= log_scale
        return jnp.mean((left**2 + right**2) / 2 - log_volume)

    return params, loss


def neural_ode(rng):
    """A field whose flow is a rotation, by eight steps of the midpoint rule."""
    starts = normal(rng, 32, 2)
    ends = starts @ jnp.array([[0.5, -0.8], [0.8, 0.5]])
    params = perceptron(rng, 2, 2)

    def loss(params, key):
        x, wanted = batch(key, 16, starts, ends)

        def forward(x, _):
            middle = x + predict(params, x) / 16
            return x + predict(params, middle) / 8, None

        found, _ = jax.lax.scan(forward, x, length=8)
        return jnp.mean(jnp.square(found - wanted))

    return params, loss


def meta_learning(rng):
    """Weights, and a rate, from which three steps of an optimizer learn a sine."""
    x = jnp.linspace(-2.0, 2.0, 12)[:, None]
    features = jnp.tanh(2 * x @ normal(rng, 1, 8) + normal(rng, 1, 8))
    params = {"weights": normal(rng, 8, 1) / 3, "log_rate": jnp.array([-3.0])}

    def adapted(params, height, phase):
        targets = height * jnp.sin(x + phase)
        inner: Any = memory_sgd(initial=jnp.exp(params["log_rate"][0]))

        def error(weights):
            return jnp.mean(jnp.square(features @ weights - targets))

        def learn(carry, _):
            weights, state = carry
            updates, state = inner.update(jax.grad(error)(weights), state, weights)
            return (optax.apply_updates(weights, updates), state), None

        start = params["weights"], inner.init(params["weights"])
        (weights, _), _ = jax.lax.scan(learn, start, length=3)
        return error(weights)

    def loss(params, key):
        tasks = jax.random.uniform(key, (2, 4), minval=0.5, maxval=1.5)
        return jnp.mean(jax.vmap(adapted, in_axes=(None, 0, 0))(params, *tasks))

    return params, loss


def variational_inference(rng):
    """The posterior of a logistic regression, by reparametrised samples."""
    x = normal(rng, 64, 3)
    labels = (x @ jnp.array([[1.0], [-2.0], [0.5]]) + normal(rng, 64, 1) > 0)[:, 0]
    params = {"mean": jnp.zeros(3), "log_scale": jnp.zeros(3)}

    def loss(params, key):
        scale = jnp.exp(params["log_scale"])
        samples = jax.random.normal(key, (8, 3)) * scale[None] + params["mean"][None]
        logits = x @ samples.T
        signs = jnp.where(labels, 1.0, -1.0)[:, None]
        fit = jnp.sum(jnp.mean(jax.nn.softplus(-signs * logits), axis=1))
        prior = scale**2 + params["mean"] ** 2 - 1 - 2 * params["log_scale"]
        return fit + jnp.sum(prior) / 2

    return params, loss


def agent(rng):
    """An actor and a critic; the reward is that of naming the largest number."""
    params = {"actor": perceptron(rng, 3, 3), "critic": perceptron(rng, 3, 1)}

    def loss(params, key):
        seen, act = jax.random.split(key)
        seen = jax.random.normal(seen, (64, 3))
        log_policy = jax.nn.log_softmax(predict(params["actor"], seen))
        action = jax.random.categorical(act, log_policy)
        reward = jnp.where(action == jnp.argmax(seen, axis=1), 1.0, 0.0)
        error = reward - predict(params["critic"], seen)[:, 0]
        taken = jnp.take_along_axis(log_policy, action[:, None], axis=1)[:, 0]
        objective = jnp.mean(error**2 - jax.lax.stop_gradient(error) * taken)
        # Its gradient is the objective's, its value says how often the actor is wrong.
        return objective - jax.lax.stop_gradient(objective - 1 + jnp.mean(reward))

    return params, loss


def recommender(rng):
    """Ratings as products of two tables, each with few rows in a batch."""
    ratings = normal(rng, 20, 2) @ normal(rng, 2, 30)
    params = {
        "users": {"table": normal(rng, 20, 4) / 2, "bias": jnp.zeros(20)},
        "items": {"table": normal(rng, 30, 4) / 2, "bias": jnp.zeros(30)},
    }

    def loss(params, key):
        users, items = params["users"], params["items"]
        row, column = jax.random.randint(key, (2, 64), 0, jnp.array([[20], [30]]))
        found = jnp.sum(users["table"][row] * items["table"][column], axis=1)
        found += users["bias"][row] + items["bias"][column]
        return jnp.mean(jnp.square(found - ratings[row, column]))

    return params, loss


def sequence_to_sequence(rng):
    """Four symbols in reverse, by a recurrent encoder and a decoder that is taught."""
    params = {
        "encoder": dense(rng, 4 + 12, 12),
        "decoder": dense(rng, 4 + 12, 12),
        "symbols": dense(rng, 12, 4),
    }

    def loss(params, key):
        words = jax.random.randint(key, (4, 32), 0, 4)
        ahead = words[::-1]
        before = jnp.concatenate([jnp.zeros((1, 32, 4)), jax.nn.one_hot(ahead, 4)[:-1]])

        def follow(name, hidden, symbols):
            def forward(hidden, symbol):
                both = jnp.concatenate([symbol, hidden], axis=1)
                hidden = jnp.tanh(apply(params[name], both))
                return hidden, hidden

            return jax.lax.scan(forward, hidden, symbols)

        code, _ = follow("encoder", jnp.zeros((32, 12)), jax.nn.one_hot(words, 4))
        _, hidden = follow("decoder", code, before)
        logits = apply(params["symbols"], hidden.reshape(-1, 12))
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, ahead.ravel())
        return jnp.mean(losses)

    return params, loss


def state_space_model(rng):
    """A diagonal linear recurrence, by an associative scan, that smooths a signal."""
    params = {
        "decay": {"log": normal(rng, 8)},
        "read": dense(rng, 8, 1),
        "write": dense(rng, 1, 8),
    }

    def recur(left, right):
        return left[0] * right[0], right[0] * left[1] + right[1]

    def loss(params, key):
        signal = jax.random.normal(key, (32, 8, 1))
        targets = sum(0.8**i * jnp.roll(signal, i, axis=0) for i in range(6))
        inputs = signal @ params["write"]["w"]
        decay = jax.nn.sigmoid(params["decay"]["log"])[None, None]
        factors = jnp.broadcast_to(decay, inputs.shape)
        _, hidden = jax.lax.associative_scan(recur, (factors, inputs))
        found = hidden @ params["read"]["w"] + params["read"]["b"][None]
        return jnp.mean(jnp.square(found - targets)[6:])

    return params, loss


def mixture_of_experts(rng):
    """Three experts and a gate for a function that differs by quadrant."""
    x = normal(rng, 128, 2)
    targets = jnp.where(x[:, :1] > 0, x[:, 1:], -2 * x[:, 1:])
    experts = [perceptron(rng, 2, 1, hidden=4) for _ in range(3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *experts)
    params = {"experts": stacked, "gate": dense(rng, 2, 3)}

    def loss(params, key):
        inputs, wanted = batch(key, 64, x, targets)
        shares = jax.nn.softmax(apply(params["gate"], inputs))
        answers = jax.vmap(predict, in_axes=(0, None))(params["experts"], inputs)
        found = jnp.sum(shares * answers[..., 0].T, axis=1, keepdims=True)
        balance = jnp.sum(jnp.square(jnp.mean(shares, axis=0)))
        return jnp.mean(jnp.square(found - wanted)) + 0.01 * balance

    return params, loss


# Rates climb from 1e-3 until the decay begins.
DECAY = optax.linear_schedule(1.0, 0.0, HALF, transition_begin=HALF)


def adam():
    return memory_adam(DECAY, initial=1e-3, weight_decay=1e-3)


def lion():
    # Runs as short as these want larger steps than Lion bears on long ones.
    return learn_rates(optax.lion(1.0), DECAY, largest_step=1.0)


# What is trained with what, and to which part of its first loss at least.
PROGRAMS: Any = [
    (graph_network, adam, 0.3),
    (flow, lion, 0.3),
    (neural_ode, adam, 0.2),
    (meta_learning, lion, 0.8),
    (variational_inference, adam, 0.7),
    (agent, lion, 0.3),
    (recommender, adam, 0.5),
    (sequence_to_sequence, lion, 0.5),
    (state_space_model, adam, 0.3),
    (mixture_of_experts, lion, 0.3),
]


@pytest.mark.parametrize(("program", "base", "fall"), PROGRAMS)
def test_a_program_learns_and_resumes_to_the_bit(program, base, fall):
    params, loss = program(np.random.default_rng(0))
    optimizer: Any = optax.chain(base(), average_weights())

    def step(carry, key):
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params, key), state, params)
        return (optax.apply_updates(params, updates), state), None

    run = jax.jit(lambda carry, keys: jax.lax.scan(step, carry, keys)[0])
    keys = jax.random.split(jax.random.key(0), (2, HALF))
    start = params, jax.jit(optimizer.init)(params)
    middle = run(start, keys[0])
    saved = serialization.to_bytes(middle)
    end = run(middle, keys[1])
    resumed = run(serialization.from_bytes(start, saved), keys[1])
    chex.assert_trees_all_equal(resumed, end)
    chex.assert_tree_all_finite(end)
    judge = jax.jit(jax.vmap(loss, in_axes=(None, 0)))
    averaged = averaged_weights(end[1], end[0])
    losses = [jnp.mean(judge(x, keys[0])) for x in (params, end[0], averaged)]
    assert max(losses[1:]) < fall * losses[0], losses
