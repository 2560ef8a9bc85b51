"""How rates change with the progress of a run: the learned schedule that it leaves.

Progress is the number of steps of a run. Along it stand local models, at every power of
two, with triangular kernels between neighbours: near the start, where rates change
most, they are closest. Each holds the logarithm of a rate, relative to the rate in use,
so that evidence moves the rate in use and all that are ahead alike.
"""

import jax
import jax.numpy as jnp
import numpy as np

# At which step each local model stands; the first step is number 1. Half a million are
# enough: later ones keep the last rate, and what evidence makes of it.
MARKS = np.exp2(np.arange(20))


def step_along(schedule: jax.Array, progress: jax.Array) -> jax.Array:
    r"""Return how far the learned schedule moves the logs of rates in the next step.

    .. math:: \delta = s_p / (2^p - t), \quad p = \min \{p : 2^p > t\}

    Args:
      schedule: [L, P], :math:`s_p`, log of the rate at step 2^p over that in use.
      progress: [] or [L], :math:`t`, steps so far.

    Returns:
      [L]: a straight way to the next local model, 0 beyond the last.
    """
    done, marks = _places(schedule, progress)
    is_next = (marks > done) & (marks <= jnp.maximum(2 * done, 1))
    return jnp.sum(jnp.where(is_next, schedule, 0) / jnp.maximum(marks - done, 1), -1)


def record(
    schedule: jax.Array, progress: jax.Array, step: jax.Array, change: jax.Array
) -> jax.Array:
    r"""Return the learned schedule after a step, relative to the rate now in use.

    .. math::
      s_p \leftarrow s_p - \begin{cases} \delta & 2^p > t \\ c & 2^p \le t \end{cases},
      \quad s_p \leftarrow \max(s_p, 0) \text{ where } 2^p \le t + 1

    Rates ahead keep their distance to the rate in use, but for the part of it that the
    step has gone. Where the run has been, the highest rate since then is kept: a rate
    that had to be climbed to is there at once the next time, and one that came down
    comes down again.

    Args:
      schedule: [L, P], :math:`s_p`, before.
      progress: [] or [L], :math:`t`, before.
      step: [L], :math:`\delta`, of :func:`step_along`.
      change: [L], :math:`c`, of the log of the rate in use: :math:`\delta` and what
        evidence made of it.
    """
    done, marks = _places(schedule, progress)
    schedule -= jnp.where(marks > done, step[:, None], change[:, None])
    return jnp.where(marks <= done + 1, jnp.maximum(schedule, 0), schedule)


def _places(schedule: jax.Array, progress: jax.Array) -> tuple[jax.Array, jax.Array]:
    dtype = schedule.dtype
    return progress.astype(dtype).reshape(-1, 1), MARKS.astype(dtype)[None]
