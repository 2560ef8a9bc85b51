"""How rates change with the progress of a run: the schedule that it leaves.

Progress is how many updates a run has had. Along it stand local models, one at every
power of two, with triangular kernels between neighbours: near the start, where rates
change most, they are closest. Each holds the logarithm of a rate, relative to the rate
in use, so that evidence moves the one in use and all that are ahead alike.
"""

import jax
import jax.numpy as jnp
import numpy as np

# At which update each local model stands; the first is number 1. Half a million are
# enough: later ones keep the last rate, and what evidence makes of it.
MARKS = np.exp2(np.arange(20))


def step_along(schedule: jax.Array, progress: jax.Array) -> jax.Array:
    r"""Return how far the schedule moves the logs of rates in the next update.

    .. math:: \delta = s_p / (2^p - t), \quad p = \min \{p : 2^p > t\}

    Args:
      schedule: [L, P], :math:`s_p`, log of the rate at update 2^p over that in use.
      progress: [L], :math:`t`, updates so far.

    Returns:
      [L]: a straight way to the next local model, 0 beyond the last.
    """
    done, marks = progress[:, None], MARKS.astype(schedule.dtype)[None]
    is_next = (marks > done) & (marks <= jnp.maximum(2 * done, 1))
    return jnp.sum(jnp.where(is_next, schedule, 0) / jnp.maximum(marks - done, 1), -1)


def record(
    schedule: jax.Array, progress: jax.Array, step: jax.Array, change: jax.Array
) -> jax.Array:
    r"""Return the schedule after an update, relative to the rate that is now in use.

    .. math::
      s_p \leftarrow s_p - \begin{cases} \delta & 2^p > t \\ c & 2^p \le t \end{cases},
      \quad s_p \leftarrow \max(s_p, 0) \text{ where } 2^p \le t + 1

    Rates ahead keep their distance to the one in use, but for what that has come
    nearer: what evidence said of it holds for them. Where the run has been, the highest
    rate since then is kept: one that had to be climbed to is there at once the next
    time, one that came down comes down again.

    Args:
      schedule: [L, P], :math:`s_p`, before.
      progress: [L], :math:`t`, before.
      step: [L], :math:`\delta`, of :func:`step_along`.
      change: [L], :math:`c`, of the log of the rate in use: :math:`\delta` and what
        evidence made of it.
    """
    done, marks = progress[:, None], MARKS.astype(schedule.dtype)[None]
    schedule -= jnp.where(marks > done, step[:, None], change[:, None])
    return jnp.where(marks <= done + 1, jnp.maximum(schedule, 0), schedule)
