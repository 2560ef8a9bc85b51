"""The algorithm as the paper and the authors' code state it, one coordinate at a time.

Plain NumPy float64 and loops, written from the formulas without a look at the library:
slow, and as easy to check by eye as it gets. Addresses must lie within the kernels.
"""

import math

import numpy as np


def activations(centers, widths, z):
    pairs = zip(centers, widths, strict=True)
    return np.array([math.exp(-((z - c) ** 2) / (2 * s**2)) for c, s in pairs])


def sign(x):
    return float(x > 0) - float(x < 0)


def sign_agreement(g, d):
    return sign(g) * sign(d)


def clipped_product(g, d):
    return min(max(g * d, -1.0), 1.0)


def raw_product(g, d):
    return g * d


def sgd(xi):
    """Return (initial state, ascend) of the paper's equation 6."""

    def ascend(rates, u, state, activity):
        return rates + xi * u, state

    return {}, ascend


def adam(xi, b1=0.9, b2=0.999, eps=1e-8):
    """Return (initial state, ascend) of the textbook Adam."""

    def ascend(rates, u, state, activity):
        k = state.get("k", 0) + 1
        m = b1 * state.get("m", 0.0) + (1 - b1) * u
        s = b2 * state.get("s", 0.0) + (1 - b2) * u**2
        step = (m / (1 - b1**k)) / (np.sqrt(s / (1 - b2**k)) + eps)
        return rates + xi * step, {"k": k, "m": m, "s": s}

    return {}, ascend


def agreement_steps(xi, gain):
    """Return (initial state, ascend): factors, by agreement relative to the past."""

    def ascend(rates, u, state, activity):
        total = sum(activity)
        before = state.get("peak", 0.0)
        peak = max(0.99 * before, min(total, 2 * before) if before else total)
        k = state.get("k", 0) + (peak > 0)
        moments, doubts, factors = [], [], []
        for m, (u_m, b_m) in enumerate(zip(u, activity, strict=True)):
            e = own = 0.0
            if total > 0:
                e = u_m / (b_m + 0.001 * total) * min(total / peak, 1.0)
            if e != 0:
                own = b_m / (b_m + 0.001 * (total - b_m))
            mean, square = state.get("moments", [(0.0, 0.0)] * len(u))[m]
            mean, square = 0.8 * mean + 0.2 * e, 0.8 * square + 0.2 * e**2
            consistency = 0.0
            if square > 0:
                bias = 1 - 0.8**k
                consistency = min((mean / bias) ** 2 / (square / bias), 1.0)
            doubt = state.get("doubts", [0.0] * len(u))[m]
            doubt += own * (1 - consistency)
            doubt *= 1 - 0.1 * consistency**8
            size = gain / doubt if xi * doubt > gain else xi
            step = size * math.tanh(e / 0.3) * (0.2 + 0.8 * consistency)
            factors.append(math.exp(step))
            moments.append((mean, square))
            doubts.append(doubt)
        new_state = {"k": k, "peak": peak, "moments": moments, "doubts": doubts}
        return rates * np.array(factors), new_state

    return {}, ascend


def run(gradients, label_of, memories, signal, memory_optimizer, bounds, momentum=0.0):
    """Feed gradients; return per step the updates, memories and directions.

    gradients: list over steps of {tensor: array}. label_of: {tensor: label}.
    memories: {label: (centers, widths, rates)}. The direction is the gradient, or its
    running sum d <- g + momentum * d.
    """
    state, ascend = memory_optimizer
    rates = {label: np.array(m[2], float) for label, m in memories.items()}
    states = {label: dict(state) for label in memories}
    previous = {name: np.zeros_like(g) for name, g in gradients[0].items()}
    history = []
    for step in gradients:
        direction = {name: g + momentum * previous[name] for name, g in step.items()}
        for label, (centers, widths, _) in memories.items():
            total, activity, count = np.zeros(len(centers)), np.zeros(len(centers)), 0
            for name, g in step.items():
                if label_of[name] != label:
                    continue
                for g_i, d_i in zip(g.ravel(), previous[name].ravel(), strict=True):
                    psi = activations(centers, widths, d_i)
                    total += signal(g_i, d_i) * psi
                    activity += abs(signal(g_i, d_i)) * psi
                    count += 1
            ascended, states[label] = ascend(
                rates[label], total / count, states[label], activity / count
            )
            rates[label] = np.minimum(np.maximum(ascended, bounds[0]), bounds[1])
        updates = {}
        for name, d in direction.items():
            centers, widths, _ = memories[label_of[name]]
            scaled = []
            for d_i in d.ravel():
                psi = activations(centers, widths, d_i)
                eta = np.sum(psi * rates[label_of[name]]) / np.sum(psi)
                scaled.append(eta * d_i)
            updates[name] = np.array(scaled).reshape(d.shape)
        previous = direction
        history.append((updates, dict(rates), direction, dict(states)))
    return history
